"""Feature choice against sorting and NumPy; mutual choice against a budget for all pairs."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechjax import sae
from mechjax.errors import SAEError
from mechjax.sae import BatchTopK, FeatureChoice, JumpReLU, MutualChoice, architecture
from mechjax.sae.ops.zipf import zipf_weights
from mechjax.sae.training import Ensemble, Optimisation, Trainer
from tests.sae import plain
from tests.sae.ops.columns_test import sorted_choice

B, D, M, K = 24, 6, 16, 3
UNIFORM = FeatureChoice(d_in=D, width=M, k=K)
KINDS = {
  'uniform': UNIFORM,
  'zipf': FeatureChoice(d_in=D, width=M, k=K, zipf_alpha=1.0, zipf_beta=0.5),
  'stated': FeatureChoice(d_in=D, width=M, k=K, budgets=(20, 10, *[3] * 14)),
}
each = pytest.mark.parametrize('kind', KINDS)


def data(seed=0):
  r = np.random.default_rng(seed)
  params = UNIFORM.init(jax.random.key(seed))
  params = {name: 0.5 * r.standard_normal(v.shape) for name, v in params.items()}
  params['threshold'] = r.uniform(0.1, 0.4, M)
  return plain.on_device(params), jnp.asarray(r.standard_normal((B, D)))


@functools.cache
def results(kind):
  """Loss, output and gradients, on the host."""
  with jax.enable_x64(True):
    params, x = data()
    found = jax.jit(jax.value_and_grad(KINDS[kind].loss, has_aux=True))(params, x)
    return jax.tree.map(np.asarray, (params, x, found))


@each
def test_every_latent_is_active_on_exactly_its_budget_of_tokens(kind):
  _, _, ((_, output), _) = results(kind)
  budgets = np.asarray(KINDS[kind].token_budgets(B))
  np.testing.assert_array_equal((output.latents != 0).sum(0), budgets)
  assert budgets.sum() == B * K


def test_budgets_are_equal_or_follow_zipfs_law():
  np.testing.assert_array_equal(np.sort(KINDS['uniform'].token_budgets(B)), [4] * 8 + [5] * 8)
  large = np.asarray(dataclasses.replace(KINDS['zipf'], width=64).token_budgets(10_000))
  expected = 10_000 * K * zipf_weights(64, 1.0, 0.5)
  assert (np.abs(large - expected) < 2).all()


@each
def test_the_loss_and_its_gradient_are_those_of_the_sorted_columns(kind):
  params, x, ((total, output), grads) = results(kind)
  p = plain.on_host(params)
  z = (x - p['b_dec']) @ p['W_enc'] + p['b_enc']
  chosen = sorted_choice(z, np.asarray(KINDS[kind].token_budgets(B)))

  def loss(p):
    z = (x - p['b_dec']) @ p['W_enc'] + p['b_enc']
    return np.mean(np.sum((x - (z * chosen) @ p['W_dec'] - p['b_dec']) ** 2, 1))

  np.testing.assert_allclose(output.latents, z * chosen, atol=1e-12)
  np.testing.assert_allclose(total, loss(p), rtol=1e-10)
  r = np.random.default_rng(1)
  direction = {name: r.standard_normal(v.shape) * (name != 'threshold') for name, v in p.items()}
  found = sum(np.sum(grads[name] * direction[name]) for name in p)
  np.testing.assert_allclose(found, plain.slope(loss, p, direction), rtol=1e-6)
  assert not grads['threshold'].any()


@pytest.mark.usefixtures('float64')
def test_no_latent_can_be_dead():
  params, x = data()
  params['b_enc'] = params['b_enc'].at[:5].set(-100)  # latents that are negative on all tokens
  grads = jax.jit(jax.grad(lambda p: UNIFORM.loss(p, x)[0]))(params)
  assert (np.abs(grads['W_enc']).max(0) > 0).all()
  assert (np.abs(grads['b_enc'][:5]) > 0).all()


@pytest.mark.usefixtures('float64')
def test_thresholds_are_running_means_of_the_smallest_activation_of_each_latent():
  one = dataclasses.replace(UNIFORM, width=3, k=1, decay=0.75)
  params = one.init(jax.random.key(0))
  first = jnp.array([[0.0, 2.0, 0.0], [5.0, 3.0, -1.0]], jnp.float32)
  params = one.observe(params, first)
  np.testing.assert_array_equal(params['threshold'], [5, 2, 0])
  params = one.observe(params, first[:, ::-1])
  np.testing.assert_array_equal(params['threshold'], [0.75 * 5, 0.75 * 2 + 0.25 * 2, 5])


def test_ties_are_taken_in_the_order_of_tokens_in_training_and_all_alike_at_inference():
  two = dataclasses.replace(UNIFORM, d_in=1, width=2, k=1)
  own = {'W_enc': jnp.ones((1, 2), jnp.float32), 'threshold': jnp.full(2, 2, jnp.float32)}
  params = two.init(jax.random.key(0)) | own
  x = jnp.asarray([[3], [2], [3], [3]], jnp.float32)
  _, output = two.loss(params, x)  # two tokens for each latent, of three that are equal
  np.testing.assert_array_equal(output.latents[:, 0], [3, 0, 3, 0])
  np.testing.assert_array_equal(two.encode(params, x)[:, 0], [3, 0, 3, 3])
  np.testing.assert_array_equal(two.encode(params, x[::-1])[:, 0], [3, 3, 0, 3])


@pytest.mark.usefixtures('float64')
def test_it_is_a_jumprelu_and_a_file_holds_that(tmp_path):
  params, x = data()
  other, its = UNIFORM.as_jumprelu(params)
  assert type(other) is JumpReLU
  f = UNIFORM.encode(params, x)
  assert 0 < (f > 0).mean() < 1
  np.testing.assert_allclose(other.encode(its, x), f, atol=1e-12)
  params = {name: v.astype(jnp.float32) for name, v in params.items()}
  x = x.astype(jnp.float32)
  for format in ('mechjax', 'sae_lens', 'gemma_scope', 'gemma_scope_2'):
    sae.save(tmp_path / format, UNIFORM, params, format=format)
    back, found = sae.load(tmp_path / format)
    assert type(back) is JumpReLU
    np.testing.assert_allclose(
      back.decode(found, back.encode(found, x)),
      UNIFORM.decode(params, UNIFORM.encode(params, x)),
      atol=1e-5,
    )
  folded = sae.fold(UNIFORM, params, 3.0)
  np.testing.assert_allclose(
    UNIFORM.encode(folded, 3 * x), 3 * UNIFORM.encode(params, x), rtol=1e-4, atol=1e-5
  )


def test_a_traced_k_is_that_setting_and_meshes_give_what_one_device_gives():
  ensemble = Ensemble(
    sae=dataclasses.replace(KINDS['zipf'], k=5), reads='x', seeds=(0, 1), hparams={'k': (2, 5)}
  )
  x = np.random.default_rng(0).standard_normal((3, 32, D)).astype(np.float32)

  def trained(mesh, ensemble=ensemble):
    trainer = Trainer({'a': ensemble}, Optimisation(steps=20, warm_up_steps=0, eps=1e-2), mesh)
    state = trainer.init()
    for batch in x:
      state, metrics = trainer.step(state, {'x': jnp.asarray(batch)})
    return jax.tree.map(np.asarray, (state.ensembles['a'].params, metrics.ensembles['a']))

  params, metrics = trained(None)
  np.testing.assert_allclose(metrics['l0'], [2, 5])
  assert (metrics['dead'] == 0).all()
  alone, _ = trained(None, Ensemble(sae=dataclasses.replace(KINDS['zipf'], k=2), reads='x'))
  for name, value in alone.items():
    np.testing.assert_allclose(value[0], params[name][0], rtol=1e-5, atol=1e-6)
  kinds = (jax.sharding.AxisType.Auto,) * 2
  sharded, _ = trained(jax.make_mesh((2, 4), ('data', 'model'), kinds))
  for name, value in sharded.items():
    np.testing.assert_allclose(value, params[name], rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures('float64')
def test_mutual_choice_is_batch_topk():
  assert MutualChoice is BatchTopK
  assert architecture('mutual_choice') is BatchTopK
  params, x = data()
  params['threshold'] = jnp.array(0.3)
  f = MutualChoice(d_in=D, width=M, k=K).loss(params, x)[1].latents
  p = plain.on_host(params)
  z = (np.asarray(x) - p['b_dec']) @ p['W_enc'] + p['b_enc']
  chosen = np.zeros(z.size, bool)
  chosen[np.argsort(-z.reshape(-1))[: B * K]] = True  # one budget for all pairs
  assert chosen.sum() == (f > 0).sum() == B * K
  np.testing.assert_allclose(f, z * chosen.reshape(z.shape), atol=1e-12)


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: FeatureChoice(d_in=D, width=M, k=M + 1), 'k=17 should be from 1 to width=16'),
    (lambda: FeatureChoice(d_in=D, width=M, k=K, zipf_alpha=-1), 'zipf_alpha=-1 should be at'),
    (lambda: FeatureChoice(d_in=D, width=M, k=K, zipf_beta=-1), 'zipf_beta=-1 should be above -1'),
    (lambda: FeatureChoice(d_in=D, width=M, k=K, zipf_alpha=np.nan), 'zipf_alpha=nan should be'),
    (lambda: FeatureChoice(d_in=D, width=M, k=K, budgets=(1, 2)), r'budgets=\(1, 2\) .* 16 whole'),
    (lambda: FeatureChoice(d_in=D, width=M, k=K, budgets=(0,) * M), 'should be 16 whole numbers'),
    (lambda: FeatureChoice(d_in=D, width=M, k=K, decay=1), r'decay=1 should be in \[0, 1\)'),
    (lambda: KINDS['stated'].check_batch(B + 1), 'budgets that sum to 72, .* 25 tokens with k=3'),
    (lambda: KINDS['stated'].loss(*(lambda p, x: (p, x[1:]))(*data())), 'budgets that sum to 72'),
    (lambda: KINDS['stated'].hparams(k=2), 'traced k=2 for a FeatureChoice with budgets for k=3'),
    (lambda: UNIFORM.check_batch(5), 'batch of 5 tokens with k=3 has 15 .* for 16 latents'),
    (lambda: UNIFORM.token_budgets(5), 'batch of at least 6 tokens'),
  ],
)
def test_budgets_that_do_not_sum_and_other_bad_settings_are_refused(make, message):
  with pytest.raises(SAEError, match=message):
    make()


def test_a_member_with_too_few_activations_for_its_latents_is_refused_before_the_step():
  ensemble = Ensemble(
    sae=dataclasses.replace(UNIFORM, k=5), reads='x', seeds=(0, 1), hparams={'k': (1, 5)}
  )
  trainer = Trainer({'a': ensemble}, Optimisation(steps=2, warm_up_steps=0))
  with pytest.raises(SAEError, match='a batch of 8 tokens with k=1 has 8 activations'):
    trainer.step(trainer.init(), {'x': jnp.zeros((8, D), jnp.float32)})
