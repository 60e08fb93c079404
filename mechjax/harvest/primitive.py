"""The one tag: `sow` marks a value, is the identity, and costs nothing until somebody asks.

Outside a harvest `sow` returns the very object it was given: no equation, no effect, the same compiled
program, the same dispatch. Whether somebody asks is a JAX user context (`compat.GATE`), which is part of
every trace-cache key; a plain call before or after a harvest can therefore never meet a tagged program.

While a harvest stages a program, `sow` binds the primitive `sow_p`, an identity that survives JAX's
transformations:

    vmap    the batch axis goes to the front of every leaf, so that a sown pytree has one batch axis
    jvp     the primal is sown again; the tangent passes through `sow_tangent_p`, an identity that the
            interpreter turns into zero where the primal was planted, so that plant(grad(f)) equals
            grad(plant(f))
    layers  are not in the name: they come from the scan or from the named scope of the enclosing equation
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.extend.source_info_util as siu
import jax.numpy as jnp
from jax.extend import core as jex_core
from jax.interpreters import ad, batching, mlir

from mechjax import compat
from mechjax.errors import HarvestError

TAG = 'mechjax'
"""The tag of every patch and of mechjax's own models."""

MODES = ('strict', 'append', 'clobber', 'cond_clobber')

siu.register_exclusion(__file__)  # a sow's source line is its caller's

# Names sown while a program is being staged, so that a sow that JAX dropped as dead code can be reported.
_staging = threading.local()


def sow(
  value: Any,
  *,
  tag: Hashable = TAG,
  name: str,
  mode: str = 'strict',
  key: Any = None,
) -> Any:
  """Tags a value with a name; the identity unless a harvest asks for it.

  Args:
    value: a pytree of arrays.
    tag: which harvests see it; any hashable.
    name: what it is called. A canonical name of `mechjax.sites` where one fits. The layer is not part of
      the name (see `mechjax.sites`).
    mode: what a second sow of the same name in the same place means: 'strict' an error, 'clobber' the last
      one wins, 'append' (inside a scan) one entry per iteration.
    key: ignored; accepted because Oryx accepts it.

  Returns:
    `value`, or what a harvest planted in its place.

  Raises:
    HarvestError: for an unknown mode.
  """
  del key
  gate = compat.GATE.value
  if gate is None:
    return value
  if mode not in MODES[:3]:
    hint = 'use sow_cond for cond_clobber' if mode == 'cond_clobber' else f'one of {MODES[:3]}'
    raise HarvestError(f'sow of {name!r}: unknown mode {mode!r}', mend=hint)
  if gate is not compat.STAGING:
    return gate.tap(value, tag=tag, name=name)
  return _bind(value, None, tag=tag, name=name, mode=mode)


def sow_cond(
  value: Any,
  pred: Any,
  *,
  tag: Hashable = TAG,
  name: str,
  mode: str = 'cond_clobber',
  key: Any = None,
) -> Any:
  """Like `sow`, but only where `pred` holds: in a loop, the last value sown under a true predicate.

  Args:
    value: a pytree of arrays.
    pred: a boolean scalar. If it never holds, zeros are reaped. A planted value is used only where it holds.
    tag: as in `sow`.
    name: as in `sow`.
    mode: only 'cond_clobber'.
    key: ignored.

  Returns:
    `value`, or what a harvest planted in its place.
  """
  del key
  if compat.GATE.value is None:
    return value
  if mode != 'cond_clobber':
    raise HarvestError(f'sow_cond of {name!r}: unknown mode {mode!r}', mend="only 'cond_clobber'")
  if compat.GATE.value is not compat.STAGING:
    return compat.GATE.value.tap(value, tag=tag, name=name)
  return _bind(value, jnp.asarray(pred), tag=tag, name=name, mode=mode)


def nest(f: Callable, *, scope: str) -> Callable:
  """Gives the sows of `f` a scope: what `f` sows as 'x' is reaped as {scope: {'x': ...}}."""

  @functools.wraps(f)
  def nested(*args, **kwargs):
    with jax.named_scope(f'nest:{scope}'):
      return f(*args, **kwargs)

  return nested


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
    exclusive=None,
  )
  return jax.tree.unflatten(tree, out[: len(leaves)])


sow_p = jex_core.Primitive('sow')
"""Operands: the leaves, then `n_preds` boolean predicates. `exclusive` is (id, branch) where the branches of a
vmapped cond were merged into one straight line."""
sow_p.multiple_results = True

sow_tangent_p = jex_core.Primitive('sow_tangent')
"""The tangent (or, transposed, the cotangent) of the leaves `leaves` of a sow."""
sow_tangent_p.multiple_results = True

for _p in (sow_p, sow_tangent_p):
  _p.def_impl(lambda *args, **_: list(args))
  _p.def_abstract_eval(lambda *avals, **_: list(avals))
  mlir.register_lowering(_p, lambda ctx, *args, **_: args)


def _jvp(primals, tangents, *, n_preds, tree, **params):
  out = sow_p.bind(*primals, n_preds=n_preds, tree=tree, **params)
  n = len(primals) - n_preds
  live = tuple(i for i in range(n) if not isinstance(tangents[i], ad.Zero))
  moved = list(tangents)
  if live:
    preds = list(primals[n:])
    through = sow_tangent_p.bind(
      *(tangents[i] for i in live), *preds, leaves=live, n_preds=n_preds, **params
    )
    for i, t in zip(live, through):
      moved[i] = t
  return out, moved


def _transpose(cotangents, *operands, leaves, n_preds, **params):
  cts = [ad.instantiate_zeros(c) for c in cotangents[: len(leaves)]]
  preds = operands[len(leaves) :]
  out = sow_tangent_p.bind(*cts, *preds, leaves=leaves, n_preds=n_preds, **params)
  return [*out[: len(leaves)], *[None] * n_preds]


def _tangent_jvp(primals, tangents, *, leaves, n_preds, **params):
  out = sow_tangent_p.bind(*primals, leaves=leaves, n_preds=n_preds, **params)
  n = len(leaves)
  ts = [ad.instantiate_zeros(t) for t in tangents[:n]]
  moved = sow_tangent_p.bind(*ts, *primals[n:], leaves=leaves, n_preds=n_preds, **params)
  return out, [*moved[:n], *tangents[n:]]


def _batch(primitive, operands, dims, **params):
  size = next(x.shape[d] for x, d in zip(operands, dims) if d is not None)
  front = [batching.bdim_at_front(x, d, size) for x, d in zip(operands, dims)]
  return primitive.bind(*front, **params), [0] * len(front)


ad.primitive_jvps[sow_p] = _jvp
ad.primitive_jvps[sow_tangent_p] = _tangent_jvp
ad.primitive_transposes[sow_tangent_p] = _transpose
batching.primitive_batchers[sow_p] = functools.partial(_batch, sow_p)
batching.primitive_batchers[sow_tangent_p] = functools.partial(_batch, sow_tangent_p)
compat.keep_alive(sow_p)
