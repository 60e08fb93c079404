"""Repeated texts, clipped neurons and heads that are switched off: against a toy made by hand, loops, and the model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import timing
from mechjax import harvest, sites
from mechjax.errors import NeuronError
from mechjax.logits import log_probs
from mechjax.models import readers
from mechjax.neurons import (
  Clip,
  NeuronAblation,
  Readout,
  Repetition,
  ablate_heads,
  attend_to_first,
  read_last_layer,
  repeat_texts,
  score_heads,
)
from tests.models import decoders
from tests.neurons import small

TEXTS = repeat_texts(np.random.default_rng(2).integers(0, small.V, (3, 6)))


def test_a_text_is_followed_by_itself_without_its_first_token():
  assert repeat_texts(np.array([[9, 1, 2, 3]])).tolist() == [[9, 1, 2, 3, 1, 2, 3]]


def test_both_halves_have_the_same_tokens_and_next_tokens():
  halves = Repetition(6)
  assert halves.total == TEXTS.shape[1] == 11
  assert halves.second.tolist() == [6, 7, 8, 9]
  for shift in (0, 1):
    np.testing.assert_array_equal(TEXTS[:, halves.first + shift], TEXTS[:, halves.second + shift])
  # The column after the earlier occurrence holds the token that comes next.
  np.testing.assert_array_equal(TEXTS[:, halves.induced], TEXTS[:, halves.second + 1])
  assert halves.in_first(np.arange(11)).nonzero()[0].tolist() == halves.first.tolist()
  assert halves.in_second(np.arange(11)).nonzero()[0].tolist() == halves.second.tolist()


def copier(texts):
  """Attention of two heads: one to the first token, one to the token after the last occurrence of the same token."""
  rows = []
  for text in np.asarray(texts):
    probs = np.zeros((2, len(text), len(text)))
    probs[0, :, 0] = 1
    for t, token in enumerate(text):
      earlier = [s for s in range(t) if text[s] == token]
      probs[1, t, earlier[-1] + 1 if earlier else 0] = 1
    rows.append(probs)
  return np.array(rows)


def test_the_head_that_copies_has_a_score_of_one_and_the_other_zero():
  """Probabilities made by hand, in a model that does nothing else."""
  texts = repeat_texts(np.array([[0, 11, 12, 13, 14, 15], [0, 21, 22, 23, 24, 25]]))

  def forward(params, tokens):
    probs = jnp.where((tokens[:, 1] == 11)[:, None, None, None], *params)
    with sites.layer(0):
      return harvest.sow(probs, name='attn_probs')

  params = [jnp.asarray(probs, jnp.float32) for probs in copier(texts)]
  found = score_heads(forward, params, texts, batch=1)
  np.testing.assert_array_equal(found.scores.value, [[0, 1]])
  np.testing.assert_array_equal(found.scores.se, [[0, 0]])
  assert found.find_largest(1) == [(0, 1)]
  assert found.find_largest(5) == [(0, 1), (0, 0)]


def test_scores_are_means_of_the_attention_of_single_texts():
  tree = decoders.params('neox')
  model = decoders.language_model('neox')
  found = score_heads(model.apply, tree, TEXTS, batch=2)
  truth = []
  for text in TEXTS:
    probs = harvest.reap(model.apply, sites='attn_probs')(tree, jnp.asarray(text[None]))
    each = np.asarray(probs['attn_probs'])[:, 0]
    truth.append([[np.mean([head[t, t - 4] for t in range(6, 10)]) for head in l] for l in each])
  np.testing.assert_allclose(found.scores.value, np.mean(truth, 0), rtol=1e-5)
  se = np.std(truth, 0, ddof=1) / np.sqrt(3)
  np.testing.assert_allclose(found.scores.se, se, rtol=1e-4, atol=1e-9)


def test_the_row_of_a_head_that_is_switched_off_is_one_hot_at_the_first_token():
  model = decoders.language_model('gpt2')
  plants = {'attn_probs': harvest.At(1, attend_to_first(2, 6))}
  tokens = jnp.asarray(TEXTS)
  run = harvest.harvest(model.apply, sites='attn_probs')
  _, acts = run(plants, model.params, tokens)
  _, plain = run({}, model.params, tokens)
  found, before = (np.asarray(x['attn_probs']) for x in (acts, plain))
  one_hot = np.zeros(11)
  one_hot[0] = 1
  np.testing.assert_array_equal(found[1, :, 2, 6:], np.broadcast_to(one_hot, (3, 5, 11)))
  np.testing.assert_allclose(found[1, :, 2, :6], before[1, :, 2, :6], rtol=0, atol=1e-6)
  np.testing.assert_allclose(found[1, :, [0, 1, 3]], before[1, :, [0, 1, 3]], rtol=0, atol=1e-6)
  np.testing.assert_allclose(found[0], before[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize('name', ['llama', 'gemma 3'])
def test_head_ablations_are_differences_of_passes_with_the_attention_planted(name):
  heads, neurons = [(0, 1), (1, 3)], [5, 2]
  forward, tree = small.forward(name), small.params(name)
  with jax.enable_x64(True):
    case = small.Case.of(name)
    found = ablate_heads(forward, tree, TEXTS, case.readout, heads, neurons, batch=2)

    def measure(plants):
      out, acts = harvest.harvest(forward, sites='mlp_post.1')(plants, tree, jnp.asarray(TEXTS))
      log_P = np.asarray(log_probs(out))[:, 6:10]
      loss = -np.take_along_axis(log_P, TEXTS[:, 7:, None], -1)[..., 0]
      a = np.asarray(acts['mlp_post.1'])[:, 6:10, neurons]
      return -(np.exp(log_P) * log_P).sum(-1).mean(1), loss.mean(1), a.mean(1)

    plain = measure({})
    changed = [measure({f'attn_probs.{layer}': attend_to_first(head, 6)}) for layer, head in heads]
  assert found.heads == ((0, 1), (1, 3))
  assert (found.plain_entropy, found.plain_loss) == pytest.approx([x.mean() for x in plain[:2]])
  np.testing.assert_allclose(found.plain_activations.value, plain[2].mean(0))
  for i, part in enumerate((found.entropy, found.loss, found.activations)):
    each = np.array([x[i] - plain[i] for x in changed])
    np.testing.assert_allclose(part.value, each.mean(1), atol=1e-11)
    np.testing.assert_allclose(part.se, each.std(1, ddof=1) / np.sqrt(3), atol=1e-11)
  assert np.abs(found.entropy.value).min() > 1e-4


def test_other_heads_compile_nothing():
  model = decoders.language_model('gpt2')
  given = model.apply, model.params, TEXTS, make_readout()
  with timing.compilations() as first:
    ablate_heads(*given, [(0, 1)], [5])
  with timing.compilations() as more:
    ablate_heads(*given, [(1, 0), (0, 3), (1, 2)], [5])
  assert first.count > 0
  assert more.count <= first.count


def make_readout():
  return Readout.of(**readers.take_readout(decoders.params('gpt2'), decoders.CONFIGS['gpt2']))


# --- clipped neurons ----------------------------------------------------------------------------------------


def test_a_clip_bounds_each_neuron_on_the_side_to_which_it_moves():
  first = np.array([[1.0, 1.0, 2.0], [3.0, 1.0, 2.0]])
  second = np.array([[5.0, -4.0, 2.0], [1.0, 3.0, 2.0]])
  clip = Clip.of(first, second)
  assert clip.bounds.tolist() == [2, 1, 2]
  assert clip.rises.tolist() == [True, False, False]
  assert clip(second).tolist() == [[2, 1, 2], [1, 3, 2]]


@pytest.mark.parametrize('name', ['gpt2', 'gemma 3'])
def test_a_clipped_neuron_has_the_effect_of_the_model_with_the_clip_planted(name):
  forward, tree = small.forward(name), small.params(name)
  halves = Repetition(6)
  with jax.enable_x64(True):
    case = small.Case.of(name)
    found = read_last_layer(forward, tree, TEXTS, first=0)
    late = found.take(halves.in_second(found.columns))
    clip = Clip.of(found.a[halves.in_first(found.columns)], late.a)
    ablate = NeuronAblation(case.readout, case.writes)
    neurons = [0, 7, 12]
    effects = ablate.measure_tokens(
      late.x, late.a, late.next_tokens, replacement=clip(late.a), neurons=neurons
    )
    plain = np.asarray(forward(tree, jnp.asarray(TEXTS)))
    for column, i in enumerate(neurons):
      planted = harvest.plant(forward)({'mlp_post.1': clip.plant(i, 6)}, tree, jnp.asarray(TEXTS))
      np.testing.assert_allclose(planted[:, :6], plain[:, :6], rtol=0, atol=1e-10)
      at = late.rows, late.columns
      change = small.entropy(np.asarray(planted)[at]) - small.entropy(plain[at])
      np.testing.assert_allclose(effects['entropy_change'][:, column], change, atol=1e-10)
      assert np.abs(change).max() > 1e-3


# --- bad input ----------------------------------------------------------------------------------------------


def test_texts_that_do_not_repeat_themselves_are_refused():
  model = decoders.language_model('gpt2')
  other = TEXTS.copy()
  other[0, 8] += 1
  for texts in (other, TEXTS[:, :-1], small.TOKENS):
    with pytest.raises(NeuronError, match='do not repeat themselves'):
      score_heads(model.apply, model.params, texts)
  with pytest.raises(NeuronError, match='length of a text=3'):
    repeat_texts(np.ones((2, 3), int))
  with pytest.raises(NeuronError, match='expected int'):
    repeat_texts(np.ones((2, 5)))


@pytest.mark.parametrize(
  ('heads', 'neurons', 'message'),
  [
    ([(2, 0)], [0], r'no head \(2, 0\) among 2 layers of 4 heads'),
    ([(0, 0), (1, 4)], [0], r'no head \(1, 4\)'),
    ([], [0], 'no heads'),
    ((0, 1), [0], r'heads=\(0, 1\); expected pairs'),
    ([(0, 1.5)], [0], 'expected pairs of whole numbers'),
    ([(0, 0)], 0, 'neurons=0; expected a list'),
    ([(0, 0)], [20], 'neurons contains 20'),
    ([(0, 0)], [], 'neurons'),
  ],
)
def test_heads_and_neurons_that_do_not_exist_are_refused(heads, neurons, message):
  model = decoders.language_model('gpt2')
  with pytest.raises(NeuronError, match=message):
    ablate_heads(model.apply, model.params, TEXTS, make_readout(), heads, neurons)


def test_clips_that_do_not_fit_are_refused():
  a = np.ones((4, 3))
  with pytest.raises(NeuronError, match=r'second half has shape \[4, 2\]'):
    Clip.of(a, a[:, :2])
  with pytest.raises(NeuronError, match='NaN'):
    Clip.of(a * np.nan, a)
  with pytest.raises(NeuronError, match='neuron 3 of 3'):
    Clip.of(a, a).plant(3, 0)
  with pytest.raises(NeuronError, match='start=-1'):
    Clip.of(a, a).plant(0, -1)
