"""Sites of a run: one input site with its output site, or one pair for each layer that a pattern selects.

A set of transcoders, one for each layer, is trained on one stream of activations: a single forward pass gives the
activations of all sites, and every layer has a dictionary of its own.

    pair_sites('resid_post.15', None, model.sites)                [SitePair('resid_post.15')]
    pair_sites('mlp_norm.*', 'mlp_out.*', model.sites)            [SitePair('mlp_norm.0', 'mlp_out.0'), ...]

Sharp edge: inputs and outputs are paired by their layers, so each pattern selects one site of a layer.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Sequence

from mechjax import sites
from mechjax.errors import SAEError, SiteError


@dataclasses.dataclass(frozen=True)
class SitePair:
  """Sites of one dictionary.

  Attributes:
    reads: input site.
    writes: output site of a transcoder; None for an autoencoder.
  """

  reads: str
  writes: str | None = None


def is_pattern(text: str | None) -> bool:
  """Whether a text is a pattern, which may select several sites, and not the name of one site."""
  if text is None:
    return False
  try:
    sites.parse(text)
  except SiteError:
    return True
  return len(sites.as_patterns(text)) > 1


def pair_sites(
  site: str, target: str | None, available: Callable[[], Sequence[sites.Site]]
) -> list[SitePair]:
  """Pairs of input and output sites, in the order of the forward pass.

  Args:
    site: an input site, or a pattern.
    target: an output site, or a pattern; None for autoencoders.
    available: function that lists the sites of the model; called only for patterns.

  Raises:
    SiteError: a pattern selects nothing.
    SAEError: the patterns select different numbers of sites, different layers, or several sites of a layer.
  """
  if not (is_pattern(site) or is_pattern(target)):
    return [SitePair(site, target)]
  known = available()
  read = sites.select(site, known)
  if target is None:
    return [SitePair(str(one)) for one in read]
  written = sites.select(target, known)
  if len(read) != len(written):
    raise SAEError(
      f'site={site!r} selects {len(read)} sites and target={target!r} selects {len(written)}',
      where=f'sites {_list(read)}; targets {_list(written)}',
      cause='every dictionary reads one site and reconstructs one target',
      hint='--site=mlp_norm.* --target=mlp_out.*',
    )
  by_path = {one.path: one for one in written}
  for selected in (read, written):
    _check_one_per_layer(selected)
  if missing := [one for one in read if one.path not in by_path]:
    raise SAEError(
      f'no target on the layer of {_list(missing)}',
      where=f'site={site!r} and target={target!r}, which selects {_list(written)}',
      cause='a transcoder reads and reconstructs sites of one layer',
      hint='give both patterns the same layers, as in --site=mlp_norm.{3..7} --target=mlp_out.{3..7}',
    )
  return [SitePair(str(one), str(by_path[one.path])) for one in read]


def _check_one_per_layer(selected: Sequence[sites.Site]) -> None:
  path, count = collections.Counter(one.path for one in selected).most_common(1)[0]
  if count > 1:
    raise SAEError(
      f'several sites of one layer: {_list([one for one in selected if one.path == path])}',
      cause='input and output sites are paired by their layers',
      hint='name one site in each pattern, as in mlp_norm.*',
    )


def _list(selected: Sequence[sites.Site]) -> str:
  named = [str(one) for one in selected]
  return ', '.join(named[:4]) + (f' and {len(named) - 4} more' if len(named) > 4 else '')
