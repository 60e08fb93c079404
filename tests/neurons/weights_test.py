"""Readouts, null spaces and the weight profile, against NumPy's SVD and plain loops; and the weights of decoders."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from mechjax import harvest
from mechjax.errors import MechjaxError, NeuronError
from mechjax.models import readers
from mechjax.neurons import NeuronWrites, Readout, measure_rho, profile
from mechjax.neurons.frequency import find_direction
from tests.models import decoders
from tests.neurons import small

RANDOM = np.random.default_rng(0)
GAIN, BIAS = RANDOM.standard_normal(7), RANDOM.standard_normal(7)
W_U, W_OUT = RANDOM.standard_normal((7, 23)), RANDOM.standard_normal((5, 7))


def fold(norm):
  """A by its definition."""
  A = GAIN[:, None] * W_U
  if norm == 'layer':
    A = A - A.mean(0)
  return A - A.mean(1, keepdims=True)


def make_readout(norm='rms', **options):
  with jax.enable_x64(True):
    return Readout.of(GAIN, W_U, 1e-5, norm, **options)


@pytest.mark.parametrize('norm', ['rms', 'layer'])
def test_singular_vectors_are_those_of_numpy(norm):
  readout, A = make_readout(norm), fold(norm)
  np.testing.assert_allclose(readout.rows.T, A, atol=1e-12)
  vectors, values, _ = np.linalg.svd(A, full_matrices=False)
  n = 6 if norm == 'layer' else 7
  np.testing.assert_allclose(readout.singular_values, values[:n], rtol=1e-9)
  for k in (1, 3, n - 1):
    null = readout.find_null_space(k)
    np.testing.assert_allclose(null.T @ null, np.eye(k), atol=1e-12)
    truth = vectors[:, n - k : n]
    np.testing.assert_allclose(null @ null.T, truth @ truth.T, atol=1e-8)
  if norm == 'layer':  # the constant direction is no part of the space
    np.testing.assert_allclose(readout.spectrum.vectors.sum(0), 0, atol=1e-9)


@pytest.mark.parametrize('norm', ['rms', 'layer'])
def test_the_profile_is_that_of_plain_loops(norm):
  readout, A = make_readout(norm), fold(norm)
  p = np.random.default_rng(1).exponential(size=23)
  p /= p.sum()
  found = profile(readout, W_OUT, k=2, unigram=p)
  n = 6 if norm == 'layer' else 7
  null = np.linalg.svd(A, full_matrices=False)[0][:, n - 2 : n]
  v = np.log(p) - np.log(p).mean()
  for i, w in enumerate(W_OUT):
    w = w - w.mean() if norm == 'layer' else w
    length = np.sqrt(sum(x * x for x in w))
    cosines = [w @ A[:, t] / length / np.linalg.norm(A[:, t]) for t in range(23)]
    assert found.norm[i] == pytest.approx(length)
    assert found.logit_variance[i] == pytest.approx(np.var(cosines, ddof=1))
    assert found.rho[i] == pytest.approx(np.linalg.norm(null.T @ w) / length)
    logits = w @ A
    cosine = logits @ v / np.linalg.norm(logits) / np.linalg.norm(v)
    assert found.frequency_cosine[i] == pytest.approx(cosine)
  assert found.chance == pytest.approx(np.sqrt(2 / n))
  assert profile(readout, W_OUT, k=2).frequency_cosine is None


def test_rho_of_a_planted_null_space_is_one_and_elsewhere_zero():
  with jax.enable_x64(True):
    A = W_U - W_U.mean(1, keepdims=True)
    A[4:] = 0
    readout = Readout.of(None, A, 1e-5)
    p = small.draw_unigram()[:23]
    found = profile(readout, np.eye(7), k=3, unigram=p / p.sum())
  np.testing.assert_allclose(found.rho, [0, 0, 0, 0, 1, 1, 1], atol=1e-7)
  np.testing.assert_allclose(found.frequency_cosine[4:], 0, atol=1e-12)
  np.testing.assert_allclose(found.logit_variance[4:], 0, atol=1e-12)


def test_rho_of_random_vectors_is_that_of_chance():
  readout = make_readout()
  vectors = np.random.default_rng(3).standard_normal((20_000, 7))
  found = profile(readout, vectors, k=2)
  assert np.sqrt((found.rho**2).mean()) == pytest.approx(found.chance, rel=0.02)
  np.testing.assert_allclose(measure_rho(vectors, readout.find_null_space(2)), found.rho)


@pytest.mark.parametrize('name', small.CONFIGS)
def test_the_readout_of_a_decoder_has_its_logits(name):
  with jax.enable_x64(True):
    case = small.Case.of(name)
    x, plain = jnp.asarray(case.layer.x), case.plain_logits
    np.testing.assert_allclose(
      scipy.special.log_softmax(case.readout.logits(x), -1), scipy.special.log_softmax(plain, -1), atol=1e-11
    )  # fmt: skip
    case.readout.check(x, plain, 1e-9)
    if case.readout.softcap is not None:
      np.testing.assert_allclose(case.readout.logits(x), plain, atol=1e-11)


def test_a_readout_without_a_part_is_found_by_comparison_with_the_model():
  with jax.enable_x64(True):
    case = small.Case.of('biased')
    given = readers.take_readout(small.params('biased'), small.CONFIGS['biased'])
    for left_out in ('bias', 'logit_bias', 'gain'):
      part = Readout.of(**given | {left_out: None})
      with pytest.raises(NeuronError, match='log-probabilities of the readout: what the weights'):
        part.check(case.layer.x, case.plain_logits)
    with pytest.raises(NeuronError, match='differ'):
      case.readout.check(case.layer.x, case.plain_logits[:5])


@pytest.mark.parametrize('name', ['llama', 'gpt2', 'gemma 3'])
def test_the_weights_of_the_last_neurons_have_the_output_of_the_mlp(name):
  tree = small.params(name)
  with jax.enable_x64(True):
    case = small.Case.of(name)
    acts = harvest.reap(small.forward(name), sites='mlp_out.1')(tree, jnp.asarray(small.TOKENS))
    out = acts['mlp_out.1'][case.layer.rows, case.layer.columns]
    np.testing.assert_allclose(case.writes.add(jnp.asarray(case.layer.a)), out, atol=1e-11)
    case.writes.check(case.layer.a, out, 1e-9)


# --- bad input ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'gain': GAIN[:6]}, r'gain has shape \[6\]'),
    ({'W_U': W_U[:, 0]}, r'W_U has shape \[7\]'),
    ({'W_U': W_U[:, :1]}, 'at least two dimensions'),
    ({'W_U': np.where(W_U > 1, np.nan, W_U)}, 'W_U contains NaN'),
    ({'W_U': W_U.astype(int)}, 'int64'),
    ({'norm': 'rmsnorm'}, "unknown norm 'rmsnorm'"),
    ({'norm': 'none'}, "norm='none' with a gain"),
    ({'gain': None, 'bias': BIAS, 'norm': 'none'}, "norm='none' with a bias"),
    ({'bias': BIAS[:3]}, r'bias has shape \[3\]'),
    ({'logit_bias': BIAS}, r'logit_bias has shape \[7\]'),
    ({'eps': -1.0}, r'eps=-1\.0'),
    ({'softcap': 0.0}, r'softcap=0\.0'),
  ],
)
def test_readouts_that_do_not_fit_are_refused(changes, message):
  given = {'gain': GAIN, 'W_U': W_U, 'eps': 1e-5, 'norm': 'layer'} | changes
  with jax.enable_x64(True), pytest.raises(NeuronError, match=message):
    Readout.of(**given)


@pytest.mark.parametrize(('norm', 'k'), [('rms', 0), ('rms', 7), ('layer', 6), ('rms', 2.5)])
def test_null_spaces_of_impossible_size_are_refused(norm, k):
  with pytest.raises(NeuronError, match=f'k={k}'):
    profile(make_readout(norm), W_OUT, k=k)


def test_vectors_and_tokens_without_length_are_refused():
  with pytest.raises(NeuronError, match='neuron 2 has an output vector of zeros'):
    profile(make_readout(), np.where(np.arange(5)[:, None] == 2, 0, W_OUT), k=1)
  with pytest.raises(NeuronError, match=r'the output vectors has shape \[5, 6\]'):
    profile(make_readout(), W_OUT[:, :6], k=1)
  # Whole numbers, whose mean over the vocabulary is exact.
  mean = np.arange(7.0)[:, None]
  with jax.enable_x64(True):
    readout = Readout.of(None, mean + np.array([0.0, 0.0, 1.0, -1.0]), 1e-5)
  with pytest.raises(NeuronError, match='2 tokens of the vocabulary have a vector of zeros'):
    profile(readout, W_OUT, k=1)


def test_models_whose_weights_are_not_known_are_refused():
  tree = decoders.params('attn-only')
  with pytest.raises(MechjaxError, match='upstream code'):
    readers.take_readout(tree, None)
  with pytest.raises(MechjaxError, match='attention-only'):
    readers.take_last_neurons(tree, decoders.CONFIGS['attn-only'])
  odd = dataclasses.replace(decoders.CONFIGS['gpt2'], post_norms=True)
  with pytest.raises(MechjaxError, match='no such model'):
    readers.take_last_neurons(tree, odd)


def test_the_output_of_other_neurons_is_refused():
  with jax.enable_x64(True):
    case = small.Case.of('gemma 3')
    a = jnp.asarray(case.layer.a)
    case.writes.check(a, case.writes.add(a))
    other = NeuronWrites.of(case.writes.W_out[::-1], gain=case.writes.gain, eps=case.writes.eps)
    with pytest.raises(NeuronError, match='output of the MLP'):
      other.check(a, case.writes.add(a))
    with pytest.raises(NeuronError, match='neurons contains 20'):
      case.writes.take([20])


def test_the_direction_of_frequency_has_length_one_and_mean_zero():
  v = find_direction(small.draw_unigram(), small.V)
  assert (np.linalg.norm(v), v.mean()) == pytest.approx((1, 0), abs=1e-9)


@pytest.mark.parametrize(
  ('vectors', 'basis', 'message'),
  [
    (np.ones((2, 4)), 2 * np.eye(4, 2), 'the basis is not orthonormal'),
    (np.ones((2, 3)), np.eye(4, 2), r'the vectors has shape \[2, 3\]'),
    (np.eye(2, 4) * [[1], [0]], np.eye(4, 2), 'vector 1 has the length zero'),
  ],
)
def test_a_share_that_would_have_no_meaning_is_refused(vectors, basis, message):
  with pytest.raises(NeuronError, match=message):
    measure_rho(vectors, basis)


@pytest.mark.parametrize('eps', [None, '1e-5', True, np.nan, -1.0])
def test_an_eps_that_is_no_number_is_refused(eps):
  with pytest.raises(NeuronError, match='should be a number, at least 0'):
    Readout.of(None, np.eye(4, 5), eps)
