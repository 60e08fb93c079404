"""What a row of attributions explains: a direction in the residual stream at one layer and position.

A target is read linearly: a feature by its encoder direction at the norm before its MLP, a logit by its unembedding
direction at the final norm, a probe by its own direction anywhere. Through the frozen norm each becomes one vector in
the residual stream and a constant:

    value = vector · stream[level, position] + constant

    logits(frozen)                       the likely tokens, each against the mean of all logits
    difference(frozen, 42, 17)           logit 42 minus logit 17
    probe(frozen, 'resid_mid.3', -1, w)  a direction; 'mlp_norm.3' and 'final_norm' as well
    features(frozen, [5, 8])             features of the graph, by their index

`level` counts the places of the residual stream from 0: 2 l is 'resid_pre.l', 2 l + 1 'resid_mid.l', and 2 L the end.
Targets are data, so that rows of other targets do not compile again.

Sharp edges: the mean of the logits is subtracted because a softmax does not depend on it. With a soft-cap on the logits
the target is the logit before the cap.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int32

from mechjax import precision, sites
from mechjax.circuits.checks import check_index, check_whole
from mechjax.circuits.encoders import find_encoders, pull_through_norms
from mechjax.circuits.frozen import Frozen
from mechjax.circuits.norms import NormMap, tolerance_of
from mechjax.errors import CircuitError

READS = ('resid_pre', 'resid_mid', 'resid_post', 'attn_norm', 'mlp_norm', 'final_norm')
"""Sites at which a probe can read."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Targets:
  """Targets of rows.

  Attributes:
    level: place in the residual stream, int32 [rows].
    position: int32 [rows].
    vector: direction in the residual stream, [rows, D].
    constant: what the direction does not explain, [rows].
    value: value in the run, [rows].
    weight: importance of each target, for influence: probabilities of tokens, otherwise 1, [rows].
    names: what each is, for people.
    tokens: token of each logit, or -1, by target.
    pairs: the two tokens of each difference of logits, or None, by target; empty without any.
  """

  level: Int32[np.ndarray, ' rows']
  position: Int32[np.ndarray, ' rows']
  vector: Float[Array | np.ndarray, 'rows D']
  constant: Float[np.ndarray, ' rows']
  value: Float[np.ndarray, ' rows']
  weight: Float[np.ndarray, ' rows']
  names: tuple[str, ...] = dataclasses.field(metadata={'static': True}, default=())
  tokens: tuple[int, ...] = dataclasses.field(metadata={'static': True}, default=())
  pairs: tuple[tuple[int, int] | None, ...] = dataclasses.field(
    metadata={'static': True}, default=()
  )

  def __len__(self) -> int:
    return len(self.level)

  def take(self, index: Int[np.ndarray, ' _']) -> Targets:
    """Some of the targets."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(self):
      xs = getattr(self, field.name)
      found[field.name] = tuple(xs[i] for i in index if xs) if isinstance(xs, tuple) else xs[index]
    return Targets(**found)

  def data(self, index: Int[np.ndarray, ' _']) -> tuple[np.ndarray, ...]:
    """Level, position, vector and constant of some targets, as arguments of a compiled function."""
    fields = self.level, self.position, self.vector, self.constant
    return tuple(np.asarray(x)[index] for x in fields)

  @classmethod
  def join(cls, parts: Sequence[Targets]) -> Targets:
    """Several sets of targets, one after the other.

    Raises:
      CircuitError: an empty sequence.
    """
    if not parts:
      raise CircuitError('no targets')
    fields = [f.name for f in dataclasses.fields(cls)[:6]]
    arrays = {n: np.concatenate([np.asarray(getattr(p, n)) for p in parts]) for n in fields}
    return cls(
      **arrays,
      names=tuple(n for p in parts for n in p.names),
      tokens=tuple(t for p in parts for t in p.tokens),
      pairs=tuple(pair for p in parts for pair in p.pairs or (None,) * len(p)),
    )


def logits(
  frozen: Frozen,
  mass: float = 0.95,
  at_most: int = 10,
  position: int = -1,
) -> Targets:
  """The fewest tokens that reach a probability together, each against the mean of all logits.

  Args:
    frozen: the run.
    mass: the probability that they reach.
    at_most: largest number of tokens.
    position: the position; negative ones count from the end.

  Raises:
    CircuitError: `mass` is not between 0 and 1, or there is no such position.
  """
  at_most = check_whole('at_most', at_most)
  if not isinstance(mass, int | float | np.number) or not 0 < mass <= 1 or at_most < 1:
    raise CircuitError(
      f'mass={mass!r}, at_most={at_most}', hint='0 < mass <= 1, at least one token'
    )
  t = _position(frozen, position)
  scores = np.asarray(frozen.logits[t], np.float64)
  probs = np.exp(scores - scores.max())
  probs /= probs.sum()
  order = np.argsort(-probs, kind='stable')
  count = min(at_most, int(np.searchsorted(np.cumsum(probs[order]), mass) + 1), len(order))
  tokens = order[:count]
  cotangents = np.full((count, len(probs)), -1 / len(probs))
  cotangents[np.arange(count), tokens] += 1
  names = tuple(f'logit {v}' for v in tokens)
  return _unembed(frozen, t, cotangents, probs[tokens], names, tuple(map(int, tokens)))


def difference(frozen: Frozen, token: int, other: int, position: int = -1) -> Targets:
  """The logit of one token minus that of another.

  Raises:
    CircuitError: no such token or position, or the same token twice.
  """
  V, t = frozen.logits.shape[-1], _position(frozen, position)
  token, other = check_whole('token', token), check_whole('other', other)
  if not (0 <= token < V and 0 <= other < V and token != other):
    raise CircuitError(f'logits of the tokens {token} and {other}', cause=f'two of {V} tokens')
  cotangent = np.zeros((1, V))
  cotangent[0, token], cotangent[0, other] = 1, -1
  made = _unembed(frozen, t, cotangent, np.ones(1), (f'logit {token} - {other}',), (-1,))
  return dataclasses.replace(made, pairs=((token, other),))


def probe(
  frozen: Frozen,
  site: str,
  position: int,
  direction: Float[Array | np.ndarray, ' D'],
  name: str | None = None,
) -> Targets:
  """A direction at a site of the residual stream or at a norm that reads it.

  Args:
    frozen: the run.
    site: 'resid_mid.3', 'mlp_norm.3', 'final_norm'.
    position: negative ones count from the end.
    direction: [D].
    name: what it is, for people.

  Raises:
    CircuitError: no such site or position, a direction of another width or with NaN.
  """
  level, norm, scale = _place(frozen, sites.parse(site))
  t, D = _position(frozen, position), frozen.layout.width
  given = np.asarray(direction)
  is_real = given.dtype.kind in 'fiuV'  # bfloat16 is 'V'
  if given.shape != (D,) or not is_real or not np.isfinite(given.astype(np.float64)).all():
    raise CircuitError(
      f'a direction of shape {list(given.shape)} and type {given.dtype} at {site!r}',
      cause=f'finite real numbers, [{D}]',
    )
  w = jnp.asarray(given, frozen.layout.dtype)
  vector, constant = w, 0.0
  if norm is not None and scale is not None:
    vector, constant = norm.transpose(w, scale[t]), float(precision.matmul(norm.bias, w))
  value = float(precision.matmul(frozen.stream[level, t], vector)) + constant
  kind = frozen.layout.dtype
  return Targets(
    np.array([level], np.int32), np.array([t], np.int32), np.asarray(vector)[None],
    np.array([constant], kind), np.array([value], kind), np.ones(1, kind), (name or site,), (-1,),
  )  # fmt: skip


def features(frozen: Frozen, index: Sequence[int] | Int[np.ndarray, ' _']) -> Targets:
  """Features of the run as targets.

  Args:
    frozen: the run.
    index: their indices in `frozen.features`.

  Raises:
    CircuitError: no such feature, a mask in place of indices.
  """
  f = frozen.features
  index = check_index(index, len(f))
  layer, position = f.layer[index], f.position[index]
  encoder, constant = find_encoders(frozen, index)
  vector, bias = pull_through_norms(frozen, encoder, layer, position)
  names = tuple(f'{l}.{i} at {t}' for l, i, t in zip(layer, f.latent[index], position))
  step = 0 if frozen.layout.is_parallel else 1
  return Targets(
    (2 * layer + step).astype(np.int32), position, vector, constant + np.asarray(bias),
    f.activation[index], np.ones(len(index), frozen.layout.dtype), names, (-1,) * len(index),
  )  # fmt: skip


def _position(frozen: Frozen, position: int) -> int:
  T, position = len(frozen.tokens), check_whole('position', position)
  if not -T <= position < T:
    raise CircuitError(f'position {position} of a prompt of {T} tokens')
  return position % T


def _place(frozen: Frozen, site: sites.Site) -> tuple[int, NormMap | None, Array | None]:
  """Level, norm and scales of a site."""
  L, parallel, maps = frozen.layout.n_layers, frozen.layout.is_parallel, frozen.maps
  has_layer = len(site.path) == 1 and site.path[0] < L
  known = site.name in READS and (has_layer if site.name != 'final_norm' else not site.path)
  if site.name in ('resid_mid', 'mlp_norm') and not frozen.layout.has_mlp:
    known = False
  if not known or (site.name == 'resid_mid' and parallel):
    raise CircuitError(
      f'{str(site)!r} is not a place at which a target can read',
      hint=f'one of {", ".join(READS)}, at a layer below {L}',
    )
  if site.name == 'final_norm':
    return 2 * L, maps.final_norm, frozen.scales.final_norm
  (l,) = site.path
  level = {'resid_pre': 0, 'attn_norm': 0, 'resid_post': 2}.get(site.name, 0 if parallel else 1)
  if site.name == 'attn_norm':
    return 2 * l, maps.attn_norm.layer(l), frozen.scales.attn_norm[l]
  if site.name == 'mlp_norm' and maps.mlp_norm is not None and frozen.scales.mlp_norm is not None:
    return 2 * l + level, maps.mlp_norm.layer(l), frozen.scales.mlp_norm[l]
  return 2 * l + level, None, None


def _unembed(
  frozen: Frozen,
  t: int,
  cotangents: np.ndarray,
  weight: np.ndarray,
  names: tuple[str, ...],
  tokens: tuple[int, ...],
) -> Targets:
  """Sums of logits before the soft-cap, by their weights [rows, V]."""
  T, dtype = frozen.layout.length, frozen.layout.dtype
  shape = jnp.zeros((1, T, frozen.layout.width), dtype)
  weights = jnp.asarray(cotangents)
  directions, at_zero, bound = _directions(frozen.maps.unembed, shape, weights)
  constant = np.asarray(cotangents, np.float64) @ np.asarray(at_zero, np.float64)
  x, norm = frozen.final[t], frozen.maps.final_norm
  value = np.asarray(precision.matmul(directions, x), np.float64) + constant
  _check_cap(frozen, t, cotangents, value, np.asarray(at_zero), float(bound), names)
  vector = jax.vmap(lambda w: norm.transpose(w, frozen.scales.final_norm[t]))(directions)
  own = constant + np.asarray(precision.matmul(directions, norm.bias), np.float64)
  n, level = len(names), 2 * frozen.layout.n_layers
  return Targets(
    np.full(n, level, np.int32), np.full(n, t, np.int32), np.asarray(vector),
    np.asarray(own, dtype), np.asarray(value, dtype), np.asarray(weight, dtype), names, tokens,
  )  # fmt: skip


@jax.jit
def _directions(unembed, x_1xTxD: Array, cotangents: Array) -> tuple[Array, Array, Array]:
  """Directions at the final norm [rows, D], logits of zero [V], and the largest logit of a huge input."""
  # The slope of a soft-cap at 0 is 1, so the derivative at 0 is that of the logits before the cap.
  out, back = jax.vjp(unembed, x_1xTxD)

  def one(c_V):
    return back(jnp.zeros_like(out).at[0, 0].set(c_V.astype(out.dtype)))[0][0, 0]

  huge = unembed(jnp.full_like(x_1xTxD, 1e4).at[..., ::2].set(-3e4))
  return jax.lax.map(one, cotangents), out[0, 0], jnp.max(jnp.abs(huge))


def _check_cap(
  frozen: Frozen,
  t: int,
  cotangents: np.ndarray,
  value: np.ndarray,
  at_zero: np.ndarray,
  bound: float,
  names: Sequence[str],
) -> None:
  """Checks that the logits are linear in the final norm, up to a soft-cap.

  Raises:
    CircuitError: they are not.
  """
  capped = np.asarray(frozen.logits[t], np.float64)
  size = max(np.abs(capped).max(), 1e-30)
  near = 100 * tolerance_of(frozen.layout.dtype)
  if np.abs(cotangents @ capped - value).max() <= near * size:
    return
  raw = bound * np.arctanh(np.clip(capped / bound, -1 + 1e-12, 1 - 1e-12))
  if np.abs(at_zero).max() == 0 and np.abs(cotangents @ raw - value).max() <= 10 * near * size:
    return
  raise CircuitError(
    f'{names[0]!r} is not linear in the final norm, nor a soft-cap of such a logit',
    where='logits',
    cause='maps of other parameters, another function between final_norm and logits, or a bias under a soft-cap',
    hint="use a target at 'final_norm': probe(frozen, 'final_norm', position, direction)",
  )
