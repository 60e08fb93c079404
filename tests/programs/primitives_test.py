"""Every primitive in the table, with a tagged loop inside it, under everything that mechjax does with programs.

The truth is the same loop written by hand, without the primitive and without tags. Impossible combinations are refused
by an error that names the primitive; `REFUSED` lists them.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core as jex_core

import mechjax
from mechjax import harvest, sites, stacking
from mechjax.errors import MechjaxError
from mechjax.programs.primitives import TABLE, every_eqn

WS = [jnp.array([0.5, -1.5, 2.0]), jnp.array([1.25, 0.75, -0.5])]
X = jnp.array([0.3, -0.8, 1.1])
V = jnp.array([0.2, 0.9, -0.4])


def by_hand(put=None, x=X):
  """(result, values at both layers), with `put` in place of the first."""
  found = []
  for i, w in enumerate(WS):
    x = jnp.tanh(x * w)
    x = put if put is not None and i == 0 else x
    found.append(x)
  return (x**2).sum(), found


def tagged(ws, x, mode='strict'):
  for i, w in enumerate(ws):
    with sites.layer(i):
      x = harvest.sow(jnp.tanh(x * w), name='h', mode=mode)
  return x


def bound(name):
  """Calls a primitive that JAX itself binds only for a moment."""

  def held(ws, x):
    primitive = getattr(jex_core.primitives, name)
    closed = jax.make_jaxpr(tagged)(ws, x)
    jaxpr = closed.jaxpr if name == 'call_p' else closed
    params = primitive.get_bind_params({'call_jaxpr': jaxpr})
    return primitive.bind(*ws, x, **params)[0]

  return held


def own_jvp(f):
  g = jax.custom_jvp(f)
  g.defjvp(lambda primals, tangents: jax.jvp(f, primals, tangents))
  return g


def own_vjp(f):
  g = jax.custom_vjp(f)
  g.defvjp(lambda *args: jax.vjp(f, *args), lambda vjp, ct: vjp(ct))
  return g


def on_a_mesh(ws, x):
  one, each = jax.sharding.PartitionSpec(), jax.sharding.PartitionSpec('d')
  mesh = jax.make_mesh((1,), ('d',), axis_types=(jax.sharding.AxisType.Auto,))
  return jax.shard_map(tagged, mesh=mesh, in_specs=(one, each), out_specs=each)(ws, x)


def one_round(ws, x):
  body = lambda state: (state[0] + 1, tagged(ws, state[1], 'clobber'))  # noqa: E731
  return jax.lax.while_loop(lambda state: state[0] < 1, body, (0, x))[1]


HELD = {
  'jit': jax.jit(tagged),
  'call': bound('call_p'),
  'closed_call': bound('closed_call_p'),
  'eval_jaxpr': lambda ws, x: jax.jit(tagged).trace(ws, x)(ws, x),
  'remat2': jax.checkpoint(tagged),
  'custom_jvp_call': own_jvp(lambda ws, x: tagged(ws, x)),
  'custom_vjp_call': own_vjp(lambda ws, x: tagged(ws, x)),
  'scan': lambda ws, x: jax.lax.scan(lambda x, _: (tagged(ws, x), None), x, None, length=1)[0],
  'while': one_round,
  'cond': lambda ws, x: jax.lax.cond(x[0] > -1, tagged, tagged, ws, x),
  'shard_map': on_a_mesh,
}
REFUSED = {
  'remat2': {},
  'custom_jvp_call': {'stacked'},
  'custom_vjp_call': {'stacked'},
  'scan': {'stacked'},
  'while': {'cut', 'stacked', 'differentiated'},  # JAX itself has no reverse derivative of a while
  'cond': {'cut', 'stacked'},
  'shard_map': {'stepped', 'cut', 'stacked'},
}


class Held:
  """A model whose layers are inside a primitive."""

  def __init__(self, name):
    self.name = name
    self.model = lambda ws, x: (HELD[name](ws, x) ** 2).sum()
    self.sites = ['h.0.0', 'h.0.1'] if name == 'scan' else ['h.0', 'h.1']

  def __call__(self, x):
    return self.model(WS, x)

  def value(self, x):
    """A value in the layout for planting: inside a shard_map there is an axis of devices."""
    return x[None] if self.name == 'shard_map' else x


def reaped(f):
  out, acts = harvest.call_and_reap(f, sites=f.sites)(X)
  close([out, *(acts[s] for s in f.sites)], [by_hand()[0], *map(f.value, by_hand()[1])])


def planted(f):
  out, acts = harvest.harvest(f, sites=f.sites[1])({f.sites[0]: f.value(V)}, X)
  close([out, acts[f.sites[1]]], [by_hand(V)[0], f.value(by_hand(V)[1][1])])


def by_steps(f, x):
  values = []
  for layer, _, value in (run := mechjax.iterate(f, f.sites)(x)):
    values.append(value)
    if layer in (0, (0, 0)):
      run.modified_value = V
  return run.retval, values


def stepped(f):
  out, values = by_steps(f, X)
  close([out, *values], [by_hand(V)[0], by_hand()[1][0], by_hand(V)[1][1]])


def traced(f):
  scan = {'scan': 'unroll'} if f.name == 'scan' else {}

  def replaced(x):
    for layer, _, value in (run := mechjax.iterate(f, f.sites, **scan)(x)):
      if layer in (0, (0, 0)):
        run.modified_value = value * 0 + V
    return run.retval

  close(jax.jit(replaced)(X), by_hand(V)[0])


def cut(f):
  part = harvest.subgraph(f, f.sites[0], f.sites[1])(X)
  close(part(V), by_hand(V)[1][1])


def differentiated(f):
  _, _, grads = harvest.value_and_grad_at(f, sites=f.sites[0])(X)
  close(grads[f.sites[0]], f.value(jax.grad(lambda v: by_hand(v)[0])(by_hand()[1][0])))
  close(jax.grad(f)(X), jax.grad(lambda x: by_hand(x=x)[0])(X))
  close(jax.grad(lambda x: harvest.plant(f)({f.sites[0]: f.value(V)}, x))(X), jnp.zeros(3))


def stacked(f):
  flat = stacking.stack(f.model, WS, X)
  assert flat.n_layers == 2
  close(jax.jit(flat)(flat.params, X), by_hand()[0])
  close(jax.grad(flat, argnums=1)(flat.params, X), jax.grad(lambda x: by_hand(x=x)[0])(X))


def close(got, want):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, want)


def test_every_primitive_of_the_table_is_tried():
  assert HELD.keys() == TABLE.keys()


@pytest.mark.parametrize('name', TABLE)
@pytest.mark.parametrize(
  'act', [reaped, planted, stepped, traced, cut, differentiated, stacked], ids=lambda f: f.__name__
)
def test_a_tagged_loop_inside_a_primitive(name, act):
  f = Held(name)
  if name not in {eqn.primitive.name for eqn in every_eqn(jax.make_jaxpr(f)(X))}:
    pytest.skip(f'this JAX has no primitive {name!r}')
  if act.__name__ not in REFUSED.get(name, ()):
    act(f)
    return
  with pytest.raises((MechjaxError, ValueError), match=rf"'{name}'|lax.{name}_loop"):
    act(f)
