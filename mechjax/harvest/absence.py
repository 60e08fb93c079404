"""Reasons for sites that a program does not have.

Some code never computes a value that other code for the same equation does: a flash attention kernel holds no attention
probabilities. A request for them would end in "no site matches", which is true and does not help. So the code path that
lacks a site gives the reason where it runs:

    out = harvest.absent(kernel(q, k, v), names=['attn_probs'], cause='…', hint='…')

The mark is a sow under a tag of its own kind. It is therefore free outside a harvest, invisible to every request, and
correct in jitted, checkpointed and scanned code. A refused request that names a marked site is refused with the reason.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import jax.extend.source_info_util as siu
from jax.typing import ArrayLike
from jaxtyping import PyTree

from mechjax import sites
from mechjax.errors import SiteError
from mechjax.programs.program import Program, Sown, expand_all
from mechjax.programs.tag import sow

siu.register_exclusion(__file__)  # the source line of a mark is the line of its caller


@dataclasses.dataclass(frozen=True)
class Absence:
  """Tag of a mark: why its name is not a site (at `layers`, or at all), and how to run a path that has it."""

  cause: str
  hint: str
  layers: tuple[int, ...] = ()


def absent(
  value: PyTree[ArrayLike],
  *,
  names: Iterable[str],
  cause: str,
  hint: str,
  layers: Iterable[int] = (),
) -> PyTree[ArrayLike]:
  """Marks the code that computed `value` as having no sites of these names.

  Args:
    value: a pytree of arrays that flows on to the result.
    names: the sites that other code paths have.
    cause: the reason why this code path does not have them.
    hint: how to run a path that has them.
    layers: the layers that lack them, in a loop that holds these layers and skips them; empty for all.

  Returns:
    `value`.
  """
  tag = Absence(cause, hint, tuple(layers))
  for name in names:
    value = sow(value, tag=tag, name=name)
  return value


def find_skipped(program: Program) -> set[sites.Site]:
  """Finds the sites that the loops of a program skip."""
  marks = [m for m in program.sown if isinstance(m.tag, Absence) and m.tag.layers]
  return {site for mark in marks for site in _absent_sites(mark)}


def _absent_sites(mark: Sown) -> list[sites.Site]:
  """Lists the sites that are absent according to a mark."""
  found = expand_all([mark])
  layers = mark.tag.layers if isinstance(mark.tag, Absence) else ()
  return [sites.Site(s.name, (*s.path, i)) for s in found for i in layers] or found


def explain(request: sites.Patterns, program: Program) -> SiteError | None:
  """Returns the error for a request that names a marked site of the program; None for other requests."""
  for pattern in sites.as_patterns(request):
    for mark in program.sown:
      reason = mark.tag
      if isinstance(reason, Absence) and any(
        sites.matches(pattern, s) for s in _absent_sites(mark)
      ):
        what = f'no site matches {pattern!r}: this program does not compute it'
        return SiteError(what, where=mark.source, cause=reason.cause, hint=reason.hint)
  return None
