"""ReFT-r1: its loss against NumPy loops, and a direction that is planted in a decoder and found."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special

from mechjax import harvest
from mechjax.errors import SteeringError
from mechjax.models import decoder
from mechjax.programs import staging
from mechjax.steering import reft
from mechjax.steering.reft import ReftExamples, ReFTr1
from tests.models import decoders
from tests.steering import plain
from tests.steering.plain import D

NAME, SITE, K = 'gpt2', 'resid_pre.1', 3
LENGTHS, PROMPTS, T = [9, 7, 8], [5, 4, 4], 10


def forward(params, tokens, mask=None):
  return decoder.forward(params, tokens, decoders.CONFIGS[NAME], segments=mask)


def examples(weight=None):
  tokens = np.random.default_rng(1).integers(0, decoders.V, (3, T)).astype(np.int32)
  mask = np.arange(T) < np.array(LENGTHS)[:, None]
  return ReftExamples(np.where(mask, tokens, 0), mask, np.array(PROMPTS), weight)


def loss_by_hand(w, given, penalty, weight=(1, 1, 1), skip=0):
  tokens = np.asarray(given.tokens)
  run = functools.partial(decoder.forward, config=decoders.CONFIGS[NAME])
  x = np.asarray(harvest.reap(run, sites=SITE)(decoders.params(NAME), tokens)[SITE], np.float64)
  added, rest = np.zeros((3, T, D), np.float32), []
  for row, n in enumerate(PROMPTS):
    read = sorted((max(0.0, x[row, t] @ w) for t in range(skip, n)), reverse=True)
    added[row, skip:n] = np.mean(read[: K - skip]) * w
    rest += read[K - skip :] if weight[row] else []
  logits = plain.adding(NAME, SITE)(decoders.params(NAME), tokens, added)
  log_probs = scipy.special.log_softmax(np.asarray(logits, np.float64), -1)
  total = count = 0.0
  for row, (n, end) in enumerate(zip(PROMPTS, LENGTHS)):
    for t in range(n - 1, end - 1):
      total -= weight[row] * log_probs[row, t, tokens[row, t + 1]]
      count += weight[row]
  return total / count + penalty * np.mean(rest)


def test_a_gradient_along_the_direction_does_not_move_it():
  """Adam divides each coordinate by its own size, so that it would turn w where the gradient only lengthens it."""
  with jax.enable_x64(True):
    optimiser, w = optax.adam(0.1), jnp.array([0.6, 0.8])
    step = reft._make_step(lambda w, *_: jnp.sum(w**2), optimiser)
    found, _, _ = step(w, optimiser.init(w), {}, examples(), jnp.float64(0))
    np.testing.assert_allclose(found, w, rtol=0, atol=1e-6)
    across = reft._make_step(lambda w, *_: w[0], optimiser)
    assert np.abs(across(w, optimiser.init(w), {}, examples(), jnp.float64(0))[0] - w).max() > 0.01


@pytest.mark.parametrize(
  ('weight', 'skip'), [(None, 0), ((1, 1, 0), 0), ((2, 1, 1), 0), (None, 1), ((2, 1, 1), 1)]
)
def test_the_loss_is_that_of_the_equations(weight, skip):
  w = plain.vector(scale=1.0)
  w /= np.linalg.norm(w)
  given = examples(None if weight is None else np.array(weight, np.float32))
  loss = jax.jit(reft.make_loss(forward, SITE, K - skip, skip))(
    jnp.asarray(w), decoders.params(NAME), given, jnp.float32(0.7)
  )
  expected = loss_by_hand(w, given, 0.7, weight or (1, 1, 1), skip)
  assert float(loss) == pytest.approx(expected, abs=1e-4)


def planted(seed, n=96, prompt=4, answer=6, strength=3.0):
  """A decoder in which token 0 carries a direction, and prompts with it, with answers sampled under this direction.

  So the direction can be read at one token of each prompt, and explains the answers where it is added to all of them.
  """
  random = np.random.default_rng(seed)
  truth = random.standard_normal(D)
  truth /= np.linalg.norm(truth)
  params = jax.tree.map(lambda x: x, decoders.params(NAME))  # a copy of the dicts
  params['embed']['tokens'] = params['embed']['tokens'].at[0].set(strength * truth)
  tokens = np.zeros((n, prompt + answer), np.int32)
  tokens[:, :prompt] = random.integers(1, decoders.V, (n, prompt))
  tokens[np.arange(n), random.integers(0, prompt - 1, n)] = 0
  added = np.zeros((*tokens.shape, D), np.float32)
  added[:, :prompt] = strength * truth
  run = plain.adding(NAME, 'resid_pre.0')
  for t in range(prompt, prompt + answer):
    noise = random.gumbel(size=(n, decoders.V))
    tokens[:, t] = (np.asarray(run(params, tokens, added))[:, t - 1] + noise).argmax(-1)
  return params, truth, ReftExamples(tokens, np.ones(tokens.shape, bool), np.full(n, prompt))


def test_a_planted_direction_is_found():
  params, truth, given = planted(seed=9)
  settings = ReFTr1(k=1, epochs=20, batch=24, skip=0, learning_rate=0.05)
  found = settings.fit(forward, 'resid_pre.0', params, given, jax.random.key(0))
  assert found.losses.shape == (80,)
  assert np.linalg.norm(found.vector) == pytest.approx(1, abs=1e-12)
  loss = jax.jit(reft.make_loss(forward, 'resid_pre.0', 1))
  of_truth = float(loss(jnp.asarray(truth, jnp.float32), params, given, jnp.float32(0)))
  assert found.losses[-10:].mean() < of_truth + 0.1 < found.losses[:4].mean() - 0.1
  assert found.vector @ truth > 0.75  # random directions: a standard deviation of 0.25


def one_sided():
  """A decoder in which the stream of every token has a large common part, as trained models have it."""
  common = np.random.default_rng(3).standard_normal(D).astype(np.float32)
  params = jax.tree.map(lambda x: x, decoders.params(NAME))
  params['embed']['tokens'] = params['embed']['tokens'] + 50 * common
  return params, common


def test_a_direction_that_reads_nothing_at_first_is_trained_all_the_same():
  """Half of all random directions have negative products with every token, and no gradient."""
  params, common = one_sided()
  draw = lambda seed: jax.random.normal(jax.random.split(jax.random.key(seed))[0], (D,))  # noqa: E731
  seed = next(seed for seed in range(20) if draw(seed) @ common < -0.5 * np.linalg.norm(common))
  start = np.asarray(draw(seed) / jnp.linalg.norm(draw(seed)))
  training = ReFTr1(k=K - 1, epochs=3, batch=3)
  found = training.fit(forward, 'resid_pre.0', params, examples(), jax.random.key(seed))
  assert found.vector @ common > 0
  assert abs(found.vector @ start) < 0.9999


def test_a_direction_that_reads_nothing_in_the_end_is_an_error():
  silent = jax.tree.map(lambda x: x, decoders.params(NAME))
  silent['embed'] = jax.tree.map(jnp.zeros_like, silent['embed'])
  with pytest.raises(SteeringError, match='reads nothing'):
    ReFTr1(k=K - 1, epochs=1).fit(forward, 'resid_pre.0', silent, examples(), jax.random.key(0))


def test_parameters_are_arguments_of_all_that_is_compiled(monkeypatch):
  monkeypatch.setattr(staging, 'LARGE', 2000)  # bytes; a warning of constants is an error in tests
  training = ReFTr1(k=K - 1, epochs=1, batch=2)
  training.fit(forward, SITE, decoders.params(NAME), examples(), jax.random.key(0))


def test_batches_hold_every_example_once_an_epoch_and_have_one_shape():
  given = ReftExamples(np.arange(7)[:, None], np.ones((7, 1), bool), np.zeros(7, int))
  batches = [*reft._batches(given, 2, 3, jax.random.key(0))]
  assert [len(b.tokens) for b in batches] == [3] * 6
  for epoch in (batches[:3], batches[3:]):
    seen = [int(t) for b in epoch for t, w in zip(b.tokens[:, 0], b.weight) if w]
    assert sorted(seen) == [*range(7)]
  orders = [[int(t) for b in epoch for t in b.tokens[:, 0]] for epoch in (batches[:3], batches[3:])]
  assert orders[0] != orders[1]


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'prompt_length': np.array([5, 3, 4])}, 'example 1 has a prompt of 3 tokens'),
    ({'prompt_length': np.array([5, 7, 4])}, 'example 1 has a prompt of 7 tokens and a text of 7'),
    ({'mask': np.arange(T) >= np.array([[1], [0], [0]])}, 'padding on the left'),
    ({'tokens': np.zeros((3, 4), int)}, 'examples with tokens'),
  ],
)
def test_examples_without_k_tokens_or_an_answer_are_refused(change, message):
  given = vars(examples()) | change
  with pytest.raises(SteeringError, match=message):
    ReFTr1(k=K).fit(forward, SITE, decoders.params(NAME), ReftExamples(**given), jax.random.key(0))


@pytest.mark.parametrize(
  'settings',
  [
    {'k': 0},
    {'skip': -1},
    {'epochs': 1.5},
    {'batch': True},
    {'l1': -1},
    {'clip': 0},
    {'learning_rate': np.nan},
  ],
)
def test_settings_out_of_range_are_refused(settings):
  with pytest.raises(SteeringError, match=next(iter(settings))):
    ReFTr1(**settings)


def test_a_direction_is_trained_at_one_site():
  for site, message in (('resid_pre.*', 'selects'), ('z.0', 'has shape')):
    with pytest.raises(SteeringError, match=message):
      ReFTr1(k=K).fit(forward, site, decoders.params(NAME), examples(), jax.random.key(0))
