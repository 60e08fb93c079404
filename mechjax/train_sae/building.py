"""Ensembles of a run, from its settings and the widths of its sites: for each site, of all layers, or of all parts.

    build_ensembles(settings, {'resid_post.15': 576}, [SitePair('resid_post.15')])          {'topk': Ensemble(...), ...}

`dictionary_settings` has the settings of each architecture.
"""

from __future__ import annotations

from mechjax.errors import SAEError
from mechjax.sae.training import Ensemble
from mechjax.train_sae.settings import TrainSettings
from mechjax.train_sae.site_pairs import SitePair, is_pattern


def build_ensembles(
  settings: TrainSettings, widths: dict[str, int], pairs: list[SitePair]
) -> dict[str, Ensemble]:
  """All ensembles by name; the site is part of the name if the site of the run is a pattern.

  Args:
    settings: settings of the run.
    widths: width of each site that is read or reconstructed, in the order of the parts of crosscoders.
    pairs: sites of the dictionaries.

  Raises:
    SAEError: a crosscoder of one site, layers of different widths, or dictionaries that cannot be built.
  """
  if settings.crosscoder:
    return _crosscoders(settings, widths)
  several = is_pattern(settings.site) or is_pattern(settings.target)
  found: dict[str, Ensemble] = {}
  for pair in pairs:
    d_out = widths[pair.writes] if pair.writes else None
    own = settings.dictionaries.build_ensembles(
      widths[pair.reads], pair.reads, pair.writes, d_out, settings.skip
    )
    found |= {f'{name}/{pair.reads}' if several else name: e for name, e in own.items()}
  if settings.dictionaries.cross_layer:
    found |= _cross_layer(settings, widths, pairs)
  return found


def _crosscoders(settings: TrainSettings, widths: dict[str, int]) -> dict[str, Ensemble]:
  if len(widths) < 2:
    raise SAEError(
      f'a crosscoder of the site {settings.site!r} alone',
      cause='a crosscoder has activations of several sites, or of two models',
      hint='--site=resid_post.{9,12,15}, or --other_model=...',
    )
  parts = tuple(widths.values())
  return settings.dictionaries.build_ensembles(
    sum(parts), tuple(widths), None, None, False, parts=parts
  )


def _cross_layer(
  settings: TrainSettings, widths: dict[str, int], pairs: list[SitePair]
) -> dict[str, Ensemble]:
  read, written = (
    tuple(site for pair in pairs if (site := getattr(pair, end))) for end in ('reads', 'writes')
  )
  sizes = [{widths[site] for site in end} for end in (read, written)]
  if any(len(size) > 1 for size in sizes):
    raise SAEError(
      f'a cross-layer transcoder of layers with inputs of widths {sorted(sizes[0])} and targets of {sorted(sizes[1])}',
      cause='all layers of a cross-layer transcoder have one width',
    )
  (d_in,), (d_out,) = sizes
  return settings.dictionaries.build_cross_layer(d_in, read, written, d_out, settings.skip)
