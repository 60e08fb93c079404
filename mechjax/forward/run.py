"""The run: a forward pass as something to iterate over.

    for layer, name, value in (run := forward(tokens)):
      if name == 'mlp_out' and layer == 5:
        run.modified_value = value.at[:, -1].set(0)
    logits = run.retval

A run does not know how its values are made. It drives a generator of (site, value) that takes back None or the
value that is to flow on; stepped, traced and eager runs differ only in that generator. What it adds is manners: it
can be iterated once, what is put in must fit, and every misuse is an error that says where the run stands.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any

import jax

from mechjax import sites
from mechjax.errors import HarvestError, RunError
from mechjax.harvest.requests import fitted

_NOTHING: Any = object()

Item = tuple[int | tuple[int, ...] | None, str, Any]


class Run(Generator[Item, Any, Any]):
  """One forward pass.

  Iterating yields (layer, name, value); layer is None for sites without layers and a tuple in nested scans.

  Attributes:
    sites: the sites it stops at, in order; None where that is not known beforehand (eager runs).
    site: the site it stands at; None before the first and after the last.
  """

  def __init__(
    self,
    driver: Generator[tuple[sites.Site, Any], Any, Any],
    where: list[sites.Site] | None,
    kind: str,
    backward: Callable[..., Generator] | None = None,
  ):
    self.sites, self.site, self._kind, self._backward = where, None, kind, backward
    self._driver: Any = driver
    self._thread = threading.get_ident()
    self._loop: Any = None
    self._retval: Any = _NOTHING
    self._shown: Any = _NOTHING
    self._modified: Any = _NOTHING
    self._visited = 0

  # --- iterating

  def __iter__(self) -> Iterator[Item]:
    if self._loop is not None or self._driver is None:
      raise RunError(
        f'this run was iterated before; it is {self._state()}',
        mend='start a new one: run = forward(...)',
      )
    self._loop = _started()
    return self._items()

  def __next__(self) -> Item:
    return self.send(None)

  def send(self, value: Any) -> Item:
    """Like `next`, with `value` (unless None) flowing on from the site shown last."""
    loop = self._by_hand()
    if value is not None:
      self.modified_value = value
    return next(loop)

  def throw(self, *exception: Any) -> Item:
    """Raises an exception inside the forward pass, at the site shown last."""
    return self._by_hand().throw(*exception)

  def close(self) -> Any:
    """Abandons the pass. What it held is released and JAX's state is as before it."""
    if self._loop is not None and hasattr(self._loop, 'close'):
      self._loop.close()
    self._finish()

  def _by_hand(self) -> Any:
    if self._loop is None:
      self._loop = self._items()
    if not hasattr(self._loop, 'send'):
      raise RunError(
        'this run is being iterated by a for loop', mend='use run.modified_value in it'
      )
    return self._loop

  def _items(self) -> Generator[Item, None, None]:
    self._check_thread()
    driver = self._driver
    try:
      site, value = next(driver)
      while True:
        self.site, self._shown = site, _shape_of(value)
        self._visited += 1
        item = (site.layer, site.name, value)
        del value
        yield item
        del item
        self._check_thread()
        new, self._modified = self._modified, _NOTHING
        sent = None if new is _NOTHING else new
        del new
        try:
          site, value = driver.send(sent)
        finally:
          del sent
    except StopIteration as stop:
      self._retval, self.site = stop.value, None
    finally:
      driver.close()
      self._finish()

  def _finish(self) -> None:
    self._driver, self._shown, self._modified = None, _NOTHING, _NOTHING

  # --- what the loop's body says

  @property
  def modified_value(self) -> Any:
    """What flows on from this site instead of the value; set it in the loop's body, at most once per site."""
    if self._modified is _NOTHING:
      raise RunError('modified_value was not set at this site', where=self._state())
    return self._modified

  @modified_value.setter
  def modified_value(self, value: Any) -> None:
    self._check_thread()
    if self._shown is _NOTHING:
      raise RunError(
        'modified_value was set while the run stands at no site',
        where=self._state(),
        mend='set it in the body of the loop, before the next iteration',
      )
    if self._modified is not _NOTHING:
      raise RunError(
        f'modified_value was set twice at {self.site}',
        cause='two edits of one site',
        mend='compute the final value first, then set it once',
      )
    self._modified = fit(value, self._shown, f'modified_value at {self.site} has')

  @property
  def retval(self) -> Any:
    """What the function returned; there once the loop has ended."""
    if self._retval is _NOTHING:
      raise RunError(
        f'retval is not there yet: the run is {self._state()}',
        cause='the loop was left by break or an exception' if self._driver is None else None,
        mend='read it after the loop has ended',
      )
    return self._retval

  def backward(self, metric: Callable[[Any], Any]) -> Any:
    """Iterates over the gradients of `metric(retval)`, from the last site to the first.

        for layer, name, value, grad in (back := run.backward(metric)):
          back.modified_grad = ...          # what flows on to earlier sites (run.modified_grad is the same)

    Args:
      metric: from what the function returned to a scalar.

    Returns:
      A `BackwardRun`. Parameters are not differentiated. Where the loop replaced a value, the gradient at the
      replacement is reported and none flows on, unless modified_grad says so.

    Raises:
      RunError: unless the run is stepped and has ended.
    """
    if self._backward is None:
      raise RunError(
        f'a {self._kind} run has no backward pass of its own',
        mend='use jax.grad around the loop, or pass concrete arrays for a stepped run',
      )
    out = self.retval
    self._gradients = BackwardRun(self._backward(metric, out))
    return self._gradients

  @property
  def modified_grad(self) -> Any:
    """The gradient that flows on from the site that `run.backward` shows."""
    return self._gradients.modified_grad

  @modified_grad.setter
  def modified_grad(self, grad: Any) -> None:
    gradients = getattr(self, '_gradients', None)
    if gradients is None:
      raise RunError(
        'modified_grad was set outside a backward pass', mend='for … in run.backward(metric)'
      )
    gradients.modified_grad = grad

  # --- where it stands

  def _check_thread(self) -> None:
    if threading.get_ident() != self._thread:
      raise RunError(
        'a run was used from another thread than the one that started it',
        cause="JAX's trace state belongs to a thread",
        mend='start a run of its own in each thread',
      )

  def _state(self) -> str:
    if self._retval is not _NOTHING:
      return f'finished after {self._visited} sites'
    if self._driver is None:
      return f'closed at {self.site}' if self.site else 'closed before its first site'
    return f'standing at {self.site}' if self.site else 'not started'

  def __repr__(self) -> str:
    total = '' if self.sites is None else f' of {len(self.sites)}'
    return f'<{self._kind} run, {self._state()}; {self._visited}{total} sites visited>'


class BackwardRun:
  """The gradients of a run, last site first; see `Run.backward`."""

  def __init__(self, driver: Generator):
    self._driver: Any = driver
    self._shown: Any = _NOTHING
    self._modified: Any = _NOTHING
    self.site: sites.Site | None = None

  def __iter__(self) -> Iterator[tuple[Any, str, Any, Any]]:
    driver, self._driver = self._driver, None
    if driver is None:
      raise RunError(
        'this backward pass was iterated before', mend='call run.backward(metric) again'
      )
    sent = None
    try:
      while True:
        self.site, value, grad = driver.send(sent)
        self._shown = _shape_of(grad)
        yield self.site.layer, self.site.name, value, grad
        sent = None if self._modified is _NOTHING else self._modified
        self._modified = _NOTHING
    except StopIteration:
      pass
    finally:
      driver.close()
      self._shown = _NOTHING

  @property
  def modified_grad(self) -> Any:
    """The gradient that flows on instead of the one shown."""
    if self._modified is _NOTHING:
      raise RunError('modified_grad was not set at this site')
    return self._modified

  @modified_grad.setter
  def modified_grad(self, grad: Any) -> None:
    if self._shown is _NOTHING:
      raise RunError('modified_grad was set while the backward pass stands at no site')
    self._modified = fit(grad, self._shown, f'modified_grad at {self.site} has')


class _started:
  """Marks a run that a for loop iterates: the loop alone holds the generator, so that leaving it closes it."""


def fit(new: Any, old: Any, what: str) -> Any:
  """`new` with leaves of exactly the shapes and dtypes of `old`, or an error that says what differs."""
  leaves, tree = jax.tree.flatten(new)
  if tree != jax.tree.structure(old):
    raise HarvestError(
      f'{what} the structure {tree}, the site has {jax.tree.structure(old)}',
      cause='a function without a return statement gives None',
    )
  return tree.unflatten([fitted(n, o, what) for n, o in zip(leaves, jax.tree.leaves(old))])


def _shape_of(value: Any) -> Any:
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(jax.numpy.shape(x), jax.numpy.result_type(x)), value
  )
