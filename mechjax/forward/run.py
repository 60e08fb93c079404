"""Runs: forward passes that a loop iterates over.

    for layer, name, value in (run := forward(tokens)):
      if name == 'mlp_out' and layer == 5:
        run.modified_value = value.at[:, -1].set(0)
    logits = run.retval

A run does not depend on how its values are computed. It drives a generator of (site, value) that receives a reply
(see `take_reply`); stepped, traced and eager runs differ only in that generator. The run adds checks: it can be
iterated once, a new value must fit, and every misuse is an error that states the site at which the run stands.

Leaving. A `for` loop holds the only reference to the generator, so break, return, an exception or Ctrl-C close
it immediately. The traceback of an exception in the body shows its line, but an iterator does not learn why it is
left: `with forward(tokens) as run:` around the loop adds the site to the traceback; `repr(run)` shows it in any case.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Generator, Iterator
from typing import Any

import jax
from jaxtyping import PyTree

from mechjax import sites
from mechjax.errors import HarvestError, RunError, nearest
from mechjax.harvest.functions import fit_array

_NOTHING: Any = object()

Item = tuple[int | tuple[int, ...] | None, str, PyTree]
"""The layer, the name and the value of a site."""

GradientItem = tuple[int | tuple[int, ...] | None, str, PyTree, PyTree]
"""The layer, the name and the value of a site, and the gradient there."""


class _FixedAttributes:
  """An object that has the attributes of its `__slots__` and no others.

  Otherwise `run.modified = value` would change nothing, without an error.
  """

  __slots__ = ()

  def __setattr__(self, name: str, value: Any) -> None:
    try:
      object.__setattr__(self, name, value)
    except AttributeError as error:
      raise self._no_attribute(name, error) from None

  def _no_attribute(self, name: str, error: AttributeError) -> RunError:
    kind = type(self)
    mine = getattr(kind, name, None)
    if isinstance(mine, property) and mine.fset is not None:
      raise error  # from inside a setter
    settable = [n for n in dir(kind) if getattr(getattr(kind, n), 'fset', None)]
    what = 'cannot be set' if mine is not None else 'is not an attribute'
    return RunError(
      f'{name!r} {what} of a run, so that setting it would change nothing',
      cause=f'nearest: {", ".join(nearest(name, settable)) or ", ".join(settable)}',
      hint=f'{" or ".join(settable)} = ... in the body of the loop',
    )


class Run(_FixedAttributes, Generator[Item, PyTree, PyTree]):
  """One forward pass.

  Iterating yields (layer, name, value); layer is None for sites without layers and a tuple in nested scans.

  Attributes:
    sites: the sites at which it stops, in order; None if they are not known beforehand (eager runs).
    site: the current site; None before the first and after the last.
    segments: number of compiled segments of a stepped run; None for other runs.
    distinct_segments: number of distinct ones, which are compiled.
  """

  __slots__ = (
    '__weakref__',
    '_backward',
    '_driver',
    '_gradients',
    '_kind',
    '_loop',
    '_modified',
    '_retval',
    '_shown',
    '_thread',
    '_visited',
    'distinct_segments',
    'segments',
    'site',
    'sites',
  )

  def __init__(
    self,
    driver: Generator[tuple[sites.Site, PyTree], list[PyTree] | None, PyTree],
    where: list[sites.Site] | None,
    kind: str,
    backward: Callable[[Callable[[PyTree], PyTree], PyTree], Generator] | None = None,
  ) -> None:
    """Wraps a driver; `mechjax.iterate` makes runs."""
    self.sites, self.site, self._kind, self._backward = where, None, kind, backward
    self._driver: Any = driver
    self._thread = threading.get_ident()
    self._loop: Any = None
    self._retval: Any = _NOTHING
    self._shown: Any = _NOTHING
    self._modified: Any = _NOTHING
    self._gradients: BackwardRun | None = None
    self._visited = 0
    self.segments: int | None = None
    self.distinct_segments: int | None = None

  # --- iterating

  def __iter__(self) -> Any:  # an iterator that the for statement alone holds
    self._check_thread()
    if self._loop is not None or self._driver is None:
      raise RunError(
        f'this run was iterated before; it is {self._state()}',
        hint='start a new one: run = forward(...)',
      )
    self._loop = _BY_FOR
    return _items(self)

  def __next__(self) -> Item:
    return self.send(None)

  def send(self, value: PyTree) -> Item:
    """Like `next`, with `value` (unless None) as the new value of the current site."""
    loop = self._loop_by_hand()
    if value is not None:
      self.modified_value = value
    return next(loop)

  def throw(self, *exception: object) -> Item:
    """Raises an exception inside the forward pass, at the current site."""
    return self._loop_by_hand().throw(*exception)

  def close(self) -> None:
    """Abandons the pass, releases its values and restores JAX's state."""
    if self._loop is not None and self._loop is not _BY_FOR:
      self._loop.close()
    elif self._driver is not None:
      self._check_thread()
      self._driver.close()
    self._finish()

  def __enter__(self) -> Run:
    return self

  def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
    if error is not None and self.site is not None:
      error.add_note(f'raised in the loop over {self!r}')
    self.close()

  def _loop_by_hand(self) -> Any:
    self._check_thread()
    if self._loop is None:
      if self._driver is None:
        raise StopIteration
      self._loop = _items(weakref.proxy(self))  # no cycle: dropping the run closes the pass
    if self._loop is _BY_FOR:
      raise RunError(
        'this run is being iterated by a for loop', hint='use run.modified_value in it'
      )
    return self._loop

  def _finish(self) -> None:
    self._driver, self._shown, self._modified = None, _NOTHING, _NOTHING

  def view(
    self,
    show: Callable[[sites.Site, PyTree], PyTree],
    restore: Callable[[sites.Site, PyTree, PyTree], PyTree],
  ) -> Run:
    """A run of this pass whose loop sees other values; it takes the place of this one, and has no backward pass.

    Args:
      show: (site, value) -> the value that the loop sees.
      restore: (site, value, modified value as the loop sees it) -> the value that the pass continues with.
    """
    viewed = Run(_view(self._driver, show, restore), self.sites, self._kind)
    viewed.segments, viewed.distinct_segments = self.segments, self.distinct_segments
    self._finish()
    return viewed

  # --- values

  @property
  def modified_value(self) -> PyTree:
    """New value of the current site, in place of the one shown; set it in the loop's body, at most once per site."""
    if self._modified is _NOTHING:
      raise RunError('modified_value was not set at this site', where=self._state())
    return self._modified

  @modified_value.setter
  def modified_value(self, value: PyTree) -> None:
    self._check_thread()
    if self._shown is _NOTHING:
      raise RunError(
        'modified_value was set while the run does not stand at a site',
        where=self._state(),
        hint='set it in the body of the loop, before the next iteration',
      )
    if self._modified is not _NOTHING:
      raise RunError(
        f'modified_value was set twice at {self.site}',
        cause='two edits of one site',
        hint='compute the final value first, then set it once',
      )
    self._modified = fit(value, self._shown, f'modified_value at {self.site} has')

  @property
  def retval(self) -> PyTree:
    """Result of the function; available once the loop has ended."""
    if self._retval is _NOTHING:
      raise RunError(
        f'retval is not available: the run is {self._state()}',
        cause='the loop was left by break or an exception' if self._driver is None else None,
        hint='read it after the loop has ended',
      )
    return self._retval

  # --- backward pass

  def backward(self, metric: Callable[[PyTree], PyTree]) -> BackwardRun:
    """Iterates over the gradients of `metric(retval)`, from the last site to the first.

        for layer, name, value, grad in run.backward(metric):
          run.modified_grad = ...          # the gradient to propagate to earlier sites instead

    Args:
      metric: function of the result of the model; returns a scalar.

    Returns:
      A `BackwardRun`. Parameters are not differentiated. Where the loop replaced a value, the gradient at the
      replacement is reported and is not propagated, unless modified_grad is set.

    Raises:
      RunError: the run is not stepped, or has not ended.
    """
    if self._backward is None:
      raise RunError(
        f'a run that is {self._kind} has no backward pass of its own',
        hint='use jax.grad around the loop, or pass concrete arrays for a stepped run',
      )
    self._check_thread()
    self._gradients = BackwardRun(self._backward(metric, self.retval))
    return self._gradients

  @property
  def modified_grad(self) -> PyTree:
    """Gradient to propagate from the current site of `run.backward` in place of the one shown."""
    return self._backward_run().modified_grad

  @modified_grad.setter
  def modified_grad(self, grad: PyTree) -> None:
    self._backward_run().modified_grad = grad

  def _backward_run(self) -> BackwardRun:
    if self._gradients is None:
      raise RunError(
        'modified_grad was used outside a backward pass',
        where=self._state(),
        hint='for layer, name, value, grad in run.backward(metric): ...',
      )
    return self._gradients

  # --- state

  @property
  def started(self) -> bool:
    """Whether the run is or was iterated over."""
    return self._loop is not None

  def _check_thread(self) -> None:
    if threading.get_ident() != self._thread:
      raise RunError(
        'a run was used from another thread than the one that started it',
        where=self._state(),
        cause="JAX's trace state belongs to a thread",
        hint='start a run of its own in each thread',
      )

  def _state(self) -> str:
    if self._retval is not _NOTHING:
      return f'finished after {self._visited} sites'
    if self._driver is None:
      return f'closed at {self.site}' if self.site else 'closed before its first site'
    return f'stopped at {self.site}' if self.site else 'not started'

  def __repr__(self) -> str:
    total = '' if self.sites is None else f' of {len(self.sites)}'
    return f'<{self._kind} run, {self._state()}; {self._visited}{total} sites visited>'


_BY_FOR: Any = object()
"""Stands for the generator of a run that a for loop iterates: only the loop holds it, so that leaving closes it."""


def _items(run: Run) -> Generator[Item, None, None]:
  """Drives a run. It holds no reference to a value while the pass continues to the next site."""
  # For a greenlet, a handle: it can be closed while later generators are suspended.
  driver = iter(run._driver)
  reply: list[Any] | None = None
  try:
    while True:
      try:
        site, value = driver.send(reply)
      except StopIteration as stop:
        run._retval, run.site = stop.value, None
        return
      except BaseException as error:
        place = f'after {run.site}' if run.site else 'before its first site'
        error.add_note(f'raised in the model, {place}')
        raise
      run.site, run._shown = site, _shape_of(value)
      run._visited += 1
      item = (site.layer, site.name, value)
      del value
      yield item
      del item
      run._check_thread()
      if run._driver is None:  # closed in the body
        return
      reply = None if run._modified is _NOTHING else [run._modified]
      run._modified = _NOTHING
  finally:
    driver.close()
    with contextlib.suppress(ReferenceError):  # stepped by hand, and dropped
      run._finish()


def _view(
  driver: Generator[tuple[sites.Site, PyTree], list[PyTree] | None, PyTree],
  show: Callable[[sites.Site, PyTree], PyTree],
  restore: Callable[[sites.Site, PyTree, PyTree], PyTree],
) -> Generator[tuple[sites.Site, PyTree], list[PyTree] | None, PyTree]:
  """The driver of a run of `Run.view`."""
  reply: list[PyTree] | None = None
  with contextlib.closing(driver):
    while True:
      try:
        site, value = driver.send(reply)
      except StopIteration as stop:
        return stop.value
      reply = yield site, show(site, value)
      reply = [restore(site, value, reply.pop())] if reply else None


def take_reply(reply: list[PyTree] | None) -> PyTree:
  """Takes the reply of a loop: None, or the new value.

  A value is passed in a list and taken out of it, so that the frames between loop and model do not hold it while the
  pass continues (JAX's leak checker counts references).
  """
  return reply.pop() if reply else None


class BackwardRun(_FixedAttributes):
  """Iterable over the gradients of a run, last site first; see `Run.backward`.

  Attributes:
    site: the current site.
  """

  __slots__ = ('_driver', '_modified', '_shown', '_started', 'site')

  def __init__(self, driver: Generator) -> None:
    """Wraps a driver; `Run.backward` makes backward passes."""
    self.site: sites.Site | None = None
    self._driver: Any = driver
    self._started = False
    self._shown: Any = _NOTHING
    self._modified: Any = _NOTHING

  def __iter__(self) -> Iterator[GradientItem]:
    """Yields (layer, name, value, gradient); values and gradients have the same shapes."""
    if self._started:
      raise RunError(
        'this backward pass was iterated before', hint='call run.backward(metric) again'
      )
    self._started = True
    return self._items()

  def _items(self) -> Generator:
    sent = None
    try:
      while True:
        try:
          self.site, value, grad = self._driver.send(sent)
        except StopIteration:
          return
        self._shown = _shape_of(grad)
        yield self.site.layer, self.site.name, value, grad
        del value, grad
        sent, self._modified = self._modified, _NOTHING
        sent = None if sent is _NOTHING else sent
    finally:
      self._driver.close()
      self._driver, self.site, self._shown = None, None, _NOTHING

  @property
  def modified_grad(self) -> PyTree:
    """Gradient to propagate in place of the one shown; set it at most once per site."""
    if self._modified is _NOTHING:
      raise RunError('modified_grad was not set at this site')
    return self._modified

  @modified_grad.setter
  def modified_grad(self, grad: PyTree) -> None:
    if self._shown is _NOTHING:
      raise RunError(
        'modified_grad was set while the backward pass does not stand at a site',
        hint='set it in the body of the loop over run.backward(metric)',
      )
    if self._modified is not _NOTHING:
      raise RunError(f'modified_grad was set twice at {self.site}')
    self._modified = fit(grad, self._shown, f'modified_grad at {self.site} has')


def fit(new: PyTree, old: PyTree, what: str) -> PyTree:
  """Returns `new` with leaves of exactly the shapes and dtypes of `old`; raises an error that states the difference."""
  tree: Any = jax.tree.structure(new)
  if tree != jax.tree.structure(old):
    raise HarvestError(
      f'{what} the structure {tree}, the site has {jax.tree.structure(old)}',
      cause='a function without a return statement gives None; Masked and At are for harvest.plant',
      hint=_HINT,
    )
  return jax.tree.map(lambda n, o: fit_array(n, o, what, _HINT), new, old)


_HINT = 'compute a whole value from the one shown: jnp.zeros_like(value), value.at[:, 3].set(0)'


def _shape_of(value: Any) -> Any:
  # The usual case, which `tree.map` would make measurably slower in a run of hundreds of sites.
  if isinstance(value, jax.Array):
    return jax.ShapeDtypeStruct(value.shape, value.dtype)
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(jax.numpy.shape(x), jax.numpy.result_type(x)), value
  )
