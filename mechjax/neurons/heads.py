"""Induction heads, and the confidence neurons that they drive.

An induction head attends from a token of a repeated text to the token after its earlier occurrence. Its score is the
mean attention there. Whether a head drives a confidence neuron shows when the head is switched off without a change of
the number of heads: its attention row becomes one-hot at the first token, where it finds nothing (BOS ablation; Stolfo
et al. 2024, arXiv 2406.16254, section 5).

    scores = score_heads(model.apply, model.params, texts)                  [L, N], texts of `repeat_texts`
    found = ablate_heads(model.apply, model.params, texts, readout, scores.find_largest(6), neurons=[830, 1022])
    found.entropy.value, found.activations.value

Layer and head are data, so that a sweep compiles once.

Sharp edges: a local layer cannot see the first token of a text longer than its window, and the ablated head attends to
it all the same. Attention rows of all heads are in memory for one batch: L x batch x N x T x T numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from mechjax import harvest, precision, watching
from mechjax.errors import NeuronError
from mechjax.host_arrays import as_host
from mechjax.neurons.checks import check_count, check_ids
from mechjax.neurons.induction import Repetition
from mechjax.neurons.passes import check_tokens, find_last_layer, iterate_blocks
from mechjax.neurons.predictions import measure_predictions
from mechjax.neurons.readout import Readout
from mechjax.neurons.unit_totals import Estimates
from mechjax.programs.callables import check_function
from mechjax.sites import Site

Heads = Sequence[tuple[int, int]]
"""(layer, head) of some heads."""


@dataclasses.dataclass(frozen=True, eq=False)
class InductionScores:
  """Mean attention to the token after the earlier occurrence.

  Attributes:
    scores: from 0 to 1, [L, N], with standard errors over texts.
  """

  scores: Estimates

  def find_largest(self, n: int) -> list[tuple[int, int]]:
    """(layer, head) of the heads with the largest scores, in descending order."""
    check_count('n', n)
    order = np.argsort(-self.scores.value, axis=None, kind='stable')[:n]
    return [(int(l), int(h)) for l, h in zip(*np.unravel_index(order, self.scores.value.shape))]


@dataclasses.dataclass(frozen=True, eq=False)
class HeadAblations:
  """Effects of the BOS ablation of heads on the second half of repeated texts, with standard errors over texts.

  Attributes:
    heads: (layer, head) of each.
    neurons: neurons of the last layer whose activations were measured.
    plain_entropy: mean entropy without an ablation, in nats.
    plain_loss: mean loss without an ablation, in nats.
    plain_activations: mean activations without an ablation, [neurons].
    entropy: changes of the mean entropy, in nats, [heads].
    loss: changes of the mean loss, in nats, [heads].
    activations: changes of the mean activations, [heads, neurons].
  """

  heads: tuple[tuple[int, int], ...]
  neurons: tuple[int, ...]
  plain_entropy: float
  plain_loss: float
  plain_activations: Estimates
  entropy: Estimates
  loss: Estimates
  activations: Estimates


def score_heads(
  forward: Callable, params: PyTree, texts: Int[Array | np.ndarray, 'B S'], *, batch: int = 4
) -> InductionScores:
  """Measures the induction scores of all heads.

  Args:
    forward: (params, tokens [B, S]) -> logits; pure, with the site 'attn_probs', such as `model.apply`.
    params: its parameters.
    texts: from `repeat_texts`.
    batch: number of texts that run at once.

  Raises:
    NeuronError: tokens that do not repeat themselves, attention that is not finite.
  """
  check_function(forward, NeuronError, 'score_heads(model.apply, model.params, texts)')
  tokens, halves = _check_repeated(texts)
  queries, keys = jnp.asarray(halves.second), jnp.asarray(halves.induced)

  def read(params: PyTree, tokens: Array) -> Array:
    probs_LxBxNxTxS = harvest.reap(forward, sites='attn_probs')(params, tokens).stack('attn_probs')
    found = precision.wide(probs_LxBxNxTxS[..., queries, keys])
    return jnp.moveaxis(jnp.mean(found, axis=-1), 1, 0)

  run = watching.jit(read, forward)
  parts = [
    np.asarray(run(params, jnp.asarray(tokens[rows])), np.float64)[:n]
    for rows, n in iterate_blocks(len(tokens), batch)
  ]
  each_BxLxN = np.concatenate(parts)
  if not np.isfinite(each_BxLxN).all():
    raise NeuronError('the attention of some heads contains NaN')
  return InductionScores(Estimates.of_units(each_BxLxN))


def attend_to_first(
  head: int | Int[Array, ''], start: int | Int[Array, '']
) -> Callable[[Float[Array, 'B N T S']], Float[Array, 'B N T S']]:
  """A function to plant at attn_probs, which makes the rows of one head one-hot at the first token.

  Args:
    head: number of the head; it may be traced.
    start: column of the first query whose row is replaced; it may be traced.
  """
  head, start = jnp.asarray(head, jnp.int32), jnp.asarray(start, jnp.int32)

  def ablate(probs: Array) -> Array:
    _, N, T, S = probs.shape
    heads, queries, keys = (jnp.arange(n, dtype=jnp.int32) for n in (N, T, S))
    chosen = (heads == head)[:, None, None] & (queries >= start)[:, None]
    return jnp.where(chosen, (keys == 0).astype(probs.dtype), probs)

  return ablate


def ablate_heads(
  forward: Callable,
  params: PyTree,
  texts: Int[Array | np.ndarray, 'B S'],
  readout: Readout,
  heads: Heads,
  neurons: Sequence[int],
  *,
  batch: int = 8,
) -> HeadAblations:
  """Measures the predictions and the activations of neurons with each head switched off in the second half.

  Args:
    forward, params, texts: as in `score_heads`.
    readout: the readout of the model.
    heads: (layer, head) of the heads, one ablated at a time.
    neurons: neurons of the last layer.
    batch: number of texts that run at once.

  Raises:
    NeuronError: a head or a neuron that does not exist, none of them, tokens that do not repeat themselves.
  """
  check_function(forward, NeuronError, 'ablate_heads(model.apply, model.params, texts, ...)')
  tokens, halves = _check_repeated(texts)
  last = find_last_layer(forward, params, tokens, -1)
  pairs, n_neurons = _check_heads(forward, params, tokens, heads, last)
  chosen = check_ids('neurons', as_host('neurons', neurons, NeuronError), n_neurons)
  if chosen.ndim != 1:
    raise NeuronError(f'neurons={neurons!r:.100}; expected a list of neurons')
  units = jnp.asarray(chosen)
  second, sites = jnp.asarray(halves.second), [f'resid_post.{last}', f'mlp_post.{last}']

  def read(params: PyTree, tokens: Array, layer: Array, head: Array, start: Array) -> list[Array]:
    plants = {'attn_probs': harvest.At(layer, attend_to_first(head, start))}
    _, acts = harvest.harvest(forward, sites=sites)(plants, params, tokens)
    x, a = (precision.wide(acts[site])[:, second] for site in sites)
    return [x, jnp.mean(a[..., units], axis=1)]

  run = watching.jit(read, forward)

  def measure(layer: int, head: int, start: int) -> list[np.ndarray]:
    """Entropy, loss and activations of each text; with `start` behind the text, nothing is ablated."""
    at = [jnp.asarray(i, jnp.int32) for i in (layer, head, start)]
    found = []
    for rows, n in iterate_blocks(len(tokens), batch):
      x, a = (np.asarray(v)[:n] for v in run(params, jnp.asarray(tokens[rows]), *at))
      following = tokens[rows[:n]][:, halves.second + 1]
      flat = measure_predictions(readout, x.reshape(-1, x.shape[-1]), following.reshape(-1))
      found.append([*(v.reshape(following.shape).mean(1) for v in flat), a.astype(np.float64)])
    return [np.concatenate(values) for values in zip(*found)]

  plain = measure(0, 0, tokens.shape[1])
  changes = [[v - p for v, p in zip(measure(*at, halves.length), plain)] for at in pairs]
  entropy, loss, activations = (
    Estimates.of_units(np.stack(values, axis=1)) for values in zip(*changes)
  )
  return HeadAblations(
    tuple(pairs), tuple(chosen.tolist()),
    float(plain[0].mean()), float(plain[1].mean()), Estimates.of_units(plain[2]),
    entropy, loss, activations,
  )  # fmt: skip


def _check_repeated(texts: Int[Array | np.ndarray, 'B S']) -> tuple[np.ndarray, Repetition]:
  tokens, _ = check_tokens(texts, None)
  length = (tokens.shape[1] + 1) // 2
  if tokens.shape[1] != 2 * length - 1 or (tokens[:, 1:length] != tokens[:, length:]).any():
    raise NeuronError(
      f'texts of {tokens.shape[1]} tokens that do not repeat themselves from the second token on',
      hint='repeat_texts(tokens)',
    )
  return tokens, Repetition(length)


def _check_heads(
  forward: Callable, params: PyTree, tokens: Int[np.ndarray, 'B S'], heads: Heads, last: int
) -> tuple[list[tuple[int, int]], int]:
  """Checks heads, and returns them and the number of neurons of the last layer."""
  table = as_host('heads', heads, NeuronError)
  if not table.size:
    raise NeuronError('no heads to ablate')
  if table.ndim != 2 or table.shape[1] != 2 or table.dtype.kind not in 'iu':
    raise NeuronError(
      f'heads={heads!r:.100}; expected pairs of whole numbers',
      hint='[(layer, head)] for one head; scores.find_largest(6) for several',
    )
  pairs = [(int(layer), int(head)) for layer, head in table]
  infos = harvest.sites_of(forward, params, jnp.asarray(tokens[:1]))
  counts = {i.site.layer: i.shape[1] for i in infos if i.site.name == 'attn_probs'}
  if not counts:
    raise NeuronError('the model has no site attn_probs', cause='an upstream code without that tag')
  wrong = [at for at in pairs if not 0 <= at[1] < counts.get(at[0], 0)]
  if wrong:
    n = counts[last]
    raise NeuronError(f'there is no head {wrong[0]} among {len(counts)} layers of {n} heads')
  return pairs, next(i.shape[-1] for i in infos if i.site == Site('mlp_post', (last,)))
