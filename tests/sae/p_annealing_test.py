"""p-annealing against its equation in NumPy, step by step, and against ReLU and Gated where p is 1."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechjax import sae
from mechjax.errors import SAEError
from mechjax.sae import AuxK, Gated, PAnnealing, ReLU
from mechjax.sae.training import Ensemble, Optimisation, Trainer
from tests.sae import plain

B, D, M = 24, 6, 16
ANNEALING = PAnnealing(start=2, stop=14, p_end=0.25, updates=3, window=2, epsilon=1e-2)
PLAIN = {'relu': ReLU(d_in=D, width=M, sparsity=0.3), 'gated': Gated(d_in=D, width=M, sparsity=0.3)}
each = pytest.mark.parametrize('kind', PLAIN)


def annealed(kind, **changes):
  return dataclasses.replace(PLAIN[kind], annealing=dataclasses.replace(ANNEALING, **changes))


def penalty(f, p, epsilon=ANNEALING.epsilon):
  """Mean over tokens of sum_i (f + eps)^p - eps^p."""
  return np.mean(np.sum((f + epsilon) ** p - epsilon**p, 1))


def exponents(n=20):
  """p in each step: jumps after steps 2 + 4, 2 + 8 and 2 + 12."""
  return [1 - 0.75 * min(max((step - 2) // 4, 0), 3) / 3 for step in range(n)]


def test_the_exponent_falls_in_equal_jumps_between_start_and_stop():
  found = [float(ANNEALING.exponent(step)) for step in range(20)]
  np.testing.assert_allclose(found, exponents(), rtol=1e-6)
  assert (found[5], found[6], found[13], found[14]) == (1, 0.75, 0.5, 0.25)


@functools.cache
def run(kind):
  """Twenty losses with the same parameters and other data, each with the state that the one before returned."""
  with jax.enable_x64(True):
    one = annealed(kind)
    params, _, _ = plain.case(PLAIN[kind])
    params = params | one.training_state()
    loss = jax.jit(jax.value_and_grad(one.loss, has_aux=True))
    r, steps = np.random.default_rng(3), []
    for _ in range(20):
      x = jnp.asarray(r.standard_normal((B, D)))
      (_, output), grads = loss(params, x)
      steps.append(jax.tree.map(np.asarray, (params, x, output, grads)))
      params = params | output.observed
    return steps


@each
def test_the_penalty_and_its_rescaling_are_those_of_the_equation(kind):
  factor, previous = 1.0, []
  ps = [*exponents(), 0.25]
  for n, (params, x, output, _) in enumerate(run(kind)):
    f = plain.latents(PLAIN[kind], params, x)[1]
    np.testing.assert_allclose(
      output.parts['sparsity'], 0.3 * factor * penalty(f, ps[n]), rtol=1e-5, err_msg=str(n)
    )
    previous.append(f)
    if ps[n + 1] < ps[n]:
      now, following = ([penalty(f, p) for f in previous[-2:]] for p in (ps[n], ps[n + 1]))
      factor *= np.mean(now) / np.mean(following)
  assert factor != 1


@each
def test_the_gradient_of_the_penalty_is_that_of_finite_differences(kind):
  params, x, _, grads = run(kind)[8]
  p, factor = exponents()[8], params['anneal_factor']
  assert p < 1

  def loss(moved):
    parts = plain.parts(PLAIN[kind], moved, x, None, frozen=params)
    f = plain.latents(PLAIN[kind], moved, x)[1]
    return sum(parts.values()) - parts['sparsity'] + 0.3 * factor * penalty(f, p)

  r = np.random.default_rng(1)
  direction = {n: r.standard_normal(v.shape) * (n[:6] != 'anneal') for n, v in params.items()}
  found = sum(np.sum(grads[name] * direction[name]) for name in params)
  np.testing.assert_allclose(found, plain.slope(loss, params, direction), rtol=1e-4)
  assert not any(np.any(grads[name]) for name in ANNEALING.init())


@pytest.mark.usefixtures('float64')
@each
def test_with_p_of_one_it_is_the_l1_penalty(kind):
  params, x, _ = plain.case(PLAIN[kind])
  one = annealed(kind, p_end=1.0)
  state = one.training_state() | {'anneal_step': jnp.float32(17)}
  found = jax.jit(jax.value_and_grad(lambda p: one.loss(p | state, x)[0]))(params)
  expected = jax.jit(jax.value_and_grad(lambda p: PLAIN[kind].loss(p, x)[0]))(params)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-7, atol=1e-10), found, expected
  )


@pytest.mark.usefixtures('float64')
def test_the_slope_at_zero_is_bounded_and_latents_that_are_off_have_none():
  one = annealed('relu', p_end=0.2, epsilon=1e-3)
  params, x, _ = plain.case(PLAIN['relu'])
  params = params | one.training_state() | {'anneal_step': jnp.float32(17)}
  off = params | {'b_enc': params['b_enc'] - 100}
  grads = jax.grad(lambda p: one.loss(p, x)[1].parts['sparsity'])(off)
  assert all((np.asarray(g) == 0).all() for g in grads.values())
  f = jnp.array([[0.0, 1e-12, 1e-6, 1.0]])
  slope = jax.grad(lambda f: one.annealing.penalty(params, f)[0])(f)
  assert np.isfinite(slope).all()
  np.testing.assert_allclose(slope[0, 1], 0.2 * 1e-3**-0.8, rtol=1e-5)


@each
def test_a_training_with_p_of_one_is_that_without_and_a_restored_state_continues_alike(kind):
  data = np.random.default_rng(0).standard_normal((18, B, D)).astype(np.float32) / 3

  def trained(one, cut=None):
    trainer = Trainer(
      {'a': Ensemble(sae=one, reads='x')}, Optimisation(steps=18, warm_up_steps=0, eps=1e-2)
    )
    state = trainer.init()
    for n, x in enumerate(data):
      if n == cut:
        state = jax.device_put(jax.tree.map(np.array, state), trainer.shardings)
      state, metrics = trainer.step(state, {'x': jnp.asarray(x)})
    return jax.tree.map(np.array, (state.ensembles['a'].params, metrics.ensembles['a']))

  (params, _), (expected, _) = trained(annealed(kind, p_end=1.0)), trained(PLAIN[kind])
  for name, value in expected.items():
    np.testing.assert_allclose(params[name], value, rtol=1e-4, atol=1e-5)
  through, resumed = trained(annealed(kind)), trained(annealed(kind), cut=11)
  jax.tree.map(np.testing.assert_array_equal, through, resumed)
  assert through[0]['anneal_step'] == 18
  assert through[0]['anneal_factor'] != 1


@each
def test_a_file_holds_the_plain_dictionary(kind, tmp_path):
  one = dataclasses.replace(annealed(kind), aux_loss=AuxK(), decoder_norm='at_most_one')
  params = one.init(jax.random.key(0))
  for format in ('mechjax', 'sae_lens', 'gemma_scope'):
    sae.save(tmp_path / format, one, sae.fold(one, params, 2.0), format=format)
    back, found = sae.load(tmp_path / format)
    assert not {*found} & {*ANNEALING.init()}
    if format != 'gemma_scope':
      assert type(back) is type(one)
      assert back.annealing is None


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'p_end': 0.0}, r'p_end=0.0 should be in \(0, 1\]'),
    ({'p_end': 1.5}, r'p_end=1.5 should be in \(0, 1\]'),
    ({'p_end': np.nan}, 'p_end=nan should be a finite number'),
    ({'start': -1}, 'start=-1 should be at least 0'),
    ({'start': 1.5}, 'start=1.5 should be a whole number'),
    ({'updates': 0}, 'updates=0 should be at least 1'),
    ({'window': 0}, 'window=0 should be at least 1'),
    ({'epsilon': 0.0}, 'epsilon=0.0 should be positive'),
    ({'stop': 7}, r'stop=7 should be at least start \+ updates \* window = 8'),
    ({'stop': 2**30}, r'should be below 2\*\*31 / 3'),
  ],
)
def test_schedules_that_are_none_are_refused(change, message):
  with pytest.raises(SAEError, match=message):
    dataclasses.replace(ANNEALING, **change)


@each
def test_an_annealing_that_is_none_is_refused(kind):
  with pytest.raises(SAEError, match=r'annealing=0.5 should be PAnnealing\(...\), or None'):
    dataclasses.replace(PLAIN[kind], annealing=0.5)
