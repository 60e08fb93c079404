"""Resolution of `sites=...` to slot tables, and assembly of the answer from the returned cells.

A request is resolved against the staged program before anything runs: the sows that it means, the iterations of their
scans, and the position of each in the answer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from mechjax import sites
from mechjax.errors import HarvestError, SiteError
from mechjax.harvest.activations import Activations, ReadSite
from mechjax.harvest.requests import Reading
from mechjax.harvest.selecting import Layers, Request, check_layers, find_live, select, slot_table
from mechjax.programs.cells import DataKey, Keyed, finish, where
from mechjax.programs.places import Key
from mechjax.programs.program import Program, Sown


@dataclasses.dataclass(frozen=True)
class Read:
  """Recipe that turns the cells of one key into an entry of `Activations`."""

  key: Key
  entry: ReadSite
  sown: Sown


def resolve_reads(request: Request, program: Program, tag: Hashable) -> tuple[list[Read], Keyed]:
  """Resolves `sites=` against a program; returns the reads from which the answer is assembled, and the slot tables."""
  if isinstance(request, Mapping):
    return _resolve_traced(request, program, tag)
  sown = find_live(program, tag)
  chosen = set(select(request, program, tag))
  reads, tables = [], Keyed()
  groups: dict[Any, int] = {}
  for s in {s.key: s for s in sown}.values():
    mine = s.all_sites
    wanted = [site for site in mine if site in chosen]
    if not wanted:
      continue
    reads.append(
      Read(s.key, ReadSite(wanted[0].name, tuple(w.path for w in wanted), bool(s.lengths)), s)
    )
    if s.lengths:
      tables[DataKey('read', s.key)] = _make_reading(s, mine, wanted, groups)
  return reads, tables


def _make_reading(
  s: Sown, mine: Sequence[sites.Site], wanted: list[sites.Site], groups: dict[Any, int]
) -> Reading:
  if len(wanted) == len(mine):
    return Reading(None, len(mine), len(s.lengths), 0)
  slots = {site: i for i, site in enumerate(wanted)}
  table = np.array([slots.get(site, len(wanted)) for site in mine], np.int32)
  group = groups.setdefault((s.lengths, table.tobytes()), len(groups))
  return Reading(table.reshape(s.lengths), len(wanted), len(s.lengths), group)


def _resolve_traced(
  request: Mapping[str, Layers], program: Program, tag: Hashable
) -> tuple[list[Read], Keyed]:
  """Resolves `sites={'mlp_out': layers}` with an int array [k], traced or not."""
  reads, tables = [], Keyed()
  for name, layers in request.items():
    chosen = select(name, program, tag)
    if {site.name for site in chosen} != {name}:
      raise SiteError(
        f'{name!r} is a pattern where one name is expected',
        hint=f'name them one by one, as in {{{chosen[0].name!r}: layers}}',
      )
    check_layers(layers, chosen, name)
    layers = jnp.atleast_1d(jnp.asarray(layers, jnp.int32))
    again = (layers[:, None] == layers).argmax(axis=1)
    for s in {
      s.key: s for s in find_live(program, tag) if s.site_at((0,) * len(s.lengths)).name == name
    }.values():
      paths = [site.path for site in s.all_sites]
      if len(paths[0]) != 1:
        raise HarvestError(
          f'{name!r} has no single layer axis', hint='name its sites in full, as in sites=["x.0.3"]'
        )
      table = slot_table(layers, [p[0] for p in paths])
      reads.append(Read(s.key, ReadSite(name, None, True), s))
      tables[DataKey('read', s.key)] = Reading(
        table if s.lengths else table[0], layers.shape[0], len(s.lengths), len(tables), again
      )
  return reads, tables


def assemble(reads: Sequence[Read], cells: Keyed, tables: Keyed) -> Activations:
  """Assembles the answer to a request from the returned cells."""
  entries: dict[Any, ReadSite] = {}
  values: dict[Any, list] = {}
  for r in reads:
    leaves = finish(cells[r.key])
    flat_scans = len(r.sown.lengths)
    if flat_scans > 1 and tables[DataKey('read', r.key)].table is None:
      leaves = [x.reshape((-1, *x.shape[flat_scans:])) for x in leaves]
    key = r.key if r.entry.paths is not None else r.entry.name
    if r.entry.paths is None and not flat_scans:
      table = tables[DataKey('read', r.key)]
      hit = jnp.arange(table.k) == table.table
      before = values.get(key) or [
        jnp.zeros_like(jnp.broadcast_to(x, (table.k, *x.shape))) for x in leaves
      ]
      leaves = [where(hit, jnp.broadcast_to(x, b.shape), b) for x, b in zip(leaves, before)]
    shapes = tuple(x.shape for x in leaves)
    entries[key], values[key] = dataclasses.replace(r.entry, shapes=shapes), leaves
  for name, key in {r.entry.name: r.key for r in reads if r.entry.paths is None}.items():
    values[name] = [_repeat(x, tables[DataKey('read', key)].again) for x in values[name]]
  trees = {r.key if r.entry.paths is not None else r.entry.name: r.sown.tree for r in reads}
  return Activations(list(entries.values()), [trees[k].unflatten(v) for k, v in values.items()])


def _repeat(slots: jax.Array, again: jax.Array) -> jax.Array:
  """Copies the slot of a layer that is named twice from its first occurrence."""
  if len(again) == 1:
    return slots
  return jax.lax.cond(
    jnp.all(again == jnp.arange(len(again))), lambda x: x, lambda x: x[again], slots
  )


def by_name(cells: Keyed, program: Program) -> dict[str, PyTree]:
  """Returns the answer in the form of Oryx: nested dicts by scope, then values by name."""
  trees = {s.key: s.tree for s in program.sown}
  out: dict = {}
  for key, cell in cells.items():
    inner = out
    for scope in key.scope:
      inner = inner.setdefault(scope, {})
    inner[str(key._replace(scope=()))] = trees[key].unflatten(finish(cell))
  return out
