"""Lenses: the next token that the residual stream of each layer stands for.

The logit lens applies the final norm and the unembedding to the stream of every layer (nostalgebraist 2020,
"interpreting GPT: the logit lens"). The norm is live: each stream is divided by its own length. Early streams are in
another basis, so they are read badly. The Jacobian lens first carries a stream to the last layer by the average
derivative of the layers above it, the linear map that agrees with the model to first order (the mean Jacobian of
Hernandez et al. 2023, "Linearity of Relation Decoding in Transformer Language Models", arXiv 2308.09124, equation 3,
over texts of any kind instead of one relation):

    J_l = E[d x_L(t) / d x_l(t)]          b_l = E[x_L(t) - (d x_L(t) / d x_l(t)) x_l(t)]
    logits = unembed(J_l x_l + b_l)       x_L the final stream, x_l the stream before layer l

    streams = acts.stack('resid_pre'), or any streams [L, B, T, D]
    table = read_lens(streams, model.unembed, targets=[model.token(' Paris')])
    lens = fit_jacobian_lens(model.apply, model.params, texts, batch=8)
    table = read_lens(lens.transport(streams), model.unembed)

Expectations are over texts and one random position of each, the derivative is that of the whole model (softmax, MLPs
and norms react), and other positions are held. With `reach='later'` J_l is the average over all pairs of a position and
itself or a later one: the effect on whatever is predicted from there on; b_l is then 0. No parameter is trained.

Cost of a fit: D backward passes for each batch of texts, for all layers together. The unembedding is called once for
each layer, so that memory is that of the logits of one layer.

Sharp edges. The first token of a text has a stream and derivatives of its own, so positions are drawn after it. An
average of derivatives is not the derivative at any text. Texts must have no padding.

Letters: L layers, B texts, T positions, D width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Float64, Int, PyTree

from mechjax import harvest, logits, precision, watching
from mechjax.decomposition.array_checks import check_arrays, check_count, check_finite, check_ids
from mechjax.errors import CircuitError, unknown
from mechjax.programs.callables import check_function

REACHES = ('same', 'later')


@dataclasses.dataclass(frozen=True, eq=False)
class LensTable:
  """Readings of the stream of each layer.

  Attributes:
    ids: the likeliest next tokens, in descending order, [L, B, T, k].
    log_probs: their log-probabilities in nats, [L, B, T, k].
    entropy: of the next token, in nats, [L, B, T].
    kl: KL(last layer || layer) in nats, [L, B, T]; 0 in the last of the given layers.
    targets: ids of the tokens that were asked for, [n].
    target_log_probs: their log-probabilities, [L, B, T, n].
    target_ranks: their ranks, 1 for the likeliest, [L, B, T, n].
  """

  ids: Int[np.ndarray, 'L B T k']
  log_probs: Float[np.ndarray, 'L B T k']
  entropy: Float[np.ndarray, 'L B T']
  kl: Float[np.ndarray, 'L B T']
  targets: Int[np.ndarray, ' n']
  target_log_probs: Float[np.ndarray, 'L B T n']
  target_ranks: Int[np.ndarray, 'L B T n']


@dataclasses.dataclass(frozen=True, eq=False)
class JacobianLens:
  """Linear maps from the stream before each layer to the final stream.

  Attributes:
    jacobians: J_l, [L, D, D]; rows are dimensions of the final stream.
    bias: b_l, [L, D].
    layers: numbers of the layers.
    n_samples: number of derivatives in the average.
    reach: 'same' or 'later'.
  """

  jacobians: Float64[np.ndarray, 'L D D']
  bias: Float64[np.ndarray, 'L D']
  layers: tuple[int, ...]
  n_samples: int
  reach: str

  def transport(
    self, streams: Float[ArrayLike, 'L B T D'], layers: Sequence[int] | None = None
  ) -> Float[Array, 'L B T D']:
    """Carries streams to the final layer, J_l x_l + b_l.

    Args:
      streams: the stream before some layers.
      layers: numbers of these layers; None for all layers of the lens.

    Raises:
      CircuitError: a layer that the lens does not have, shapes that do not fit.
    """
    chosen = list(self.layers if layers is None else layers)
    missing = [l for l in chosen if l not in self.layers]
    if missing:
      raise CircuitError(
        f'layer {missing[0]!r} is not among the layers {list(self.layers)} of the lens'
      )
    check_arrays({'streams': (streams, 'L B T D')}, {'L': len(chosen), 'D': self.bias.shape[1]})
    x = precision.wide(jnp.asarray(streams))
    at = [self.layers.index(l) for l in chosen]
    J, b = (jnp.asarray(a[at], x.dtype) for a in (self.jacobians, self.bias))
    return _transport(x, J, b)


def read_lens(
  streams: Float[ArrayLike, 'L B T D'],
  unembed: Callable[[Array], Array],
  targets: int | Sequence[int] | Int[ArrayLike, ' n'] = (),
  *,
  k: int = 5,
) -> LensTable:
  """Reads the stream of each layer as next tokens.

  Args:
    streams: streams of some layers, the last of which is the reference of `kl`.
    unembed: residual streams [..., D] -> logits [..., V], final norm included, such as `model.unembed`.
    targets: token ids whose log-probabilities and ranks are wanted.
    k: number of likeliest tokens.

  Raises:
    CircuitError: shapes that do not fit, NaN, a target that does not exist, a k that is not from 1 to V.
  """
  check_arrays({'streams': (streams, 'L B T D')})
  x_LxBxTxD = jnp.asarray(streams)
  reference, found = logits.log_probs(_unembed(unembed, x_LxBxTxD[-1])), []
  V = reference.shape[-1]
  ids = check_ids('targets', targets, V) if np.size(targets) else np.zeros(0, np.int32)
  if check_count('k', k) > V:
    raise CircuitError(f'k={k} tokens of a vocabulary of {V}')
  for x in x_LxBxTxD:
    row = _read(unembed(x), reference, jnp.asarray(ids), k)
    found.append([np.asarray(part) for part in row])
  top, tokens, entropy, kl, log_probs, ranks = (np.stack(parts) for parts in zip(*found))
  check_finite('log-probabilities of a lens', entropy)
  return LensTable(tokens, top, entropy, kl, ids, log_probs, ranks)


def fit_jacobian_lens(
  forward: Callable,
  params: PyTree,
  texts: Int[ArrayLike, 'B T'],
  *,
  reach: str = 'same',
  positions: Int[ArrayLike, ' B'] | None = None,
  skip: int = 1,
  seed: int = 0,
  batch: int = 8,
  block: int = 32,
) -> JacobianLens:
  """Averages the derivative of the final stream with respect to the stream before each layer.

  Args:
    forward: (params, tokens [B, T]) -> logits; pure, with the sites 'resid_pre' and 'resid_post', such as
      `model.apply`.
    params: its parameters.
    texts: tokens without padding.
    reach: 'same' for the derivative at one position of each text; 'later' for the average over all pairs of a position
      from `skip` on and itself or a later one.
    positions: column of each text, with reach='same'; None for random ones.
    skip: number of first columns that are not sampled.
    seed: of the random columns.
    batch: number of texts of a pass.
    block: number of dimensions of the final stream whose derivatives are computed at once.

  Raises:
    CircuitError: tokens that are not integers [B, T], columns that do not exist, a model without these sites in
      separate layers, derivatives that are not finite.
  """
  check_function(forward, CircuitError, 'fit_jacobian_lens(model.apply, model.params, texts)')
  tokens, columns = _check_texts(texts, reach, positions, skip, seed)
  layers, width = _find_streams(forward, params, tokens)
  batch, block = check_count('batch', batch), min(check_count('block', block), width)
  B, T = tokens.shape
  run = watching.jit(_Derivatives(forward, layers[-1], block, skip, reach == 'later'), forward)
  J, b = np.zeros((len(layers), width, width)), np.zeros((len(layers), width))
  for rows, real in _iterate(B, min(batch, B)):
    done = 0
    for start in [*range(0, width - block, block), width - block]:
      out = run(params, tokens[rows], columns[rows], real, jnp.int32(start))
      # The last block begins with dimensions that are known already.
      slopes, offsets = (np.asarray(x, np.float64)[:, done - start :] for x in out)
      J[:, done : start + block] += slopes
      b[:, done : start + block] += offsets
      done = start + block
  n = B if reach == 'same' else B * (T - skip) * (T - skip + 1) // 2
  check_finite('the average of the derivatives', J)
  return JacobianLens(J / n, b / n, layers, n, reach)


def _unembed(unembed: Callable[[Array], Array], x_BxTxD: Array) -> Array:
  """Logits [B, T, V] of the last streams.

  Raises:
    CircuitError: the unembedding of another model, or something else.
  """
  shape = list(x_BxTxD.shape)
  if not callable(unembed):
    raise CircuitError(
      f'unembed is a {type(unembed).__name__}', hint='a function of streams, such as model.unembed'
    )
  try:
    out = jnp.asarray(unembed(x_BxTxD))
  except (TypeError, ValueError) as e:
    raise CircuitError(
      f'unembed fails on streams {shape}',
      cause=f'{type(e).__name__}: {e!s:.200}',
      hint='the unembedding of the model whose streams these are, such as model.unembed',
    ) from e
  if out.ndim != 3 or out.shape[:2] != x_BxTxD.shape[:2] or not jnp.issubdtype(out.dtype, jnp.floating):  # fmt: skip
    raise CircuitError(f'unembed gives {out.dtype} {list(out.shape)} for streams {shape}')
  return out


# --- readings --------------------------------------------------------------------------------------------------


@jax.jit
def _transport(x: Array, J: Array, b: Array) -> Array:
  return precision.einsum('lbtd,led->lbte', x, J) + b[:, None, None]


@functools.partial(jax.jit, static_argnames='k')
def _read(out: Array, reference: Array, targets: Array, k: int) -> tuple[Array, ...]:
  """Top k, entropy, KL to the reference, and log-probabilities and ranks of targets."""
  found = logits.log_probs(out)
  top, tokens = jax.lax.top_k(found, k)
  entropy = -jnp.sum(jnp.exp(found) * jnp.where(found == -jnp.inf, 0, found), -1)
  chosen = found[..., targets]
  above = jax.vmap(lambda x: jnp.sum(found > x[..., None], -1), in_axes=-1, out_axes=-1)
  ranks = above(chosen).astype(jnp.int32) + 1
  return top, tokens, entropy, logits.kl_divergence(reference, found), chosen, ranks


# --- derivatives -----------------------------------------------------------------------------------------------


class _Derivatives:
  """Sums of some rows of the derivatives over texts, for all layers; a class so that its settings are watched."""

  def __init__(self, forward: Callable, last: int, block: int, skip: int, later: bool):
    self.forward, self.last, self.block = forward, last, block
    self.skip, self.later = skip, later

  def __call__(
    self, params: PyTree, tokens: Array, columns: Array, real_B: Array, start: Array
  ) -> tuple[Float[Array, 'L block D'], Float[Array, 'L block']]:
    rows, T = jnp.arange(len(tokens), dtype=jnp.int32), tokens.shape[1]
    there_T = jnp.arange(T) >= self.skip
    site = f'resid_post.{self.last}'

    def total(params: PyTree, tokens: Array, d: Array) -> tuple[Array, Array]:
      x_BxT = harvest.reap(self.forward, sites=site)(params, tokens)[site][..., d]
      part_B = jnp.sum(jnp.where(there_T, x_BxT, 0), 1) if self.later else x_BxT[rows, columns]
      return jnp.sum(jnp.where(real_B, part_B, 0)), part_B

    def one(d: Array) -> tuple[Array, Array]:
      at = harvest.value_and_grad_at(total, 'resid_pre', has_aux=True)
      (_, x_B), acts, grads = at(params, tokens, d)
      x, g = (precision.wide(a.stack('resid_pre')) for a in (acts, grads))
      if self.later:
        return jnp.sum(jnp.where(there_T[:, None], g, 0), (1, 2)), jnp.zeros(len(g), g.dtype)
      g_LxBxD = g[:, rows, columns]
      products_LxB = jnp.sum(g_LxBxD * x[:, rows, columns], -1)
      offsets_LxB = jnp.where(real_B, precision.wide(x_B) - products_LxB, 0)
      return g_LxBxD.sum(1), offsets_LxB.sum(1)

    slopes, offsets = jax.vmap(one, out_axes=1)(start + jnp.arange(self.block, dtype=jnp.int32))
    return slopes, offsets


def _iterate(n: int, batch: int) -> list[tuple[np.ndarray, np.ndarray]]:
  """Rows of each batch, the last one filled up, and a mask of those that count."""
  found = []
  for start in range(0, n, batch):
    rows = np.arange(start, start + batch)
    found.append((np.minimum(rows, n - 1), rows < n))
  return found


def _check_texts(
  texts: Int[ArrayLike, 'B T'],
  reach: str,
  positions: Int[ArrayLike, ' B'] | None,
  skip: int,
  seed: int,
) -> tuple[Int[np.ndarray, 'B T'], Int[np.ndarray, ' B']]:
  """Tokens on the host, and the column of each text."""
  if reach not in REACHES:
    raise unknown(CircuitError, 'reach', reach, REACHES)
  tokens = np.asarray(texts)
  if tokens.ndim != 2 or tokens.dtype.kind not in 'iu' or 0 in tokens.shape:
    raise CircuitError(
      f'texts of shape {list(tokens.shape)} and type {tokens.dtype}', hint='integers [B, T]'
    )
  B, T = tokens.shape
  if check_count('skip', skip, 0) >= T:
    raise CircuitError(f'skip={skip} leaves none of {T} columns')
  columns: np.ndarray
  if positions is None:
    columns = np.asarray(np.random.default_rng(seed).integers(skip, T, B))
  elif reach == 'later':
    raise CircuitError("positions with reach='later', which averages over all of them")
  else:
    columns = check_ids('positions', positions, T)
    if len(columns) != B:
      raise CircuitError(f'{len(columns)} positions for {B} texts')
  return tokens.astype(np.int32), columns.astype(np.int32)


def _find_streams(
  forward: Callable, params: PyTree, tokens: Int[np.ndarray, 'B T']
) -> tuple[tuple[int, ...], int]:
  """Numbers of the layers, which are all, and the width of the stream."""
  infos = harvest.sites_of(forward, params, jnp.asarray(tokens[:1]))
  before, after = (
    [i for i in infos if i.site.name == name and isinstance(i.site.layer, int)]
    for name in ('resid_pre', 'resid_post')
  )
  layers = tuple(sorted(i.site.path[0] for i in before))
  if not layers or layers != tuple(sorted(i.site.path[0] for i in after)):
    raise CircuitError(
      f'resid_pre at layers {list(layers)} and resid_post at {sorted(i.site.path[0] for i in after)}',
      hint='a model whose layers have both sites',
    )
  return layers, before[0].shape[-1]
