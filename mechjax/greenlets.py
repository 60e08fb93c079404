"""Loops over the inside of a function: `yield_` from any depth, driven as an ordinary generator.

Why. `for layer, name, value in run` puts the researcher's code between two lines of an upstream
model. Python's own `yield` cannot do that: it suspends one frame, and between the model and the
loop lie dozens of frames of other code (modules, decorators, `jax.jit`, C++). A greenlet suspends
the whole stack at once, so a greenlet with the interface of a generator is enough:

    def model(x):
      hidden = jnp.sin(x)
      new = yield_(hidden)                 # here, or at any depth below
      return 2 * (hidden if new is None else new)

    for hidden in (loop := GreenletGenerator(model, x)):
      loop.reply = hidden.at[0].set(0)     # what `yield_` returns; None if nothing is set
    result = loop.value

How. `_drive` is a real generator that steps one greenlet. `next`, `send`, `throw`, `close`,
"already executing", PEP 479 and the closing of dropped generators are therefore Python's own, not
an imitation. Greenlets and JAX require the following in addition:

- State. JAX's trace, its settings and flax's module stacks belong to the thread. At a yield the loop
  keeps JAX's trace (and mesh, axes and names), because it has to compute with the function's tracers,
  but none of the settings that the function has made (`jax.default_matmul_precision`, `jax.disable_jit`
  …): they are in force exactly while its own frames run. When it ends, the loop gets back the state
  that it had, even if it has meanwhile left the trace by an exception and drops the generator late.
- Order. Other contexts of the function stay open while the loop's body runs, and must be left in the
  reverse of the order in which they were entered. So a generator is stepped and closed only in the
  greenlet that first used it, only while no generator started there later is suspended, and stepped
  only under the trace in which it is suspended. Nested loops obey this by themselves; `zip` of two
  does not, and is a `RunError`. The body of an inner loop may yield to the outer one: the inner
  generator cannot be resumed before the outer one is. A generator closes its children before it returns.
- Leaving. `for` gets a handle of its own from `iter`. Break, return, any exception and Ctrl-C drop
  it, which closes the generator right there, even if a variable names it. A generator that is dropped
  while later ones are suspended is closed as soon as those have ended.
- References. Values pass through a slot that is emptied when they are taken, so no frame between
  sender and receiver keeps them alive: `jax.checking_leaks()` counts references.
- `contextvars`. The function runs in a copy of the context in which the generator was first used.
- `local_context` treats any context as JAX's settings are treated: it is left at each yield and
  entered again afterwards.

Sharp edges. Without `for`, write `with contextlib.closing(generator)`: a traceback keeps a named
generator alive, hence suspended, and the mesh and axis names of the function in force, until the
exception is dropped. A generator that is dropped in a reference cycle is closed when the collector
finds it; if that happens during a trace that began after the yield, that trace continues correctly, but
returns to the function's. The loop variable outlives the last step: if it is a tracer of a trace that
ends inside the function (a `jit` or `scan` there), the leak checker complains, rightly, unless the
body ends in `del value`. JAX caches what it has traced: a function jitted inside yields the first
time only.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import inspect
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, ParamSpec, TypeVar

import greenlet

from mechjax import compat
from mechjax.errors import RunError

P = ParamSpec('P')
Y = TypeVar('Y')
S = TypeVar('S')
R = TypeVar('R')


class GreenletGenerator(Generator[Y, S, R]):
  """A function run in a greenlet of its own, as a generator of the values that it passes to `yield_`.

  `next`, `send`, `throw` and `close` behave as for a generator written with `yield`. Unlike such a
  generator it is closed when a `for` loop over it is left, and it has a `reply` and a `value`.

  Args:
    fn: the function, called with the other arguments at the first step.
  """

  _child: _Child | None = None

  def __init__(self, fn: Callable[..., R], /, *args: Any, **kwargs: Any):
    self._call: Callable[[], Any] = functools.partial(fn, *args, **kwargs)
    self._name = _describe(fn)

  def __iter__(self) -> Generator[Y, S, R]:
    """A handle for one loop: dropping it closes the generator."""
    return _LoopHandle(self)

  def send(self, value: S | None) -> Y:  # type: ignore[override]
    """Resumes the function, in which `yield_` returns `value` (or the reply, if `value` is None).

    Returns:
      The next value that the function yields.
    Raises:
      StopIteration: the function has returned; carries the returned value.
      RunError: the generator cannot be stepped here (another thread, greenlet or trace) or now (a later one is open).
    """
    child = self._touch()
    child.check_trace(self._name)
    if value is not None and child.steps.gi_suspended:
      child.mail, value = value, None
    return child.steps.send(value)

  def throw(self, *exception: Any) -> Y:  # type: ignore[override]
    """Raises `exception` where the function is suspended; otherwise like `send`."""
    child = self._touch()
    child.check_trace(self._name)
    return child.steps.throw(*exception)

  def close(self) -> Any:
    """Raises GeneratorExit where the function is suspended, so that it leaves its contexts."""
    return self._touch().steps.close()

  @property
  def done(self) -> bool:
    """Whether the function has returned, has raised, or was closed."""
    return self._child is not None and self._child.steps.gi_frame is None

  @property
  def value(self) -> R:
    """The value that the function returned.

    Raises:
      RunError: the function has not returned.
    """
    if self._child is None or not self._child.returned:
      raise RunError(
        'there is no value: the function has not returned',
        where=self._name,
        cause='it was left early, it raised, it has more to yield, or it never ran',
        hint='read `value` after a loop that ran to its end',
      )
    return self._child.returned[0]

  @property
  def reply(self) -> Any:
    """The value that the current `yield_` will return, unless `send` passes another."""
    return self._get_suspended().mail

  @reply.setter
  def reply(self, value: Any) -> None:
    self._get_suspended().mail = value

  def __repr__(self) -> str:
    state = 'GEN_CREATED' if self._child is None else inspect.getgeneratorstate(self._child.steps)
    return f'<GreenletGenerator {self._name}: {state[4:].lower()}>'

  def _abandon(self) -> None:
    """Closes the child now if it is the latest of its siblings; otherwise when the later ones have ended."""
    child = self._child
    if child is not None and child.steps.gi_suspended and not sys.is_finalizing():
      child.abandoned = True
      if child.parent is greenlet.getcurrent():
        _close_abandoned(child.siblings)

  __del__ = _abandon

  def _touch(self) -> _Child:
    """The child, made at first use; checks that the caller drives it and that it is the latest of its siblings."""
    if self._child is None:
      self._child = _Child(self.__dict__.pop('_call'))
    self._child.check_order(self._name)
    return self._child

  def _get_suspended(self) -> _Child:
    if self._child is None or not self._child.steps.gi_suspended:
      raise RunError(
        'a reply was read or set while the function is not suspended at a yield',
        where=self._name,
        hint='set `reply` inside the body of the loop',
      )
    return self._child


class _LoopHandle(GreenletGenerator):
  """A second handle on a child, held only by a `for` statement."""

  def __init__(self, owner: GreenletGenerator):
    self._owner, self._name = owner, owner._name
    self._child: _Child = owner._touch()

  def __iter__(self) -> Generator:
    return self

  def send(self, value: Any) -> Any:
    try:
      return self._owner.send(value)
    except BaseException:  # whose traceback holds this frame, and so this handle
      self.close()
      raise

  def close(self) -> None:
    """Closes the generator: now, or as soon as the later ones have ended."""
    if self._child.parent is greenlet.getcurrent():
      self._abandon()


def generator(fn: Callable[P, R]) -> Callable[P, GreenletGenerator[Any, Any, R]]:
  """Decorates a function that calls `yield_`, directly or at any depth: calling it gives a generator."""

  @functools.wraps(fn)
  def start(*args: P.args, **kwargs: P.kwargs) -> GreenletGenerator[Any, Any, R]:
    return GreenletGenerator(fn, *args, **kwargs)

  return start


def yield_(value: Any) -> Any:
  """Yields `value` to the loop over the innermost `GreenletGenerator` running in this thread.

  Args:
    value: any object; this module keeps no reference to it once the loop has it.
  Returns:
    The value that was sent or set as `reply`, None by default. An exception that was thrown in is raised.
  Raises:
    RunError: no such loop drives the caller.
  """
  child = greenlet.getcurrent()
  if not isinstance(child, _Child):
    raise RunError(
      f'yield_ of a {type(value).__name__} outside of a loop over a GreenletGenerator',
      cause='the function was called directly, or in another thread than the loop (a callback?)',
      hint='loop over it: `for value in GreenletGenerator(fn, *args)`',
    )
  child.mail = value
  del value
  with _leave_local_contexts(child):
    child.parent.switch()
  return child.take()


def yield_from(iterable: Iterable) -> Any:
  """Yields all of `iterable` as `yield from` does, with sends and throws passed on to it.

  Args:
    iterable: a generator of any kind, or another iterable.
  Returns:
    The return value of a generator; None for other iterables.
  """

  def delegate() -> Generator:
    return (yield from iterable)

  relay = delegate()
  step: Callable[[], Any] = functools.partial(next, relay)
  slot: list[Any] = []
  with contextlib.closing(relay):
    while True:
      try:
        slot.append(step())
      except StopIteration as stop:
        return stop.value
      try:
        step = functools.partial(relay.send, yield_(slot.pop()))
      except BaseException as error:
        step = functools.partial(relay.throw, error)


@contextlib.contextmanager
def local_context(make: Callable[[], AbstractContextManager]) -> Iterator[None]:
  """Enters `make()` for the function alone: leaves it at each yield, and enters a new one when the function resumes.

  Args:
    make: returns a new context manager at each call. Outside of a greenlet it is called once.
  """
  child = greenlet.getcurrent()
  contexts = child.contexts if isinstance(child, _Child) else []
  with contextlib.ExitStack() as stack:
    local = _Local(stack, make)
    local.enter()
    contexts.append(local)
    try:
      yield
    finally:
      contexts.remove(local)


class _Local:
  """A local context, and the parts of JAX's state and the context variables that it has set."""

  def __init__(self, stack: contextlib.ExitStack, make: Callable[[], AbstractContextManager]):
    self.stack, self.make = stack, make
    self.state: dict[compat.ThreadStateCell, Any] = {}
    self.variables: dict[contextvars.ContextVar, Any] = {}

  def enter(self) -> None:
    state, variables = compat.thread_state(), contextvars.copy_context()
    self.stack.enter_context(self.make())
    self.state = _diff(state, compat.thread_state())
    self.variables = _diff(variables, contextvars.copy_context())


_NOTHING: Any = object()


def _diff(before: Mapping[Any, Any], now: Mapping[Any, Any]) -> dict[Any, Any]:
  return {key: value for key, value in now.items() if before.get(key, _NOTHING) is not value}


@contextlib.contextmanager
def _leave_local_contexts(child: _Child) -> Iterator[None]:
  """Leaves the local contexts, latest first, and enters them again afterwards.

  Values that a context which stays open has set on top of a local one (in JAX's state, in context variables) are
  then restored.
  """
  if not child.contexts:
    yield
    return
  state: Mapping[compat.ThreadStateCell, Any] = compat.thread_state()
  variables: Mapping[contextvars.ContextVar, Any] = contextvars.copy_context()
  own_state = {c: x for local in child.contexts for c, x in local.state.items()}
  own_variables = {v: x for local in child.contexts for v, x in local.variables.items()}
  for local in reversed(child.contexts):
    local.stack.close()
  state = _overrides(state, own_state, compat.thread_state())
  variables = _overrides(variables, own_variables, contextvars.copy_context())
  del own_state, own_variables
  try:
    yield
  finally:
    for local in child.contexts:
      local.enter()
    compat.set_thread_state(state)
    for v, value in variables.items():
      v.set(value)


def _overrides(
  before: Mapping[Any, Any], own: Mapping[Any, Any], without: Mapping[Any, Any]
) -> dict[Any, Any]:
  """Values that other contexts have set on top of local contexts.

  Args:
    before: all values while the local contexts are in force.
    own: the values that the local contexts have set.
    without: all values once the local contexts have been left.
  """
  changed = own.keys() | _diff(without, before).keys()
  return {key: before[key] for key in changed if before[key] is not own.get(key, _NOTHING)}


class _Child(greenlet.greenlet):
  """A greenlet, the values that it and its loop pass to each other, and its place among its siblings."""

  def __init__(self, call: Callable[[], Any]):
    super().__init__()
    self.call: Any = call
    self.gr_context = contextvars.copy_context()
    self.contexts: list[_Local] = []
    self.mail: Any = None
    self.returned: tuple = ()
    self.abandoned = False
    self.siblings = _children(self.parent)
    self.outside: dict[compat.ThreadStateCell, Any] = {}
    self.inside: dict[compat.ThreadStateCell, Any] = {}
    self.steps: Any = _drive(self)

  def run(self) -> Any:
    """Calls the function, and closes the children before it returns."""
    children = _children(self)
    try:
      result = self.call()
      _close_abandoned(children)
      if children:
        raise RunError(
          'a function returned while a generator that it started was still suspended',
          where=_describe(self.call),
          cause='the generator was stepped by hand and is kept alive elsewhere, with its contexts still open',
          hint='loop over it with `for`, or inside `with contextlib.closing(…)`',
        )
      return result
    finally:
      while children:
        children.pop().steps.close()

  def check_trace(self, name: str) -> None:
    """Raises RunError if the caller has left the trace that the function is in, or has begun another on top of it."""
    if any(cell.is_trace and cell.get() is not value for cell, value in self.inside.items()):
      raise RunError(
        'a generator that is suspended inside a JAX trace was resumed outside of it',
        where=name,
        cause='the trace has ended since (an exception that was caught?), or a jit, scan, grad or vmap began',
        hint='loop over it in the function, and under the transformation, in which it was started',
      )

  def step(self, error: BaseException | None = None) -> Any:
    """Runs the function up to its next yield in its own state; the loop then continues in its own.

    `inside` is the state that the function has set and not left; no frame may hold it while the function runs,
    because nothing may refer to a trace that ends there. `outside` is the loop's state in its place.
    """
    inside, self.inside = self.inside, {}
    for cell, value in compat.thread_state().items():
      if not (cell in inside and inside[cell] is value):  # it is not the function's own
        self.outside[cell] = value
    compat.set_thread_state(inside)
    del inside, cell, value
    try:
      return self.switch() if error is None else self.throw(error)
    finally:
      del error  # whose traceback holds this frame
      self.save_state()

  def save_state(self) -> None:
    """Saves the function's state and restores the loop's, but for the function's trace unless that has ended."""
    now = compat.thread_state()
    self.inside = {c: value for c, value in now.items() if value is not self.outside.get(c, value)}
    kept = {c: value for c, value in self.outside.items() if self.dead or not c.of_trace}
    compat.set_thread_state(kept)

  def take(self) -> Any:
    mail, self.mail = self.mail, None
    return mail

  def check_order(self, name: str) -> None:
    """Raises RunError unless the caller drives this child, and it is the latest of its siblings."""
    if self.dead or self.steps.gi_running:
      return
    if self.parent is not greenlet.getcurrent():
      raise RunError(
        'a generator was used from another thread, or another greenlet, than it was started in',
        where=name,
        cause='it was passed to a worker thread, or to a function that another loop drives',
        hint='create it, iterate over it and close it in one place',
      )
    _close_abandoned(self.siblings)
    if self.steps.gi_suspended and self.siblings[-1] is not self:
      raise RunError(
        'a generator was resumed or closed while a later one is still suspended',
        where=name,
        cause='two are stepped alternately (zip?), which would mix up the contexts they hold open',
        hint='nest the loops, or close the later generator first',
      )


def _drive(child: _Child) -> Generator[Any, Any, Any]:
  """Steps a greenlet: the Python generator behind each `GreenletGenerator`."""
  child.siblings.append(child)
  try:
    result = child.step()
    while not child.dead:
      try:
        yield child.take()
      except BaseException as error:
        result = child.step(error)
      else:
        result = child.step()
    child.returned = (result,)
    return result
  finally:
    if not child.dead:  # Ctrl-C hit this frame rather than the function
      with contextlib.suppress(GeneratorExit):
        child.step(GeneratorExit())
    child.call = child.mail = None
    child.inside = child.outside = {}
    if child in child.siblings:
      child.siblings.remove(child)
    _close_abandoned(child.siblings)


def _children(parent: Any) -> list[_Child]:
  """The suspended children of a greenlet, oldest first."""
  return vars(parent).setdefault('_mechjax_children', [])


def _close_abandoned(siblings: list[_Child]) -> None:
  """Closes abandoned children, latest first, up to one that is not; exceptions that they raise surface here."""
  while siblings and (siblings[-1].abandoned or siblings[-1].dead):
    siblings.pop().steps.close()


def _describe(fn: Any) -> str:
  """Name, file and line of a function, for messages."""
  while isinstance(fn, functools.partial):
    fn = fn.func
  name = getattr(fn, '__qualname__', None) or type(fn).__qualname__
  code = getattr(fn, '__code__', None)
  return f'{name} ({code.co_filename}:{code.co_firstlineno})' if code else name
