"""Confidence neurons on repeated text: texts, and neurons that are clipped to their activation before the repetition.

When a text repeats itself, induction makes a model sure of the next token, and confidence neurons limit how sure. The
experiment (Stolfo et al. 2024, arXiv 2406.16254, section 5): a text of T tokens, then its tokens 1 to T - 1 again.

    texts = repeat_texts(tokens)                              [B, T] to [B, 2 T - 1]; token 0 begins the text
    halves = Repetition(T)
    found = read_last_layer(model.apply, model.params, texts, first=0)
    before, after = halves.in_first(found.columns), halves.in_second(found.columns)
    clip = Clip.of(found.a[before], found.a[after])
    late = found.take(after)
    effects = ablate(late.x, late.a, late.next_tokens, replacement=clip(late.a), units=late.rows)

A clipped neuron cannot exceed its mean over the first half: a <- min(a, mean), or max where the neuron falls in the
second half. Both halves have the same predictions: column p of the second half and column p - T + 1 of the first have
the same token and the same next token.

Sharp edge: the clip of a layer other than the last needs the whole model: plant `clip.plant(neuron, T)` at mlp_post.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float64, Int

from mechjax.errors import NeuronError
from mechjax.neurons.checks import check_count, check_floats


@dataclasses.dataclass(frozen=True)
class Repetition:
  """Columns of a text of T tokens whose tokens 1 to T - 1 follow once more.

  Attributes:
    length: T, at least 4.

  Raises:
    NeuronError: another length.
  """

  length: int

  def __post_init__(self) -> None:
    check_count('the length of a text', self.length, 4)

  @property
  def total(self) -> int:
    """Tokens of a repeated text."""
    return 2 * self.length - 1

  @property
  def second(self) -> Int[np.ndarray, ' n']:
    """Columns of the second half whose next token is known, T to 2 T - 3."""
    return np.arange(self.length, self.total - 1)

  @property
  def first(self) -> Int[np.ndarray, ' n']:
    """Columns of the first half with the same token and next token as those of `second`, 1 to T - 2."""
    return self.second - (self.length - 1)

  @property
  def induced(self) -> Int[np.ndarray, ' n']:
    """Column that an induction head attends to from each column of `second`: the one after the same token."""
    return self.first + 1

  def in_first(self, columns: Int[np.ndarray, ' n']) -> Bool[np.ndarray, ' n']:
    """Whether columns are in `first`."""
    return np.isin(columns, self.first)

  def in_second(self, columns: Int[np.ndarray, ' n']) -> Bool[np.ndarray, ' n']:
    """Whether columns are in `second`."""
    return np.isin(columns, self.second)


def repeat_texts(tokens: Int[Array | np.ndarray, 'B T']) -> Int[np.ndarray, 'B S']:
  """Texts followed by their tokens from the second one on, [B, 2 T - 1].

  Raises:
    NeuronError: not integers [B, T], or fewer than four tokens.
  """
  array = np.asarray(tokens)
  if array.ndim != 2 or not len(array) or not np.issubdtype(array.dtype, np.integer):
    raise NeuronError(f'tokens of shape {list(array.shape)} and dtype {array.dtype}; expected int [B, T]')  # fmt: skip
  Repetition(array.shape[1])
  return np.concatenate([array, array[:, 1:]], axis=1)


@dataclasses.dataclass(frozen=True, eq=False)
class Clip:
  """Bounds of activations on repeated text.

  Attributes:
    bounds: mean activation over the first half, float64 [F].
    rises: whether the mean over the second half is larger, [F]: then the bound is an upper one.
  """

  bounds: Float64[np.ndarray, ' F']
  rises: Bool[np.ndarray, ' F']

  @classmethod
  def of(
    cls, first: Float[np.ndarray, 'n F'], second: Float[np.ndarray, 'm F']
  ) -> Clip:  # fmt: skip
    """Measures the bounds.

    Args:
      first: activations in the first half.
      second: activations in the second half.

    Raises:
      NeuronError: other neurons in the two, no tokens, NaN.
    """
    check_floats('the activations of the first half', first, 'B F')
    check_floats('those of the second half', second, 'B F', {'F': first.shape[1]})
    bounds = first.mean(0, dtype=np.float64)
    return cls(bounds, second.mean(0, dtype=np.float64) > bounds)

  def __call__(self, a: Float[np.ndarray, '*batch F']) -> Float[np.ndarray, '*batch F']:
    """Activations within the bounds, of each neuron by itself."""
    bounds = self.bounds.astype(a.dtype)
    return np.where(self.rises, np.minimum(a, bounds), np.maximum(a, bounds))

  def plant(
    self, neuron: int, start: int
  ) -> Callable[[Float[Array, 'B T F']], Float[Array, 'B T F']]:
    """A function to plant at mlp_post, which clips one neuron from a column on.

    Raises:
      NeuronError: a neuron that does not exist, a negative column.
    """
    if check_count('neuron', neuron, 0) >= len(self.bounds):
      raise NeuronError(f'neuron {neuron} of {len(self.bounds)} does not exist')
    # As arrays they are data of the compiled program.
    at, begin = (jnp.asarray(n, jnp.int32) for n in (neuron, check_count('start', start, 0)))
    bound, rises = jnp.asarray(self.bounds[neuron]), jnp.asarray(self.rises[neuron])

    def clip(a: Array) -> Array:
      limit = bound.astype(a.dtype)
      own = jnp.take(a, at, axis=-1)
      clipped = jnp.where(rises, jnp.minimum(own, limit), jnp.maximum(own, limit))
      late = jnp.arange(a.shape[-2], dtype=jnp.int32) >= begin
      return a.at[..., at].set(jnp.where(late, clipped, own))

    return clip
