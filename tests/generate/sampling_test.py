"""The choice of a token from logits."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from mechjax import errors, generate
from mechjax.generate.sampling import Sampling, choose, history_of, penalise, restrict
from tests.generate.small import PROMPTS, generated, model
from tests.models import decoders

RESTRICT = jax.jit(restrict, static_argnums=1)


def frequencies(logits, sampling, n=4000):
  keys = jax.random.split(jax.random.key(0), n)
  rows = jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (n, len(logits)))
  return np.bincount(choose(rows, keys, 0, None, sampling)[0].token_B, minlength=len(logits)) / n


PROBS = np.array([0.1, 0.4, 0.05, 0.25, 0.2])


@pytest.mark.parametrize(
  ('sampling', 'expected'),
  [
    (Sampling(), [0, 1, 0, 0, 0]),
    (Sampling(1.0), PROBS),
    (Sampling(0.5), PROBS**2 / (PROBS**2).sum()),
    (Sampling(1.0, top_k=2), np.array([0, 0.4, 0, 0.25, 0]) / 0.65),
    (Sampling(1.0, top_k=9), PROBS),
    (Sampling(1.0, top_p=0.6), np.array([0, 0.4, 0, 0.25, 0]) / 0.65),
    (Sampling(1.0, top_p=0.7), np.array([0, 0.4, 0, 0.25, 0.2]) / 0.85),
    (Sampling(1.0, top_p=1e-9), [0, 1, 0, 0, 0]),
    (Sampling(1.0, top_p=1.0), PROBS),
    (Sampling(1.0, top_k=3, top_p=0.6), np.array([0, 0.4, 0, 0.25, 0]) / 0.65),
  ],
)
def test_tokens_are_drawn_as_often_as_the_sampling_says(sampling, expected):
  np.testing.assert_allclose(frequencies(np.log(PROBS), sampling), expected, atol=0.03)


@pytest.mark.parametrize(
  'bad',
  [
    {'temperature': -1.0},
    {'top_k': 0},
    {'top_p': 0.0},
    {'top_p': 1.5},
    {'temperature': 'a'},
    {'temperature': None},
    {'top_k': 1.5},
    {'top_p': '0.5'},
    {'repetition_penalty': 0.0},
    {'frequency_penalty': float('nan')},
    {'temperature': 1e-40},
    {'temperature': 1e39},
    {'repetition_penalty': 1e39},
    {'repetition_penalty': 1e-39},
    {'frequency_penalty': 1e39},
  ],
)
def test_sampling_without_meaning_is_refused(bad):
  with pytest.raises(errors.MechjaxError, match=next(iter(bad))):
    Sampling(**bad)


def test_the_smallest_temperature_takes_the_likeliest_token():
  coldest = Sampling(float(np.finfo(np.float32).tiny))
  np.testing.assert_array_equal(frequencies(1e4 * PROBS, coldest, 20), [0, 1, 0, 0, 0])


def test_a_penalty_that_overflows_a_logit_is_an_error():
  for penalty in {'repetition_penalty': 1e-37}, {'frequency_penalty': 3e38}:
    settings = Sampling(**penalty)
    history = history_of([np.array([1])], 2)._replace(counts_BxV=jnp.full((1, 2), 2.0))
    keys = jax.random.split(jax.random.key(0), 1)
    choice, _ = choose(jnp.array([[1.0, 100.0]]), keys, 0, history, settings)
    assert choice.token_B.tolist() == [-1]


@pytest.mark.parametrize('seed', [2**32, 2**40, -1, 'a', 1.5, None, True, jax.random.key(0)])
def test_a_seed_that_is_not_a_number_of_its_own_is_refused(seed):
  with pytest.raises(
    errors.MechjaxError, match=r'(?s)seed=.*expected an integer from 0 to 2\*\*32 - 1'
  ):
    generated('gpt2', 1, seed=seed)


def test_top_p_of_1_cuts_nothing_and_ties_are_cut_by_their_ids():
  small = jnp.log(jnp.array([[1 - 3e-9, 1e-9, 1e-9, 1e-9]]))
  np.testing.assert_array_equal(restrict(small, Sampling(1.0, top_p=1.0)), small)
  equal = jnp.zeros((1, 4))
  kept = restrict(equal, Sampling(1.0, top_p=0.6))[0] == 0
  assert kept.tolist() == [False, True, True, True]
  assert (restrict(equal, Sampling(1.0, top_k=2)) == 0).all()


def test_penalties_count_the_prompt_and_the_generated_tokens():
  logits = jnp.array([[2.0, -2.0, 1.0, -1.0], [0.5, 0.25, -3.0, 4.0]])
  history = history_of([np.array([1, 1]), np.array([3])], 4)
  settings = Sampling(repetition_penalty=2.0, frequency_penalty=0.25)
  expected = np.array([[2.0, -4.0, 1.0, -1.0], [0.5, 0.25, -3.0, 2.0]])
  np.testing.assert_allclose(penalise(logits, history, settings), expected)
  keys = jax.random.split(jax.random.key(0), 2)
  for _ in range(2):
    choice, history = choose(logits, keys, 0, history, settings)
  assert choice.token_B.tolist() == [
    2,
    3,
  ]  # token 0 lost a half and a quarter of 2 to its first choice
  expected = np.array([[0.75, -4.0, 0.25, -1.0], [0.5, 0.25, -3.0, 1.5]])
  np.testing.assert_allclose(penalise(logits, history, settings), expected)


@pytest.mark.parametrize('sampling', [Sampling(), Sampling(0.7, top_k=5, frequency_penalty=1.0)])
def test_log_probabilities_are_those_of_the_model_and_nan_after_a_stop(sampling):
  whole = generated('gpt2', 6, sampling=sampling, sites='logits')
  stop = int(whole.tokens[0, 1])
  out = generated('gpt2', 6, sampling=sampling, sites='logits', stop=stop)
  for i, acts in enumerate(out.reads):
    log_probs = jax.nn.log_softmax(acts['logits'][:, -1])
    for row in range(3):
      if i < out.lengths[row]:
        expected = log_probs[row, out.tokens[row, i]]
        np.testing.assert_allclose(out.log_probs[row, i], expected, rtol=0, atol=1e-4)
  assert out.lengths[0] <= 2
  np.testing.assert_array_equal(
    np.isnan(out.log_probs), np.arange(out.tokens.shape[1]) >= out.lengths[:, None]
  )


def test_several_samples_of_a_prompt_are_the_rows_of_repeated_prompts():
  sampling = Sampling(1.0)
  out = generated('gpt2', 4, sampling=sampling, n_samples=2)
  repeated = [prompt for prompt in PROMPTS for _ in range(2)]
  np.testing.assert_array_equal(
    out.tokens, generated('gpt2', 4, repeated, sampling=sampling).tokens
  )
  assert out.prompt_mask.shape == (6, 5)
  assert (out.tokens[::2] != out.tokens[1::2]).any()
  with pytest.raises(errors.MechjaxError, match='2 equal texts'):
    generated('gpt2', 4, n_samples=2)


def test_tokens_come_one_by_one_up_to_the_stop_token():
  out = generated('gpt2', 6, PROMPTS[:1])
  ids, params = out.tokens[0].tolist(), decoders.params('gpt2')
  assert list(generate.stream(model('gpt2'), params, PROMPTS[0], 6)) == ids
  until = list(generate.stream(model('gpt2'), params, PROMPTS[0], 6, stop=ids[3]))
  assert until == ids[: ids.index(ids[3])]
  with pytest.raises(errors.MechjaxError, match='n_tokens=0'):
    generate.stream(model('gpt2'), params, PROMPTS[0], 0)


@hypothesis.given(
  st.lists(st.integers(-6, 6), min_size=8, max_size=8),
  st.sampled_from([0.05, 0.3, 0.5, 0.77, 0.95]),
)
def test_top_p_removes_one_token_after_the_other(quarters, top_p):
  logits = np.array(quarters, np.float32) / 4  # with many ties
  p = np.exp(logits.astype(np.float64))
  p /= p.sum()
  order = sorted(range(len(p)), key=lambda i: (logits[i], i))
  left = 1 - top_p - np.cumsum(p[order])
  hypothesis.assume(np.abs(left).min() > 1e-5)
  removed = {i for i, rest in zip(order[:-1], left) if rest > 0}
  for dtype in (jnp.float32, jnp.float64):
    with jax.enable_x64(dtype == jnp.float64):
      kept = RESTRICT(jnp.asarray(logits[None], dtype), Sampling(1.0, top_p=top_p))[0]
    assert {int(i) for i in np.flatnonzero(np.isneginf(kept))} == removed
