"""Excerpts of one latent, chosen from everything that a pass over the texts has found.

    shown       half strongest peaks, half drawn level by level: an explainer that sees the strongest ones alone
                explains a feature that is broader, or another one, where it is weak
    active      drawn level by level, an octave each, so that weak activations count as much as strong ones
    inactive    random windows in which the latent is 0
    hard        windows in which the latent is 0 and a latent with a near decoder row is not
    random      random windows, whatever the latent does in them

Two excerpts on the lists of active ones never overlap, and a text is on one list once: the same tokens under another
number of a sequence (the web repeats itself) count once. Nothing is filled up: a list that is shorter than asked for is
reported, and a latent with too few active excerpts is left out with the reason.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from mechjax.autointerp.random_windows import Window
from mechjax.autointerp.record import Excerpt, LatentExamples
from mechjax.autointerp.splitting import hash_units, is_shown
from mechjax.autointerp.windows import find_runs, make_excerpt, place
from mechjax.errors import InterpretationError
from mechjax.sae.checks import is_number
from mechjax.sae.features import Examples, Features, FeatureSettings

_ORDER = 3  # so that these hashes differ from those of `random_windows`


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExampleSettings:
  """Numbers of excerpts of a latent.

  Attributes:
    window: tokens of an excerpt; 32 for detection, 64 for simulation as in Bills et al. (2023).
    min_window: runs of tokens that count and are shorter are left out.
    n_shown: excerpts for the explainer in which the latent is active.
    n_shown_top: those of them with the highest peaks; the others are drawn level by level.
    n_shown_inactive: excerpts for the explainer in which it is not active.
    n_active: scored excerpts in which it is active.
    n_inactive: scored excerpts in which it is not active.
    n_hard: scored excerpts in which it is not active and a near latent is.
    n_random: scored excerpts drawn at random.
    n_near: latents with the nearest decoder rows, for `n_hard`; those with a cosine above 0 count.
    n_windows: random windows drawn for all latents together, shown and scored ones.
    min_examples: least number of shown and of scored active excerpts; a latent with fewer is left out.
    shown_share: expected fraction of the sequences that are shown.
    features: sizes of the record of features, for a dashboard; its levels are those of the excerpts.

  Raises:
    InterpretationError: a number is out of range.
  """

  window: int = 32
  min_window: int = 8
  n_shown: int = 20
  n_shown_top: int = 10
  n_shown_inactive: int = 5
  n_active: int = 50
  n_inactive: int = 50
  n_hard: int = 10
  n_random: int = 10
  n_near: int = 4
  n_windows: int = 512
  min_examples: int = 5
  shown_share: float = 0.5
  features: FeatureSettings = dataclasses.field(default_factory=FeatureSettings)

  def __post_init__(self) -> None:
    whole = [field.name for field in dataclasses.fields(self)[:-2]]
    ones = {'window', 'min_window', 'n_shown', 'n_active', 'n_windows', 'min_examples'}
    for name in whole:
      value, least = getattr(self, name), int(name in ones)
      if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InterpretationError(
          f'ExampleSettings.{name}={value!r}; expected an integer of at least {least}'
        )
    if not (is_number(self.shown_share) and 0 < self.shown_share < 1):
      raise InterpretationError(
        f'ExampleSettings.shown_share={self.shown_share!r}; expected a number between 0 and 1'
      )
    if not isinstance(self.features, FeatureSettings):
      raise InterpretationError(
        f'ExampleSettings.features={self.features!r:.60}; expected FeatureSettings(...)'
      )
    for name, most in (('n_shown_top', self.n_shown), ('min_window', self.window)):
      if getattr(self, name) > most:
        raise InterpretationError(
          f'ExampleSettings.{name}={getattr(self, name)}; expected at most {most}'
        )
    fewest = min(self.n_shown, self.n_active)
    if self.min_examples > fewest:
      raise InterpretationError(
        f'ExampleSettings.min_examples={self.min_examples}; expected at most {fewest}',
        cause='no latent could have as many, with n_shown and n_active as they are',
      )

  @property
  def before(self) -> int:
    """Tokens before the token that an excerpt is about."""
    return self.window * 5 // 8

  @property
  def collected(self) -> FeatureSettings:
    """Sizes of a record that has enough contexts for both parts of the split, most of the time.

    A part of the weak contexts is lost, since windows around weak tokens often contain stronger ones.
    """
    shown, scored = self.shown_share, 1 - self.shown_share
    levels = self.features.levels
    per_side = [(self.n_shown - self.n_shown_top) / levels / shown, self.n_active / levels / scored]
    return dataclasses.replace(
      self.features,
      n_top=max(self.features.n_top, int(2 * self.n_shown_top / shown) + 4),
      per_level=max(self.features.per_level, int(2.5 * max(per_side)) + 4),
      before=max(self.window - 1, self.features.before),
      after=max(self.window - 1, self.features.after),
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
  """Results of a pass over the texts.

  Attributes:
    features: record of features with the sizes of `ExampleSettings.collected`.
    pieces: text of each token of the vocabulary.
    random: random windows; their activations have the rows of `features.latents`.
    hard: windows of each latent in which it is 0 and a near one is not, in the order of their draw.
  """

  features: Features
  pieces: Sequence[str]
  random: Sequence[Window]
  hard: Sequence[Sequence[Window]]


def choose_examples(
  found: Found, row: int, settings: ExampleSettings, seed: int
) -> LatentExamples | str:
  """Chooses the excerpts of one latent.

  Args:
    found: what a pass over the texts has found.
    row: row of the latent in `found.features`.
    settings: numbers of excerpts.
    seed: seed of the split and of all orders.

  Returns:
    The excerpts, or the reason why the latent has none.
  """
  latent = int(found.features.latents[row])
  maximum = float(found.features.maximum[row])
  if not maximum > 0:
    return f'it is not active on any of the {found.features.n_tokens} tokens'
  top = _excerpts(found, found.features.top, row, settings)
  drawn = _excerpts(found, found.features.drawn, row, settings)
  parts = {name: _split(list_, settings, seed) for name, list_ in (('top', top), ('drawn', drawn))}

  used = _Used()
  shown = used.take(parts['top'][0], settings.n_shown_top)
  shown += used.take(_by_level(parts['drawn'][0], settings, seed), settings.n_shown - len(shown))
  shown += used.take(parts['top'][0], settings.n_shown - len(shown))
  used.shown = frozenset(used.texts)
  both = parts['drawn'][1] + parts['top'][1]
  active = used.take(_by_level(both, settings, seed), settings.n_active)
  if min(len(shown), len(active)) < settings.min_examples:
    return (
      f'it has {len(shown)} active excerpts to show and {len(active)} to score, and '
      f'min_examples={settings.min_examples}'
    )
  lists = _random_lists(found, row, settings, seed, used)
  hard = (_window_excerpt(found, window, 0, maximum) for window in found.hard[row])
  return LatentExamples(
    latent=latent,
    maximum=maximum,
    density=float(found.features.density[row]),
    shown=tuple(sorted(shown, key=lambda e: -e.activations.max())),
    active=tuple(active),
    hard=tuple(used.take(hard, settings.n_hard)),
    **lists,
  )


def list_shortages(examples: LatentExamples, settings: ExampleSettings) -> str:
  """Lists that are shorter than asked for, such as 'active 30 of 50, hard 0 of 10'; '' if all are full."""
  names = ('shown', 'shown_inactive', 'active', 'inactive', 'hard', 'random')
  sizes = [(name, len(getattr(examples, name)), getattr(settings, f'n_{name}')) for name in names]
  return ', '.join(f'{name} {n} of {wanted}' for name, n, wanted in sizes if n < wanted)


# --- lists ------------------------------------------------------------------------------------------------


class _Used:
  """Excerpts that are on a list already."""

  def __init__(self) -> None:
    self.texts: set[bytes] = set()
    self.shown: frozenset[bytes] = frozenset()
    self.places: dict[int, list[tuple[int, int]]] = {}

  def take(self, excerpts: Iterable[Excerpt], n: int) -> list[Excerpt]:
    """Takes the first n excerpts that overlap no other one and whose text is new."""
    free = (excerpt for excerpt in excerpts if self._add(excerpt))
    return list(itertools.islice(free, max(0, n)))

  def take_any(self, excerpts: Iterable[Excerpt], n: int) -> list[Excerpt]:
    """Takes the first n excerpts whose text is not shown. They may overlap others, or they would not be random."""
    free = (excerpt for excerpt in excerpts if excerpt.tokens.tobytes() not in self.shown)
    taken = list(itertools.islice(free, n))
    self.texts |= {excerpt.tokens.tobytes() for excerpt in taken}
    return taken

  def _add(self, excerpt: Excerpt) -> bool:
    text = excerpt.tokens.tobytes()
    places = self.places.setdefault(excerpt.sequence, [])
    start, end = excerpt.start, excerpt.start + len(excerpt.tokens)
    if text in self.texts or any(start < other[1] and other[0] < end for other in places):
      return False
    self.texts.add(text)
    places.append((start, end))
    return True


def _by_level(
  excerpts: Sequence[Excerpt], settings: ExampleSettings, seed: int
) -> Iterator[Excerpt]:
  """Excerpts in turn from each level, the strongest level first; at random within a level."""
  last = settings.features.levels - 1
  ordered = _shuffle(excerpts, seed)
  levels = [[e for e in ordered if min(e.level, last) == level] for level in range(last + 1)]
  for turn in itertools.zip_longest(*levels):
    yield from (excerpt for excerpt in turn if excerpt is not None)


def _shuffle(excerpts: Sequence[Excerpt], seed: int) -> list[Excerpt]:
  if not excerpts:
    return []
  places = np.array([(e.sequence, e.start) for e in excerpts])
  order = np.argsort(hash_units(seed, np.full(len(places), _ORDER), *places.T), kind='stable')
  return [excerpts[i] for i in order]


def _split(
  excerpts: Sequence[Excerpt], settings: ExampleSettings, seed: int
) -> tuple[list[Excerpt], list[Excerpt]]:
  shown = is_shown(np.array([e.sequence for e in excerpts], int), seed, settings.shown_share)
  first, second = ([e for e, s in zip(excerpts, shown) if s == side] for side in (True, False))
  return first, second


def _random_lists(
  found: Found, row: int, settings: ExampleSettings, seed: int, used: _Used
) -> dict[str, tuple[Excerpt, ...]]:
  """The lists of random windows, in an order of the latent's own."""
  maximum = float(found.features.maximum[row])
  places = np.array([(w.sequence, w.start) for w in found.random], int).reshape(-1, 2)
  latent = np.full(len(places), int(found.features.latents[row]))
  order = np.argsort(hash_units(seed, latent, *places.T), kind='stable')
  shown = is_shown(places[:, 0], seed, settings.shown_share)
  active = np.array([bool((w.activations[row] > 0).any()) for w in found.random], bool)

  def pick(mask: np.ndarray) -> Iterator[Excerpt]:
    return (_window_excerpt(found, found.random[i], row, maximum) for i in order if mask[i])

  return {
    'random': tuple(used.take_any(pick(~shown), settings.n_random)),
    'shown_inactive': tuple(used.take(pick(shown & ~active), settings.n_shown_inactive)),
    'inactive': tuple(used.take(pick(~shown & ~active), settings.n_inactive)),
  }


# --- excerpts ---------------------------------------------------------------------------------------------


def _window_excerpt(found: Found, window: Window, row: int, maximum: float) -> Excerpt:
  return make_excerpt(
    window.sequence, window.start, window.tokens, window.activations[row],
    pieces=found.pieces, maximum=maximum,
  )  # fmt: skip


def _excerpts(
  found: Found, contexts: Examples, row: int, settings: ExampleSettings
) -> list[Excerpt]:
  """Excerpts around the own tokens of some contexts, in their order."""
  maximum, own = float(found.features.maximum[row]), np.array([contexts.own])
  excerpts = []
  for i in np.flatnonzero(contexts.found[row]):
    tokens, activations = contexts.tokens[row, i], contexts.activations[row, i]
    low, high = (bound[:, own[0]] for bound in find_runs(tokens[None] >= 0))
    start, end = map(int, np.concatenate(place(own, low, high, settings.window, settings.before)))
    # A window of the record is cut at both ends, but no run is shorter than `min_window` for that.
    if high[0] - low[0] < settings.min_window:
      continue
    at = int(contexts.position[row, i]) - contexts.own + start
    excerpt = make_excerpt(
      int(contexts.sequence[row, i]), at, tokens[start:end], activations[start:end],
      pieces=found.pieces, maximum=maximum,
    )  # fmt: skip
    excerpts.append(excerpt)
  return excerpts
