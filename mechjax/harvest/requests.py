"""The data of a request: slot tables and planted values.

Layers are data wherever they can be. A read of k layers inside a scan is a *slot table*, one integer per iteration: the
slot that this iteration fills, or k for none. A write is the same table read in the other direction: the slot whose
value replaces the value of this iteration, or k for none. The tables are run-time arguments, so one executable serves
every choice of k layers, and a traced layer index sweeps all layers.

These objects are in `Frame.data` and are sliced when the interpreter enters scans.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jax.tree_util import PyTreeDef
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Int, PyTree, Shaped

from mechjax import compat
from mechjax.errors import HarvestError
from mechjax.harvest.functions import Planted, apply_function
from mechjax.programs.cells import AsStack, Exit, FromSlots, IntoSlot, where

Table = Int[Array | np.ndarray, ' ...'] | None
"""Slots [*scans], one for each iteration of the scans that remain to be entered."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Reading:
  """The slot table of a read: `table` int32 [*scans], `k` slots. Without a table every iteration is stacked.

  Reads of one `group` have equal tables, so that one branch writes them all. `again`, int [k], is given if layers may
  be traced: the slot of the first occurrence of each requested layer.
  """

  table: Table
  k: int = dataclasses.field(metadata={'static': True})
  scans: int = dataclasses.field(metadata={'static': True})
  group: int = dataclasses.field(metadata={'static': True})
  again: Int[Array, ' L'] | None = None

  def per_iteration(self) -> Table:
    return self.table

  def at_iteration(self, table: Table) -> Reading:
    return dataclasses.replace(self, table=table, scans=self.scans - 1)

  def specs(self, names: tuple[str, ...]) -> list[PartitionSpec]:
    return [PartitionSpec() for _ in jax.tree.leaves(self)]

  def choose_exit(self) -> Exit:
    """Chooses how the cell leaves the scan whose slice of the table is `self` (see `Plan.leave_scan`)."""
    if self.table is None:
      return AsStack()
    if self.scans == 0:
      return IntoSlot(self.k, self.table, self.group)
    hit = (self.table.reshape(-1, 1) == jnp.arange(self.k)).any(axis=0)
    return FromSlots(hit)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Writing:
  """Replacement of the value at a sow.

  Attributes:
    table: int32 slots [*scans], or None: then `leaves` have one leading axis per scan if `stacked`, otherwise they
      are the value for every iteration.
    leaves: planted leaves, with a leading axis of k slots under a table; empty for a function.
    mask: None, or a boolean broadcastable to each leaf (its leading axes as in `leaves`).
    fns: functions of the value (`functions.Planted`), one per slot; empty where leaves are planted.
    k: number of slots.
    scans: number of scans that remain to be entered.
    stacked: see `table`.
    tap: whether nothing is replaced; `leaves` are then zeros that receive the gradient at the site.
  """

  table: Table
  leaves: list[Shaped[Array, ' ...']]
  mask: Bool[Array, ' ...'] | None
  fns: tuple[Planted, ...]
  k: int = dataclasses.field(metadata={'static': True})
  scans: int = dataclasses.field(metadata={'static': True})
  stacked: bool = dataclasses.field(metadata={'static': True})
  tap: bool = dataclasses.field(default=False, metadata={'static': True})

  def per_iteration(self) -> PyTree:
    return (self.table, self.leaves, self.mask) if self.stacked else self.table

  def at_iteration(self, xs: PyTree) -> Writing:
    table, leaves, mask = xs if self.stacked else (xs, self.leaves, self.mask)
    return dataclasses.replace(self, table=table, leaves=leaves, mask=mask, scans=self.scans - 1)

  def specs(self, names: tuple[str, ...]) -> list[PartitionSpec]:
    lead = self.scans if self.stacked else int(self.table is not None)
    per_device = PartitionSpec(*[None] * lead, *names)
    return [
      *(PartitionSpec() for _ in jax.tree.leaves(self.table)),
      *(per_device for _ in self.leaves),
      *(per_device for _ in jax.tree.leaves(self.mask)),
      *(PartitionSpec() for _ in jax.tree.leaves(self.fns)),
    ]

  def apply(
    self, values: Sequence[ArrayLike], tree: PyTreeDef | None, devices: int = 0
  ) -> list[Shaped[Array, ' ...']]:
    """Returns the value that flows on in place of `values`."""
    if self.fns:
      return self._by_function(values, tree)
    if self.table is None:
      return [self._mask(x, p, self.mask, devices) for x, p in zip(values, self.leaves)]
    slot = jnp.minimum(self.table, self.k - 1)
    pick = lambda a: jax.lax.dynamic_index_in_dim(a, slot, 0, keepdims=False)  # noqa: E731
    mask = None if self.mask is None else pick(self.mask)
    wanted = self.table < self.k
    return [
      where(wanted, self._mask(x, pick(p), mask, devices), x) for x, p in zip(values, self.leaves)
    ]

  @property
  def whole(self) -> bool:
    """Whether the value is replaced completely, so that neither it nor its tangent has an effect."""
    return self.table is None and self.mask is None and not self.fns

  def mark_replaced(
    self, shapes: Sequence[tuple[int, ...]], leaves: Sequence[int], devices: int = 0
  ) -> list[Bool[Array, ' ...']]:
    """Returns booleans that mark where the leaves numbered `leaves`, of these shapes, are replaced."""
    if self.fns:
      raise HarvestError(
        'a site cannot be planted through a function inside a derivative',
        hint='put the derivative outside: jax.grad(plant(f)) instead of plant(jax.grad(f))',
      )
    everywhere = [jnp.ones(jnp.shape(self.leaves[i]), bool) for i in leaves]
    planted = dataclasses.replace(self, leaves=everywhere)
    return planted.apply([jnp.zeros(s, bool) for s in shapes], None, devices)

  def sows(self, tag: Hashable, name: str) -> bool:
    """Whether a planted function itself sows a value of this name."""
    return any((tag, name) in fn.sown for fn in self.fns)

  def _by_function(self, values: Sequence[ArrayLike], tree: PyTreeDef | None) -> list[jax.Array]:
    def run(fn):
      return lambda: apply_function(fn, values, tree)

    if self.table is None:
      return run(self.fns[0])()
    keep = lambda: list(values)  # noqa: E731
    return jax.lax.switch(self.table, [*(run(fn) for fn in self.fns), keep])

  def _mask(
    self, value: Any, planted: jax.Array, mask: jax.Array | None, devices: int
  ) -> jax.Array:
    planted = jnp.reshape(planted, planted.shape[devices:]) if devices else planted
    if self.tap:
      return tap(value, planted)
    planted = compat.reshard_like(planted, value)
    if mask is None:
      return planted
    mask = jnp.reshape(mask, mask.shape[devices:]) if devices else mask
    mask = compat.reshard_like(jnp.broadcast_to(mask, value.shape), value)
    return jax.lax.select(mask, planted, value)


@jax.custom_vjp
def tap(value: Shaped[Array, '*site'], delta: Shaped[Array, '*site']) -> Shaped[Array, '*site']:
  """Returns `value`; in the backward pass `delta` receives the same cotangent. Free in the forward pass."""
  return value


tap.defvjp(lambda value, delta: (value, None), lambda _, ct: (ct, ct))
