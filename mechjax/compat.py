"""All differences between the supported JAX versions and all private JAX names, and nothing else.

mechjax reads programs that JAX staged, so it depends on JAX's internals more than most libraries do, and those
internals change with every release. All code that is version-dependent or uses a private name is here, with the
reason, so that supporting a new JAX is a matter of this file and its tests.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax._src import config, core  # the parts used here have no public name
from jax._src.interpreters import partial_eval
from jax.extend import core as jex_core
from jax.interpreters import ad, batching

from mechjax import code_version

# The gate of `sow`: None outside of a harvest (sow returns its value untouched), `Staging` while a harvest
# stages a program, a tap in eager runs. A user context is part of every jit and trace cache key, so a plain
# call before or after a harvest never runs the tagged program. (An effect, which Oryx uses, disables the C++
# dispatch fast path and doubles checkpoint residuals.)
GATE = jax.make_user_context(None)


class Staging(NamedTuple):
  """The gate while a program is staged, a part of the keys of JAX's trace caches.

  Attributes:
    version: `code_version.now()`, so that a cache does not return the trace of a function from before a patch.
    traces: number of calls of `retrace`.
    wanted: names of `sites.ON_REQUEST` that the harvest may read or plant; None for all.
  """

  version: int
  traces: int
  wanted: frozenset[str] | None


def staging_gate(wanted: frozenset[str] | None = None) -> Any:
  """A context in which sows are staged, for a harvest of these names and of those that an outer harvest wants."""
  outer = GATE.value
  if isinstance(outer, Staging) and wanted is not None:
    wanted = None if outer.wanted is None else outer.wanted | wanted
  return GATE(Staging(code_version.now(), _traces, wanted))


_traces = 0


def retrace() -> None:
  """Makes JAX trace jitted functions again when they are staged next, because the values they read may have changed."""
  global _traces
  _traces += 1


def is_staging() -> bool:
  """Whether sows are staged here."""
  return isinstance(GATE.value, Staging)


@contextlib.contextmanager
def rekey_gate(layer: int) -> Iterator[None]:
  """Gives each layer its own trace-cache key in eager runs, so that a shared jitted block is tapped in every layer."""
  tap = GATE.value
  if tap is None or isinstance(tap, Staging):
    yield
  else:
    with GATE(tap.at_layer(layer)):
      yield


# --- jaxprs -------------------------------------------------------------------------------------------

AnyJaxpr = jex_core.Jaxpr | jex_core.ClosedJaxpr
"""A program without or with its constants; from JAX 0.12 one class is both."""


def raw(jaxpr: Any) -> Any:
  """The open jaxpr: sub-jaxprs are ClosedJaxpr on 0.10 and Jaxpr later; `.jaxpr` works on both."""
  return jaxpr.jaxpr if hasattr(jaxpr, 'jaxpr') else jaxpr


def consts(jaxpr: Any) -> Sequence[Any]:
  """The constants bound to `raw(jaxpr).constvars`."""
  return getattr(jaxpr, 'consts', ())


def scan_split(params: dict[str, Any]) -> tuple[int, int]:
  """(num_consts, num_carry) of a scan: plain ints on 0.10, a flat-tree `ft_in` later."""
  if 'num_consts' in params:
    return params['num_consts'], params['num_carry']
  c, k, _ = params['ft_in'].unpack()
  return len(c), len(k)


def hidden_jaxprs(params: dict[str, Any]) -> list[AnyJaxpr]:
  """Jaxprs that a primitive holds in places that `jaxprs_in_params` does not search.

  custom_linear_solve keeps a named tuple of jaxprs; hi-primitives (custom_root from 0.12) an object `_prim`
  whose params hold them.
  """
  found: list[AnyJaxpr] = []

  def look(x: Any, depth: int) -> None:
    if hasattr(x, 'eqns') or (hasattr(x, 'jaxpr') and hasattr(raw(x), 'eqns')):
      found.append(x)
    elif depth and isinstance(x, dict):
      for y in x.values():
        look(y, depth - 1)
    elif depth and isinstance(x, tuple | list):
      for y in x:
        look(y, depth - 1)
    elif (
      depth and type(x).__module__.startswith('jax.') and hasattr(x, '__dict__') and not callable(x)
    ):
      look(vars(x), depth - 1)

  for key, value in params.items():
    if key == '_prim':
      look(getattr(value, 'params', {}), 3)
    else:
      look(value, 3)
  return found


def trace_context() -> Any:
  """Everything in JAX's configuration that a staged program depends on; part of our cache keys."""
  return config.trace_context()


def zeros_like(aval: Any, varying: tuple[str, ...] = ()) -> jax.Array:
  """Zeros of an abstract value: on its sharding where the mesh is explicit, varying over these manual mesh axes."""
  zeros = jax.lax.full(aval.shape, 0, aval.dtype, sharding=_explicit(aval))
  return jax.lax.pcast(zeros, varying, to='varying') if varying else zeros


def reshard_like(x: Any, other: Any) -> Any:
  """Puts `x` on the sharding of `other`, an array of its shape, where the mesh is explicit and the two must agree."""
  sharding = _explicit(jax.typeof(other))
  if sharding is None or jax.typeof(x).sharding == sharding:
    return x
  return jax.sharding.reshard(x, sharding)


def _explicit(aval: Any) -> Any:
  """The sharding of an abstract value where it is part of its type; None where the compiler chooses it."""
  sharding = getattr(aval, 'sharding', None)
  types = () if sharding is None else getattr(sharding.mesh, 'axis_types', ())
  return sharding if jax.sharding.AxisType.Explicit in types else None


def prepend_axes(aval: Any, lead: tuple[int, ...]) -> jax.ShapeDtypeStruct:
  """Adds leading axes, which are not sharded, to an abstract value."""
  sharding = getattr(aval, 'sharding', None)
  if isinstance(sharding, jax.sharding.NamedSharding):
    spec = jax.sharding.PartitionSpec(*[None] * len(lead), *sharding.spec)
    sharding = jax.sharding.NamedSharding(sharding.mesh, spec)
  return jax.ShapeDtypeStruct((*lead, *aval.shape), aval.dtype, sharding=sharding)


def make_closed(like: Any, invars: Sequence, outvars: Sequence, eqns: Sequence) -> Any:
  """Makes a program from some of the equations of `like`: a ClosedJaxpr on 0.10, a Jaxpr later."""
  info = like.debug_info._replace(arg_names=None, result_paths=None)
  jaxpr = jex_core.Jaxpr((), list(invars), list(outvars), list(eqns), debug_info=info)
  return jaxpr if jex_core.ClosedJaxpr is jex_core.Jaxpr else jex_core.ClosedJaxpr(jaxpr, ())


def evaluate(jaxpr: Any, constants: Sequence[Any], *values: Any) -> list[Any]:
  """Evaluates a program with the given constants in place of its own (jax.extend has no such function)."""
  return jax.core.eval_jaxpr(raw(jaxpr), constants, *values)


_jit_params: dict[Any, dict[str, Any]] = {}


def bind_jitted(closed: Any, values: Sequence[Any]) -> Sequence[Any]:
  """Calls a jaxpr as `jax.jit` would, without tracing it again (there is no public way)."""
  context = trace_context()
  if context not in _jit_params:
    with jax.disable_jit(False):
      example = raw(jax.make_jaxpr(jax.jit(lambda x: x + 1))(0.0)).eqns[0].params
    _jit_params[context] = dict(example)
  p = _jit_params[context]
  n_in, n_out = len(raw(closed).invars), len(raw(closed).outvars)
  sizes = {'in_shardings': n_in, 'in_layouts': n_in, 'donated_invars': n_in} | {
    'out_shardings': n_out,
    'out_layouts': n_out,
  }
  per_value = {k: p[k][:1] * n for k, n in sizes.items()}
  return jex_core.primitives.jit_p.bind(
    *values, **{**p, **per_value, 'jaxpr': closed, 'name': 'untouched'}
  )


def call_subfuns(eqn: Any) -> tuple[Any, ...]:
  """The functions of a custom_jvp_call (fun, jvp) or custom_vjp_call (fun, fwd, bwd), to be called on flat values."""
  return eqn.primitive.get_bind_params(eqn.params)['subfuns']


# --- JAX's partial evaluation ---------------------------------------------------------------------------
#
# JAX plans to remove general partial evaluation, the machinery behind `linearize`, `vjp` and `checkpoint` that splits
# a program into a part that is known now and a part that is computed later. The functions of mechjax that rely on it
# are here, with their replacement if it is removed:
#
#   keep_alive         a table of pruning rules. Without it: an effect on `sow_p`, the public way, which disables the
#                      dispatch fast path while a harvest stages and keeps more residuals of a checkpoint; or no rule
#                      at all, if nothing is pruned before the compiler prunes.
#   staging_trace      the class of the trace that builds a program. Without it: the class that replaces it.
#   is_differentiated  the class of the tracers of `linearize`. Without it: JVP tracers alone.
#   is_recomputed      the parameter of a checkpoint that marks the half which a derivative recomputes. Without it a
#                      staged program has no such half and nothing is sown twice: `Sown.backward`, the recomputation
#                      in `rules`, and the `Echo` of a stepped run that is not a tangent can be removed.


def is_differentiated(x: Any) -> bool:
  """Whether `x` carries a tangent right now (JVPTracer; LinearizeTracer has no public name)."""
  return isinstance(x, ad.JVPTracer) or type(x).__name__ == 'LinearizeTracer'


def is_recomputed(eqn: Any) -> bool:
  """Whether an equation is the half of a checkpoint that a derivative recomputes."""
  return bool(eqn.params.get('differentiated'))


def keep_alive(primitive: Any) -> None:
  """Keeps equations of `primitive` when JAX prunes equations that no result needs.

  There is no public registry of pruning rules, and their signature differs between versions (the equation is
  the last argument in all). An effect would do this publicly, at the cost of the dispatch fast path. Libraries prune
  as well, to find out what a value depends on (flax does, in its scan): they get the true answer.
  """

  def rule(used: Sequence[bool], *rest: Any) -> tuple[list[bool], Any]:
    eqn = rest[-1]
    if any(used) or _is_called_by_jax():
      return [True] * len(eqn.invars), eqn
    return [False] * len(eqn.invars), None

  partial_eval.dce_rules[primitive] = rule


def _is_called_by_jax() -> bool:
  """Whether the pruning that is running was called from inside JAX."""
  frame: Any = sys._getframe(2)
  while frame is not None and frame.f_globals.get('__name__', '').startswith(_PRUNING):
    frame = frame.f_back
  return frame is not None and frame.f_globals.get('__name__', '').startswith('jax.')


_PRUNING = ('jax._src.interpreters.partial_eval', 'jax._src.util', 'jax._src.weakref_lru')


def staging_trace() -> Any:
  """The trace that is building a program at present (inside jit, scan, checkpoint), or None.

  There is no public way to find out whether a program is under construction around concrete arguments, or whether it
  is the same program as before.
  """
  trace = core.trace_ctx.trace
  while trace is not None and not isinstance(trace, partial_eval.DynamicJaxprTrace):
    trace = getattr(trace, 'parent_trace', None)
  return trace


# --- batching of control flow ---------------------------------------------------------------------------

_batching_lock = threading.RLock()


@contextlib.contextmanager
def batching_rules(overrides: Mapping[Any, Callable[[Callable], Callable]]) -> Iterator[None]:
  """Wraps the vmap rules of some primitives while a harvest stages a program.

  A vmapped cond becomes a select and a vmapped while freezes finished lanes; in both the information which lanes a
  value inside belongs to exists only in the batching rule. There is no public hook for it.

  Args:
    overrides: primitive -> function from JAX's rule to the rule to use instead.
  """
  table = batching.fancy_primitive_batchers
  with _batching_lock:
    saved = {p: table[p] for p in overrides}
    table.update({p: wrap(saved[p]) for p, wrap in overrides.items()})
    try:
      yield
    finally:
      table.update(saved)


# --- primitives without a public name -------------------------------------------------------------------

cond_p = jex_core.primitives.cond_p
while_p = jex_core.primitives.while_p
SHARD_MAP = 'shard_map'  # by name: jax.extend exports no shard_map_p


# --- name stacks ------------------------------------------------------------------------------------------


def without_scopes(name_stack: Any, prefix: str) -> Any:
  """A name stack without the named scopes that begin with `prefix` (there is no public way to build one)."""
  kept = [s for s in name_stack.stack if not getattr(s, 'name', '').startswith(prefix)]
  return type(name_stack)(tuple(kept))


# --- JAX's state of the thread -----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class ThreadStateCell:
  """One piece of the state that JAX keeps for each thread."""

  name: str
  get: Callable[[], Any]
  set: Callable[[Any], None]

  @property
  def of_trace(self) -> bool:
    """Whether code that computes with the tracers of a trace needs this cell; the other cells are settings."""
    return self.name in _OF_TRACE

  @property
  def is_trace(self) -> bool:
    """Whether the cell holds the trace itself."""
    return self.name == 'trace_state'


_OF_TRACE = {
  *('trace_state', 'trace_state_strong_ref', 'axis_env_state', 'name_stack'),
  *('mesh_context_manager', 'abstract_mesh_context_manager', 'check_vma', 'enable_x64'),
}


def thread_state() -> dict[ThreadStateCell, Any]:
  """JAX's whole state of this thread: its trace, and the settings of all its context managers.

  Values are compared by identity. They hold traces, so the leak checker reports code that keeps them. Contexts of
  `jax.make_user_context` are not included, except the gate.
  """
  return {cell: cell.get() for cell in _cells(len(config.config_states))}


def set_thread_state(values: Mapping[ThreadStateCell, Any]) -> None:
  """Restores some values of `thread_state`."""
  for cell, value in values.items():
    if cell.get() is not value:
      cell.set(value)


@functools.cache
def _cells(n_states: int) -> tuple[ThreadStateCell, ...]:
  """All cells; `n_states` grows when a module that defines more cells is imported."""
  del n_states
  from jax._src import mesh, sharding_impls

  found = [GATE._obj, *config.config_states.values()]
  found += [x for module in (config, core, mesh, sharding_impls) for x in vars(module).values()]
  configs = {id(x): x for x in found if isinstance(x, config.config_ext.Config)}
  return (_name_stack(), *map(_cell, configs.values()))


@functools.cache
def _name_stack() -> ThreadStateCell:
  from jax._src.source_info_util import _source_info_context as names

  return ThreadStateCell(
    'name_stack', lambda: names.context, lambda value: setattr(names, 'context', value)
  )


@functools.cache
def _cell(state: Any) -> ThreadStateCell:
  hook: Any = getattr(state, '_update_thread_local_hook', None)

  def put(value: Any) -> None:
    state.set_local(value)
    hook(None if value is config.config_ext.unset else value)

  name = getattr(state, '__name__', None) or state.name
  return ThreadStateCell(name, state.get_local, put if hook else state.set_local)
