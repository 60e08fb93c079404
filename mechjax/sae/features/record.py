"""Record of each latent, as NumPy arrays that are saved to a file and loaded again.

The file is an .npz of plain arrays under the names of the fields ('top.tokens'), and is read without pickle: nothing in
it can run. `Features.histogram` counts activations in bins of a quarter of an octave, whose `EDGES` are the same for
all latents, so quantiles are accurate to a quarter of an octave, for any number of tokens.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mechjax import files
from mechjax.errors import SAEError
from mechjax.sae.checks import check_field
from mechjax.sae.features.directions import Ranked
from mechjax.sae.features.selection import OCTAVES, PER_OCTAVE

EDGES = np.append(
  np.ldexp(1 + np.arange(PER_OCTAVE) / PER_OCTAVE, np.array(OCTAVES)[:, None]).reshape(-1),
  2.0**OCTAVES.stop,
)
"""Edges of the histogram's bins: each octave in equal parts; float64 [bins + 1]."""

FORMAT = 'mechjax features 1'


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
  """Contexts in which latents are active. If fewer than n were found, the last rows are empty: sequence -1.

  Attributes:
    sequence: number of the example's sequence among all that were seen, int64 [L, n].
    position: position of the example's own token in its sequence, int32 [L, n].
    tokens: window around that token, int32 [L, n, W]; -1 beyond the sequence and where a token does not count.
    activations: activations on the tokens of the window, float32 [L, n, W].
    own: index of the example's own token in the window.
  """

  sequence: np.ndarray
  position: np.ndarray
  tokens: np.ndarray
  activations: np.ndarray
  own: int

  def __post_init__(self) -> None:
    check_field(
      self, 'own', 0 <= self.own < self.tokens.shape[-1], f'an index in {self.tokens.shape}'
    )

  @property
  def found(self) -> np.ndarray:
    """Mask of the rows that are examples, bool [L, n]."""
    return self.sequence >= 0

  @property
  def strength(self) -> np.ndarray:
    """Activation of the example's own token, [L, n]; 0 in empty rows."""
    return self.activations[..., self.own]


@dataclasses.dataclass(frozen=True, eq=False)
class Features:
  """Features of some latents of a dictionary.

  Attributes:
    width: number of latents of the dictionary, M.
    n_tokens: number of tokens that count.
    latents: indices of these latents, int64 [L].
    histogram: counts of activations between `EDGES`, int64 [L, bins]; the outer bins include everything beyond.
    top: contexts of the highest peaks, highest first.
    drawn: contexts of tokens drawn from each level, strongest first.
    level: level of each drawn context, int32 [L, n]: 0 for the octave of the largest activation, 1 for the octave
      below it, n_levels - 1 for all the rest; -1 in empty rows.
    n_levels: number of levels.
    promoted, suppressed: tokens whose logits are raised and lowered most, with the change per unit of activation,
      relative to the mean over the vocabulary.
    decoder_near, encoder_near: latents with the nearest directions, with the cosine.
  """

  width: int
  n_tokens: int
  latents: np.ndarray
  histogram: np.ndarray
  top: Examples
  drawn: Examples
  level: np.ndarray
  n_levels: int
  promoted: Ranked
  suppressed: Ranked
  decoder_near: Ranked
  encoder_near: Ranked

  @property
  def firings(self) -> np.ndarray:
    """Number of tokens on which each latent is active, int64 [L]."""
    return self.histogram.sum(-1)

  @property
  def density(self) -> np.ndarray:
    """Fraction of the tokens on which each latent is active, [L]."""
    return self.firings / self.n_tokens

  @property
  def maximum(self) -> np.ndarray:
    """Largest activation, [L]; 0 for a latent that was never active."""
    return self.top.strength[:, 0]

  def quantiles(self, shares: Sequence[float]) -> np.ndarray:
    """Quantiles of the positive activations, accurate to a bin of the histogram.

    Args:
      shares: fractions from 0 to 1.

    Returns:
      [L, len(shares)]; NaN for a latent that was never active.
    """
    up_to = np.cumsum(self.histogram, -1)
    wanted = np.maximum(np.asarray(shares)[:, None] * up_to[:, None, -1:], 1)
    place = np.minimum((up_to[:, None] < wanted).sum(-1), len(EDGES) - 2)
    middle = np.sqrt(EDGES[place] * EDGES[place + 1])
    within = np.minimum(middle, self.maximum[:, None])  # the top bin reaches beyond the largest
    return np.where(self.firings[:, None] > 0, within, np.nan)

  def find_row(self, latent: int) -> int:
    """Finds the row of a latent in the arrays.

    Raises:
      SAEError: the latent was not looked at.
    """
    (found,) = np.nonzero(self.latents == latent)
    if not found.size:
      raise SAEError(
        f'latent {latent} was not looked at', cause=f'{len(self.latents)} of {self.width} were'
      )
    return int(found[0])

  def save(self, path: str | os.PathLike) -> None:
    """Writes an .npz file atomically; `load` reads it."""
    with files.whole(Path(path)) as file:
      np.savez_compressed(file, format=FORMAT, **_flatten(self))


def load(path: str | os.PathLike) -> Features:
  """Reads a file of `Features.save`, without pickle.

  Args:
    path: path of the file.

  Raises:
    SAEError: the file is of another kind, or damaged.
  """
  arrays = files.read_npz(path, SAEError)
  if (found := str(arrays.pop('format', 'none'))) != FORMAT:
    raise SAEError(f'{path} has the format {found!r}, not {FORMAT!r}')
  if {*arrays} != (wanted := {*_names()}):
    raise SAEError(
      f'{path} lacks {sorted(wanted - {*arrays})} and has the unknown arrays {sorted({*arrays} - wanted)}'
    )
  try:
    return Features(**_nest(arrays))
  except (TypeError, IndexError, AttributeError) as e:
    raise SAEError(f'{path} holds arrays whose shapes are not those of features: {e}') from e


_PARTS = {
  'top': Examples,
  'drawn': Examples,
  'promoted': Ranked,
  'suppressed': Ranked,
  'decoder_near': Ranked,
  'encoder_near': Ranked,
}


def _names() -> Iterator[str]:
  """Names of all arrays of a file."""
  for field in dataclasses.fields(Features):
    kind = _PARTS.get(field.name)
    if kind is None:
      yield field.name
    else:
      own = Ranked._fields if kind is Ranked else [f.name for f in dataclasses.fields(Examples)]
      yield from (f'{field.name}.{name}' for name in own)


def _flatten(features: Features) -> dict[str, Any]:
  """Arrays by name, those of parts as 'part.name'."""
  flat: dict[str, Any] = {}
  for field in dataclasses.fields(features):
    value = getattr(features, field.name)
    if field.name in _PARTS:
      own = value._asdict() if isinstance(value, Ranked) else vars(value)
      flat |= {f'{field.name}.{name}': array for name, array in own.items()}
    else:
      flat[field.name] = value
  return flat


def _nest(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
  parts: dict[str, Any] = {name: {} for name in _PARTS}
  for name, array in arrays.items():
    part, _, own = name.partition('.')
    value = array if array.ndim else array.item()
    if own:
      parts[part][own] = value
    else:
      parts[part] = value
  return parts | {name: kind(**parts[name]) for name, kind in _PARTS.items()}
