"""An existing model with its layers under one scan.

`stack(f, params, *args)` stages f once, finds its layers (see `layers`) and returns a function of stacked parameters
with the same results and the same sites, whose compile time does not grow with depth. The equations of layer 0 run
for every layer, in a scan over the values that differ; the code before and after the layers is unchanged.
Arguments of other shapes are staged again at their first call.

Sharp edges. The scan sums in the same order as the loop did, but XLA compiles another program: results are equal up to
rounding, not bit for bit. The function is assumed to have no side effects, as for `jax.jit`. Call it under `jax.jit`:
without it the equations are evaluated one by one. Layers that lie in one `jax.checkpoint` are checkpointed one by
one, with its policy.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.extend.source_info_util as siu
import jax.numpy as jnp
import numpy as np

from mechjax import compat
from mechjax.errors import StackingError
from mechjax.programs.callables import check_function
from mechjax.programs.line import Ref, bind, evaluate, read
from mechjax.programs.program import Program, ProgramCache
from mechjax.programs.staging import is_dynamic, stager
from mechjax.programs.tag import sow, sow_cond, sow_p
from mechjax.stacking.layers import Layers, find, is_shared


def stack(f: Callable, params: Any, *args: Any, checkpoint: bool = False, **kwargs: Any) -> Stacked:
  """Puts the repeated layers of a model under one scan.

  Args:
    f: (params, *args, **kwargs) -> anything; pure, its layers marked by `sites.layer(i)`, as the shipped patches do.
    params: a pytree of arrays. Its layers are stacked into new arrays; delete the old ones to free their memory.
    *args: further arguments of the shapes of later calls (`jax.ShapeDtypeStruct`s suffice).
    checkpoint: under a derivative keep only the values that pass between layers, and recompute the others.
    **kwargs: further keyword arguments.

  Returns:
    The function of stacked parameters; its `params` are the stacked ones.

  Raises:
    StackingError: no layer is marked, or the layers do not fit into one scan; the error says where.
  """
  return Stacked(f, params, args, kwargs, checkpoint)


class Stacked:
  """A model whose layers run under one scan: `flat(flat.params, *args)`.

  Attributes:
    params: parameters by name; parameters of layers have a '*' in place of the layer in their name, and a leading axis
      of layers.
    n_layers: number of layers that were found.
  """

  def __init__(self, f: Callable, params: Any, args: tuple, kwargs: dict, checkpoint: bool = False):
    """Stages `f` and stacks `params`; `mechjax.stacking.stack` makes instances."""
    check_function(f, StackingError, 'stack(model.apply, model.params, tokens)')
    self._f, self._checkpoint = f, checkpoint
    self._structure: Any
    leaves, self._structure = jax.tree.flatten_with_path(params)
    if bad := [_name(path) for path, x in leaves if not is_dynamic(x)]:
      raise StackingError(f'parameters that are not arrays: {bad[:8]}')
    self._paths = [path for path, _ in leaves]
    self._avals = [jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)) for _, x in leaves]
    program, _ = stager(f)((self._tree_of_avals(), *args), kwargs)
    found = _layers_of(program)
    self.n_layers = found.depth
    self._columns = self._group_params(found, program.n_captured)
    homes = {
      n: (name, i if len(column) > 1 else None)
      for name, column in self._columns.items()
      for i, n in enumerate(column)
    }
    self._homes = [homes[n] for n in range(len(leaves))]
    self.params = self.stack(params)

  def stack(self, params: Any) -> dict[str, jax.Array]:
    """Stacks parameters that have the structure and shapes of those of `f`, such as finetuned ones."""
    leaves, structure = jax.tree.flatten(params)
    if structure != self._structure:
      raise StackingError(f'parameters of the structure {structure}, expected {self._structure}')
    return {
      name: jnp.stack([leaves[n] for n in column])
      if len(column) > 1
      else jnp.asarray(leaves[column[0]])
      for name, column in self._columns.items()
    }

  def unstack(self, params: Mapping[str, jax.Array]) -> Any:
    """Inverts `stack`."""
    leaves = [_leaf(params, home) for home in self._homes]
    return jax.tree.unflatten(self._structure, leaves)

  def __call__(self, params: Mapping[str, jax.Array], *args: Any, **kwargs: Any) -> Any:
    """Result of `f`; pure, to be called under `jax.jit`."""
    program, inputs = stager(self._f)((self._tree_of_avals(), *args), kwargs)
    found = _layers_of(program)
    first, end = program.n_captured, program.n_captured + len(self._paths)
    homes = dict(zip(found.args[first:end], self._homes))
    known = {r: x for r, x in zip(found.args, inputs) if r not in homes}
    given = _Values({**found.constants, **known}, homes, params)
    return program.out_tree.unflatten(_evaluate(found, given, self._checkpoint))

  def _tree_of_avals(self) -> Any:
    return jax.tree.unflatten(self._structure, self._avals)

  def _group_params(self, found: Layers, first: int) -> dict[str, list[int]]:
    """Groups the parameters that are stacked together: name -> their numbers, layer by layer."""
    numbers = {r: n for n, r in enumerate(found.args[first : first + len(self._paths)])}
    columns: dict[str, list[int]] = {}
    taken: set[int] = set()
    for refs in found.operands:
      column = [numbers[r] for r in refs if isinstance(r, int) and r in numbers]
      if len(set(column)) == found.depth > 1 and taken.isdisjoint(column):
        taken.update(column)
        name = _common_name([self._paths[n] for n in column])
        columns[name if name not in columns else f'{name} ({len(columns)})'] = column
    columns.update({_name(path): [n] for n, path in enumerate(self._paths) if n not in taken})
    return columns


Home = tuple[str, int | None]
"""Location of a parameter: the name of an array, and its layer there or None."""


def _leaf(params: Mapping[str, jax.Array], home: Home) -> jax.Array:
  name, layer = home
  return params[name] if layer is None else params[name][layer]


class _Values(dict[int, Any]):
  """Values of a program by number; parameters are looked up on first access."""

  def __init__(
    self, values: dict[int, Any], homes: dict[int, Home], params: Mapping[str, jax.Array]
  ):
    super().__init__(values)
    self.homes, self.params = homes, params

  def __missing__(self, ref: int) -> Any:
    return _leaf(self.params, self.homes[ref])

  def column(self, refs: list[Ref]) -> Any:
    """Stacks one operand of all layers; no copy if the parameters are stacked in this order already."""
    homes = [self.homes.get(r) if isinstance(r, int) else None for r in refs]
    if homes[0] is not None and homes == [(homes[0][0], i) for i in range(len(refs))]:
      return self.params[homes[0][0]]
    if any(isinstance(r, int) for r in refs):
      return jnp.stack([read(self, r) for r in refs])
    return jnp.asarray(np.stack([r.val for r in refs]), refs[0].aval.dtype)


def _evaluate(found: Layers, given: _Values, checkpoint: bool) -> list[Any]:
  evaluate(found.before, given, _bind)
  columns = {k: refs for k, refs in enumerate(found.operands) if k not in found.carried}
  shared = {k: read(given, refs[0]) for k, refs in columns.items() if is_shared(refs)}
  own = [k for k in columns if k not in shared]
  made = len(found.operands)

  def layer(carry: list, xs: list) -> tuple[list, list]:
    values = {**shared, **dict(zip(found.carried, carry)), **dict(zip(own, xs))}
    evaluate(found.body, values, _bind_in_layer)
    return [values[made + p] for p in found.carried.values()], [
      values[made + p] for p in found.kept
    ]

  if checkpoint or found.checkpoint:
    policy = None if checkpoint else found.checkpoint['policy']
    layer = jax.checkpoint(layer, prevent_cse=False, policy=policy)
  first = [read(given, found.operands[k][0]) for k in found.carried]
  last, kept = jax.lax.scan(layer, first, [given.column(columns[k]) for k in own], found.depth)
  for p, rows in zip(found.kept, kept):
    given.update({results[p]: rows[i] for i, results in enumerate(found.results)})
  given.update(zip((found.results[-1][p] for p in found.carried.values()), last))
  evaluate(found.after, given, _bind)
  return [read(given, r) for r in found.outs]


def _bind_in_layer(eqn: Any, values: list[Any]) -> list[Any]:
  """Evaluates an equation of layer 0 in the scan, without the mark of layer 0."""
  return _bind(eqn, values, compat.without_scopes(eqn.source_info.name_stack, 'layer:'))


def _bind(eqn: Any, values: list[Any], name_stack: Any = None) -> list[Any]:
  """Evaluates one equation; a sow is sown again for the surrounding harvest."""
  name_stack = eqn.source_info.name_stack if name_stack is None else name_stack
  if eqn.primitive is not sow_p:
    return bind(eqn, values, name_stack)
  p = eqn.params
  n = len(values) - p['n_preds']
  value, options = p['tree'].unflatten(values[:n]), {'tag': p['tag'], 'name': p['name']}
  with siu.user_context(
    eqn.source_info.traceback, name_stack=siu.current_name_stack() + name_stack
  ):
    if p['n_preds']:
      value = sow_cond(value, values[n], **options)
    else:
      value = sow(value, mode=p['mode'], **options)
  return [*jax.tree.leaves(value), *values[n:]]


_LAYERS: ProgramCache[Layers] = ProgramCache()


def _layers_of(program: Program) -> Layers:
  known = _LAYERS.of(program)
  if not known:
    known[()] = find(program)
  return known[()]


def _name(path: tuple) -> str:
  return '.'.join(_part(p) for p in path)


def _part(key: Any) -> str:
  return str(
    next(v for v in (getattr(key, a, None) for a in ('key', 'idx', 'name')) if v is not None)
  )


def _common_name(paths: list[tuple]) -> str:
  """Common name of the parameters of all layers, with '*' where they differ: `layers.*.q.w`, `block_*/q`."""
  pieces = zip(*(re.split(r'(\d+)', _name(path)) for path in paths))
  return ''.join(piece[0] if len(set(piece)) == 1 else '*' for piece in pieces)
