"""Callable pytrees (models), which are staged as their own first argument.

An nnx or equinox module, a `jax.tree_util.Partial` and mechjax's `LanguageModel` are functions that carry their
weights. Staged as functions, they would freeze the weights. Staged as `call(module, *args)`, the weights are inputs
like any others: new values need no new program, a jit around the call does not compile them in, and they can be
differentiated.

Sharp edges. A module that changes its own state while it runs (Dropout that counts its draws, BatchNorm in training) is
refused, because the change would be lost. An nnx module is flattened at every call, which costs about five microseconds
for each array.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from jax.tree_util import PyTreeDef
from jaxtyping import PyTree

from mechjax.errors import HarvestError, MechjaxError


@jax.tree_util.register_pytree_node_class
class Bound:
  """A callable pytree, flattened.

  Attributes:
    leaves: its leaves.
    structure: its structure.
    module: the object that was flattened; None after a pass through JAX.
  """

  def __init__(self, leaves: list[PyTree], structure: PyTreeDef, module: PyTree = None) -> None:
    self.leaves, self.structure, self.module = leaves, structure, module

  def tree_flatten(self) -> tuple:
    """Arrays are data. Numbers, flags and functions are settings: a trace does not change them."""
    settings = tuple(None if _is_array(x) else (type(x), x) for x in self.leaves)
    return [x for x in self.leaves if _is_array(x)], (self.structure, settings)

  @classmethod
  def tree_unflatten(cls, fixed: tuple, arrays: Iterable[PyTree]) -> Bound:
    structure, settings = fixed
    data = iter(arrays)
    return cls([next(data) if s is None else s[1] for s in settings], structure)


def _is_array(x: Any) -> bool:
  return isinstance(x, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct)


def is_pytree(f: PyTree) -> bool:
  """Whether `f` is a pytree that carries its weights, rather than a plain function."""
  return not jax.tree_util.all_leaves([f])


def check_function(f: object, error: type[MechjaxError], example: str) -> None:
  """Raises `error` if `f` is a model, which holds its parameters, rather than a function of (params, inputs)."""
  if callable(f) and not hasattr(f, 'apply'):
    return
  raise error(
    f'the first argument is a {type(f).__name__}, not a function of (params, inputs)',
    cause='it is the model itself, which holds its parameters' if hasattr(f, 'apply') else None,
    hint=example,
  )


def flatten(f: PyTree) -> Bound:
  """Flattens `f` in its present state."""
  leaves, structure = jax.tree.flatten(f)
  return Bound(leaves, structure, f)


def call(f: Bound, *args: PyTree, **kwargs: PyTree) -> PyTree:
  """Calls the module that was flattened to `f`.

  Raises:
    HarvestError: the module has changed its own state.
  """
  module = jax.tree.unflatten(f.structure, f.leaves)
  out = module(*args, **kwargs)
  after, structure = jax.tree.flatten_with_path(module)
  changed = [
    jax.tree_util.keystr(path) for (path, new), old in zip(after, f.leaves) if new is not old
  ]
  if changed or structure != f.structure:
    raise HarvestError(
      f'{type(module).__name__} changes its own state when it is called: '
      f'{", ".join(changed[:5]) or "its structure"}',
      cause='Dropout that counts its draws, BatchNorm in training, a cache; a harvest would lose the change',
      hint='model.eval(), or a function that takes the state as an argument and returns it',
    )
  return out
