"""The one tag: `sow` marks a value, is the identity, and costs nothing outside a harvest.

Outside a harvest `sow` returns the very object it was given: no equation, no effect, the same compiled program, the
same dispatch. Whether a harvest is active is a JAX user context (`compat.GATE`), which is part of every trace-cache
key; a plain call before or after a harvest can therefore never meet a tagged program.

While a harvest stages a program, `sow` binds the primitive `sow_p`, an identity that survives JAX's transformations:

    vmap    the batch axis moves to the front of every leaf, so that a sown pytree has one batch axis, and back again
    jvp     the primal is sown again; the tangent passes through `sow_tangent_p`, an identity that the
            interpreter turns into zero where the primal was planted, so that plant(grad(f)) equals
            grad(plant(f))
    layers  are not in the name: they come from the scan or from the named scope of the enclosing equation
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Hashable, Iterator

import jax
import jax.extend.source_info_util as siu
import jax.numpy as jnp
from jax.extend import core as jex_core
from jax.interpreters import ad, batching, mlir
from jax.typing import ArrayLike
from jaxtyping import Bool, PyTree

from mechjax import compat, sites
from mechjax.errors import HarvestError

TAG = 'mechjax'
"""The tag of every patch and of mechjax's own models."""

MODES = ('strict', 'append', 'clobber', 'cond_clobber')

siu.register_exclusion(__file__)  # the source line of a sow is the line of its caller

_staging = threading.local()


@contextlib.contextmanager
def record_sows() -> Iterator[list[tuple[Hashable, str]]]:
  """Collects the (tag, name) of every staged sow, so that sows that JAX drops as dead code can be reported."""
  before, _staging.names = getattr(_staging, 'names', None), []
  try:
    yield _staging.names
  finally:
    _staging.names = before


def sow(
  value: PyTree[ArrayLike],
  *,
  tag: Hashable = TAG,
  name: str,
  mode: str = 'strict',
  key: object = None,
) -> PyTree[ArrayLike]:
  """Tags a value with a name; the identity unless a harvest asks for it.

  Args:
    value: a pytree of arrays.
    tag: the harvests of this tag see the value; any hashable.
    name: its name; a canonical name of `mechjax.sites` where one fits. The layer is not part of
      the name (see `mechjax.sites`).
    mode: the meaning of a second sow of the same name in the same place: 'strict' makes it an error, 'clobber' keeps
      the last value, 'append' (inside a scan) gives one entry per iteration.
    key: ignored; accepted because Oryx accepts it.

  Returns:
    `value`, or the value that a harvest planted in its place.

  Raises:
    HarvestError: for an unknown mode.
  """
  del key
  gate = compat.GATE.value
  if gate is None:
    return value
  if mode not in MODES[:3]:
    hint = 'use sow_cond for cond_clobber' if mode == 'cond_clobber' else f'one of {MODES[:3]}'
    raise HarvestError(f'sow of {name!r}: unknown mode {mode!r}', hint=hint)
  if not isinstance(gate, compat.Staging):
    return gate.tap(value, tag=tag, name=name)
  return _bind(value, None, tag=tag, name=name, mode=mode)


def sow_cond(
  value: PyTree[ArrayLike],
  pred: Bool[ArrayLike, ''],
  *,
  tag: Hashable = TAG,
  name: str,
  mode: str = 'cond_clobber',
  key: object = None,
) -> PyTree[ArrayLike]:
  """Tags a value like `sow`, but only where `pred` holds: in a loop, the last value sown under a true predicate.

  Args:
    value: a pytree of arrays.
    pred: a boolean scalar. If it never holds, zeros are reaped. A planted value is used only where it holds.
    tag: as in `sow`.
    name: as in `sow`.
    mode: only 'cond_clobber'.
    key: ignored.

  Returns:
    `value`, or the value that a harvest planted in its place.
  """
  del key
  if compat.GATE.value is None:
    return value
  if mode != 'cond_clobber':
    raise HarvestError(f'sow_cond of {name!r}: unknown mode {mode!r}', hint="only 'cond_clobber'")
  if not compat.is_staging():
    return compat.GATE.value.tap(value, tag=tag, name=name, pred=pred)
  return _bind(value, jnp.asarray(pred), tag=tag, name=name, mode=mode)


def is_wanted(*names: str) -> bool:
  """Whether some of these names of `sites.ON_REQUEST` may be read or planted by a harvest under way.

  A model calls this to compute a value that is expensive to keep only where it is wanted. The answer is part of the
  key of every trace cache. False outside of a harvest.

  Raises:
    HarvestError: a name that is not in `sites.ON_REQUEST`, for which a harvest does not record what it wants.
  """
  if other := set(names) - set(sites.ON_REQUEST):
    raise HarvestError(
      f'{sorted(other)} cannot exist on request only', hint=f'names on request: {sites.ON_REQUEST}'
    )
  gate = compat.GATE.value
  if not isinstance(gate, compat.Staging):
    return gate is not None
  return gate.wanted is None or not gate.wanted.isdisjoint(names)


def nest(f: Callable, *, scope: str) -> Callable:
  """Gives the sows of `f` a scope: a value that `f` sows as 'x' is reaped as {scope: {'x': ...}}."""

  @functools.wraps(f)
  def in_scope(*args, **kwargs):
    with jax.named_scope(f'nest:{scope}'):
      return f(*args, **kwargs)

  return in_scope


def _bind(value, pred, *, tag, name, mode):
  leaves, tree = jax.tree.flatten(value)
  recorder = getattr(_staging, 'names', None)
  if recorder is not None:
    recorder.append((tag, name))
  operands = [*leaves] if pred is None else [*leaves, pred]
  out = sow_p.bind(
    *operands,
    name=name,
    tag=tag,
    mode=mode,
    tree=tree,
    n_preds=int(pred is not None),
    exclusive=(),
  )
  return jax.tree.unflatten(tree, out[: len(leaves)])


sow_p = jex_core.Primitive('sow')
"""Operands: the leaves, then `n_preds` boolean predicates. `exclusive` holds (id, branch) pairs if the branches of a
vmapped cond were merged into one straight line."""
sow_p.multiple_results = True

sow_tangent_p = jex_core.Primitive('sow_tangent')
"""The tangent (or, transposed, the cotangent) of the leaves `leaves` of a sow.

Operands: the tangents; then the predicates of the primal, and a scalar that is batched wherever the primal is.
`extra` are the leading axes that only the tangents have, as in a Jacobian.
"""
sow_tangent_p.multiple_results = True

sow_p.def_impl(lambda *args, **_: list(args))
sow_p.def_abstract_eval(lambda *avals, **_: list(avals))
mlir.register_lowering(sow_p, lambda ctx, *args, **_: args)
sow_tangent_p.def_impl(lambda *args, leaves, **_: list(args[: len(leaves)]))
sow_tangent_p.def_abstract_eval(lambda *avals, leaves, **_: list(avals[: len(leaves)]))
mlir.register_lowering(sow_tangent_p, lambda ctx, *args, leaves, **_: args[: len(leaves)])


def _jvp(primals, tangents, *, n_preds, tree, **params):
  out = sow_p.bind(*primals, n_preds=n_preds, tree=tree, **params)
  n = len(primals) - n_preds
  live = tuple(i for i in range(n) if not isinstance(tangents[i], ad.Zero))
  moved = list(tangents)
  if live:
    lanes = jnp.stack([jnp.any(primals[i] != primals[i]) for i in live]).any()
    through = sow_tangent_p.bind(
      *(tangents[i] for i in live),
      *primals[n:],
      lanes,
      leaves=live,
      n_preds=n_preds,
      extra=(),
      **params,
    )
    for i, t in zip(live, through):
      moved[i] = t
  return out, moved


def _transpose_sow(cotangents, *operands, **_):
  return cotangents  # a sow of a linear value is the identity; it is reported as dropped


def _transpose(cotangents, *operands, leaves, **params):
  cts = [ad.instantiate_zeros(c) for c in cotangents]
  of_primal = operands[len(leaves) :]
  out = sow_tangent_p.bind(*cts, *of_primal, leaves=leaves, **params)
  return [*out, *(None for _ in of_primal)]


def _tangent_jvp(primals, tangents, *, leaves, **params):
  n = len(leaves)
  ts = [ad.instantiate_zeros(t) for t in tangents[:n]]
  bind = functools.partial(sow_tangent_p.bind, leaves=leaves, **params)
  return bind(*primals), bind(*ts, *primals[n:])


def _move_to_front(operands, dims):
  size = next(x.shape[d] for x, d in zip(operands, dims) if d is not None)
  return [batching.bdim_at_front(x, d, size) for x, d in zip(operands, dims)]


def _put_back(out, dims):
  """Moves batch axes back: the rule of a custom derivative may be traced without the sow, and must agree."""
  moved = [x if d is None else jnp.moveaxis(x, 0, d) for x, d in zip(out, dims)]
  return moved, [d or 0 for d in dims]


def _batch(operands, dims, **params):
  return _put_back(sow_p.bind(*_move_to_front(operands, dims), **params), dims)


def _tangent_batch(operands, dims, *, leaves, extra, **params):
  n = len(leaves)
  extra = tuple(e + 1 for e in extra)
  if any(d is not None for d in dims[n:]):
    operands = _move_to_front(operands, dims)
  else:
    operands, extra = [*_move_to_front(operands[:n], dims[:n]), *operands[n:]], (0, *extra)
  return _put_back(sow_tangent_p.bind(*operands, leaves=leaves, extra=extra, **params), dims[:n])


ad.primitive_jvps[sow_p] = _jvp
ad.primitive_jvps[sow_tangent_p] = _tangent_jvp
ad.primitive_transposes[sow_tangent_p] = _transpose
ad.primitive_transposes[sow_p] = _transpose_sow
batching.primitive_batchers[sow_p] = _batch
batching.primitive_batchers[sow_tangent_p] = _tangent_batch
compat.keep_alive(sow_p)
