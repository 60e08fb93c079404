"""Random small programs, each of which can run in two forms: as JAX primitives, and in plain Python.

A program is a nested tuple of steps on a vector. `build` turns it into a function with sows, using jit, scan,
cond, while, checkpoint, vmap, grad and custom derivatives; `Plainly` runs the same description with Python
loops and branches, lane by lane, and records (and edits) every tagged value itself. The result of mechjax on
the first form must equal the record of the second.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from mechjax import harvest, sites

D = 3
LANES = 2


# --- the description --------------------------------------------------------------------------------------

_number = st.sampled_from([-1.3, -0.4, 0.3, 0.8, 1.7])
_length = st.integers(1, 3)
_ops = st.tuples(st.just('op'), _number, _number)
_sows = st.one_of(
  st.tuples(st.just('sow')), st.tuples(st.just('sow_tree')), st.tuples(st.just('sow_cond'), _number)
)


def _holders(body):
  wrapper = st.sampled_from(['plain', 'jit', 'checkpoint'])
  return st.one_of(
    st.tuples(
      st.sampled_from(['jit', 'checkpoint', 'custom_jvp', 'custom_vjp', 'nest', 'grad']), body
    ),
    st.tuples(st.just('scan'), body, _length, st.booleans()),
    st.tuples(st.just('loop'), body, _length, wrapper),
    st.tuples(st.just('cond'), body, _number),
    st.tuples(st.just('while'), body, st.integers(0, 2), _number),
    st.tuples(st.just('vmap'), body, st.sampled_from([0, 1])),
  )


def _bodies(steps):
  return st.lists(steps, min_size=1, max_size=3).map(tuple)


def programs(leaves=6):
  """Programs of up to about `leaves` steps."""
  steps = st.recursive(
    st.one_of(_ops, _sows, _sows), lambda s: _holders(_bodies(s)), max_leaves=leaves
  )
  return (
    _bodies(steps)
    .map(lambda body: _numbered(body, iter(range(10**6)), False, False))
    .filter(_sows_something)
  )


def _numbered(body, count, in_while, in_grad):
  """Names every sow; inside a while loop they clobber; JAX has no reverse derivative of a while loop."""
  out = []
  for step in body:
    kind, *rest = step
    if kind.startswith('sow'):
      out.append((kind, f's{next(count)}', in_while, *rest))
    elif kind == 'op':
      out.append(step)
    elif kind == 'while' and in_grad:
      out.extend(_numbered(rest[0], count, in_while, in_grad))
    else:
      inner = _numbered(rest[0], count, in_while or kind == 'while', in_grad or kind == 'grad')
      out.append((kind, inner, *rest[1:]))
  return tuple(out)


def walk(body):
  for step in body:
    yield step
    if isinstance(step[1], tuple):
      yield from walk(step[1])


def _sows_something(body):
  return any(step[0].startswith('sow') for step in walk(body))


def holds(body, kind):
  return any(step[0] == kind for step in walk(body))


# --- with JAX ---------------------------------------------------------------------------------------------


def build(body):
  """The program as a function of a vector, with sows."""

  def f(x):
    for kind, *rest in body:
      x = _BUILD[kind](x, *rest)
    return x

  return f


def _sow(x, name, in_while):
  return harvest.sow(x, name=name, mode='clobber' if in_while else 'strict')


def _sow_tree(x, name, in_while):
  v = harvest.sow({'v': x, 's': x[0]}, name=name, mode='clobber' if in_while else 'strict')
  return v['v'] + v['s'] * 0.5


def _sow_cond(x, name, in_while, threshold):
  return harvest.sow_cond(x, x[1] > threshold, name=name)


def _scan(x, body, n, reverse):
  f = build(body)

  def step(x, w):
    x = f(x + w)
    return x, x[0] * w

  x, ys = jax.lax.scan(step, x, 0.1 * jnp.arange(float(n)), reverse=reverse)
  return x + 0.1 * ys.sum()


_WRAP: dict[str, Callable] = {'plain': lambda f: f, 'jit': jax.jit, 'checkpoint': jax.checkpoint}


def _loop(x, body, n, wrapper):
  f = _WRAP[wrapper](build(body))
  for i in range(n):
    with sites.layer(i):
      x = f(x + 0.1 * i)
  return x


def _cond(x, body, threshold):
  f = build(body)
  return jax.lax.cond(x[0] > threshold, f, lambda x: f(0.5 * x) * 2.0, x)


def _while(x, body, n, threshold):
  f = build(body)
  last = n + (x[0] > threshold).astype(jnp.int32)
  return jax.lax.while_loop(lambda c: c[0] < last, lambda c: (c[0] + 1, f(c[1])), (0, x))[1]


def _vmap(x, body, axis):
  lanes = jnp.stack([x, 0.5 * x], axis)
  return jax.vmap(build(body), in_axes=axis, out_axes=axis)(lanes).mean(axis)


def _grad(x, body):
  f = build(body)
  return x + 0.3 * jax.grad(lambda x: f(x).sum())(x)


def _custom_jvp(x, body):
  f = build(body)
  g = jax.custom_jvp(f)
  g.defjvp(lambda primals, tangents: jax.jvp(f, primals, tangents))
  return g(x)


def _custom_vjp(x, body):
  f = build(body)
  g = jax.custom_vjp(f)
  g.defvjp(lambda x: jax.vjp(f, x), lambda vjp, ct: vjp(ct))
  return g(x)


_BUILD: dict[str, Callable] = {
  'op': lambda x, a, b: jnp.sin(a * x + b),
  'sow': _sow,
  'sow_tree': _sow_tree,
  'sow_cond': _sow_cond,
  'jit': lambda x, body: jax.jit(build(body))(x),
  'checkpoint': lambda x, body: jax.checkpoint(build(body))(x),
  'nest': lambda x, body: harvest.nest(build(body), scope='in')(x),
  'custom_jvp': _custom_jvp,
  'custom_vjp': _custom_vjp,
  'grad': _grad,
  'scan': _scan,
  'loop': _loop,
  'cond': _cond,
  'while': _while,
  'vmap': _vmap,
}


# --- in plain Python --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Place:
  """Position of plain Python: scopes, layer indices, lanes of the vmaps around it."""

  scope: tuple = ()
  path: tuple = ()
  lanes: tuple = ()

  def site(self, name):
    return '.'.join(['/'.join([*self.scope, name]), *map(str, self.path)])


class Plainly:
  """Runs a program step by step. `seen[site][lanes]` is the sown value; `edits[site]` gives its replacement.

  An edit takes the value and the lanes. `xp` is numpy, or jax.numpy where a derivative is needed.
  """

  def __init__(self, edits=None, xp=np):
    self.edits, self.xp = edits or {}, xp
    self.seen = {}

  def run(self, body, x, at=Place()):
    for kind, *rest in body:
      x = getattr(self, kind)(x, at, *rest)
    return x

  jit = checkpoint = custom_jvp = custom_vjp = lambda self, x, at, body: self.run(body, x, at)

  def op(self, x, at, a, b):
    return self.xp.sin(a * x + b)

  def _tag(self, value, at, name, holds=True):
    lanes = self.seen.setdefault(at.site(name), {})
    if not holds:
      lanes.setdefault(at.lanes, jax.tree.map(self.xp.zeros_like, value))
      return value
    if at.site(name) in self.edits:
      value = self.edits[at.site(name)](value, at.lanes)
    lanes[at.lanes] = value
    return value

  def sow(self, x, at, name, in_while):
    return self._tag(x, at, name)

  def sow_tree(self, x, at, name, in_while):
    v = self._tag({'v': x, 's': x[0]}, at, name)
    return v['v'] + v['s'] * 0.5

  def sow_cond(self, x, at, name, in_while, threshold):
    return self._tag(x, at, name, bool(x[1] > threshold))

  def nest(self, x, at, body):
    return self.run(body, x, dataclasses.replace(at, scope=(*at.scope, 'in')))

  def scan(self, x, at, body, n, reverse):
    total = 0.0
    for i in reversed(range(n)) if reverse else range(n):
      x = self.run(body, x + 0.1 * i, dataclasses.replace(at, path=(*at.path, i)))
      total = total + x[0] * 0.1 * i
    return x + 0.1 * total

  def loop(self, x, at, body, n, wrapper):
    for i in range(n):
      x = self.run(body, x + 0.1 * i, dataclasses.replace(at, path=(*at.path, i)))
    return x

  def cond(self, x, at, body, threshold):
    return self.run(body, x, at) if x[0] > threshold else self.run(body, 0.5 * x, at) * 2.0

  def _while(self, x, at, body, n, threshold):
    for _ in range(n + int(x[0] > threshold)):
      x = self.run(body, x, at)
    return x

  def vmap(self, x, at, body, axis):
    out = [
      self.run(body, x * scale, dataclasses.replace(at, lanes=(*at.lanes, i)))
      for i, scale in enumerate((1.0, 0.5))
    ]
    return (out[0] + out[1]) / 2

  def grad(self, x, at, body):
    def loss(x):
      inner = Plainly(self.edits, jnp)
      return inner.run(body, x, at).sum(), inner.seen

    g, seen = jax.grad(loss, has_aux=True)(jnp.asarray(x, jnp.float32))
    for site, lanes in seen.items():
      self.seen.setdefault(site, {}).update(lanes)
    return x + 0.3 * self.xp.asarray(g)


setattr(Plainly, 'while', Plainly._while)


def gathered(lanes, like):
  """The values of one site over all lanes, with the axes that vmap adds in front; zeros where a lane never sowed."""
  out = jax.tree.map(np.zeros_like, like)
  for lane, value in lanes.items():
    for array, leaf in zip(jax.tree.leaves(out), jax.tree.leaves(value)):
      array[lane] = np.asarray(leaf)
  return out
