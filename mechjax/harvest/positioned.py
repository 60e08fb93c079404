"""Functions of a site's value and of the positions of its columns, for a pass and for a generation alike.

A column number is not a position: texts are padded on either side, and a step of a generation with a cache has one
column. A function of positions has one meaning in all of these:

    steer_the_prompt = Positioned(
      lambda x, positions, prompt_length: jnp.where((positions < prompt_length[:, None])[..., None], x + v, x)
    )
    model.generate(prompts, 40, plants={'resid_post.7': steer_the_prompt})               in a generation
    fn = steer_the_prompt.bind(mask_to_positions(mask), prompt_length)                   in one pass
    harvest.plant(forward)({'resid_post.7': fn}, params, tokens)

A single pass does not know where prompts end and which columns are padding, so that a `Positioned` which is not bound
is refused there.

Letters: B batch, T query position.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Int32, PyTree, Shaped

from mechjax.errors import HarvestError

Lengths = Int[np.ndarray, ' B']
"""Numbers of tokens of each row, on the host."""


@dataclasses.dataclass(frozen=True)
class Positioned:
  """A function of a site's value and of the positions of its columns.

  It means the same in the pass over the prompts, in every later step, and in rows of any lengths:

      positions == prompt_length[:, None] - 1    the last token of the prompt
      positions < prompt_length[:, None]         the prompt; >= the generated tokens
      positions < 3                              the first three tokens
      positions == 0                             the first token of the text

  Attributes:
    fn: (value, positions, prompt_length) -> new value. `positions`, int32 [B, T], are those of the value's columns in
      their text, -1 at padding; `prompt_length` is int32 [B]. At 'k', 'v', 'attn_scores' and 'attn_probs' the value
      has the whole text so far, and `positions` are those of the text, on either axis.
    check: (prompt_length or None, length) -> None, which raises if a row lacks positions that the function needs; or
      None. It is called before anything runs, with the tokens of each prompt (None if they are not known) and of each
      whole text as NumPy arrays int [B].
  """

  fn: Callable[[Array, Array, Array], Array]
  check: Callable[[Lengths | None, Lengths], None] | None = None

  def __post_init__(self) -> None:
    """Refuses what cannot be called with three arguments, as far as a signature says so.

    Raises:
      HarvestError: it cannot.
    """
    try:
      inspect.signature(self.fn).bind(*[None] * 3)
    except ValueError:  # a function without a signature
      return
    except TypeError as e:
      raise HarvestError(
        f'Positioned({self.fn!r:.100}) is not a function of three arguments: {e}',
        hint='Positioned(lambda value, positions, prompt_length: ...)',
      ) from e

  def bind(
    self,
    positions_BxT: Int32[Array | np.ndarray, 'B T'],
    prompt_length_B: Int32[Array | np.ndarray, ' B'],
  ) -> Callable[[Shaped[Array, 'B ...']], Shaped[Array, 'B ...']]:
    """Makes the function of the value alone, for one pass with these positions.

    Args:
      positions_BxT: positions of the columns in their texts; -1 at padding.
      prompt_length_B: tokens of each prompt.
    """
    fn, positions, length = self.fn, jnp.asarray(positions_BxT), jnp.asarray(prompt_length_B)
    return lambda value: fn(value, positions, length)

  def __call__(self, value: PyTree) -> PyTree:
    """Refuses a pass without positions, such as `harvest.plant`.

    Raises:
      HarvestError: always.
    """
    raise HarvestError(
      'a Positioned function was planted in a single pass',
      cause='a single pass does not know the lengths of the prompts and the padding; a generation does',
      hint='bind(positions, prompt_length) makes it a function of the value; '
      'mechjax.steering.in_one_pass(plants, mask) does so for all plants',
    )


def mask_to_positions(
  mask_BxT: Bool[Array | np.ndarray, 'B T'],
) -> Int32[Array | np.ndarray, 'B T']:
  """Positions of the columns of a padded batch in their texts, int32 [B, T]; -1 at padding.

  Args:
    mask_BxT: True at tokens, False at padding, on either side, bool [B, T]. For an array of NumPy nothing is compiled,
      and the result is one, too.
  """
  xp: Any = np if isinstance(mask_BxT, np.ndarray) else jnp
  return xp.where(mask_BxT, xp.cumsum(mask_BxT, axis=1, dtype=xp.int32) - 1, xp.int32(-1))
