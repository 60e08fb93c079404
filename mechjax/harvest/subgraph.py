"""The function from some sites to others, cut out of a model.

    cut = harvest.subgraph(model, inputs='q.5', outputs='attn_probs.5')(tokens)
    probs = cut(patched_q)

For its QK fix AtP* needs the attention probabilities at another query, exactly, for whatever attention the model has:
soft-capped, windowed, grouped, with sinks. Rewriting attention for each model would be wrong sooner or later; the
staged program already holds the function. So the equations between the sites are cut out of it, and every other value
that they need (the keys, the masks) is captured from the run at the given arguments.

How. The program is written out from the inputs to the outputs (calls are inlined; in a scan, the body that holds both).
The equations that depend on the inputs and lead to the outputs are the sub-program. The other values that they read are
captured: the program is staged once more with a sow on each such value, and reaped.

A `Subgraph` is a pytree (its captured values), so it can be passed to jit and vmap. For several layers, it takes and
returns values with a leading axis of layers, vmapped in a scan and sequentially in an unrolled model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, ParamSpec

import jax
import jax.extend.source_info_util as siu
import jax.numpy as jnp
from jax.extend import core as jex_core
from jax.typing import ArrayLike
from jaxtyping import PyTree

from mechjax import compat
from mechjax import sites as sites_lib
from mechjax.errors import HarvestError
from mechjax.harvest import reads
from mechjax.harvest.api import run
from mechjax.harvest.functions import fit_array
from mechjax.harvest.plans import HarvestPlan
from mechjax.harvest.selecting import find_live, select
from mechjax.programs.cells import Frame, Keyed, Plan
from mechjax.programs.interpreter import Interpreter
from mechjax.programs.line import Line, Op, Origin, Ref, evaluate, read
from mechjax.programs.places import TOP, Key, Place, ScanLoop
from mechjax.programs.primitives import CALLS, PrimitiveKind, body_of, kind_of
from mechjax.programs.program import Program, ProgramCache, Sown, struct_of
from mechjax.programs.staging import stager
from mechjax.programs.tag import TAG, sow, sow_p

_CAPTURED = 'mechjax captured'
_PLANS: ProgramCache[tuple] = ProgramCache()

P = ParamSpec('P')


@dataclasses.dataclass(frozen=True)
class _Sow:
  """A sow of interest: `ins` are the sown values, `outs` the values that flow on, `avals` their abstract values."""

  key: Key
  ins: tuple[Ref, ...]
  outs: tuple[int, ...]
  avals: tuple
  tree: Any


class _Layout(Line):
  """A program written out, with the sows of interest at their places."""

  def __init__(self, program: Program, ins: frozenset, outs: frozenset):
    super().__init__(program)
    self.ins, self.keys = ins, ins | outs
    self.names = frozenset(k.name for k in self.keys)
    self.sows: dict[Key, _Sow] = {}
    self.loop: tuple = ()  # the scans around the current position
    self.home: dict[Key, tuple] = {}
    self._enter(program.jaxpr, TOP)

  def _enter(self, jaxpr: Any, place: Place) -> None:
    self.inline(jaxpr, self.fresh(compat.raw(jaxpr).invars, place), place)

  def constant(self, array: Any) -> Ref:
    return jex_core.Literal(array, jax.typeof(array))

  def opens(self, eqn: Any, place: Place) -> bool:
    return any(n in self.names for _, n in self.program.tags_of(eqn))

  def open(self, eqn: Any, refs: tuple, place: Place) -> Sequence[Ref]:
    if kind_of(eqn) in CALLS:
      return self.inline(body_of(eqn), refs, place)
    if kind_of(eqn) is not PrimitiveKind.SCAN:
      raise HarvestError(
        f'a sub-program cannot be cut out of the primitive {eqn.primitive.name!r}',
        where=siu.summarize(eqn.source_info),
        hint='plant and reap instead: harvest(f, sites=outputs)({input: value}, *args)',
      )
    outs = self.append(eqn, refs, place, place)
    before, self.loop = self.loop, (*self.loop, len(self.steps))
    self._enter(eqn.params['jaxpr'], place.within('*'))
    self.loop = before
    return outs

  def sow(self, eqn: Any, refs: tuple, place: Place) -> Sequence[Ref]:
    if eqn.primitive is not sow_p:
      write = self.open if self.opens(eqn, place) else super().sow
      return write(eqn, refs, place)
    p = eqn.params
    key = place.key(p['name'])
    if key not in self.keys:
      return refs
    n = len(refs) - p['n_preds']
    outs = self.fresh(eqn.outvars, place)
    avals = tuple(v.aval for v in eqn.outvars[:n])
    self.sows[key] = _Sow(key, refs[:n], outs[:n], avals, p['tree'])
    self.home[key] = self.loop
    return outs if key in self.ins else refs  # a sow that is only an output is the identity


# --- cutting ----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Cut:
  """The operations between sites, and the other values that they need."""

  ops: tuple[Op, ...]
  ins: tuple[_Sow, ...]
  outs: tuple[_Sow, ...]
  captured: tuple[int, ...]
  origins: tuple[Origin, ...]


def _cut(layout: _Layout, ins: Sequence[Key], outs: Sequence[Key]) -> _Cut:
  homes = {layout.home[k] for k in [*ins, *outs]}
  if len(homes) > 1:
    raise HarvestError(
      'the inputs and outputs of a sub-program lie in different loops',
      hint='plant and reap instead: harvest(f, sites=outputs)({input: value}, *args)',
    )
  reached = {v for k in ins for v in layout.sows[k].outs}
  ops = []
  for op in layout.steps:
    if any(r in reached for r in op.ins if isinstance(r, int)):
      reached.update(op.outs)
      ops.append(op)
  needed = {r for k in outs for r in layout.sows[k].ins if isinstance(r, int)}
  for k in outs:
    if not any(r in reached for r in layout.sows[k].ins):
      raise HarvestError(
        f'{k} does not depend on {", ".join(map(str, ins))}',
        cause='the outputs come before the inputs, or are at another layer of a scan',
        hint='name sites in the order of the forward pass, at one layer',
      )
  kept: list[Op] = []
  for op in reversed(ops):
    if any(o in needed for o in op.outs):
      kept.append(op)
      needed.update(r for r in op.ins if isinstance(r, int))
  made = {o for op in kept for o in op.outs} | {v for k in ins for v in layout.sows[k].outs}
  captured = tuple(sorted(needed - made))
  return _Cut(
    tuple(reversed(kept)),
    tuple(layout.sows[k] for k in ins),
    tuple(layout.sows[k] for k in outs),
    captured,
    tuple(layout.origins[v] for v in captured),
  )


def _evaluate(cut: _Cut, inputs: Sequence[Any], captured: Sequence[Any]) -> list[Any]:
  values: dict[int, Any] = dict(zip(cut.captured, captured))
  for site, value in zip(cut.ins, inputs):
    values.update(zip(site.outs, jax.tree.leaves(value)))
  evaluate(cut.ops, values)
  return [s.tree.unflatten([read(values, r) for r in s.ins]) for s in cut.outs]


# --- capturing --------------------------------------------------------------------------------------------


class _CapturePlan(Plan):
  """Plan that enters everything that holds a site of the cut, and leaves the sites unchanged."""

  def __init__(self, names: frozenset):
    self.names = names

  def cares(self, tags: frozenset) -> bool:
    return any(n in self.names for _, n in tags)

  def edits(self, tags: frozenset) -> bool:
    return self.cares(tags)  # so that functions with custom rules are entered

  def at_sow(self, frame: Frame, params: dict, leaves: list, preds: list) -> tuple[list, bool]:
    return leaves, False


class _Capturer(Interpreter):
  """Interpreter that sows every captured variable when it is computed."""

  bundles = False

  def __init__(self, program: Program, plan: Plan, names: dict[Any, str]):
    super().__init__(program, plan)
    self.names = names

  def observe(self, variables: Sequence[Any], values: Sequence[Any]) -> None:
    for v, x in zip(variables, values):
      if v in self.names:
        sow(x, tag=_CAPTURED, name=self.names[v], mode='clobber')


def _capture(program: Program, cuts: Sequence[_Cut]) -> tuple[Program, list, dict[Any, str]]:
  """Returns the program with a sow on every captured value, the arrays it holds, and the names of the variables."""
  variables = {v.variable for c in cuts for v in c.origins}
  names = {v: f'captured_{n}' for n, v in enumerate(variables)}
  plan = _CapturePlan(frozenset(k.key.name for c in cuts for k in c.ins))

  def interpret(values):
    return _Capturer(program, plan, names).run(values, Keyed())[0]

  with compat.staging_gate():
    closed = jax.make_jaxpr(interpret)([struct_of(v.aval) for v in program.jaxpr.invars])
  made = Program(closed, program.out_tree, False, [])
  return made, list(compat.consts(closed)), names


# --- the public side ----------------------------------------------------------------------------------------


@jax.tree_util.register_pytree_node_class
class Subgraph:
  """A function from the values of the inputs to those of the outputs; a pytree of its captured values."""

  def __init__(self, parts: tuple, captured: PyTree) -> None:
    self._parts, self._captured = parts, captured

  def __call__(self, *values: PyTree[ArrayLike]) -> PyTree[ArrayLike]:
    """Computes the outputs at other values of the inputs.

    Args:
      *values: one per input site name, in the order of `inputs`; with a leading axis of layers if several were
        requested.

    Returns:
      The output, or a tuple of them, in the same layout.
    """
    cuts, n_layers, stacked = self._parts
    if len(values) != len(cuts[0].ins):
      raise HarvestError(f'{len(values)} values for {len(cuts[0].ins)} inputs of a sub-program')
    values = tuple(self._check(s, v, n_layers) for s, v in zip(cuts[0].ins, values))
    if n_layers is None:
      outs = _evaluate(cuts[0], values, self._captured[0])
    elif stacked:
      outs = jax.vmap(lambda v, c: _evaluate(cuts[0], v, c))(values, list(self._captured[0]))
    else:
      rows = [
        _evaluate(cut, [jax.tree.map(lambda x, i=i: x[i], v) for v in values], captured)
        for i, (cut, captured) in enumerate(zip(cuts, self._captured))
      ]
      outs = [jax.tree.map(lambda *xs: jnp.stack(xs), *column) for column in zip(*rows)]
    return outs[0] if len(outs) == 1 else tuple(outs)

  def at_layer(self, index: ArrayLike) -> Subgraph:
    """The function of one of several layers, without the leading axis.

    Args:
      index: which of the layers, in order; it may be traced in a scan.

    Raises:
      HarvestError: the sub-program is that of a single layer.
    """
    cuts, n_layers, stacked = self._parts
    if n_layers is None:
      raise HarvestError('a sub-program of a single layer has no axis of layers')
    if stacked:
      return Subgraph((cuts, None, False), [jax.tree.map(lambda x: x[index], self._captured[0])])
    return Subgraph(((cuts[index],), None, False), [self._captured[index]])

  @staticmethod
  def _check(sow: _Sow, value: Any, n_layers: int | None) -> Any:
    leaves, tree = jax.tree.flatten(value)
    lead = () if n_layers is None else (n_layers,)
    if tree != sow.tree:
      raise HarvestError(f'a value of structure {tree} for {sow.key}, which has {sow.tree}')
    old = [jax.ShapeDtypeStruct((*lead, *a.shape), a.dtype) for a in sow.avals]
    what = f'the value for {sow.key} has'
    return jax.tree.unflatten(tree, [fit_array(x, o, what) for x, o in zip(leaves, old)])

  def tree_flatten(self) -> tuple:
    return (self._captured,), self._parts

  @classmethod
  def tree_unflatten(cls, parts: tuple, children: tuple) -> Subgraph:
    return cls(parts, *children)


def subgraph(
  f: Callable[P, PyTree],
  inputs: sites_lib.Patterns,
  outputs: sites_lib.Patterns,
  *,
  tag: Hashable = TAG,
) -> Callable[P, Subgraph]:
  """Cuts the function from some sites to others out of `f`.

  Args:
    f: a function with sows.
    inputs: sites whose values the cut takes, as patterns; every name at the same layers.
    outputs: sites whose values it returns, at those layers.
    tag: tag of the sows.

  Returns:
    `(*args) -> Subgraph`: the other values that the cut needs are captured from the run at these arguments.

  Raises:
    SiteError: unknown sites.
    HarvestError: outputs that do not depend on the inputs, layers that differ, loops that hold only one of them.
  """
  staged = stager(f)

  def at(*args: P.args, **kwargs: P.kwargs) -> Subgraph:
    program, values = staged(args, kwargs)
    key = (tuple(_patterns(inputs)), tuple(_patterns(outputs)), tag)
    known = _PLANS.of(program).get(key)
    if known is None:
      known = _PLANS.of(program)[key] = _make_plan(program, inputs, outputs, tag)
    cuts, n_layers, stacked, capturing, requests = known
    captured = _capture_values(capturing, cuts, requests, values)
    return Subgraph((cuts, n_layers, stacked), captured)

  return at


def _patterns(patterns: sites_lib.Patterns) -> Iterator[str]:
  yield from sites_lib.as_patterns(patterns)


def _make_plan(program: Program, inputs: Any, outputs: Any, tag: Hashable) -> tuple:
  ins, outs = (select(p, program, tag) for p in (inputs, outputs))
  paths = sorted({s.path for s in ins})
  for name in {s.name for s in [*ins, *outs]}:
    mine = sorted(s.path for s in [*ins, *outs] if s.name == name)
    if mine != paths and len(paths) > 1:
      raise HarvestError(
        f'{name} is requested at {len(mine)} layers, {ins[0].name} at {len(paths)}',
        hint='request inputs and outputs at the same layers',
      )
  sown = {site: s for s in find_live(program, tag) for site in s.all_sites}
  layout = _Layout(program, *(frozenset(sown[s].key for s in ends) for ends in (ins, outs)))
  many = len(paths) > 1
  groups = [[s for s in ins if s.path == p] for p in paths] if many else [ins]
  ends = [[s for s in outs if s.path == p] for p in paths] if many else [outs]
  pairs = [
    (tuple(sown[s].key for s in a), tuple(sown[s].key for s in b)) for a, b in zip(groups, ends)
  ]
  _check_same_iteration(sown, ins, outs, many)
  cuts = {pair: _cut(layout, *pair) for pair in pairs}
  stacked = len(cuts) == 1
  used = tuple(cuts.values()) if stacked else tuple(cuts[pair] for pair in pairs)
  capturing = _capture(program, used)
  return used, len(paths) if many else None, stacked, capturing, paths


def _check_same_iteration(sown: dict, ins: list, outs: list, many: bool) -> None:
  scanned = {_iteration(s, sown[s]) for s in [*ins, *outs] if sown[s].lengths}
  if scanned and not many and len(scanned) > 1:
    raise HarvestError(
      f'{outs[0]} and {ins[0]} lie in different iterations of a scan',
      cause='the rest of the loop is between them',
      hint='plant and reap instead: harvest(f, sites=outputs)({input: value}, *args)',
    )


def _iteration(site: sites_lib.Site, sown: Sown) -> tuple[int, ...]:
  """Returns the iterations of the scans around a site."""
  around = [p for p in sown.path if isinstance(p, int | ScanLoop)]
  return tuple(n for n, p in zip(site.path, around) if isinstance(p, ScanLoop))


def _capture_values(
  capturing: tuple[Program, list, dict], cuts: Sequence[_Cut], paths: list, values: list
) -> list:
  """Computes the captured values at these arguments: for each cut, one array per captured value."""
  program, held, names = capturing
  wanted = [[_site_of(v, names, p) for v in c.origins] for c, p in _pair_with_paths(cuts, paths)]
  sites = list(dict.fromkeys(s for row in wanted for group in row for s in group))
  if not sites:
    return [[] for _ in cuts]
  found, tables = reads.resolve_reads(sites, program, _CAPTURED)
  plan = HarvestPlan(tag=_CAPTURED, read_keys=frozenset(r.key for r in found))
  _, cells = run(program, plan, tables, [*held, *values])
  acts = reads.assemble(found, cells, tables)
  return [
    [acts[g[0]] if len(g) == 1 else jnp.stack([acts[s] for s in g]) for g in row] for row in wanted
  ]


def _pair_with_paths(cuts: Sequence[_Cut], paths: list) -> Iterator[tuple[_Cut, list]]:
  if len(cuts) == 1:
    yield cuts[0], paths
  else:
    yield from ((c, [p]) for c, p in zip(cuts, paths))


def _site_of(value: Origin, names: dict, paths: list) -> list[sites_lib.Site]:
  """Lists the sites at which a captured value is sown: one per requested layer, with loops at that iteration."""
  sites = []
  for p in paths:
    index = list(p)
    # a static layer consumes one index of the path of the site, as a loop does
    path = tuple(q if isinstance(q, int) else index[n] for n, q in enumerate(value.place.path))
    sites.append(sites_lib.Site('/'.join([*value.place.scope, names[value.variable]]), path))
  return sites
