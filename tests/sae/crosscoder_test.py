"""Crosscoders: `parts` of the input of L1 and BatchTopK dictionaries."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechjax.sae import AuxK, BatchTopK, JumpReLU, ReLU, Resampling, SAEError, TopK
from mechjax.sae.analysis.matching import permute_latents
from mechjax.sae.formats import fold, load, save
from mechjax.sae.training import Ensemble, Optimisation, Trainer
from mechjax.steering.clamping import latent_reader

B, M, PARTS = 24, 16, (4, 3)
D = sum(PARTS)
SAES: dict[str, Any] = {
  'relu': ReLU(d_in=D, width=M, sparsity=0.3, parts=PARTS),
  'batch_topk': BatchTopK(d_in=D, width=M, k=3, parts=PARTS),
}
each = pytest.mark.parametrize('name', SAES)
float64 = pytest.mark.usefixtures('float64')


def case(sae, seed=0):
  """Random parameters and activations, float32 unless 64 bits are enabled; directions of different lengths."""
  r = np.random.default_rng(seed)
  params = jax.eval_shape(sae.init, jax.random.key(0))
  dtype = jnp.zeros(()).dtype
  made = {n: jnp.asarray(0.5 * r.standard_normal(a.shape), dtype) for n, a in params.items()}
  made['W_dec'] *= jnp.asarray(r.uniform(0.2, 3, (sae.width, 1)), dtype)
  if 'threshold' in made:
    made['threshold'] = jnp.full(made['threshold'].shape, 0.9, dtype)
  return made, jnp.asarray(r.standard_normal((B, sae.d_in)), dtype)


def lengths(params):
  """Sum over parts of the lengths of the directions of each latent."""
  W = np.asarray(params['W_dec'])
  return sum(np.linalg.norm(W[:, low:high], axis=1) for low, high in ((0, PARTS[0]), (PARTS[0], D)))


def pre_activations(params, x):
  p = {name: np.asarray(value) for name, value in params.items()}
  return (np.asarray(x) - p['b_dec']) @ p['W_enc'] + p['b_enc']


def scaled(params, factors):
  """The same crosscoder with latents that are multiplied, and directions that are divided, by numbers."""
  return params | {
    'W_enc': params['W_enc'] * factors,
    'b_enc': params['b_enc'] * factors,
    'W_dec': params['W_dec'] / factors[:, None],
  }


# --- equations --------------------------------------------------------------------------------------------


@float64
def test_the_penalty_is_of_activations_times_lengths_of_directions():
  params, x = case(SAES['relu'])
  total, output = SAES['relu'].loss(params, x)
  f = np.maximum(pre_activations(params, x), 0)
  x_hat = f @ np.asarray(params['W_dec']) + np.asarray(params['b_dec'])
  error = np.asarray(x) - x_hat
  parts = [np.square(error[:, :4]).sum(1).mean(), np.square(error[:, 4:]).sum(1).mean()]
  np.testing.assert_allclose(output.parts['reconstruction'], sum(parts), rtol=1e-12)
  expected = 0.3 * (f * lengths(params)).sum(1).mean()
  np.testing.assert_allclose(output.parts['sparsity'], expected, rtol=1e-12)
  np.testing.assert_allclose(total, sum(parts) + expected, rtol=1e-12)


@float64
def test_a_batch_keeps_the_largest_activations_times_lengths():
  sae = SAES['batch_topk']
  params, x = case(sae)
  z = np.maximum(pre_activations(params, x), 0)
  ranked = z * lengths(params)
  kept = ranked >= np.sort(ranked, None)[-3 * B]
  _, output = sae.loss(params, x)
  np.testing.assert_allclose(output.latents, z * kept, atol=1e-12)
  plainly = z >= np.sort(z, None)[-3 * B]
  assert (plainly != kept).any()
  observed = sae.observe(params, output.latents)
  smallest = ranked[kept].min()
  np.testing.assert_allclose(observed['threshold'], 0.99 * 0.9 + 0.01 * smallest, rtol=1e-12)
  expected = z * (ranked > np.asarray(params['threshold']))
  np.testing.assert_allclose(sae.encode(params, x), expected, atol=1e-12)


@float64
@each
def test_larger_latents_with_shorter_directions_are_the_same_crosscoder(name):
  """Loss, reconstruction and the loss of dead latents; without the weights a penalty could be evaded."""
  sae = dataclasses.replace(SAES[name], aux_loss=AuxK(alpha=1.0, k=2, after_tokens=1))
  params, x = case(sae)
  dead = jnp.arange(M) < 5
  factors = jnp.asarray(np.random.default_rng(1).uniform(0.1, 10, M))

  @jax.jit
  def compute(params):
    total, output = sae.loss(params, x, None, None, dead)
    return total, output.parts, output.error, sae.reconstruct(params, x)

  found, wanted = compute(scaled(params, factors)), compute(params)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12), found, wanted)
  assert wanted[1]['aux'] > 0


@float64
@each
def test_a_part_that_is_always_zero_leaves_the_dictionary_of_the_other(name):
  sae = SAES[name]
  alone = dataclasses.replace(sae, d_in=4, parts=())
  params, x = case(alone)
  params['W_dec'] /= jnp.linalg.norm(params['W_dec'], axis=1, keepdims=True)
  zero = functools.partial(jnp.pad, pad_width=((0, 0), (0, 3)))
  wider = params | {'W_dec': zero(params['W_dec']), 'b_dec': jnp.pad(params['b_dec'], (0, 3))}
  wider['W_enc'] = jnp.pad(params['W_enc'], ((0, 3), (0, 0)))
  if 'threshold' in params:
    wider['threshold'] = jnp.full(M, params['threshold'])
  loss = lambda sae: jax.value_and_grad(lambda p, x: sae.loss(p, x)[0])  # noqa: E731
  value, grads = loss(sae)(wider, zero(x))
  expected, own = loss(alone)(params, x)
  np.testing.assert_allclose(value, expected, rtol=1e-12)
  np.testing.assert_allclose(grads['W_enc'][:4], own['W_enc'], atol=1e-12)
  assert np.isfinite(grads['W_dec']).all()
  np.testing.assert_allclose(sae.encode(wider, zero(x)), alone.encode(params, x), atol=1e-12)


@each
def test_a_crosscoder_of_one_part_is_the_autoencoder_bit_for_bit(name):
  """Loss, gradient and latents are one program, and so is the training: unit rows included."""
  alone = dataclasses.replace(SAES[name], parts=())
  one = dataclasses.replace(alone, parts=(D,))
  params, x = case(alone)
  for make in (lambda sae: jax.value_and_grad(sae.loss, has_aux=True), lambda sae: sae.encode):
    programs = [str(jax.make_jaxpr(make(sae))(params, x)) for sae in (alone, one)]
    assert programs[0] == programs[1]
  states = [trained(sae, 'ab', {'ab': x})[0] for sae in (alone, one)]
  jax.tree.map(np.testing.assert_array_equal, *states)
  rows = np.linalg.norm(states[1].ensembles['a'].params['W_dec'][0], axis=1)
  np.testing.assert_allclose(rows, 1, rtol=1e-5)


# --- inference, files -------------------------------------------------------------------------------------


@each
def test_thresholds_fit_a_jumprelu_of_all_parts(name):
  sae = SAES[name]
  params, x = case(sae)
  params['W_dec'] = params['W_dec'].at[2].set(0)
  other, its_params = sae.as_jumprelu(params)
  assert type(other) is JumpReLU
  found, wanted = other.encode(its_params, x), np.array(sae.encode(params, x))
  if name == 'batch_topk':
    assert not wanted[:, 2].any()
  assert 0 < (wanted > 0).mean() < 1
  np.testing.assert_allclose(found, wanted, rtol=1e-5)
  np.testing.assert_allclose(
    other.decode(its_params, found), sae.decode(params, sae.encode(params, x)), rtol=1e-5, atol=1e-6
  )


@each
def test_a_folded_crosscoder_has_the_same_latents_of_unscaled_activations(name):
  sae = SAES[name]
  params, x = case(sae)
  C = np.repeat(np.float32([20.0, 0.3]), PARTS)
  folded = fold(sae, params, [20.0, 0.3])
  f = sae.encode(params, x)
  assert 0 < np.mean(np.asarray(f) > 0) < 1
  np.testing.assert_allclose(sae.encode(folded, x * C), f, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(sae.decode(folded, f), sae.decode(params, f) * C, rtol=1e-5, atol=1e-5)
  for scales, target in [([1.0], None), ([1.0, -1.0], None), ([1.0, 2.0], 3.0), (1.0, None)]:
    with pytest.raises(SAEError, match='scales'):
      fold(sae, params, scales, target)


def test_the_thresholds_of_a_folded_crosscoder_go_with_their_latents():
  sae = SAES['batch_topk']
  params, x = case(sae)
  params = fold(sae, params, [20.0, 0.3])
  x = x * jnp.repeat(jnp.float32([20.0, 0.3]), jnp.array(PARTS))
  order = np.roll(np.arange(M), 5)
  wanted = np.asarray(sae.encode(params, x))
  found = sae.encode(permute_latents(sae, params, order), x)
  np.testing.assert_allclose(found, wanted[:, order], rtol=1e-5, atol=1e-6)
  for latent in (0, 3, 9):
    one = latent_reader(sae, params, latent)(x)
    np.testing.assert_allclose(one, wanted[:, latent], rtol=1e-5, atol=1e-6)


@each
def test_a_crosscoder_is_saved_and_loaded_and_other_formats_are_refused(name, tmp_path):
  sae = SAES[name]
  params, _ = case(sae)
  save(tmp_path / 'own', sae, params, format='mechjax', about={'hook_name': 'a,b'})
  back, found = load(tmp_path / 'own')
  assert back == dataclasses.replace(sae)
  jax.tree.map(np.testing.assert_array_equal, found, params)
  for format in ('sae_lens', 'gemma_scope', 'gemma_scope_2'):
    with pytest.raises(SAEError, match='would lose the parts'):
      save(tmp_path / 'other', sae, params, format=format)
  assert not (tmp_path / 'other').exists()


# --- training ---------------------------------------------------------------------------------------------


def trained(sae, reads, *batches, **settings):
  """States before and after some steps, and the metrics of the last, on the host."""
  optimisation = Optimisation(
    steps=20, learning_rate=1e-2, warm_up_steps=0, sparsity_warm_up_steps=0
  )
  trainer = Trainer({'a': Ensemble(sae=sae, reads=reads, **settings)}, optimisation)
  state = trainer.init()
  before = jax.tree.map(np.array, state)
  for batch in batches:
    state, metrics = trainer.step(state, batch)
  after = jax.tree.map(np.array, (state, metrics.ensembles['a']))
  return after[0], before, after[1]


@each
def test_sites_are_read_side_by_side_and_rows_have_no_fixed_length(name):
  sae = SAES[name]
  _, x = case(sae)
  batch = {'base': x[:, :4], 'chat': x[:, 4:]}
  after, before, metrics = trained(sae, ('base', 'chat'), batch)
  params = {n: jnp.asarray(v[0]) for n, v in before.ensembles['a'].params.items()}
  total, output = jax.jit(sae.loss)(params, x)
  np.testing.assert_allclose(metrics['loss'][0], total, rtol=1e-5)
  spread = np.asarray(x) - np.asarray(x).mean(0)
  by_part = [
    np.square(np.asarray(output.error)[:, cut]).sum() / np.square(spread[:, cut]).sum()
    for cut in (slice(4), slice(4, None))
  ]
  np.testing.assert_allclose(metrics['fvu_by_part'][0], by_part, rtol=1e-4)
  rows = np.linalg.norm(after.ensembles['a'].params['W_dec'][0], axis=1)
  assert np.abs(rows - 1).max() > 1e-3
  grads = jax.jit(jax.grad(lambda p: sae.loss(p, x)[0]))(params)
  moved = after.ensembles['a'].params['W_dec'][0] - params['W_dec']
  # The first step of Adam has the signs of the gradients.
  large = np.abs(grads['W_dec']) > 1e-3
  np.testing.assert_array_equal(np.sign(moved)[large], -np.sign(grads['W_dec'])[large])


def test_centres_are_those_of_the_parts():
  trainer = Trainer(
    {'a': Ensemble(sae=SAES['relu'], reads=('a', 'b'))},
    Optimisation(steps=2, warm_up_steps=0),
    None,
  )
  state = trainer.init({'a': jnp.ones(4), 'b': 2 * jnp.ones(3)})
  np.testing.assert_array_equal(state.ensembles['a'].params['b_dec'][0], [1, 1, 1, 1, 2, 2, 2])
  state = trainer.init({'a': jnp.ones(4)})
  assert not state.ensembles['a'].params['b_dec'].any()


def test_dead_latents_of_a_crosscoder_are_resampled():
  sae = dataclasses.replace(SAES['batch_topk'], k=1)
  _, x = case(sae)
  batch = {'a': x[:, :4], 'b': x[:, 4:]}
  settings: dict[str, Any] = {'resampling': Resampling(after_tokens=B), 'resample_every': 2}
  after, _, _ = trained(sae, ('a', 'b'), batch, batch, **settings)
  assert after.ensembles['a'].resampled_at == 2
  assert np.isfinite(after.ensembles['a'].params['W_dec']).all()


# --- mistakes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  ('settings', 'says'),
  [
    ({'parts': (4, 4)}, r'parts=\(4, 4\) should be widths that add up to d_in=7'),
    ({'parts': (7, 0)}, 'widths that add up'),
    ({'parts': [4, 3]}, 'as a tuple'),
    ({'parts': 7}, 'as a tuple'),
    ({'parts': (4, 3), 'd_out': 7}, r'should be \(\) with d_out'),
  ],
)
def test_parts_that_do_not_fit_are_errors(settings, says):
  with pytest.raises(SAEError, match=says):
    ReLU(**{'d_in': D, 'width': M, 'sparsity': 0.1, **settings})


def test_architectures_without_weights_of_lengths_have_no_parts():
  with pytest.raises(SAEError, match=r'(?s)parts=\(4, 3\) of a TopK.*BatchTopK'):
    TopK(d_in=D, width=M, k=2, parts=PARTS)
  assert TopK(d_in=D, width=M, k=2, parts=(D,)).has_unit_rows


def test_sites_that_do_not_fit_the_parts_are_errors():
  sae = SAES['relu']
  for reads in ('a', ('a',), ('a', 'a'), ('a', 'b', 'c')):
    with pytest.raises(SAEError, match='2 sites as a tuple, one for each part'):
      Ensemble(sae=sae, reads=reads)
  _, x = case(sae)
  with pytest.raises(SAEError, match=r'widths \(3, 4\) for a crosscoder with parts=\(4, 3\)'):
    trained(sae, ('a', 'b'), {'a': x[:, :3], 'b': x[:, 3:]})
  with pytest.raises(SAEError, match='different numbers of tokens'):
    trained(sae, ('a', 'b'), {'a': x[:, :4], 'b': x[:8, 4:]})
  with pytest.raises(SAEError, match=r"a batch without \['b'\]"):
    trained(sae, ('a', 'b'), {'a': x[:, :4]})
