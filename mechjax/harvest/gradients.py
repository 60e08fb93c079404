"""Gradients of a scalar with respect to the values at sites.

    value, acts, grads = harvest.value_and_grad_at(loss, sites='resid_post.*')(tokens)

One forward and one backward pass give the values and the gradients at all requested sites. At each site a tap
(`requests.tap`) is between the value and its uses: an identity whose backward rule also sends the cotangent to a zero.
The forward pass is unchanged, no parameter is differentiated, and a checkpointed body stays checkpointed. Inside a scan
the zeros are scanned over if all layers are requested; else k slots collect the gradients of k layers.

Attribution patching is computed from these: (noise - clean) * gradient, Kramár et al. 2024 (AtP*), equation 2.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterator
from typing import ParamSpec, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from mechjax import compat
from mechjax.errors import HarvestError
from mechjax.harvest.activations import Activations
from mechjax.harvest.plans import HarvestPlan
from mechjax.harvest.reads import Read, assemble, resolve_reads
from mechjax.harvest.requests import Writing
from mechjax.harvest.selecting import Request, find_wanted
from mechjax.programs.cells import Cell, DataKey, Keyed
from mechjax.programs.interpreter import Interpreter
from mechjax.programs.program import Program, ProgramCache
from mechjax.programs.reach import check_not_dead
from mechjax.programs.repeats import check_sown_once
from mechjax.programs.staging import stager
from mechjax.programs.tag import TAG

_COMPILED: ProgramCache[Callable] = ProgramCache()

P = ParamSpec('P')
R = TypeVar('R')


def value_and_grad_at(
  f: Callable[P, R], sites: Request, *, has_aux: bool = False, tag: Hashable = TAG
) -> Callable[P, tuple[R, Activations, Activations]]:
  """Transforms `f(*args) -> scalar` into `(*args) -> (scalar, values, gradients)` at sites.

  Args:
    f: a function with sows that returns a floating-point scalar, or (scalar, aux) with `has_aux`.
    sites: the sites, as in `harvest`.
    has_aux: whether `f` returns (scalar, aux); the first result is then this pair.
    tag: tag of the sows.

  Returns:
    The transformed function. `values` and `gradients` have the same sites and shapes. The gradient is the
    gradient of planting: d f / d value with everything before the site held fixed and everything after it recomputed.

  Raises:
    SiteError, HarvestError: when called: unknown sites; a site of integers; a result that is not a scalar.
  """
  staged = stager(f)
  request = list(sites) if isinstance(sites, Iterator) else sites  # read again at every call

  @functools.wraps(f)
  def at_sites(*args, **kwargs):
    program, values = staged(args, kwargs, find_wanted(request))
    reads, tables = resolve_reads(request, program, tag)
    keys = frozenset(r.key for r in reads)
    plan = HarvestPlan(tag=tag, read_keys=keys, write_keys=keys)
    known = _COMPILED.of(program)
    compiled = known.get((plan, has_aux))
    if compiled is None:
      _check_inexact(reads)
      check_sown_once(program, tag, keys)
      check_not_dead(program, tag, keys, 'differentiated')
      compiled = jax.jit(functools.partial(_run_passes, program, plan, reads, has_aux))
      known[plan, has_aux] = compiled
    out, cells, grads = compiled(tables, values)
    return out, assemble(reads, cells, tables), assemble(reads, grads, tables)

  vars(at_sites).pop('__mechjax_stager__', None)
  return at_sites


def _run_passes(
  program: Program,
  plan: HarvestPlan,
  reads: list[Read],
  has_aux: bool,
  tables: Keyed,
  values: list,
) -> tuple:
  def run(deltas: Keyed) -> tuple:
    taps = Keyed((DataKey('write', r.key), _tap(r, tables, deltas[r.key])) for r in reads)
    out, cells = Interpreter(program, plan).run(values, Keyed({**tables, **taps}))
    out = program.out_tree.unflatten(out)
    return _scalar(out[0] if has_aux else out), (out, cells)

  zeros = Keyed((r.key, _zeros(r, tables)) for r in reads)
  (_, (out, cells)), grads = jax.value_and_grad(run, has_aux=True)(zeros)
  return out, cells, Keyed((k, Cell(g, 0, 'strict')) for k, g in grads.items())


def _zeros(read: Read, tables: Keyed) -> list[jax.Array]:
  """Makes one zero for each value that is read, in the layout of the read."""
  table = tables.get(DataKey('read', read.key))
  lead: tuple[int, ...] = ()
  if table is not None and read.sown.lengths:
    lead = read.sown.lengths if table.table is None else (table.k,)
  lead += read.sown.device_sizes
  return [compat.zeros_like(compat.prepend_axes(a, lead)) for a in read.sown.avals]


def _tap(read: Read, tables: Keyed, zeros: list[jax.Array]) -> Writing:
  table, scans = tables.get(DataKey('read', read.key)), len(read.sown.lengths)
  if table is None or not scans:
    return Writing(None, zeros, None, (), 1, scans, False, tap=True)
  if table.table is None:
    return Writing(None, zeros, None, (), 1, scans, True, tap=True)
  return Writing(table.table, zeros, None, (), table.k, scans, False, tap=True)


def _check_inexact(reads: list[Read]) -> None:
  for r in reads:
    for a in r.sown.avals:
      if not jnp.issubdtype(a.dtype, jnp.inexact):
        raise HarvestError(
          f'the site {r.sown.name!r} holds {a.dtype.name}, which has no gradient',
          where=r.sown.source,
        )


def _scalar(out: PyTree) -> jax.Array:
  if jnp.shape(out) != () or not jnp.issubdtype(jnp.result_type(out), jnp.floating):
    raise HarvestError(
      f'the function must return a floating-point scalar, got {jax.tree.map(jax.typeof, out)}',
      hint='reduce its result to the metric of interest, for example a logit difference',
    )
  return out
