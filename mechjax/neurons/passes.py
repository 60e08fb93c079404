"""Passes of a model over texts in blocks of one size, so that one executable serves all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, PyTree

from mechjax import harvest
from mechjax.errors import NeuronError
from mechjax.host_arrays import as_host
from mechjax.neurons.checks import check_count
from mechjax.patching.alignment import takes_mask

Mask = Bool[Array | np.ndarray, 'B T'] | None
"""True at tokens; None if there is no padding."""


def check_tokens(
  tokens: Int[Array | np.ndarray, 'B T'], mask: Mask
) -> tuple[Int[np.ndarray, 'B T'], Bool[np.ndarray, 'B T']]:
  """Returns texts and their mask on the host.

  Raises:
    NeuronError: not integers [B, T], or a mask of another shape.
  """
  array = as_host('tokens', tokens, NeuronError)
  if array.ndim != 2 or not np.issubdtype(array.dtype, np.integer) or 0 in array.shape:
    raise NeuronError(
      f'tokens of shape {list(array.shape)} and dtype {array.dtype}', hint='integers [B, T]'
    )
  real = np.ones(array.shape, bool) if mask is None else as_host('the mask', mask, NeuronError)
  if real.shape != array.shape or real.dtype != bool:
    raise NeuronError(
      f'a mask of shape {list(real.shape)} and dtype {real.dtype} for tokens {list(array.shape)}'
    )
  return array, real


def choose_options(
  forward: Callable, mask: Bool[np.ndarray, 'B T'], masked: bool
) -> Callable[[Int[np.ndarray, ' rows']], dict[str, Array]]:
  """A function from rows to the keywords of `forward`: their mask, if there is one and it is a parameter.

  Args:
    forward: the model.
    mask: True at tokens.
    masked: whether there is padding.

  Raises:
    NeuronError: padding before or between tokens, and a `forward` without a mask, which would read it as text.
  """
  if masked and takes_mask(forward):
    return lambda rows: {'mask': jnp.asarray(mask[rows])}
  wrong = np.flatnonzero((mask[:, 1:] & ~mask[:, :-1]).any(1))
  if len(wrong):
    raise NeuronError(
      f'text {wrong[0]} has padding before or between its tokens, and the model takes no mask',
      where=f'mask: {mask[wrong[0]].astype(int).tolist()!r:.100}',
      cause='padding on the left: the model would read it as text',
      hint='pad on the right; or pass a function (params, tokens, mask=None), such as model.apply',
    )
  return lambda rows: {}


def find_last_layer(
  forward: Callable, params: PyTree, tokens: Int[np.ndarray, 'B T'], layer: int
) -> int:
  """Number of the last layer, which `layer` has to be.

  Args:
    forward, params: the model.
    tokens: some texts.
    layer: its number, or -1.

  Raises:
    NeuronError: another layer, or the last one has no neurons.
  """
  infos = harvest.sites_of(forward, params, jnp.asarray(tokens[:1]))
  streams, neurons = (
    [i.site.layer for i in infos if i.site.name == name and isinstance(i.site.layer, int)]
    for name in ('resid_post', 'mlp_post')
  )
  last = max(streams, default=0)
  if last not in neurons:
    raise NeuronError(
      f'the last layer, {last}, has no neurons', cause='an attention-only model, or one without the tag mlp_post'
    )  # fmt: skip
  if isinstance(layer, bool) or layer not in (-1, last):
    raise NeuronError(
      f'layer={layer!r}, and the last layer is {last}',
      cause='later layers read what a neuron writes, so its effect is not on the direct path alone',
      hint='harvest.plant at mlp_post measures the effect of a neuron of any layer',
    )
  return last


def iterate_blocks(n: int, batch: int) -> Iterator[tuple[np.ndarray, int]]:
  """Iterates over indices in blocks of one size, the last one filled up, and how many of them count.

  Args:
    n: number of texts or tokens.
    batch: maximum size of a block.

  Raises:
    NeuronError: a batch that is not positive.
  """
  size = min(n, check_count('batch', batch))
  for start in range(0, n, size):
    yield np.minimum(np.arange(start, start + size), n - 1), min(size, n - start)
