"""reap, plant, harvest: the entry points of Oryx, driven by requests.

    reap(f, sites='mlp_out.{3,7}')(x)          the values at two sites, by name
    call_and_reap(f, sites='*')(x)             the result as well
    plant(f)({'mlp_out.5': value}, x)          the result with a value replaced
    harvest(f, sites='logits')(plants, x)      both

With `sites=` (or without `sites=` and `tag=`) the result is an `Activations`. With `tag=` alone the rules are those of
Oryx: everything under the tag, a dict by name, and the modes determine the behaviour in loops.

A harvest always runs compiled: the staged program is interpreted once under `jax.jit`, per structure of the request and
not per choice of layers, and the executable is kept with the staged program. Arrays that the function or a planted
function closes over are arguments of it, so other arrays compile nothing.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import Any, Concatenate, ParamSpec, TypedDict, TypeVar, Unpack, overload

import jax
from jax.typing import ArrayLike
from jaxtyping import PyTree

from mechjax.errors import HarvestError
from mechjax.harvest import reads as reading
from mechjax.harvest import writes as writing
from mechjax.harvest.activations import Activations
from mechjax.harvest.plans import HarvestPlan
from mechjax.harvest.selecting import Request, find_wanted
from mechjax.programs.cells import Keyed, Plan
from mechjax.programs.interpreter import Interpreter
from mechjax.programs.program import Program, ProgramCache
from mechjax.programs.reach import check_not_dead
from mechjax.programs.repeats import check_sown_once
from mechjax.programs.staging import stager
from mechjax.programs.tag import TAG

P = ParamSpec('P')
R = TypeVar('R')

Values = Activations | dict[str, PyTree]
"""The values that were read: by site, or under the rules of Oryx by scope and name."""


class NameOptions(TypedDict, total=False):
  """The options of `harvest` that choose among names."""

  allowlist: Iterable[str] | None
  blocklist: Iterable[str]
  exclusive: bool


class HarvestOptions(NameOptions, total=False):
  """The options of `harvest`."""

  tag: Hashable | None
  sites: Request | None


@dataclasses.dataclass(frozen=True)
class _Settings:
  """Arguments of a transformation."""

  tag: Hashable
  request: Any
  strict: bool
  allow: frozenset | None
  block: frozenset
  exclusive: bool
  reading: bool

  @functools.cached_property
  def wanted(self) -> frozenset[str] | None:
    """The names of `sites.ON_REQUEST` that are read; None for all."""
    if self.strict:
      return None
    return find_wanted(self.request) if self.reading else frozenset()


def _settings(tag, sites, allowlist, blocklist, exclusive, reading=True) -> _Settings:
  strict = tag is not None and sites is None
  if isinstance(sites, Iterator):
    sites = list(sites)  # read again at every call
  return _Settings(
    tag=TAG if tag is None else tag,
    request=None if strict else ('*' if sites is None else sites),
    strict=strict,
    allow=None if allowlist is None else frozenset(allowlist),
    block=frozenset(blocklist),
    exclusive=exclusive,
    reading=reading,
  )


@overload
def harvest(
  f: Callable[P, R], *, tag: Hashable | None = None, sites: Request, **options: Unpack[NameOptions]
) -> Callable[Concatenate[writing.Plants, P], tuple[R, Activations]]: ...


@overload
def harvest(  # type: ignore[overload-overlap]  # None is hashable
  f: Callable[P, R], *, tag: None = None, sites: None = None, **options: Unpack[NameOptions]
) -> Callable[Concatenate[writing.Plants, P], tuple[R, Activations]]: ...


@overload
def harvest(
  f: Callable[P, R], *, tag: Hashable, sites: None = None, **options: Unpack[NameOptions]
) -> Callable[Concatenate[writing.Plants, P], tuple[R, dict[str, PyTree]]]: ...


def harvest(
  f: Callable[P, R],
  *,
  tag: Hashable | None = None,
  sites: Request | None = None,
  allowlist: Iterable[str] | None = None,
  blocklist: Iterable[str] = frozenset(),
  exclusive: bool = False,
) -> Callable[Concatenate[writing.Plants, P], tuple[R, Values]]:
  """Transforms `f(*args)` into `(plants, *args) -> (result of f, values that were read)`.

  Args:
    f: a function with sows, without side effects, or a callable pytree such as a model. Everything else that it reads
      (closures, globals, attributes) is read in its present state at each call; see `mechjax.watching`.
    tag: tag of the sows. Given alone, the rules of Oryx hold: everything under the tag is read by name unless planted.
    sites: sites to read: patterns of `mechjax.sites`, or a dict from a site name to an int array [k] of layers,
      which may be traced; a traced layer that does not exist reads zeros. The default is every site.
    allowlist: names that may be read or planted; None for all.
    blocklist: names that are neither read nor planted.
    exclusive: whether sows of other tags disappear.

  Returns:
    The transformed function. `plants` maps sites to values of exactly the site's shape and dtype, to `Masked`
    values, to `At` (a traced layer), or to functions of the value. A site that is both planted and read returns the
    value that flows on.

  Raises:
    SiteError, HarvestError: when called, before anything runs: unknown names, layers that do not exist, shapes
      and dtypes that do not fit, modes that do not fit a loop, sows that no rule can reach.
  """
  settings = _settings(tag, sites, allowlist, blocklist, exclusive)

  staged = stager(f)

  @functools.wraps(f)
  def run_harvest(plants: Mapping, *args, **kwargs):
    return _call(staged, settings, plants, args, kwargs)

  return _hide(run_harvest)


@overload
def call_and_reap(
  f: Callable[P, R], *, tag: Hashable | None = None, sites: Request, **options: Unpack[NameOptions]
) -> Callable[P, tuple[R, Activations]]: ...


@overload
def call_and_reap(  # type: ignore[overload-overlap]  # None is hashable
  f: Callable[P, R], *, tag: None = None, sites: None = None, **options: Unpack[NameOptions]
) -> Callable[P, tuple[R, Activations]]: ...


@overload
def call_and_reap(
  f: Callable[P, R], *, tag: Hashable, sites: None = None, **options: Unpack[NameOptions]
) -> Callable[P, tuple[R, dict[str, PyTree]]]: ...


def call_and_reap(
  f: Callable[P, R], **options: Unpack[HarvestOptions]
) -> Callable[P, tuple[R, Values]]:
  """Transforms `f` like `harvest` without plants: `(*args) -> (result of f, values)`. Options as in `harvest`."""
  harvested = harvest(f, **options)  # type: ignore[arg-type]  # any of the overloads

  @functools.wraps(f)
  def run_reap(*args, **kwargs):
    return harvested({}, *args, **kwargs)

  return _hide(run_reap)


@overload
def reap(
  f: Callable[P, PyTree],
  *,
  tag: Hashable | None = None,
  sites: Request,
  **options: Unpack[NameOptions],
) -> Callable[P, Activations]: ...


@overload
def reap(  # type: ignore[overload-overlap]  # None is hashable
  f: Callable[P, PyTree], *, tag: None = None, sites: None = None, **options: Unpack[NameOptions]
) -> Callable[P, Activations]: ...


@overload
def reap(
  f: Callable[P, PyTree], *, tag: Hashable, sites: None = None, **options: Unpack[NameOptions]
) -> Callable[P, dict[str, PyTree]]: ...


def reap(f: Callable[P, PyTree], **options: Unpack[HarvestOptions]) -> Callable[P, Values]:
  """Transforms `f` like `call_and_reap`, without the result: values that only the result needs are not computed."""
  reaped = call_and_reap(f, **options)  # type: ignore[arg-type]

  @functools.wraps(f)
  def run_reap(*args, **kwargs):
    return reaped(*args, **kwargs)[1]

  return _hide(run_reap)


def plant(
  f: Callable[P, R],
  *,
  tag: Hashable | None = None,
  allowlist: Iterable[str] | None = None,
  blocklist: Iterable[str] = frozenset(),
  exclusive: bool = False,
) -> Callable[Concatenate[writing.Plants, P], R]:
  """Transforms `f` like `harvest` without reading: `(plants, *args) -> result of f`.

  An outer harvest sees every sow with the value that flows on, planted or not, and may replace it again. With
  `tag=` alone, as in Oryx, planted sows are invisible to it.
  """
  settings = _settings(tag, None, allowlist, blocklist, exclusive, reading=False)
  staged = stager(f)

  @functools.wraps(f)
  def run_plant(plants: Mapping, *args, **kwargs):
    return _call(staged, settings, plants, args, kwargs)[0]

  return _hide(run_plant)


def _hide(f: Callable) -> Callable:
  """Removes the stager that functools.wraps copied: the wrapper must not use the stager of the wrapped function."""
  vars(f).pop('__mechjax_stager__', None)
  return f


def _call(staged: Callable, s: _Settings, plants: Mapping, args: tuple, kwargs: dict) -> tuple:
  if not isinstance(plants, Mapping):
    raise HarvestError(
      f'plants must be a dict from sites to values, got {type(plants).__name__}',
      cause='the plants come first: plant(f)(plants, *args)',
    )
  wanted = s.wanted
  if plants and wanted is not None:
    wanted |= find_wanted(plants)
  program, values = staged(args, kwargs, wanted)
  if s.strict:
    _check_devices(program, s.tag)
    if s.reading:
      _check_dropped(program, s.tag)
  admit = HarvestPlan(s.tag, allow=s.allow, block=s.block).admits
  writes = writing.resolve_writes(plants, program, s.tag, admit)
  reads: list[reading.Read] = []
  tables = Keyed()
  if s.reading and not s.strict:
    reads, tables = reading.resolve_reads(s.request, program, s.tag)
    reads = [r for r in reads if admit(r.key.name)]
  written = frozenset(k for _, k in writes)
  read = frozenset(r.key for r in reads)
  check_sown_once(program, s.tag, read | written)
  if written:
    every = frozenset(w.key for w in program.sown if s.reading and s.strict and admit(w.name))
    check_not_dead(program, s.tag, written, 'planted', read | every)
  plan = HarvestPlan(
    tag=s.tag,
    read_all=s.reading and s.strict,
    strict=s.strict,
    read_keys=read,
    write_keys=written,
    allow=s.allow,
    block=s.block,
    exclusive=s.exclusive,
  )
  out, cells = run(program, plan, Keyed({**tables, **writes}), values)
  if s.strict:
    return out, reading.by_name(cells, program)
  return out, reading.assemble(reads, cells, tables)


def _check_dropped(program: Program, tag: Hashable) -> None:
  lost = [repr(n) for t, n in program.dropped if t == tag]
  if lost:
    raise HarvestError(
      f'the sow of {", ".join(lost)} was staged but is not in the program',
      cause='JAX removed it as dead code: inside a derivative, a value that does not reach the result',
      hint='harvest inside the derivative: jax.grad(call_and_reap(f), has_aux=True), not reap(jax.grad(f))',
    )


def _check_devices(program: Program, tag: Hashable) -> None:
  for sown in program.sown:
    if sown.tag == tag and len(sown.device_sizes) > 1:
      raise HarvestError(
        'Detected sow calls inside a shard_map. This is not currently supported.',
        where=sown.source,
        cause='a tag alone does not determine the layout of the devices of several mesh axes',
        hint='ask by site (sites=...): values then have one leading axis per mesh axis',
      )


_COMPILED: ProgramCache[Callable] = ProgramCache()


def run(program: Program, plan: Plan, data: Keyed, values: list[ArrayLike]) -> tuple[PyTree, Keyed]:
  """Interprets a program under a plan, compiled; the executable is cached with the program."""
  known = _COMPILED.of(program)
  compiled = known.get(plan)
  if compiled is None:

    def interpret(data, values):
      out, cells = Interpreter(program, plan).run(values, data)
      return program.out_tree.unflatten(out), cells

    compiled = known[plan] = jax.jit(interpret)
  return compiled(data, values)
