"""Edits of few latents: the activation of one prompt becomes that of another, latent by latent.

If a dictionary has found a variable, a few of its latents change it. So an activation act_s, with latents f, is edited
towards that of a prompt that differs in one attribute, act_t with latents f', by setting k latents from f_i to f'_i
(Makelov et al. 2024, arXiv 2405.08366, section 4.2):

    edited = act_s + sum over k latents of (f'_i - f_i) d_i

    gram = DecoderGram.of(W_dec)                                        once for a dictionary
    edit = edit_greedily(gram, f, f_target, acts, targets, k=8)         an oracle: it sees act_t
    edit = edit_by_score(f, f_target, scores, k=8)                      latents by F1 or another score, without act_t
    edit.apply(acts, W_dec, 4)                                          [B, D], with the first four latents
    edit.distances(acts, targets, W_dec)                                |edited - act_t|^2 after 0, 1, ..., k latents

The greedy edit sets at each step the latent after which the distance to act_t is smallest. With r the rest of the way
and c = f' - f, latent i lowers |r|^2 by 2 c_i (d_i . r) - c_i^2 |d_i|^2. The products p = W_dec r of all latents are
made once, and after latent j they are p - c_j (W_dec d_j), entries of the Gram matrix of the decoder: k steps cost
O(k B A) for the A latents that change, at most O(k B M), and one product of the size of an encoder; no array [B, M, D]
exists. A is rounded up to a power of two, so that few sizes are compiled.

Sharp edges. A latent that is active in both prompts is one latent, and is set to its new value; the paper also allows
to remove it alone. An edit continues to k latents even if the distance rises, so that all latents give
act_s - x_hat_s + x_hat_t; `distances` shows the best number. A prompt with fewer than k latents that change has index
-1 after them. The Gram matrix has M^2 numbers: `candidates` restricts it, and the edit, to some latents.

Letters: B prompts, M latents, A latents that change, D features.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from mechjax import precision
from mechjax.errors import YardstickError
from mechjax.yardsticks.checks import Matrix, Rows, as_numbers, check_numbers, check_whole

Numbers = Shaped[np.ndarray | Array, 'B M']
"""Latents of B prompts, or a score of each."""

FIRST_SLOTS = 64
"""Least number of slots for the latents of a prompt that change."""


@dataclasses.dataclass(frozen=True, eq=False)
class DecoderGram:
  """A decoder with the products of its rows with each other.

  Attributes:
    W_dec: rows of the decoder.
    candidates: latents that an edit may use.
    rows: their rows.
    gram: products of these rows with each other.
  """

  W_dec: Float[Array, 'M D']
  candidates: Int[np.ndarray, ' some']
  rows: Float[Array, 'some D']
  gram: Float[Array, 'some some']

  @classmethod
  def of(cls, W_dec: Rows, candidates: Int[np.ndarray, ' some'] | None = None) -> DecoderGram:
    """Computes the products.

    Args:
      W_dec: rows of the decoder [M, D].
      candidates: latents that edits may use; None for all.

    Raises:
      YardstickError: NaN, not a matrix; candidates that are not different latents.
    """
    check_numbers('W_dec', W_dec, 2)
    rows = jnp.asarray(W_dec)
    at = np.arange(len(rows)) if candidates is None else np.asarray(candidates)
    good = at.ndim == 1 and at.dtype.kind in 'iu' and at.size
    if not good or len({*at.tolist()}) < len(at) or at.min() < 0 or at.max() >= len(rows):
      raise YardstickError(
        f'candidates={candidates!r:.100}; expected different latents from 0 to {len(rows) - 1}',
        hint='np.flatnonzero(mask) for a mask of latents',
      )
    some = rows if candidates is None else rows[at]
    return cls(rows, at, some, _multiply_rows(some))


@dataclasses.dataclass(frozen=True, eq=False)
class LatentEdit:
  """Latents that are set to other values, in order.

  Attributes:
    indices: latents of each prompt; -1 where no latent is left.
    changes: new minus old value of each; 0 where no latent is left.
  """

  indices: Int[np.ndarray, 'B k']
  changes: Float[np.ndarray, 'B k']

  def apply(self, acts: Matrix, W_dec: Rows, n: int | None = None) -> Float[np.ndarray, 'B D']:
    """Activations after the first n latents, or after all of them.

    Raises:
      YardstickError: other shapes, or more latents than the edit has.
    """
    n = self.indices.shape[1] if n is None else check_whole('n', n, 0)
    if n > self.indices.shape[1]:
      raise YardstickError(f'n={n} latents of an edit of {self.indices.shape[1]}')
    x, rows = self._check(acts, W_dec)
    found = np.array(x)
    for step in range(n):
      found += self.changes[:, step, None] * rows[self.indices[:, step]]
    return found

  def distances(
    self, acts: Matrix, targets: Matrix, W_dec: Rows
  ) -> Float[np.ndarray, 'B k_plus_1']:
    """Squared distances to the targets after 0, 1, ..., k latents; errors as for `apply`."""
    x, rows = self._check(acts, W_dec)
    rest = as_numbers('targets', targets, 2) - x
    found = [np.sum(rest**2, 1)]
    for step in range(self.indices.shape[1]):
      rest = rest - self.changes[:, step, None] * rows[self.indices[:, step]]
      found.append(np.sum(rest**2, 1))
    return np.stack(found, 1)

  def _check(self, acts: Matrix, W_dec: Rows) -> tuple[np.ndarray, np.ndarray]:
    x, rows = as_numbers('acts', acts, 2), as_numbers('W_dec', W_dec, 2)
    if len(x) != len(self.indices) or x.shape[1] != rows.shape[1]:
      raise YardstickError(
        f'activations of shape {x.shape} and W_dec of shape {rows.shape}, for an edit of {len(self.indices)} prompts'
      )
    if self.indices.max(initial=-1) >= len(rows):
      raise YardstickError(f'latent {self.indices.max()} of a decoder with {len(rows)}')
    return x, rows


def edit_greedily(
  gram: DecoderGram,
  latents: Numbers,
  target_latents: Numbers,
  acts: Matrix,
  targets: Matrix,
  k: int,
) -> LatentEdit:
  """The latents that bring each activation nearest to its target, one by one.

  Args:
    gram: the decoder.
    latents, target_latents: latents of the prompts and of their targets [B, M].
    acts, targets: activations of both [B, D]; they may differ from what the latents reconstruct.
    k: number of latents.

  Raises:
    YardstickError: shapes that do not fit together, NaN, k below 1 or above the number of candidates.
  """
  f, new = _check_latents(latents, target_latents, k)
  check_numbers('acts', acts, 2)
  check_numbers('targets', targets, 2)
  x, y = jnp.asarray(acts, f.dtype), jnp.asarray(targets, f.dtype)
  M, D = gram.W_dec.shape
  if x.shape != y.shape or x.shape != (len(f), D) or f.shape[1] != M:
    raise YardstickError(
      f'latents {f.shape}, activations {x.shape} and targets {y.shape} for a decoder of shape {(M, D)}',
      cause='prompts or a dictionary of another site',
    )
  if k > len(gram.candidates):
    raise YardstickError(f'k={k} of {len(gram.candidates)} candidates')
  change = np.asarray(new) - np.asarray(f)
  if len(gram.candidates) < M:
    change = change[:, gram.candidates]
  slots, values = _pack(change, k)
  chosen, changes = _choose(gram.gram, gram.rows, slots, values, x, y, k)
  indices = np.asarray(chosen)
  return LatentEdit(np.where(indices < 0, -1, gram.candidates[indices]), np.asarray(changes))


def edit_by_score(latents: Numbers, target_latents: Numbers, scores: Numbers, k: int) -> LatentEdit:
  """The latents that change and have the largest scores.

  Args:
    latents, target_latents: latents of the prompts and of their targets [B, M].
    scores: score of each latent for each prompt [B, M], such as the larger F1 of the predicates that are true of the
      prompt and of its target. Of equal scores the first latent is taken.
    k: number of latents.

  Raises:
    YardstickError: shapes that do not fit together, NaN, k below 1 or above M.
  """
  f, new = _check_latents(latents, target_latents, k)
  found = as_numbers('scores', scores, 2)
  if found.shape != f.shape:
    raise YardstickError(f'scores of shape {found.shape} for latents of shape {f.shape}')
  change = np.asarray(new - f)
  order = np.argsort(np.where(change == 0, np.inf, -found), axis=1, kind='stable')[:, :k]
  changes = np.take_along_axis(change, order, 1)
  return LatentEdit(np.where(changes == 0, -1, order), changes)


def _check_latents(latents: Numbers, targets: Numbers, k: int) -> tuple[jax.Array, jax.Array]:
  check_whole('k', k, 1)
  for name, x in (('latents', latents), ('target_latents', targets)):
    check_numbers(name, x, 2)
  f, new = jnp.asarray(latents), jnp.asarray(targets)
  if f.shape != new.shape:
    raise YardstickError(f'latents of shape {f.shape} and target latents of shape {new.shape}')
  if k > f.shape[1]:
    raise YardstickError(f'k={k} of {f.shape[1]} latents')
  if not jnp.issubdtype(f.dtype, jnp.floating) or f.dtype != new.dtype:
    raise YardstickError(f'latents of type {f.dtype} and target latents of type {new.dtype}')
  return precision.wide(f), precision.wide(new)


@jax.jit
def _multiply_rows(rows_MxD: jax.Array) -> jax.Array:
  return precision.matmul(rows_MxD, rows_MxD.T)


def _pack(
  change: Float[np.ndarray, 'B M'], k: int
) -> tuple[Int[np.ndarray, 'B A'], Float[np.ndarray, 'B A']]:
  """Latents that change and their changes, in A slots of each prompt; A is a power of two of at least k."""
  row, latent = np.nonzero(change)
  counts = np.bincount(row, minlength=len(change))
  A = 1 << (max(int(counts.max()), k, FIRST_SLOTS) - 1).bit_length()
  slot = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
  indices = np.zeros((len(change), A), np.int32)
  values = np.zeros((len(change), A), change.dtype)
  indices[row, slot], values[row, slot] = latent, change[row, latent]
  return indices, values


@functools.partial(jax.jit, static_argnums=6)
def _choose(
  gram_MxM: jax.Array,
  rows_MxD: jax.Array,
  latents_BxA: jax.Array,
  changes_BxA: jax.Array,
  acts_BxD: jax.Array,
  targets_BxD: jax.Array,
  k: int,
) -> tuple[jax.Array, jax.Array]:
  """Indices among the candidates and changes, [B, k] each."""
  size_BxA = jnp.square(changes_BxA) * jnp.diagonal(gram_MxM)[latents_BxA]
  prompts = jnp.arange(len(changes_BxA))

  def step(
    carry: tuple[jax.Array, jax.Array], _: None
  ) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    products_BxA, left_BxA = carry
    gain_BxA = jnp.where(left_BxA == 0, -jnp.inf, 2 * left_BxA * products_BxA - size_BxA)
    slot_B = jnp.argmax(gain_BxA, 1)
    change_B, latent_B = left_BxA[prompts, slot_B], latents_BxA[prompts, slot_B]
    products_BxA = products_BxA - change_B[:, None] * gram_MxM[latent_B[:, None], latents_BxA]
    left_BxA = left_BxA.at[prompts, slot_B].set(0)
    return (products_BxA, left_BxA), (jnp.where(change_B == 0, -1, latent_B), change_B)

  products_BxM = precision.matmul(targets_BxD - acts_BxD, rows_MxD.T)
  start = jnp.take_along_axis(products_BxM, latents_BxA, 1), changes_BxA
  _, (indices_KxB, changes_KxB) = jax.lax.scan(step, start, None, length=k)
  return indices_KxB.T, changes_KxB.T
