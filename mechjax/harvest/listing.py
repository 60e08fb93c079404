"""Lists of the sites of a program: names, layers, shapes, dtypes and source lines; nothing runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable

from jaxtyping import PyTree

from mechjax import sites
from mechjax.harvest import absence
from mechjax.programs.program import Sown, expand_all
from mechjax.programs.staging import stager
from mechjax.programs.tag import TAG


@dataclasses.dataclass(frozen=True)
class SiteInfo:
  """A site of a program: `shape` and `dtype` of the value of one layer (pytrees of them if the value is a pytree)."""

  site: sites.Site
  shape: PyTree[int]
  dtype: PyTree
  source: str

  def __str__(self):
    return f'{self.site!s:<20} {self.shape!s:<24} {self.dtype!s:<10} {self.source}'


class SiteList(list[SiteInfo]):
  """A list of `SiteInfo` that prints as a table with one row per name."""

  def __repr__(self):
    groups: dict[tuple, list[SiteInfo]] = {}
    for info in self:
      groups.setdefault((info.site.name, str(info.shape), str(info.dtype), info.source), []).append(
        info
      )
    rows = [('site', 'layers', 'shape', 'dtype', 'sown at')]
    for (name, shape, dtype, source), infos in groups.items():
      layers = str(len(infos)) if infos[0].site.path else '-'
      rows.append((name, layers, shape, dtype, source))
    widths = [max(len(r[i]) for r in rows) for i in range(4)]
    return '\n'.join('  '.join([*(c.ljust(w) for c, w in zip(r, widths)), r[4]]) for r in rows)


def sites_of(
  f: Callable[..., PyTree], *args: PyTree, tag: Hashable = TAG, **kwargs: PyTree
) -> SiteList:
  """Lists every site of `f` without running it.

  Args:
    f: a function with sows.
    *args: its arguments; `jax.ShapeDtypeStruct`s suffice.
    tag: tag of the sows.
    **kwargs: its keyword arguments.

  Returns:
    A list of `SiteInfo` in the order in which the forward pass meets them, layer by layer; its repr is a table.
  """
  program, _ = stager(f)(args, kwargs)
  sown = [s for s in program.sown if s.tag == tag and not s.backward]
  by_site = {site: s for s in reversed(sown) for site in expand_all([s])}
  skipped = absence.find_skipped(program)
  return SiteList(_info(site, by_site[site]) for site in expand_all(sown) if site not in skipped)


def _info(site: sites.Site, s: Sown) -> SiteInfo:
  shapes = [s.device_sizes + tuple(a.shape) for a in s.avals]
  dtypes = [a.dtype for a in s.avals]
  unflatten = s.tree.unflatten
  return SiteInfo(site, unflatten(shapes), unflatten(dtypes), s.source)
