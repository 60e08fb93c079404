"""Every primitive that holds a program, and every transformation, harvested inside and outside, against NumPy."""

import jax
import jax.extend.source_info_util as siu
import jax.numpy as jnp
import numpy as np
import pytest

from mechjax import harvest, sites
from mechjax.errors import HarvestError, SiteError

X = np.linspace(-1.0, 1.0, 5, dtype=np.float32)
V = np.full(5, 0.25, np.float32)
MASK = np.array([True, False, False, True, True])


def sown(x, name='a', mode='strict'):
  return harvest.sow(x, name=name, mode=mode)


def close(got, want):
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


# --- one block, held in every way -------------------------------------------------------------------------


def block(x):
  return jnp.cos(sown(jnp.sin(x))) * 2


def own_jvp(f):
  g = jax.custom_jvp(f)
  g.defjvp(lambda x, t: jax.jvp(f, x, t))
  return g


def own_vjp(f):
  g = jax.custom_vjp(f)
  g.defvjp(lambda x: jax.vjp(f, x), lambda vjp, ct: vjp(ct))
  return g


def through_a_callback(f):
  same = lambda x: jax.pure_callback(np.asarray, jax.typeof(x), x, vmap_method='sequential')  # noqa: E731
  return lambda x: f(x) + 0 * jax.lax.stop_gradient(same(jax.lax.stop_gradient(f(x) * 0)))


HELD = {
  'jit': jax.jit,
  'jit in jit': lambda f: jax.jit(lambda x: jax.jit(f)(x)),
  'jit with a static argument': lambda f: (
    lambda x: jax.jit(lambda n, x: f(x), static_argnums=0)(3, x)
  ),
  'traced by hand': lambda f: lambda x: jax.jit(f).trace(x)(x),
  'named_call': lambda f: jax.named_call(f, name='block'),
  'checkpoint': jax.checkpoint,
  'checkpoint without prevent_cse': lambda f: jax.checkpoint(f, prevent_cse=False),
  'checkpoint that saves all': lambda f: jax.checkpoint(
    f, policy=jax.checkpoint_policies.everything_saveable
  ),
  'checkpoint in checkpoint': lambda f: jax.checkpoint(jax.checkpoint(f)),
  'checkpoint of jit': lambda f: jax.checkpoint(jax.jit(f)),
  'custom_jvp': own_jvp,
  'custom_vjp': own_vjp,
  'cond': lambda f: lambda x: jax.lax.cond(x[0] < 0, f, lambda x: f(x) + 1, x),
  'switch': lambda f: lambda x: jax.lax.switch(2, [lambda x: -f(x), lambda x: f(x) + 1, f], x),
  'linearize': lambda f: lambda x: jax.linearize(f, x)[0],
  'jvp': lambda f: lambda x: jax.jvp(f, (x,), (jnp.ones_like(x),))[0],
  'vjp': lambda f: lambda x: jax.vjp(f, x)[0],
  'custom_linear_solve next to it': lambda f: (
    lambda x: jax.lax.custom_linear_solve(
      lambda y: 2.0 * y, 2.0 * f(x), lambda _, b: b / 2.0, lambda _, b: b / 2.0
    )
  ),
}


@pytest.mark.parametrize('held', HELD.values(), ids=HELD)
def test_a_block_is_read_planted_and_differentiated_wherever_it_is_held(held):
  f = held(block)
  out, acts = harvest.call_and_reap(f)(X)
  close(out, 2 * np.cos(np.sin(X)))
  close(acts['a'], np.sin(X))
  plants = {'a': harvest.Masked(V, MASK)}
  close(harvest.plant(f)(plants, X), 2 * np.cos(np.where(MASK, V, np.sin(X))))
  slope = np.where(MASK, 0, -2 * np.sin(np.sin(X)) * np.cos(X))
  close(jax.grad(lambda x: harvest.plant(f)(plants, x).sum())(X), slope)
  close(harvest.plant(jax.grad(lambda x: f(x).sum()))(plants, X), slope)
  gradient, acts = harvest.call_and_reap(jax.grad(lambda x: f(x).sum()))(X)
  close(gradient, -2 * np.sin(np.sin(X)) * np.cos(X))
  close(acts['a'], np.sin(X))


def test_ahead_of_time_and_by_shape_alone():
  reaped = harvest.call_and_reap(jax.jit(block))
  like = jax.ShapeDtypeStruct((5,), jnp.float32)
  shapes = jax.eval_shape(reaped, like)
  assert shapes[0].shape == shapes[1]['a'].shape == (5,)
  compiled = jax.jit(reaped).lower(like).compile()
  close(compiled(X)[1]['a'], np.sin(X))


def test_a_callback_runs_once_and_its_result_is_there():
  calls = []

  def f(x):
    y = sown(x * 2)
    jax.debug.callback(lambda v: calls.append(np.asarray(v)), y)
    return jax.pure_callback(lambda v: np.asarray(v) + 1, jax.typeof(y), y)

  close(harvest.plant(f)({'a': V}, X), V + 1)
  jax.effects_barrier()
  assert len(calls) == 1
  close(calls[0], V)


def test_keys_of_random_numbers_are_values_like_any_other():
  f = lambda key: jax.random.uniform(sown(key, name='key'))  # noqa: E731
  one, other = jax.random.key(1), jax.random.key(2)
  assert harvest.reap(f)(one)['key'] == one
  assert harvest.plant(f)({'key': other}, one) == f(other)


# --- loops ------------------------------------------------------------------------------------------------


def by_hand(x, steps, edit=lambda i, a: a):
  """Iterates x -> cos(a) * i with a = sin(x) + i in numpy; returns the last x and every a by iteration."""
  seen = {}
  for i in steps:
    seen[i] = edit(i, np.sin(x) + i).astype(np.float32)
    x = np.cos(seen[i]) * i
  return x, np.stack([seen[i] for i in sorted(seen)])


def step(i, x):
  return jnp.cos(sown(jnp.sin(x) + i)) * i


def scan(n, **options):
  steps = jnp.arange(float(n))
  return lambda x: jax.lax.scan(lambda x, i: (step(i, x), None), x, steps, **options)[0]


def scan_without_xs(x):
  body = lambda c, _: ((step(c[1], c[0]), c[1] + 1.0), c[0])  # noqa: E731
  return jax.lax.scan(body, (x, jnp.float32(0)), None, length=4)[0][0]


def counted(x):
  return jax.lax.fori_loop(0, 4, lambda i, x: step(i.astype(jnp.float32), x), x)


@pytest.mark.parametrize(
  ('f', 'steps'),
  [
    (scan(4), range(4)),
    (scan(4, reverse=True), range(3, -1, -1)),
    (scan(4, unroll=2), range(4)),
    (scan(4, unroll=True), range(4)),
    (scan(5, unroll=2, reverse=True), range(4, -1, -1)),
    (scan_without_xs, range(4)),
    (counted, range(4)),
    (jax.checkpoint(scan(4)), range(4)),
  ],
  ids=['scan', 'reverse', 'unroll', 'unrolled', 'odd unroll', 'xs=None', 'fori_loop', 'checkpoint'],
)
def test_the_iteration_of_a_loop_is_the_layer(f, steps):
  want, a = by_hand(X, steps)
  out, acts = harvest.call_and_reap(f)(X)
  close(out, want)
  close(acts['a'], a)
  close(harvest.reap(f, sites='a.{1,3}')(X).stack('a'), a[[1, 3]])
  edited, a = by_hand(X, steps, lambda i, a: V if i == 2 else a)
  out, acts = harvest.harvest(f, sites='a.3')({'a.2': V}, X)
  close(out, edited)
  close(acts['a.3'], a[3])


@pytest.mark.parametrize('predicated', [False, True], ids=['clobber', 'sow_cond'])
def test_a_while_loop_keeps_the_last_value(predicated):
  def body(c):
    n, x = c
    x = x + 1.0
    x = harvest.sow_cond(x, n < 2, name='a') if predicated else sown(x, mode='clobber')
    return n + 1, x * 2

  f = lambda x, n: jax.lax.while_loop(lambda c: c[0] < n, body, (0, x))[1]  # noqa: E731
  x, seen = X, []
  for _ in range(4):
    seen.append(x + 1)
    x = seen[-1] * 2
  out, acts = harvest.call_and_reap(f)(X, jnp.int32(4))
  close(out, x)
  close(acts['a'], seen[1 if predicated else 3])
  close(
    harvest.reap(f)(X, jnp.int32(0))['a'], 0 * X
  )  # the value that a loop without iterations leaves


def test_a_loop_of_no_iterations_leaves_what_was_sown_before():
  def f(x, n):
    x = sown(x * 2, mode='clobber')
    return jax.lax.while_loop(
      lambda c: c[0] < n, lambda c: (c[0] + 1, sown(c[1] + 1, mode='clobber')), (0, x)
    )

  for n in range(3):
    close(harvest.reap(f)(X, jnp.int32(n))['a'], X * 2 + n)
    lanes = harvest.reap(jax.vmap(f, in_axes=(None, 0)))(X, jnp.array([0, n]))['a']
    close(lanes, [X * 2, X * 2 + n])


def test_each_branch_is_read_and_planted_where_it_runs():
  branches = [lambda x, k=k: sown(x * k) + k for k in range(3)]
  f = lambda i, x: jax.lax.switch(i, branches, x)  # noqa: E731
  for i in range(3):
    out, acts = harvest.call_and_reap(f)(jnp.int32(i), X)
    close(acts['a'], X * i)
    close(out, X * i + i)
    close(harvest.plant(f)({'a': V}, jnp.int32(i), X), V + i)


def test_the_rest_of_a_batched_map_is_the_site_without_a_layer():
  f = lambda x: jax.lax.map(lambda y: sown(y * 2) + 1, x, batch_size=2)  # noqa: E731
  acts = harvest.reap(f)(X)
  assert acts.layers('a') == [0, 1, None]
  close(acts['a.1'], X[2:4] * 2)
  close(acts[sites.Site('a')], X[4:] * 2)
  with pytest.raises(SiteError, match='do not stack'):
    acts['a']
  close(harvest.plant(f)({'a': jnp.zeros_like}, X), np.ones(5))


# --- derivatives ------------------------------------------------------------------------------------------


def test_the_rules_of_jax_stay_in_force():
  f = lambda x: jax.nn.relu(sown(jax.nn.relu(x), name='a')).sum()  # noqa: E731
  gradient = jax.grad(lambda x: harvest.call_and_reap(f)(x)[0])(X)
  np.testing.assert_array_equal(gradient, X > 0)  # 0 at 0, where the maximum as written has 1/2
  shifted = jax.grad(lambda x: harvest.plant(f)({'a': lambda v: v - 0.75}, x))(X)
  np.testing.assert_array_equal(shifted, X > 0.75)


def test_what_stands_in_a_custom_rule_alone_is_read_as_a_constant_of_it():
  @jax.custom_jvp
  def f(x):
    return sown(x**2)

  f.defjvp(lambda x, t: (f(*x), sown(3 * t[0], name='rule')))
  assert list(harvest.reap(f)(X)) == ['a']
  acts, tangents = jax.jvp(harvest.reap(f), (X,), (V,))
  close(acts['rule'], 3 * V)
  close(tangents['rule'], 0 * X)
  close(tangents['a'], 2 * X * V)


@pytest.mark.parametrize(
  'second', [jax.hessian, lambda f: jax.jacrev(jax.jacfwd(f)), lambda f: jax.jacfwd(jax.jacrev(f))]
)
def test_second_derivatives(second):
  loss = lambda x: (sown(jnp.sin(x)) * x**3).sum()  # noqa: E731
  want = np.diag(
    np.where(MASK, 6 * X * V, -np.sin(X) * X**3 + 6 * X**2 * np.cos(X) + 6 * X * np.sin(X))
  )
  plants = {'a': harvest.Masked(V, MASK)}
  close(second(lambda x: harvest.plant(loss)(plants, x))(X), want)
  close(harvest.plant(second(loss))(plants, X), want)
  close(harvest.reap(second(loss))(X)['a'], np.sin(X))


def test_linear_functions_are_transposed_inside_a_harvest_only():
  f = lambda x: sown(x * 3)  # noqa: E731
  transposed = jax.linear_transpose(lambda x: harvest.call_and_reap(f)(x)[0], X)
  close(transposed(V)[0], V * 3)
  with pytest.raises(SiteError, match=r"\['a'\] as dead code"):
    harvest.reap(lambda ct: jax.linear_transpose(f, X)(ct))(V)
  with pytest.raises(SiteError, match=r"\['a'\] as dead code"):
    harvest.plant(lambda ct: jax.linear_transpose(f, X)(ct))({'a': V}, V)


def test_a_value_that_every_iteration_shares():
  """The derivative of a loop computes it once, before the loop; its derivative stays inside."""

  def f(w, wrap=lambda body: body):
    body = wrap(lambda x: jnp.sin(x) * sown(jnp.cos(w)))
    return jax.lax.scan(lambda x, _: (body(x), None), w, None, length=3)[0].sum()

  planted = lambda w: harvest.plant(f)({'a': np.stack([V] * 3)}, w)  # noqa: E731
  a = V[0]
  x1, x2 = a * np.sin(X), a * np.sin(a * np.sin(X))
  close(jax.grad(planted)(X), a**3 * np.cos(x2) * np.cos(x1) * np.cos(X))
  for wrap in (lambda body: body, jax.checkpoint):
    g = jax.grad(lambda w, wrap=wrap: f(w, wrap))
    close(harvest.reap(g)(X)['a'], np.cos(X))
    with pytest.raises(HarvestError, match='derivative outside'):
      harvest.plant(g)({'a': V}, X)
  close(harvest.reap(jax.grad(jax.checkpoint(f)))(X)['a'], np.cos(X))


# --- vmap -------------------------------------------------------------------------------------------------

XS = np.stack([X, X - 0.5, -X])


@pytest.mark.parametrize(('in_axes', 'out_axes'), [(0, 0), (1, 0), (0, 1), (1, 1), (-1, -1)])
def test_the_mapped_axis_of_what_is_read_comes_first(in_axes, out_axes):
  f = jax.vmap(block, in_axes=in_axes, out_axes=out_axes)
  out, acts = harvest.call_and_reap(f)(np.moveaxis(XS, 0, in_axes))
  close(acts['a'], np.sin(XS))
  close(np.moveaxis(out, out_axes, 0), 2 * np.cos(np.sin(XS)))
  planted = harvest.plant(f)({'a': XS}, np.moveaxis(XS, 0, in_axes))
  close(np.moveaxis(planted, out_axes, 0), 2 * np.cos(XS))


def test_what_is_not_mapped_has_no_axis_and_a_tree_has_one_for_all_its_leaves():
  def f(x, y):
    tree = harvest.sow({'x': x, 'y': y}, name='tree')
    return tree['x'] * sown(y, name='y')

  acts = harvest.reap(jax.vmap(f, in_axes=(0, None)))(XS, V)
  assert acts['y'].shape == (5,)
  close(acts['tree']['y'], np.stack([V] * 3))


def test_nested_maps_and_maps_over_a_mesh_axis():
  nested = jax.vmap(jax.vmap(block), in_axes=1, out_axes=1)
  xs = np.stack([XS, XS + 1])
  close(harvest.reap(nested)(xs)['a'], np.sin(xs).swapaxes(0, 1))
  mesh = jax.make_mesh((3,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
  with jax.set_mesh(mesh):
    f = jax.vmap(
      lambda x: jax.lax.with_sharding_constraint(block(x), jax.sharding.PartitionSpec()),
      spmd_axis_name='data',
    )
    out, acts = harvest.call_and_reap(f)(XS)
    close(acts['a'], np.sin(XS))
    close(harvest.plant(f)({'a': XS}, XS), 2 * np.cos(XS))
    assert out.sharding.spec[0] == 'data'


@pytest.mark.parametrize('mapped_branch', [True, False])
def test_a_branch_inside_a_map_inside_a_branch(mapped_branch):
  inner = jax.vmap(lambda y: jax.lax.cond(y > 0, sown, lambda y: sown(y * 3), y))
  other = inner if mapped_branch else jax.vmap(lambda y: sown(y * 7))
  f = lambda p, x: jax.lax.cond(p, inner, lambda x: other(x + 1), x)  # noqa: E731
  triple = lambda x: np.where(x > 0, x, x * 3)  # noqa: E731
  close(harvest.reap(f)(jnp.array(True), X)['a'], triple(X))
  want = triple(X + 1) if mapped_branch else (X + 1) * 7
  close(harvest.reap(f)(jnp.array(False), X)['a'], want)


def test_gradients_of_maps_and_maps_of_gradients():
  plants = {'a': harvest.Masked(V, MASK)}
  slope = np.where(MASK, 0, -2 * np.sin(np.sin(XS)) * np.cos(XS))
  loss = lambda x: block(x).sum()  # noqa: E731
  each = jax.vmap(jax.grad(lambda x: harvest.plant(loss)(plants, x)))
  close(each(XS), slope)
  mapped = {'a': harvest.Masked(np.stack([V] * 3), MASK)}
  whole = lambda xs: jax.vmap(loss)(xs).sum()  # noqa: E731
  close(jax.grad(lambda xs: harvest.plant(whole)(mapped, xs))(XS), slope)
  close(harvest.plant(jax.grad(whole))(mapped, XS), slope)
  close(harvest.plant(jax.vmap(jax.grad(loss)))(mapped, XS), slope)


# --- what is refused --------------------------------------------------------------------------------------


def root(x, tag=lambda v: v):
  return jax.lax.custom_root(
    lambda y: tag(y**3) - x,
    jnp.ones_like(x),
    lambda f, y: jax.lax.fori_loop(0, 30, lambda _, y: y - f(y) / (3 * y**2), y),
    lambda g, y: y / g(jnp.ones_like(y)),
  )


def test_a_solver_reads_right_or_says_that_it_cannot():
  close(harvest.call_and_reap(lambda x: sown(root(x), name='root'))(V)[1]['root'], V ** (1 / 3))
  reaped = harvest.reap(lambda x: root(x, sown))
  if jax.make_jaxpr(root)(V).eqns[-1].primitive.name == 'call_hi_primitive':  # from JAX 0.12
    with pytest.raises(HarvestError, match="'call_hi_primitive', which holds the sow of 'a'"):
      reaped(V)
  else:
    close(reaped(V)['a.29'], V)


def test_branches_that_sow_one_name_in_two_modes_are_refused():
  f = lambda x: jax.lax.cond(x[0] > 0, sown, lambda x: sown(x, mode='clobber'), x)  # noqa: E731
  with pytest.raises(HarvestError, match='Mismatched mode between branches'):
    harvest.reap(f)(X)


def test_a_strict_name_sown_twice_names_both_lines():
  f = lambda x: sown(x) + sown(x + 1)  # noqa: E731
  for asked in ({'sites': 'a'}, {'tag': harvest.TAG}):
    with pytest.raises(HarvestError, match=r'sown twice|already been reaped'):
      harvest.reap(f, **asked)(X)
  with pytest.raises(HarvestError, match=r'transforms_test\.py.* and .*transforms_test\.py'):
    harvest.plant(f)({'a': V}, X)


# --- what the compiler and the profiler see ---------------------------------------------------------------


def scopes(jaxpr):
  """Named scope and source line of each primitive; those of a jit also hold for the equations inside."""
  found = {}

  def walk(jaxpr, outer):
    for eqn in jaxpr.eqns:
      stack = '/'.join(s for s in (outer, str(eqn.source_info.name_stack)) if s)
      if eqn.primitive.name == 'jit':
        inner = eqn.params['jaxpr']
        walk(getattr(inner, 'jaxpr', inner), stack)
      else:
        found[eqn.primitive.name] = stack, siu.summarize(eqn.source_info)

  walk(jaxpr.jaxpr, '')
  return found


def test_named_scopes_and_source_lines_are_those_of_the_model():
  def f(x):
    with jax.named_scope('outer'):
      y = jnp.sin(x)
      with sites.layer(3):
        z = jax.jit(lambda y: jnp.cos(sown(y)))(y)
    return jax.named_call(lambda z: jnp.tanh(z), name='inner')(z)

  plain, read = (scopes(jax.make_jaxpr(g)(X)) for g in (f, harvest.call_and_reap(f, sites='a.3')))
  assert read == plain
  assert read['cos'][0] == 'outer/layer:3'
