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
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import PyTreeDef
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree, Shaped

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
  what = f'the function planted at {text!r}'

  def apply(value: PyTree) -> PyTree:
    return sown.tree.unflatten(apply_function(fn, jax.tree.leaves(value), sown.tree, what))

  program, captured = stage(apply, *split_static(((value,), {})))
  return Planted(captured, share(program))


# --- results ----------------------------------------------------------------------------------------------


def apply_function(
  fn: Callable[[PyTree[ArrayLike]], PyTree],
  values: Sequence[ArrayLike],
  tree: PyTreeDef,
  what: str = 'the function planted at a site',
) -> list[Shaped[Array, ' ...']]:
  """Applies a user's function to the value of a site, and checks the structure, shape and dtype of its result."""
  out, structure = jax.tree.flatten(fn(tree.unflatten(values)))
  if structure != tree:
    raise HarvestError(
      f'{what} returned the structure {structure}, the site has {tree}',
      cause='a function without a return statement returns None',
      hint='return a value of the same structure as the one received',
    )
  return [fit_array(o, v, f'{what} returned', _FUNCTION_HINT) for o, v in zip(out, values)]


def _kind_rank(dtype: Any) -> int:
  """Rank of a dtype; scalars adapt to dtypes of their own or a higher rank: bool, integer, real, complex."""
  kinds = (jnp.bool_, jnp.integer, jnp.floating, jnp.complexfloating)
  return next((i for i, kind in enumerate(kinds) if jnp.issubdtype(dtype, kind)), -1)


_FUNCTION_HINT = 'return a whole value: jnp.broadcast_to(new, x.shape), x.at[:, -1].set(new)'
_PLANT_HINT = 'use jnp.broadcast_to on the value, or plant only part of it with harvest.Masked'


def fit_array(
  new: ArrayLike,
  old: ArrayLike | jax.ShapeDtypeStruct,
  what: str,
  hint: str = _PLANT_HINT,
) -> Shaped[Array, ' ...']:
  """Returns `new` as an array of exactly the shape and dtype of `old` (weakly typed scalars adapt).

  `hint` is for a value of another shape.
  """
  shape, dtype = jnp.shape(old), jnp.result_type(old)
  try:
    got = jax.typeof(new)
    if got.dtype != dtype and not (got.weak_type and _kind_rank(got.dtype) <= _kind_rank(dtype)):
      raise HarvestError(
        f'{what} dtype {got.dtype.name}, the site has {dtype.name}',
        cause='a silent cast would change the computation that follows',
        hint=f'use .astype({dtype.name!r}) on the value if the cast is intended',
      )
    if not isinstance(new, jax.Array) or got.dtype != dtype or got.weak_type:
      new = jnp.asarray(new, dtype)
  except (TypeError, OverflowError) as e:
    raise HarvestError(
      f'{what} the value {new!r}, which cannot be converted to {dtype.name}'
    ) from e
  if new.shape != shape:
    raise HarvestError(
      f'{what} shape {new.shape}, the site has {shape}',
      cause='values are planted as a whole; nothing is broadcast',
      hint=hint,
    )
  return new
