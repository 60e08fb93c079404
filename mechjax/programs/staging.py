"""Staging a function into a `Program`.

A function is staged to a jaxpr with the gate of `sow` open. Arrays that it closes over become inputs of the program. So
do the arrays of a callable pytree (a mechjax model, an nnx or equinox module), which is its own first argument
(`callables`). Python scalars other than floats stay static during staging, so that `f(x, axis=1)` or `for _ in
range(n)` keep working.

A staged program is cached by argument structure, static leaves, abstract values and JAX configuration, and is reused as
long as everything else that the function reads is unchanged (`watching`). A function that is staged again, or another
one made by the same line of code, gets its earlier program if the new one has the same structure (`sharing`): then
nothing is compiled again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import PyTreeDef
from jax.typing import ArrayLike
from jaxtyping import PyTree

from mechjax import compat
from mechjax.errors import HarvestError
from mechjax.programs import callables
from mechjax.programs.batching import BATCHING_RULES
from mechjax.programs.program import Program
from mechjax.programs.sharing import share
from mechjax.programs.tag import record_sows
from mechjax.watching import Watch, is_alike

LARGE = 64 * 2**20
"""Size, in bytes, from which constants in the program of a caller cause a warning."""


def is_dynamic(leaf: object) -> bool:
  """Whether a leaf of the arguments is data; other leaves are static."""
  if isinstance(leaf, np.ndarray | np.generic):
    return leaf.dtype.kind not in 'OSU'  # Python objects and strings
  return isinstance(leaf, jax.Array | float | complex | jax.ShapeDtypeStruct) or hasattr(
    leaf, '__jax_array__'
  )


def split_static(tree: PyTree) -> tuple[list[PyTree], tuple[PyTree, ...], PyTreeDef]:
  """Splits a pytree into its data leaves, its static leaves (None where data), and its structure."""
  leaves, structure = jax.tree.flatten(tree)
  static = tuple([_DATA if is_dynamic(x) else x for x in leaves])
  return [x for x, s in zip(leaves, static) if s is _DATA], static, structure


_DATA = type('Data', (), {'__repr__': lambda self: '<data>'})()


def join_static(dynamic: list[PyTree], static: tuple[PyTree, ...], structure: PyTreeDef) -> PyTree:
  """Inverse of `split_static`."""
  data = iter(dynamic)
  return jax.tree.unflatten(structure, [next(data) if x is _DATA else x for x in static])


Wanted = frozenset[str] | None
"""The names of `sites.ON_REQUEST` that are read or planted; None for all."""


def stage(
  f: Callable,
  dynamic: list[PyTree],
  static: tuple,
  structure: PyTreeDef,
  wanted: Wanted = None,
) -> tuple[Program, list[ArrayLike]]:
  """Stages `f` at the given arguments, with the gate of `sow` open; returns the arrays it closes over as well."""
  differentiating = any(compat.is_differentiated(x) for x in dynamic)

  def flat(*data):
    args, kwargs = join_static(list(data), static, structure)
    return f(*args, **kwargs)

  try:
    rolled = jax.disable_jit(False)  # under disable_jit a scan would be staged as a Python loop
    with (
      rolled,
      compat.staging_gate(wanted),
      compat.batching_rules(BATCHING_RULES),
      record_sows() as sown,
    ):
      closed, shape = jax.make_jaxpr(flat, return_shape=True)(*dynamic)
  except Exception as error:
    if type(error).__name__ == 'TraceContextError':  # of flax.nnx, which need not be installed
      raise HarvestError(
        'the function changes the state of an nnx module that it closes over',
        cause='Dropout that counts its draws, BatchNorm in training; a harvest would lose the change',
        hint='module.eval(), or a function that takes the state as an argument and returns it',
      ) from error
    raise
  captured = [_own(x) for x in compat.consts(closed)]
  return Program(closed, jax.tree.structure(shape), differentiating, sown), captured


def _own(x: Any) -> Any:
  """Returns a captured array; a NumPy array is copied, because its owner can write into it."""
  if isinstance(x, jax.Array):
    return x
  with jax.ensure_compile_time_eval():
    return jnp.array(np.array(x), x.dtype)


@dataclasses.dataclass(frozen=True)
class _Staged:
  """A program, the values that its function closes over, and a watch over its static arguments."""

  program: Program
  captured: list[Any]
  static: tuple
  statics: Watch


class Stager:
  """Staged programs of one function, each used as long as everything that the function reads is unchanged."""

  __mechjax_reads__ = ('f',)

  def __init__(self, f: Callable) -> None:
    self.f = f
    self._watch: Watch | None = None
    self._staged: dict[Any, _Staged] = {}

  def __reduce__(self) -> tuple:
    return Stager, (None,)  # a copy of the function is another function

  def __call__(
    self, args: tuple, kwargs: dict, wanted: Wanted = None
  ) -> tuple[Program, list[ArrayLike]]:
    """Returns the program at these arguments and its inputs: the arrays that are closed over, then the data leaves.

    A function may have a method `check_arguments`, which checks values that are known only before tracing, such as
    token ids, and raises if they are wrong.

    Raises:
      HarvestError: NumPy integers that JAX would truncate to 32 bits.
    """
    check = getattr(self.f, 'check_arguments', None)
    if check is not None:
      check(*args, **kwargs)
    dynamic, static, structure = split_static((args, kwargs))
    for x in dynamic:
      if isinstance(x, np.ndarray | np.generic):
        _check_fits(x)
    key = self._key(dynamic, static, structure, wanted)
    if self._watch is not None and self._watch.has_changed():
      self._watch = None
      self._staged.clear()
      compat.retrace()
    known = None if key is None else self._staged.get(key)
    if known is not None and (known.statics.has_changed() or not is_alike(static, known.static)):
      known = None
      compat.retrace()
    if known is None:
      known = self._stage(key, (dynamic, static, structure, wanted), _classes(args))
    inputs = [*known.captured, *dynamic]
    if compat.staging_trace() is not None and not compat.is_staging():
      _warn_of_constants(inputs)
    return known.program, inputs

  def _stage(self, key: Any, call: tuple, classes: tuple[type, ...]) -> _Staged:
    _, static, structure, _ = call
    program, captured = stage(self.f, *call)
    traced = any(map(_is_tracer, captured))
    program = share(program)
    statics = Watch(*classes, *(x for x in static if x is not _DATA), *_auxiliary(structure))
    known = _Staged(program, captured, static, statics)
    if key is None or traced or statics.traced:
      return known
    # Taken afterwards: values that the function itself writes during staging, such as a counter, do not count.
    if self._watch is None or self._watch.has_changed():
      self._watch = Watch(self.f)
    if not self._watch.traced:
      self._staged[key] = known
    return known

  def _key(self, dynamic, static, structure, wanted):
    differentiating = any(compat.is_differentiated(x) for x in dynamic)
    avals = tuple(_aval_key(x) for x in dynamic)
    try:
      typed = tuple((type(s), s) for s in static)  # 1 and True are equal
      key = (typed, structure, avals, differentiating, wanted, compat.trace_context())
      hash(key)
    except TypeError as e:
      if any(s is not _DATA and getattr(s, '__hash__', None) is None for s in static):
        bad = next(s for s in static if s is not _DATA and getattr(s, '__hash__', None) is None)
        raise HarvestError(
          f'an argument of type {type(bad).__name__} is neither an array of numbers nor hashable',
          hint='pass a pytree of arrays, or close over the object',
        ) from e
      return None
    return key


def _warn_of_constants(inputs: list[Any]) -> None:
  """Warns of concrete arrays that are about to become constants of a program that the caller is tracing."""
  size = sum(x.nbytes for x in inputs if isinstance(x, jax.Array) and not _is_tracer(x))
  if size >= LARGE:
    warnings.warn(
      f'{size / 2**20:.0f} MiB of weights become constants of the jit around this call: they are compiled in, and '
      'later changes to them have no effect. Hint: pass the model (or its parameters) as an argument of the function '
      'that is jitted: jax.jit(lambda model, tokens: ...)(model, tokens)',
      stacklevel=4,
    )


def _check_fits(x: np.ndarray | np.generic) -> None:
  """Raises for 64-bit integers that JAX, which has 32 bits by default, would wrap around silently."""
  if x.dtype.kind not in 'iu' or x.dtype.itemsize < 8 or not x.size:
    return
  made = np.iinfo(jnp.result_type(x))
  if made.bits == 64:
    return
  for found in (int(x.min()), int(x.max())):
    if not made.min <= found <= made.max:
      raise HarvestError(
        f'an argument of shape {x.shape} and dtype {x.dtype} has {found}, which JAX would truncate to {made.dtype}',
        hint="pass integers that fit, or call jax.config.update('jax_enable_x64', True) before anything else",
      )


def _is_tracer(x: Any) -> bool:
  return isinstance(x, jax.core.Tracer)


def _aval_key(x: Any) -> Any:
  if isinstance(x, float | complex):
    return type(x)
  if isinstance(x, np.ndarray | np.generic):
    return (x.shape, x.dtype)
  if isinstance(x, jax.ShapeDtypeStruct):
    return (x.shape, x.dtype, getattr(x, 'weak_type', False), x.sharding)
  return jax.typeof(x)


def _classes(args: tuple) -> tuple[type, ...]:
  """User-defined classes in a module that is its own first argument: their methods are part of the program."""
  bound = args and isinstance(args[0], callables.Bound)
  return Watch(args[0].module).classes if bound else ()


def _auxiliary(structure: Any) -> Iterator[Any]:
  """Auxiliary data of the nodes of a pytree: settings, functions."""
  node = structure.node_data()
  held: Any = None if node is None else node[1]
  if node is not None and node[0] is callables.Bound:  # a module that is its own first argument
    inner, held = held
    yield from _auxiliary(inner)
  yield held
  for child in structure.children():
    yield from _auxiliary(child)


_of_classes: weakref.WeakKeyDictionary[type, Stager] = weakref.WeakKeyDictionary()


def stager(f: Callable) -> Callable[..., tuple[Program, list[ArrayLike]]]:
  """Makes the stager of `f`: (args, kwargs, wanted) -> (program, its inputs). Programs are stored on `f`."""
  if callables.is_pytree(f):
    own = _of_classes.setdefault(type(f), Stager(callables.call))
    check = getattr(f, 'check_arguments', None)

    def stage_module(args: tuple, kwargs: dict, wanted: Wanted = None) -> tuple[Program, list[Any]]:
      if check is not None:
        check(*args, **kwargs)
      return own((callables.flatten(f), *args), kwargs, wanted)

    return stage_module
  kept = getattr(f, '__mechjax_stager__', None)
  if isinstance(kept, Stager) and kept.f is f:
    return kept
  made = Stager(f)
  # A builtin or a bound method takes no attribute: its programs live as long as the transformed function.
  with contextlib.suppress(AttributeError, TypeError):
    f.__mechjax_stager__ = made  # type: ignore[attr-defined]
  return made
