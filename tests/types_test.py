"""The annotations of public signatures are precise, and true: every public function is called under a checker.

The rooms of `PRECISE` say `Any` in fewer than one annotation of twenty. A miniature workflow calls every public
function of harvest and forward, and its annotations are checked at every call (`tests.typed`).
"""

import sys

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jax.sharding import PartitionSpec

import mechjax
from mechjax import harvest, sites
from mechjax.errors import HarvestError, RunError, SiteError
from mechjax.harvest import functions, selecting
from mechjax.programs.staging import stager
from tests import typed
from tests.models import decoders
from tests.patching import plain

ROOMS = ('mechjax.harvest', 'mechjax.forward')
PRECISE = (*ROOMS, 'mechjax.programs')
L, D = 3, 4
W = jax.random.normal(jax.random.key(0), (L, D, D)) / 2
X = jnp.linspace(-1.0, 1.0, D)


@pytest.mark.parametrize('room', PRECISE)
def test_few_public_annotations_say_any(room):
  share, vague = typed.vague_share(room)
  assert share < 0.05, '\n'.join(vague)


def test_missing_annotations_and_those_with_any_are_vague():
  assert all(map(typed.is_vague, ('', 'Any', 'list[Any]', 'Callable[..., Any] | None')))
  assert not any(map(typed.is_vague, ('int', 'AnyArray', 'Float[Array, "Any"]')))


def layer(x, w):
  m = harvest.sow(jnp.tanh(x @ w), name='mlp_out')
  return harvest.sow(x + m, name='resid_post'), None


def scanned(x, w=W):
  return harvest.sow(jax.lax.scan(layer, x, w)[0] * 2, name='logits')


def unrolled(x, w=W):
  for i in range(L):
    with sites.layer(i):
      x, _ = layer(x, w[i])
  return harvest.sow(x, name='logits')


@jax.custom_jvp
def ruled(x):
  return harvest.sow(x * 2, name='mlp_out')


ruled.defjvps(lambda t, out, x: t * 2)


# --- harvest ------------------------------------------------------------------------------------------


def read_and_plant():
  assert isinstance(harvest.sites_of(scanned, X), list)
  for where in ('*', ['mlp_out.{0,2}'], sites.Site('logits'), {'mlp_out': np.array([2, 0])}):
    acts = harvest.reap(scanned, sites=where)(X)
    jax.tree.map(lambda x: x + 1, acts)
    assert [acts.stack(name.partition('.')[0]) is not None for name in acts]
  acts = harvest.reap(unrolled, sites='mlp_out.*')(X)
  assert acts.layers('mlp_out') == [0, 1, 2]
  assert acts.get('mlp_oot') is None
  assert acts.tree_unflatten(*acts.tree_flatten()[::-1]).layers('mlp_out') == [0, 1, 2]
  assert acts.map(lambda name, x, lead: x * 2).stack('mlp_out').shape == (L, D)
  out, values = harvest.call_and_reap(unrolled, tag=harvest.TAG)(X)
  assert isinstance(values, dict)
  mask = np.arange(D) > 1
  plants = (
    {'mlp_out.1': X},
    {'mlp_out': np.zeros((L, D), np.float32)},
    {'mlp_out.0': harvest.Masked(X, mask)},
    {'mlp_out': harvest.At(jnp.array([2, 0]), jnp.stack([X, X]))},
    {'mlp_out.{0,2}': lambda x: x + X},
  )
  for plant in plants:
    for f in (scanned, unrolled):
      planted, acts = harvest.harvest(f, sites='resid_post.*')(plant, X)
      assert planted.shape == out.shape
      assert harvest.plant(f)(plant, X).shape == out.shape


def differentiate():
  loss = lambda x: scanned(x).sum()  # noqa: E731
  _, acts, grads = harvest.value_and_grad_at(loss, 'resid_post.{0,1}')(X)
  assert set(acts) == set(grads)
  for plant in ({'mlp_out': jnp.zeros((L, D))}, {'mlp_out.1': harvest.Masked(X, X > 0)}):
    harvest.plant(jax.grad(loss))(plant, X)
    jax.grad(lambda x, plant=plant: harvest.plant(loss)(plant, x))(X)
  harvest.plant(ruled)({'mlp_out': X}, X)
  with pytest.raises(HarvestError, match='strict mode'):
    harvest.reap(scanned, tag=harvest.TAG)(X)


def use_a_mesh():
  mesh = jax.make_mesh((2,), ('i',), axis_types=(jax.sharding.AxisType.Auto,))
  spread = lambda x: jax.shard_map(  # noqa: E731
    scanned, mesh=mesh, in_specs=PartitionSpec('i'), out_specs=PartitionSpec('i')
  )(x)
  x = jnp.stack([X, X])
  acts = harvest.reap(spread, sites='mlp_out.1')(x)
  harvest.plant(spread)({'mlp_out.1': acts['mlp_out.1']}, x)
  harvest.plant(spread)({'mlp_out.1': lambda x: x + 1}, x)


def stage_a_planted_function():
  (sown,) = stager(ruled)((X,), {})[0].sown
  planted = functions.stage_planted(lambda x: x + X, sown, 'mlp_out')
  captured, parts = planted.tree_flatten()
  np.testing.assert_array_equal(planted.tree_unflatten(parts, captured)(X), 2 * X)


def ask_for_an_absent_site():
  def kernel(x):
    out = harvest.absent(unrolled(x), names=['attn_probs'], cause='a kernel', hint='another one')
    return harvest.absent(out, names=['q'], cause='a kernel', hint='another one', layers=[1])

  with pytest.raises(SiteError, match='does not compute it'):
    harvest.reap(kernel, sites='attn_probs')(X)


def import_as_oryx():
  with pytest.MonkeyPatch.context() as patch:
    for name in [name for name in sys.modules if name.split('.')[0] == 'oryx']:
      patch.delitem(sys.modules, name)
    harvest.install_as_oryx()
    for name in [name for name in sys.modules if name.split('.')[0] == 'oryx']:
      del sys.modules[name]


def use_a_decoder():
  forward, params = plain.forward('gpt2'), decoders.params('gpt2')
  tokens = jnp.asarray(plain.PAIRS.clean)
  q = harvest.reap(forward, sites='q.1')(params, tokens)['q.1']
  cut = harvest.subgraph(forward, 'q.1', 'attn_probs.1')(params, tokens)
  assert jax.jit(lambda cut, q: cut(q))(cut, q).shape == cut(q).shape
  assert cut.tree_unflatten(*cut.tree_flatten()[::-1])(q).shape == cut(q).shape
  every = harvest.subgraph(forward, 'q.*', 'attn_probs.*')(params, tokens)
  assert every.at_layer(1)(q).shape == cut(q).shape
  for _, name, value in (
    run := mechjax.iterate(forward, sites='attn_out.*, logits')(params, tokens)
  ):
    if name == 'attn_out':
      run.modified_value = value * 2
  assert run.retval.shape == (*tokens.shape, decoders.V)


def plant_at_positions():
  plant = harvest.Positioned(
    lambda x, positions, n: jnp.where((positions < n[:, None])[..., None], x, 0 * x)
  )
  positions = harvest.mask_to_positions(np.array([[False, True, True], [True, True, True]]))
  found = plant.bind(positions, jnp.array([1, 2], jnp.int32))(jnp.ones((2, 3, D)))
  assert found[..., 0].tolist() == [[1, 1, 0], [1, 1, 0]]
  with pytest.raises(HarvestError):
    plant(jnp.ones(3))


# --- forward ------------------------------------------------------------------------------------------


def looped(run):
  for _, name, value in run:
    if name == 'mlp_out':
      run.modified_value = value * 2
  return run.retval


def run_in_every_way():
  for f in (scanned, unrolled):
    start = mechjax.iterate(f, 'mlp_out.*')
    expected = looped(start(X))
    np.testing.assert_allclose(jax.jit(lambda x, start=start: looped(start(x)))(X), expected, 1e-5)
    jax.grad(lambda x, start=start: looped(start(x)).sum())(X)
  derivative = mechjax.iterate(jax.grad(lambda x: unrolled(x).sum()), 'mlp_out.1')
  jax.jit(lambda x: looped(derivative(x)))(X)
  by_rule = mechjax.iterate(ruled, 'mlp_out')
  jax.jit(lambda x: looped(by_rule(x)))(X)
  eager = mechjax.iterate(unrolled, 'mlp_out.*', eagerly=True)
  np.testing.assert_allclose(looped(eager(X)), expected, 1e-5)


def run_by_hand():
  run = mechjax.iterate(unrolled, 'mlp_out.*')(X)
  run = run.view(lambda site, value: value, lambda site, value, new: new)
  assert not run.started
  _, _, value = next(run)
  run.modified_value = value
  assert run.modified_value is value
  run.send(None)
  run.send(value)
  run.close()
  run = mechjax.iterate(unrolled, 'mlp_out.*')(X)
  next(run)
  with pytest.raises(KeyError):
    run.throw(KeyError('x'))
  run.close()
  with pytest.raises(RunError):
    _ = run.retval
  viewed = mechjax.iterate(unrolled, 'mlp_out.*')(X).view(lambda _, x: x, lambda _, old, new: new)
  assert not viewed.started
  for _ in viewed:
    pass
  assert viewed.started


def run_backwards():
  run = mechjax.iterate(scanned, 'mlp_out.*', keep=True)(X)
  assert looped(run).shape == X.shape
  for _, _, _, grad in run.backward(lambda out: out.sum()):
    run.modified_grad = grad * 2
    assert run.modified_grad.shape == grad.shape
  out, backward = mechjax.forward.record(unrolled, 'mlp_out.*')(X)
  backward.start([jnp.ones_like(out)])
  assert backward.left
  other = backward.fork(2)
  assert [grad.shape for *_, grad in other.walk()] == [(2, D)] * L


# --- the check ----------------------------------------------------------------------------------------


STEPS = (
  read_and_plant,
  differentiate,
  use_a_mesh,
  stage_a_planted_function,
  ask_for_an_absent_site,
  import_as_oryx,
  use_a_decoder,
  plant_at_positions,
  run_in_every_way,
  run_by_hand,
  run_backwards,
)


def test_the_annotations_of_every_public_function_hold():
  with typed.checked(*ROOMS) as calls:
    for step in STEPS:
      step()
  assert calls.missing() == set()


def test_a_wrong_type_or_shape_is_an_error():
  with typed.checked('mechjax.harvest'):
    check_errors()


def check_errors():
  assert selecting.slot_table(jnp.array([2, 0]), [0, 1]).tolist() == [1, 2]
  for layers in (jnp.zeros((2, 2), jnp.int32), jnp.zeros(2)):
    with pytest.raises(jaxtyping.TypeCheckError, match='layers'):
      selecting.slot_table(layers, [0, 1])
  with pytest.raises(jaxtyping.TypeCheckError):
    harvest.reap(scanned, sites=3)
  with pytest.raises(jaxtyping.TypeCheckError):
    functions.fit_array(X, X, 3)
  with pytest.raises(Exception, match=r'Masked\.mask'):
    typed.check_fields(harvest.Masked(X, X))
