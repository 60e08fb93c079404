"""Streams and activations of the last layer of any tagged model, at the tokens that count.

    found = read_last_layer(model.apply, model.params, tokens, first=3, skip=special_ids)
    effects = ablate(found.x, found.a, found.next_tokens, units=found.rows)

Left out are the first positions of a text, which attract attention and have activations of their own; the last
position, whose next token is not known; padding; and tokens in `skip`, such as those that begin or end texts.

`check_weights` compares a readout and the neurons' output with the model, so that weights of another layer, or a norm
that was left out, are an error and not a plausible table.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Float64, Int, Int64, PyTree

from mechjax import harvest, precision, watching
from mechjax.errors import NeuronError
from mechjax.host_arrays import as_host
from mechjax.neurons.checks import check_count, check_floats
from mechjax.neurons.passes import (
  Mask,
  check_tokens,
  choose_options,
  find_last_layer,
  iterate_blocks,
)
from mechjax.neurons.readout import Readout
from mechjax.neurons.writes import NeuronWrites
from mechjax.programs.callables import check_function


@dataclasses.dataclass(frozen=True, eq=False)
class LastLayer:
  """The last layer at n tokens of some texts.

  Attributes:
    x: final residual streams, [n, D].
    a: activations of the neurons, [n, F].
    next_tokens: ids of the tokens that follow, [n].
    rows: text of each token, [n].
    columns: column of each token, [n].
  """

  x: Float32[np.ndarray, 'n D'] | Float64[np.ndarray, 'n D']
  a: Float32[np.ndarray, 'n F'] | Float64[np.ndarray, 'n F']
  next_tokens: Int64[np.ndarray, ' n']
  rows: Int64[np.ndarray, ' n']
  columns: Int64[np.ndarray, ' n']

  def take(self, chosen: Bool[np.ndarray, ' n'] | Int[np.ndarray, ' m'] | slice) -> LastLayer:
    """Takes some of the tokens."""
    return LastLayer(*(value[chosen] for value in vars(self).values()))


def read_last_layer(
  forward: Callable,
  params: PyTree,
  tokens: Int[Array | np.ndarray, 'B T'],
  mask: Mask = None,
  *,
  layer: int = -1,
  first: int = 3,
  skip: Collection[int] = (),
  batch: int = 8,
) -> LastLayer:
  """Reads the final stream and the neurons of the last layer.

  Args:
    forward: (params, tokens [B, T], mask=bool [B, T]) -> logits; pure, with tagged sites, such as `model.apply`.
    params: its parameters.
    tokens: texts, int [B, T].
    mask: True at tokens; None if there is no padding. It is passed to a `forward` with a parameter `mask`; for any
      other, padding must be on the right.
    layer: the layer; only the last one has its whole effect on the direct path.
    first: the first position of a text that counts.
    skip: ids of tokens that do not count.
    batch: number of texts that run at once.

  Raises:
    NeuronError: a layer that is not the last one, a model without neurons, a mask of another shape, padding
      that the model would read, ids to skip that are not whole numbers, no token that counts, values that are not
      finite.
  """
  check_function(forward, NeuronError, 'read_last_layer(model.apply, model.params, tokens)')
  tokens, mask_BxT = check_tokens(tokens, mask)
  last = find_last_layer(forward, params, tokens, layer)
  counted_BxT = _find_counted(tokens, mask_BxT, check_count('first', first, 0), skip)
  sites = [f'resid_post.{last}', f'mlp_post.{last}']

  def read(params: PyTree, tokens: Array, options: dict) -> list[Array]:
    acts = harvest.reap(forward, sites=sites)(params, tokens, **options)
    return [precision.wide(acts[site]) for site in sites]

  run, options = watching.jit(read, forward), choose_options(forward, mask_BxT, mask is not None)
  parts: list[list[np.ndarray]] = []
  for rows, n in iterate_blocks(len(tokens), batch):
    found = run(params, jnp.asarray(tokens[rows]), options(rows))
    parts.append([np.asarray(value)[:n][counted_BxT[rows[:n]]] for value in found])
  x, a = (np.concatenate(values) for values in zip(*parts))
  for name, value in (('the final stream', x), ('the activations of the neurons', a)):
    check_floats(name, value, 'B D')
  at = np.nonzero(counted_BxT)
  return LastLayer(x, a, tokens[at[0], at[1] + 1].astype(np.int64), at[0], at[1])


def check_weights(
  forward: Callable,
  params: PyTree,
  tokens: Int[Array | np.ndarray, 'B T'],
  readout: Readout,
  writes: NeuronWrites,
  *,
  tolerance: float = 0.01,
) -> None:
  """Compares a readout and the output of the neurons with the last layer of the model.

  Args:
    forward, params: as in `read_last_layer`.
    tokens: some texts without padding; the first one is used.
    readout, writes: made from the weights.
    tolerance: largest difference of log-probabilities, in nats, and ten times that of outputs as a share of the
      largest; more for weights in bfloat16.

  Raises:
    NeuronError: they differ by more.
  """
  check_function(forward, NeuronError, 'check_weights(model.apply, model.params, tokens, ...)')
  tokens, _ = check_tokens(tokens, None)
  last = find_last_layer(forward, params, tokens, -1)
  sites = [f'{name}.{last}' for name in ('resid_post', 'mlp_post', 'mlp_out')]
  row = jnp.asarray(tokens[:1])
  logits, acts = harvest.call_and_reap(forward, sites=sites)(params, row)
  x, a, out = (precision.wide(acts[site]) for site in sites)
  readout.check(x, logits, tolerance)
  writes.check(a, out, tolerance / 10)


def _find_counted(
  tokens: Int[np.ndarray, 'B T'], mask: Bool[np.ndarray, 'B T'], first: int, skip: Collection[int]
) -> Bool[np.ndarray, 'B T']:
  """Marks the tokens that count."""
  position = np.cumsum(mask, axis=1) - 1
  followed = np.zeros(mask.shape, bool)
  followed[:, :-1] = mask[:, 1:]
  skipped = as_host('skip', [*skip] if isinstance(skip, Collection) else skip, NeuronError)
  if skipped.ndim != 1 or (skipped.size and skipped.dtype.kind not in 'iu'):
    raise NeuronError(
      f'skip={skip!r:.100}; expected ids of tokens',
      cause='the texts of tokens, or None for a token that the tokenizer does not have',
      hint='[i for i in (tokenizer.bos, tokenizer.eos) if i is not None]',
    )
  counted = mask & followed & (position >= first) & ~np.isin(tokens, skipped)
  if not counted.any():
    raise NeuronError(
      f'none of the {mask.sum()} tokens counts',
      cause=f'texts of at most {first + 1} tokens, or tokens that are all in skip',
    )
  return counted
