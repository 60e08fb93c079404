"""Bundles: runs of equations that no request concerns, bound as one call.

Evaluating a staged program again costs about as much as staging it did, because JAX binds every equation anew. In an
unrolled model of thousands of equations a request concerns a handful. The equations between them are therefore cut out
once as jaxprs of their own and bound as single jitted calls, which XLA inlines again. Staging a reap then costs little
more than staging the model.

Only the straight line of a program is bundled. Inside loops JAX decides equation by equation what to hoist and what to
keep for the backward pass, and there the number of equations does not grow with depth anyway.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from jax.extend import core as jex_core
from jax.typing import ArrayLike

from mechjax import compat

MIN_LENGTH = 8  # equations; binding one call costs about as much as binding this many


@dataclasses.dataclass(frozen=True)
class Bundle:
  """Equations from `invars` to `outvars`, as one closed jaxpr."""

  jaxpr: compat.AnyJaxpr
  invars: tuple[jex_core.Var, ...]
  outvars: tuple[jex_core.Var, ...]

  def bind(self, values: Sequence[ArrayLike]) -> Sequence[ArrayLike]:
    return compat.bind_jitted(self.jaxpr, values)


def schedule(jaxpr: jex_core.Jaxpr, concerned: Sequence[bool]) -> list[jex_core.JaxprEqn | Bundle]:
  """Lists the equations of a jaxpr in order, with runs that are not `concerned` replaced by `Bundle`s."""
  runs: list[list[int]] = [[]]
  for i, (eqn, one) in enumerate(zip(jaxpr.eqns, concerned)):
    if one or eqn.effects:
      runs += [[i], []]
    else:
      runs[-1].append(i)
  last = _last_uses(jaxpr)
  items: list[jex_core.JaxprEqn | Bundle] = []
  for run in runs:
    if len(run) < MIN_LENGTH:
      items += [jaxpr.eqns[i] for i in run]
    else:
      items.append(_bundle(jaxpr, run, last))
  return items


def _last_uses(jaxpr: Any) -> dict[Any, int]:
  last: dict[Any, int] = {}
  for i, eqn in enumerate(jaxpr.eqns):
    last.update((v, i) for v in eqn.invars if not isinstance(v, jex_core.Literal))
  last.update((v, len(jaxpr.eqns)) for v in jaxpr.outvars if not isinstance(v, jex_core.Literal))
  return last


def _bundle(jaxpr: Any, run: list[int], last: dict[Any, int]) -> Bundle:
  eqns = [jaxpr.eqns[i] for i in run]
  made = {v for e in eqns for v in e.outvars}
  read = (v for e in eqns for v in e.invars if not isinstance(v, jex_core.Literal))
  invars = tuple(dict.fromkeys(v for v in read if v not in made))
  outvars = tuple(v for e in eqns for v in e.outvars if last.get(v, -1) > run[-1])
  return Bundle(compat.make_closed(jaxpr, invars, outvars, eqns), invars, outvars)
