"""The static half of a request: the action of a harvest at each sow.

The other half, slot tables and planted values, is data (`requests`); `reads` and `writes` resolve both from the
arguments of the user. Requests in the style of Oryx (a tag and everything under it, under the rules of its modes) and
requests by site end as the same plan.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable

import jax
import jax.numpy as jnp

from mechjax import compat
from mechjax.errors import HarvestError
from mechjax.programs.cells import AsLast, AsStack, Cell, DataKey, Exit, Frame, Plan, where
from mechjax.programs.places import Key
from mechjax.programs.tag import sow_p


@dataclasses.dataclass(frozen=True)
class HarvestPlan(Plan):
  """The static half of a harvest.

  Attributes:
    tag: the tag that is harvested.
    read_all: whether to read, as Oryx does, every sow of the tag that is allowed and not planted.
    strict: whether the rules of Oryx hold for every sow of the tag (the tag was given explicitly).
    read_keys: keys of sows that are read.
    write_keys: keys of sows that are written.
    allow: allowed names, or None for all.
    block: blocked names.
    exclusive: whether to drop the sows of other tags.
  """

  tag: Hashable
  read_all: bool = False
  strict: bool = False
  read_keys: frozenset = frozenset()
  write_keys: frozenset = frozenset()
  allow: frozenset | None = None
  block: frozenset = frozenset()
  exclusive: bool = False

  @property
  def reads(self) -> bool:  # type: ignore[override]
    return self.read_all or bool(self.read_keys)

  def admits(self, name: str) -> bool:
    """Whether the allowlist and the blocklist admit a name."""
    return name not in self.block and (self.allow is None or name in self.allow)

  def cares(self, tags: frozenset) -> bool:
    names = {k.name for k in self.read_keys | self.write_keys}
    return any((self.strict or n in names) if t == self.tag else self.exclusive for t, n in tags)

  def wants(self, key: Key) -> bool:
    return self.strict or key in self.read_keys or key in self.write_keys

  def edits(self, tags: frozenset) -> bool:
    names = {k.name for k in self.write_keys}
    return any(t == self.tag and n in names for t, n in tags)

  def at_sow(self, frame: Frame, params: dict, leaves: list, preds: list) -> tuple[list, bool]:
    if params['tag'] != self.tag:
      return leaves, False  # another tag under `exclusive`: the sow disappears
    key = frame.key(params['name'])
    writing = frame.data.get(DataKey('write', key))
    if writing is not None:
      new = writing.apply(leaves, params['tree'], frame.devices)
      leaves = [where(preds[0], n, o) for n, o in zip(new, leaves)] if preds else new
    read = key in self.read_keys or (self.read_all and self.admits(key.name))
    if self.strict:  # in Oryx a planted sow disappears
      again = writing is None and self.admits(key.name)
    else:  # it is sown again, unless a planted function has sown the value itself
      again = writing is None or not writing.sows(params['tag'], params['name'])
    if again and not read and compat.is_staging():
      leaves = sow_p.bind(*leaves, *preds, **params)[: len(leaves)]
    return leaves, read if writing is None else key in self.read_keys

  def at_tangent(self, frame: Frame, params: dict, leaves: list, preds: list) -> list:
    writing = frame.data.get(DataKey('write', frame.key(params['name'])))
    if params['tag'] != self.tag or writing is None or writing.tap:
      return leaves
    if writing.whole and not preds:
      return [jnp.zeros_like(t) for t in leaves]
    shapes = tangent_shapes(leaves, params)
    return cut_tangents(
      leaves, writing.mark_replaced(shapes, params['leaves'], frame.devices), preds, params
    )

  def leave_scan(self, key: Key, cell: Cell, frame: Frame) -> Exit:
    reading = frame.data.get(DataKey('read', key))
    if reading is not None:
      return reading.choose_exit()
    return AsStack() if cell.mode == 'append' else AsLast()

  def check_loop(self, name: str, params_of_sows: list[dict]) -> None:
    for p in params_of_sows:
      if name == 'scan' and self.read_all and p['mode'] == 'strict' and self.admits(p['name']):
        raise HarvestError(
          f"Cannot use strict mode for '{p['name']}' inside `scan`.",
          hint="ask by site (sites='*'), where the iteration is the layer, or sow with mode='append'",
        )
      if name == 'while_loop' and p['mode'] in ('strict', 'append'):
        raise HarvestError(
          f"Must use clobber or cond_clobber mode for '{p['name']}' inside of a `while_loop`.",
          cause='the number of iterations is not known, so there is no room for a value of each',
        )


def tangent_shapes(tangents: list, params: dict) -> list[tuple[int, ...]]:
  """Returns the shapes of the leaves that belong to these tangents."""
  extra = params['extra']
  return [tuple(n for i, n in enumerate(t.shape) if i not in extra) for t in tangents]


def cut_tangents(tangents: list, gone: list, preds: list, params: dict) -> list:
  """Sets the tangents of the leaves of a sow to zero where `gone` says that the value was replaced.

  Args:
    tangents: operands of a `sow_tangent`.
    gone: for each tangent a boolean of the shape of the leaf.
    preds: the sow's predicates; nothing was replaced where they do not hold.
    params: parameters of the `sow_tangent`.
  """
  if preds:
    gone = [where(preds[0], g, jnp.zeros_like(g)) for g in gone]
  extra = params['extra']
  gone = [jnp.broadcast_to(jnp.expand_dims(g, extra), t.shape) for g, t in zip(gone, tangents)]
  return [
    jax.lax.select(compat.reshard_like(g, t), jnp.zeros_like(t), t) for g, t in zip(gone, tangents)
  ]
