"""Planted functions: staged like models, so that the arrays that they close over are data.

    for strength in strengths:
      harvest.plant(model)({'resid_post.5': lambda x: x + strength * v}, tokens)

A planted function is staged at the shape of the value that it receives. The arrays that it closes over become inputs of
the executable, so another `v` compiles nothing and is not kept alive; another Python number is another program.

Sharp edges. Inside a shard_map a function may use the names of mesh axes, which only exist there: such a function is
traced in place, and the arrays that it closes over are part of the executable.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import jax
from jax.typing import ArrayLike
from jaxtyping import PyTree

from mechjax import compat
from mechjax.errors import HarvestError
from mechjax.programs.program import Program, Sown, struct_of
from mechjax.programs.sharing import share
from mechjax.programs.staging import split_static, stage
from mechjax.watching import version


@jax.tree_util.register_pytree_node_class
class Planted:
  """A function of the value of a site; a pytree of the arrays that it closes over.

  Attributes:
    captured: the arrays that it closes over.
    program: the program of (captured, value); None if the function is traced in place.
    fn: the function if it is traced in place.
  """

  def __init__(
    self,
    captured: list[PyTree],
    program: Program | None,
    fn: Callable[[PyTree], PyTree] | None = None,
  ) -> None:
    self.captured, self.program, self.fn = captured, program, fn

  def __call__(self, value: PyTree[ArrayLike]) -> PyTree:
    if self.program is None:
      assert self.fn is not None
      return self.fn(value)
    inputs = [*self.captured, *jax.tree.leaves(value)]
    return self.program.out_tree.unflatten(compat.evaluate(self.program.jaxpr, (), *inputs))

  @property
  def sown(self) -> set[tuple[Hashable, str]]:
    """The (tag, name) of each value that the function sows; empty for a function that is traced in place."""
    return set() if self.program is None else {(s.tag, s.name) for s in self.program.sown}

  def tree_flatten(self) -> tuple:
    return self.captured, (self.program, self.fn)

  @classmethod
  def tree_unflatten(cls, parts: tuple, captured: Sequence[PyTree]) -> Planted:
    return cls(list(captured), *parts)


def stage_planted(fn: Callable[[PyTree], PyTree], sown: Sown, text: str) -> Planted:
  """Stages `fn` for planting at `sown`, which the request names `text`."""
  now = version(fn)
  if sown.device_sizes:
    return Planted([], None, now)
  key = (sown.avals, sown.tree, compat.trace_context())
  if key not in now.memo:
    made = _stage(fn, sown, text)
    if any(isinstance(x, jax.core.Tracer) for x in made.captured):
      return made
    now.memo[key] = made
    now.renew()
  return now.memo[key]


def _stage(fn: Callable, sown: Sown, text: str) -> Planted:
  value = sown.tree.unflatten([struct_of(a) for a in sown.avals])
  try:
    program, captured = stage(fn, *split_static(((value,), {})))
  except TypeError as error:
    if 'valid JAX type' not in str(error):
      raise
    raise HarvestError(
      f'the function planted at {text!r} returned something that is not an array: {error}'
    ) from error
  shapes = [struct_of(v.aval).shape for v in program.jaxpr.outvars]
  expected = [tuple(a.shape) for a in sown.avals]
  if program.out_tree == sown.tree and shapes != expected:
    raise HarvestError(
      f'the function planted at {text!r} returned the shape {", ".join(map(str, shapes))}, '
      f'the site has {", ".join(map(str, expected))}',
      cause='a reduction or an index that removes an axis',
      hint='return a whole value: jnp.broadcast_to(new, x.shape), x.at[:, -1].set(new)',
    )
  return Planted(captured, share(program))
