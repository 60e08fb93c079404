"""Training of cross-layer transcoders: a plain loop, several devices, metrics of layers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType

from mechjax.sae import CrossLayerJumpReLU, CrossLayerTopK, Resampling, SAEError, TopK, firings
from mechjax.sae.training import Ensemble, Metrics, Optimisation, Trainer
from mechjax.sae.training.loop import _Step as Step
from mechjax.sae.training.loop import objective

L, D, M, B, STEPS = 2, 6, 8, 16, 5
READ, WRITTEN = ('in.0', 'in.1'), ('out.0', 'out.1')
SETTINGS = Optimisation(
  steps=20, learning_rate=1e-2, warm_up_steps=3, sparsity_warm_up_steps=2, eps=1e-2
)
SHAPE = {'n_layers': L, 'd_in': D, 'd_out': D, 'width': M}
SITES = {'reads': READ, 'writes': WRITTEN}
ENSEMBLES = {
  'jumprelu': Ensemble(
    sae=CrossLayerJumpReLU(
      **SHAPE, sparsity=1.0, bandwidth=0.2, initial_threshold=0.3, pre_activation=0.5, skip=True
    ),
    seeds=(0, 1),
    hparams={'sparsity': (0.1, 0.5)},
    dead_after_tokens=2 * B,
    **SITES,
  ),
  'topk': Ensemble(sae=CrossLayerTopK(**SHAPE, k=3), hparams={'k': (2,)}, **SITES),
}


def batches():
  r = np.random.default_rng(0)
  for _ in range(STEPS):
    x = r.standard_normal((L, B, D)).astype(np.float32) / np.sqrt(D)
    y = np.stack([np.tanh(x[0]), np.tanh(x[0] + x[1])])
    yield dict(zip((*READ, *WRITTEN), map(jnp.asarray, (*x, *y))))


def trained(trainer):
  state, seen = trainer.init({site: np.full(D, 0.1, np.float32) for site in WRITTEN}), []
  for batch in batches():
    state, metrics = trainer.step(state, batch)
    seen.append(jax.tree.map(np.array, metrics.ensembles))
  return state, seen


@pytest.fixture(scope='module')
def result():
  return trained(Trainer(ENSEMBLES, SETTINGS))


@pytest.mark.parametrize(('name', 'n'), [('jumprelu', 0), ('jumprelu', 1), ('topk', 0)])
def test_a_member_equals_a_plain_loop_with_adam(name, n, result):
  """Rows keep their lengths, and the penalty rises over all twenty steps and not over its warm-up."""
  ensemble = ENSEMBLES[name]
  sae = ensemble.sae
  rate = lambda count: SETTINGS.learning_rate * SETTINGS.rate(count)  # noqa: E731
  optimiser = optax.adam(rate, b1=0.0, eps=1e-2)
  params = sae.init(jax.random.key(ensemble.seeds[n]), np.full((L, D), 0.1, np.float32))
  state, silent = optimiser.init(params), np.zeros(L * M, np.int64)
  ((hparam, values),) = ensemble.hparams
  gradient = jax.jit(jax.value_and_grad(sae.loss, has_aux=True))
  for step, batch in enumerate(batches()):
    x, y = (jnp.stack([batch[site] for site in sites], 1) for sites in (READ, WRITTEN))
    value = values[n] * (step / SETTINGS.steps if hparam == 'sparsity' else 1)
    hparams = {hparam: jnp.asarray(value, jnp.int32 if hparam == 'k' else jnp.float32)}
    dead = jnp.asarray(silent >= ensemble.after_tokens)
    (loss, output), grads = gradient(params, x, y, hparams, dead)
    np.testing.assert_allclose(result[1][step][name]['loss'][n], loss, rtol=1e-4)
    with jax.numpy_dtype_promotion('standard'):
      updates, state = optimiser.update(grads, state, params)
    params = optax.apply_updates(params, updates)
    silent = np.where(np.asarray(firings(output.latents)) > 0, 0, silent + B)
  for key, expected in params.items():
    found = result[0].ensembles[name].params[key][n]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5, err_msg=key)
  np.testing.assert_array_equal(result[0].ensembles[name].tokens_since_fired[n], silent)
  if name == 'jumprelu':
    assert float(output.parts['aux']) > 0  # some latents are dead, and were revived
  lengths = np.asarray(sae.row_lengths(params))
  assert lengths.std() > 0.01


def test_each_layer_has_its_own_fvu(result):
  state, seen = result
  *_, last = batches()
  ensemble = ENSEMBLES['topk']
  x, y = (np.stack([last[site] for site in sites], 1) for sites in (READ, WRITTEN))
  trainer = Trainer({'topk': ensemble}, SETTINGS)
  own = dataclasses.replace(state, ensembles={'topk': state.ensembles['topk']})
  params = {key: np.asarray(value[0]) for key, value in own.ensembles['topk'].params.items()}
  own = jax.tree.map(jnp.array, own)
  metrics = trainer.step(own, last)[1].ensembles['topk']
  fewer = dataclasses.replace(ensemble.sae, k=2)
  error = y - np.asarray(fewer.reconstruct(params, x))
  scatter = np.square(y - y.mean(0))
  expected = np.square(error).sum((0, 2)) / scatter.sum((0, 2))
  np.testing.assert_allclose(metrics['fvu_by_layer'][0], expected, rtol=1e-4)
  np.testing.assert_allclose(metrics['fvu'][0], np.square(error).sum() / scatter.sum(), rtol=1e-4)
  assert 1 < metrics['l0'][0] <= 2 * L
  assert seen[0]['jumprelu']['fvu_by_layer'].shape == (2, L)


def test_the_objective_counts_the_coefficient_at_the_end_of_the_training():
  one = Trainer({'jumprelu': ENSEMBLES['jumprelu']}, SETTINGS)
  own = {'loss': jnp.array([1.0, 2.0]), 'sparsity': jnp.array([0.2, 0.4])}
  metrics = Metrics({'jumprelu': own}, jnp.float32(0), jnp.asarray(True))
  for done in (6, 20):
    more = SETTINGS.steps / (done - 1) - 1
    wanted = np.mean([1 + 0.2 * more, 2 + 0.4 * more])
    assert objective(one, Step(done, metrics, {})) == pytest.approx(wanted, rel=1e-6)


def test_eight_devices_train_as_one_does(result):
  mesh = jax.make_mesh((4, 2), ('data', 'model'), (AxisType.Auto,) * 2)
  trainer = Trainer(ENSEMBLES, SETTINGS, mesh)
  state, seen = trained(trainer)
  params = state.ensembles['topk'].params
  assert params['W_enc'].sharding.spec == jax.sharding.PartitionSpec(None, None, None, 'model')
  assert params['W_dec_1'].sharding.spec == jax.sharding.PartitionSpec(None, 'model')
  for name in ENSEMBLES:
    np.testing.assert_allclose(seen[-1][name]['loss'], result[1][-1][name]['loss'], rtol=1e-4)
    for key, expected in result[0].ensembles[name].params.items():
      found = state.ensembles[name].params[key]
      np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4, err_msg=key)


@pytest.mark.parametrize(
  ('change', 'says'),
  [
    ({'reads': 'in.0'}, "reads='in.0' should be 2 sites as a tuple"),
    ({'reads': ('in.0', 'in.0')}, 'should be 2 sites as a tuple'),
    ({'writes': (*WRITTEN, 'out.2')}, 'should be 2 sites as a tuple'),
    ({'resampling': Resampling(), 'resample_every': 5}, 'resampling of a cross-layer transcoder'),
    ({'sae': TopK(d_in=D, d_out=D, width=M, k=2)}, 'should be the name of one site'),
  ],
)
def test_sites_that_do_not_fit_the_layers_are_errors(change, says):
  with pytest.raises(SAEError, match=says):
    dataclasses.replace(ENSEMBLES['topk'], **change)
