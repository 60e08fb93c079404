"""Dictionaries whose directions are activations: inference-time decomposition of activations (ITDA).

    found = build(batches, threshold=0.3, max_atoms=2048)          batches: (x [B, T, D], kept bool [B, T])
    ito, params = found.as_dictionary(Pursuit(k=32))               an architecture: evaluate it like any other
    found.jaccard(other)                                           similarity of two models on the same text

Nothing is trained. Activations stream by, each is coded by the directions found so far, and one that they do not
explain, |x - x_hat|^2 > threshold |x|^2, becomes a direction itself (Leask, Nanda and Al Moubayed 2025, "Inference-time
decomposition of activations"). It needs about a hundredth of the data of an autoencoder, and its reconstructions are
somewhat worse. A direction is named by the place of its activation, (sequence, position), so a dictionary is published
as two integers per atom, and two models that read the same text are compared by the Jaccard index of their atoms.

The first atoms are the first kept activations of the sequences of the first batch, the most frequent ones first.
Activations with the same direction are dropped at the end, all but the first.

Sharp edges. Sequences are numbered in order of arrival, so places refer to the stream that was given, and comparing
two models needs the same text in the same order. Tokens are coded `chunk` at a time, and those of one chunk do not see
each other: with smaller chunks there are fewer atoms, and it takes longer. Atoms are signed: an activation may point
the opposite way, so a dictionary of non-negative latents has the rows [A; -A].
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from mechjax import files, precision
from mechjax.errors import SAEError
from mechjax.sae.architectures import Params, TopK
from mechjax.sae.ops import sparse
from mechjax.sae.pursuit.pursued import Pursued
from mechjax.sae.pursuit.pursuit import Pursuit, check_size, code_units

Batches = Iterable[tuple[Float[Array | np.ndarray, 'B T D'], Bool[Array | np.ndarray, 'B T']]]
"""Activations, and the tokens that count."""

FORMAT = 'mechjax places of activations 1'
SAME_COSINE = 0.9999
"""Cosine from which two activations have the same direction."""
_DEFAULT = Pursuit(k=40, method='orthogonal', nonnegative=False)


@dataclasses.dataclass(frozen=True, eq=False)
class ActivationDictionary:
  """Atoms and their places in a stream of activations.

  Attributes:
    atoms: directions of length 1, [M, D].
    places: sequence and position of each, int64 [M, 2].
  """

  atoms: Float[np.ndarray, 'M D']
  places: Int[np.ndarray, 'M 2']

  def as_dictionary(self, pursuit: Pursuit, both_signs: bool = True) -> tuple[Pursued, Params]:
    """An architecture and its parameters.

    Args:
      pursuit: how activations are coded, non-negative.
      both_signs: whether the rows are [A; -A], 2M latents, instead of A. Latent M + i is the opposite of i.

    Raises:
      SAEError: the pursuit is signed, or has more steps than there are latents or dimensions.
    """
    W_dec = np.concatenate([self.atoms, -self.atoms]) if both_signs else self.atoms
    M, D = W_dec.shape
    sae = TopK(d_in=D, width=M, k=min(pursuit.k, M))
    zeros = {'b_dec': jnp.zeros(D, W_dec.dtype), 'b_enc': jnp.zeros(M, W_dec.dtype)}
    params = {'W_dec': jnp.asarray(W_dec), 'W_enc': jnp.asarray(W_dec.T), **zeros}
    return Pursued(sae, pursuit), params

  def jaccard(self, other: ActivationDictionary) -> float:
    """Places that both dictionaries have, over places that either has; both must be of the same text."""
    one, two = ({*map(tuple, d.places.tolist())} for d in (self, other))
    return len(one & two) / len(one | two)

  def save(self, path: str | os.PathLike[str]) -> None:
    """Writes the places, two integers per atom, as an .npz file; `load_places` and `gather` restore the rest."""
    with files.whole(Path(path)) as file:
      np.savez_compressed(file, format=FORMAT, places=self.places)


def build(
  batches: Batches,
  *,
  threshold: float,
  max_atoms: int,
  pursuit: Pursuit = _DEFAULT,
  chunk: int = 256,
) -> ActivationDictionary:
  """Builds a dictionary from a stream of activations.

  Args:
    batches: activations and the tokens that count; read once, and only until there are `max_atoms`.
    threshold: share of |x|^2 that may remain unexplained; set it so that the number of atoms is the wanted one.
    max_atoms: maximum number of atoms, before equal ones are dropped.
    pursuit: how activations are coded while the dictionary grows.
    chunk: number of tokens coded at once.

  Raises:
    SAEError: a setting is out of range; batches of other shapes; activations that are not finite; no tokens.
  """
  _check_settings(threshold, max_atoms, chunk)
  growing: _Growing | None = None
  for first, x, kept in _read(batches):
    if growing is None:
      check_size(pursuit.k, max_atoms, x.shape[-1])
      growing = _Growing(pursuit, threshold, max_atoms, np.zeros((max_atoms, x.shape[-1]), x.dtype))
      growing.begin(first, x, kept)
    growing.add(first, x, kept, chunk)
    if growing.is_full:
      break
  if growing is None or not growing.places:
    raise SAEError('no tokens', cause='no batches, or masks that keep nothing')
  return growing.finish()


def gather(batches: Batches, places: Int[np.ndarray, 'M 2']) -> ActivationDictionary:
  """Restores a dictionary from its places, with the activations of the same text.

  Args:
    batches: activations and masks, in the order of the stream that the places refer to.
    places: sequence and position of each atom, int [M, 2].

  Raises:
    SAEError: a place that the stream does not have or keep; otherwise as `build`.
  """
  places = _check_places(places)
  atoms: np.ndarray | None = None
  found = np.zeros(len(places), bool)
  for first, x, kept in _read(batches):
    if atoms is None:
      atoms = np.zeros((len(places), x.shape[-1]), x.dtype)
    here = (places[:, 0] >= first) & (places[:, 0] < first + len(x)) & (places[:, 1] < x.shape[1])
    sequence, position = (places[here] - [first, 0]).T
    atoms[here] = _unit(x[sequence, position])
    found[here] = kept[sequence, position]
  if atoms is None or not found.all():
    missing = places[~found][0].tolist()
    raise SAEError(
      f'the stream has no kept token at sequence {missing[0]}, position {missing[1]}',
      cause='another text, another order of it, or other masks',
    )
  return ActivationDictionary(atoms, places)


def load_places(path: str | os.PathLike[str]) -> Int[np.ndarray, 'M 2']:
  """Reads the places of a file of `ActivationDictionary.save`, without pickle.

  Raises:
    SAEError: the file is of another kind, or damaged.
  """
  arrays = files.read_npz(path, SAEError)
  if {*arrays} != {'format', 'places'} or str(arrays['format']) != FORMAT:
    raise SAEError(f'{path} holds {sorted(arrays)}, and not the places of a dictionary')
  return _check_places(arrays['places'])


@dataclasses.dataclass(eq=False)
class _Growing:
  """A dictionary while it grows; rows of `atoms` that are not in use are zero, and so never chosen."""

  pursuit: Pursuit
  threshold: float
  max_atoms: int
  atoms: np.ndarray
  places: list[tuple[int, int]] = dataclasses.field(default_factory=list)

  @property
  def is_full(self) -> bool:
    return len(self.places) == self.max_atoms

  def begin(self, first: int, x: np.ndarray, kept: np.ndarray) -> None:
    """Puts in the first kept activation of each sequence that is not zero, the most frequent direction first."""
    kept = kept & x.any(-1)
    (sequence,) = np.nonzero(kept.any(1))
    at = np.stack([sequence, kept[sequence].argmax(1)], 1)
    units = _unit(x[at[:, 0], at[:, 1]])
    alike = units @ units.T >= SAME_COSINE
    is_first = ~np.tril(alike, -1).any(1)
    order = np.argsort(-alike.sum(1)[is_first], kind='stable')
    self._put(units[is_first][order], first, at[is_first][order])

  def add(self, first: int, x: np.ndarray, kept: np.ndarray, chunk: int) -> None:
    """Puts in the activations of a batch that the atoms do not explain."""
    at = np.argwhere(kept)
    for low in range(0, len(at), chunk):
      some = at[low : low + chunk]
      rows = x[some[:, 0], some[:, 1]]
      filled = np.pad(rows, ((0, chunk - len(rows)), (0, 0)))
      unexplained = np.asarray(_measure_unexplained(self.pursuit, self.atoms, filled))[: len(rows)]
      new = unexplained > self.threshold
      self._put(_unit(rows[new]), first, some[new])
      if self.is_full:
        return

  def _put(self, units: np.ndarray, first: int, at: np.ndarray) -> None:
    n = len(self.places)
    units = units[: self.max_atoms - n]
    self.atoms[n : n + len(units)] = units
    self.places += [(first + int(s), int(t)) for s, t in at[: len(units)]]

  def finish(self) -> ActivationDictionary:
    """The atoms without those that have the direction of an earlier one."""
    atoms = self.atoms[: len(self.places)]
    stays = np.ones(len(atoms), bool)
    for low in range(0, len(atoms), 256):
      block = atoms[low : low + 256] @ atoms.T >= SAME_COSINE
      stays[low : low + 256] = ~np.tril(block, low - 1).any(1)
    return ActivationDictionary(atoms[stays], np.asarray(self.places, np.int64)[stays])


@functools.partial(jax.jit, static_argnames='pursuit')
def _measure_unexplained(pursuit: Pursuit, units_MxD: jax.Array, x_BxD: jax.Array) -> jax.Array:
  """|x - x_hat|^2 / |x|^2 of each token, [B]; 0 for an activation of zero."""
  code = code_units(pursuit, units_MxD, x_BxD)
  error_BxD = x_BxD - sparse.decode(code.values, code.indices, units_MxD)
  total_B = jnp.sum(jnp.square(x_BxD), 1)
  return jnp.sum(jnp.square(error_BxD), 1) / jnp.where(total_B > 0, total_B, 1)


def _read(batches: Batches) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
  """Checks batches, and numbers their sequences: (number of the first, activations, mask)."""
  first, width = 0, None
  for x, kept in batches:
    x = jnp.asarray(x)
    x, kept = np.asarray(precision.wide(x)), np.asarray(kept)
    width = x.shape[-1] if width is None else width
    if x.ndim != 3 or kept.shape != x.shape[:2] or kept.dtype != bool or x.shape[-1] != width:
      raise SAEError(
        f'activations of shape {x.shape} and a mask {kept.dtype} {kept.shape}',
        where=f'the batch that begins at sequence {first}',
        hint=f'activations [B, T, {width}], and one boolean for each token',
      )
    if not np.isfinite(x[kept]).all():
      raise SAEError(
        'activations that are not finite', where=f'sequences {first} to {first + len(x) - 1}'
      )
    yield first, x, kept
    first += len(x)


def _unit(rows: np.ndarray) -> np.ndarray:
  length = np.linalg.norm(rows, axis=1, keepdims=True)
  return rows / np.where(length > 0, length, 1)


def _check_settings(threshold: float, max_atoms: int, chunk: int) -> None:
  if not 0 < threshold < 1:
    raise SAEError(
      f'threshold={threshold!r} is not a share of |x|^2', hint='a number between 0 and 1'
    )
  for name, value in (('max_atoms', max_atoms), ('chunk', chunk)):
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
      raise SAEError(f'{name}={value!r} should be a whole number, at least 1')


def _check_places(places: np.ndarray) -> np.ndarray:
  places = np.asarray(places)
  whole = places.dtype.kind in 'iu' and places.ndim == 2 and places.shape[1:] == (2,)
  if not whole or not len(places) or places.min() < 0:
    raise SAEError(
      f'places of shape {places.shape} and {places.dtype}',
      hint='sequence and position of each atom, integers [M, 2], at least 0',
    )
  return places.astype(np.int64)
