"""Selection of the sites of a program by patterns, and of slots by layers.

Every request by the name of a site is resolved here: reads (`reads`), plants (`writes`), cuts (`subgraph`), and the
sites where a run stops (`mechjax.forward`).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Int

from mechjax import sites
from mechjax.errors import SiteError
from mechjax.harvest import absence
from mechjax.programs.program import Program, Sown, expand_all

Layers = Int[ArrayLike, ' ...'] | Sequence[int]
"""Layers that may be traced: an integer, or an int array [k]."""

Request = sites.Patterns | Mapping[str, Layers]
"""What `sites=` takes: patterns, or a dict from the name of a site to layers."""


def find_live(program: Program, tag: Hashable) -> list[Sown]:
  """Finds the sows of `tag` that can be read."""
  return [s for s in program.sown if s.tag == tag and not s.backward]


def select(request: sites.Patterns, program: Program, tag: Hashable) -> list[sites.Site]:
  """Selects the sites of a program by patterns, in the order of the forward pass."""
  there, skipped = expand_all(find_live(program, tag)), absence.find_skipped(program)
  try:
    return sites.select(request, [s for s in there if s not in skipped] if skipped else there)
  except SiteError as e:
    if explained := absence.explain(request, program):
      raise explained from e
    lost = [n for t, n in program.dropped if t == tag]
    if not lost:
      raise
    raise SiteError(
      e.what,
      cause=f'JAX removed the sows of {lost} as dead code: their values do not reach the result of the derivative',
      hint='harvest inside the derivative: jax.grad(call_and_reap(f), has_aux=True), not reap(jax.grad(f))',
    ) from e


def find_wanted(request: Request) -> frozenset[str]:
  """Finds the names of `sites.ON_REQUEST` that a request may select."""
  return sites.find_requested(list(request) if isinstance(request, Mapping) else request)


def check_layers(layers: Layers, chosen: Sequence[sites.Site], name: str) -> None:
  """Raises if one of these layers of `name` does not exist, unless they are traced."""
  if isinstance(layers, jax.core.Tracer):
    return
  have = {site.path[-1] for site in chosen if site.path}
  for i in np.atleast_1d(np.asarray(layers)):
    if int(i) not in have:
      raise sites.no_site(f'{name}.{int(i)}', sorted(chosen))


def slot_table(layers: Int[Array, ' L'], indices: Sequence[int]) -> Int[Array, ' indices']:
  """Returns the position of each index in `layers`, or len(layers) for an index that is not in it."""
  hit = layers[None, :] == jnp.asarray(indices, jnp.int32)[:, None]
  return jnp.where(hit.any(axis=1), hit.argmax(axis=1), layers.shape[0]).astype(jnp.int32)
