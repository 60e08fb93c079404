"""Effects of neurons on facts and their correlations, against passes in NumPy, finite differences and SciPy."""

import contextlib
import dataclasses
import re

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from mechjax import harvest, sites
from mechjax.errors import FactsError
from mechjax.facts.fact_effects import NeuronMeanAblation
from mechjax.facts.facts import Facts
from mechjax.facts.sharing import correlate_effects
from mechjax.patching import ActivationPatching, Pairs, log_probability, nodes_of
from tests.models import decoders
from tests.patching import plain

NAME = 'gemma'
PARAMS = decoders.params(NAME)
PROMPTS = [[2, 9, 4, 11, 6], [2, 5, 12], [2, 9, 4, 30, 1, 7, 3]]
COLUMNS, ANSWERS = [2, -1, 2], [13, 8, 21]
FACTS = Facts.of(PROMPTS, COLUMNS, ANSWERS)
ABLATION = NeuronMeanAblation(plain.forward(NAME), batch=2, max_passes=6)
L, F = decoders.CONFIGS[NAME].n_layers, decoders.SMALL['d_mlp']
MEANS = np.random.default_rng(0).standard_normal((L, F))
CHOSEN = [(0, 3), (1, 19), (0, 0), (1, 7), (1, 2)]


def log_p(row, edit=lambda site, value: value):
  logits = plain.logits(NAME, np.array([PROMPTS[row]]), edit)[0, -1]
  return scipy.special.log_softmax(logits)[ANSWERS[row]]


def moved(row, layer, f, share=1.0):
  """Change of log p(answer) when a neuron moves by a share of the way to its mean, at the name; in NumPy."""

  def edit(site, value):
    if site != f'mlp_post.{layer}':
      return value
    value = value.copy()
    t = COLUMNS[row] % len(PROMPTS[row])
    value[0, t, f] += share * (MEANS[layer, f] - value[0, t, f])
    return value

  return log_p(row, edit) - log_p(row)


def test_exact_effects_are_those_of_passes_in_numpy():
  found = ABLATION.measure(PARAMS, FACTS, MEANS, CHOSEN)
  for row in range(3):
    assert found.log_probs[row] == pytest.approx(log_p(row), abs=1e-4)
    for k, (layer, f) in enumerate(CHOSEN):
      assert found.values[row, k] == pytest.approx(moved(row, layer, f), abs=1e-4)


def test_first_order_effects_are_derivatives_by_finite_differences():
  found = ABLATION.attribute(PARAMS, FACTS, MEANS)
  assert found.values.shape == (3, L, F)
  for row in range(3):
    assert found.log_probs[row] == pytest.approx(log_p(row), abs=1e-4)
    for layer, f in CHOSEN:
      slope = (moved(row, layer, f, 1e-4) - moved(row, layer, f, -1e-4)) / 2e-4
      assert found.values[row, layer, f] == pytest.approx(slope, abs=2e-4)


def test_exact_effects_are_those_of_activation_patching_with_means():
  prompts = np.array([[2, 9, 4, 11], [2, 5, 12, 11], [2, 7, 1, 11]], np.int32)
  facts = Facts.of(prompts, [2, 2, 2], ANSWERS)
  means = ABLATION.measure_means(PARAMS, facts)
  pairs = Pairs(prompts, prompts, np.ones(prompts.shape, bool))
  forward = plain.forward(NAME)
  infos = harvest.sites_of(forward, PARAMS, prompts)
  nodes = nodes_of(infos, 'mlp_post', positions=[2], neurons=[0, 7])
  effects = ActivationPatching(forward, nodes, mode='mean')(
    PARAMS, pairs, log_probability(pairs, ANSWERS)
  )
  chosen = [(node.site.layer, node.neuron) for node in nodes]
  found = ABLATION.measure(PARAMS, facts, means, chosen)
  np.testing.assert_allclose(found.values, effects.values.T, rtol=0, atol=1e-4)


def test_means_are_those_of_passes_in_numpy():
  expected = np.zeros((L, F))
  for row, prompt in enumerate(PROMPTS):
    at = plain.values(NAME, np.array([prompt]))
    expected += [at[f'mlp_post.{l}'][0, COLUMNS[row]] for l in range(L)]
  np.testing.assert_allclose(ABLATION.measure_means(PARAMS, FACTS), expected / 3, rtol=0, atol=1e-4)


def test_a_neuron_at_its_own_value_has_no_effect():
  one = Facts.of(PROMPTS[:1], COLUMNS[:1], ANSWERS[:1])
  means = ABLATION.measure_means(PARAMS, one)
  np.testing.assert_allclose(ABLATION.attribute(PARAMS, one, means).values, 0, atol=1e-6)
  np.testing.assert_allclose(ABLATION.measure(PARAMS, one, means, CHOSEN).values, 0, atol=1e-5)


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (([], [], []), 'there are no prompts'),
    (([[1, 2], [0.5]], [0, 0], [1, 1]), 'prompt 1 has shape .* float64; expected whole numbers'),
    (([[1, 2], []], [0, 0], [1, 1]), r'prompt 1 has shape \[0\]'),
    (([[1, 2], [3, -1]], [0, 0], [1, 1]), 'prompt 1 has -1 to 3; expected indices from 0'),
    (([[1, 2], [3, 2**32]], [0, 0], [1, 1]), 'prompt 1 has 3 to 4294967296'),
    (([[1, 2]], [0], [3.7]), 'answer has shape .* float64; expected whole numbers'),
    (([[1, 2]], [0], [[5, 6]]), r'the answer of prompt 0 is 2 tokens: \[5, 6\]'),
    (([[1, 2]], [0], [[]]), 'the answer of prompt 0 is 0 tokens'),
    (([[1, 2]], [2], [5]), 'prompt 0 has 2 tokens, and its name is at 2'),
    (([[1, 2], [1, 2, 3]], [0, -4], [5, 5]), 'prompt 1 has 3 tokens, and its name is at -4'),
    (([[1, 2]], [0, 1], [5]), '1 prompts, 1 answers'),
    (([[1, 2]], [0], [5, 6]), '1 prompts, 2 answers'),
    (([[1, 2]], [0.0], [5]), '1 prompts, 1 answers'),
    (([[1, 2]], [0], [-5]), 'answer has -5'),
  ],
)
def test_prompts_without_a_name_or_an_answer_are_refused(arguments, message):
  with pytest.raises(FactsError, match=message):
    Facts.of(*arguments)


def test_neurons_means_and_models_that_do_not_fit_are_refused():
  with pytest.raises(
    FactsError, match=r'means have shape \[1, 20\], and the model has 2 layers of 20'
  ):
    ABLATION.attribute(PARAMS, FACTS, MEANS[:1])
  with pytest.raises(FactsError, match='NaN or infinity in means'):
    ABLATION.measure(PARAMS, FACTS, MEANS * np.nan, CHOSEN)
  for wrong in ([(2, 0)], [(0, 20)], [(0, 1, 2)]):
    with pytest.raises(FactsError, match='pairs below'):
      ABLATION.measure(PARAMS, FACTS, MEANS, wrong)
  with pytest.raises(FactsError, match='neurons has -1'):
    ABLATION.measure(PARAMS, FACTS, MEANS, [(0, -1)])
  outside = dataclasses.replace(FACTS, answer=np.array([1, 2, decoders.V]))
  for call in (
    lambda: ABLATION.attribute(PARAMS, outside, MEANS),
    lambda: ABLATION.measure(PARAMS, outside, MEANS, CHOSEN),
  ):
    with pytest.raises(FactsError, match=r'log p\(answer\) is NaN'):
      call()
  with pytest.raises(FactsError, match="does not have the sites 'mlp_post'"):
    NeuronMeanAblation(plain.forward('attn-only')).measure_means(
      decoders.params('attn-only'), FACTS
    )
  with pytest.raises(FactsError, match='not a function of'):
    NeuronMeanAblation(decoders.language_model(NAME))
  with pytest.raises(FactsError, match='batch=0'):
    NeuronMeanAblation(plain.forward(NAME), batch=0)


@pytest.mark.parametrize('layers', [(1, 2), (0, 2), (None,)])
def test_layers_without_a_first_one_or_with_a_gap_are_refused(layers):
  """Results count layers from 0, and a plant at a layer that does not exist would change nothing."""

  def forward(params, tokens):
    x = params[tokens]
    for i in layers:
      with contextlib.nullcontext() if i is None else sites.layer(i):
        x = x + harvest.sow(jnp.tanh(x), name='mlp_post')
    return x @ params.T

  found = re.escape(f"'mlp_post' selects the layers {[*layers]}, and not 0 to {len(layers) - 1}")
  with pytest.raises(FactsError, match=found):
    NeuronMeanAblation(forward).measure_means(np.eye(31, 4, dtype=np.float32), FACTS)


# --- correlations ---------------------------------------------------------------------------------------


def test_correlations_are_pearsons_for_every_pair():
  effects = np.random.default_rng(0).standard_normal((4, 30)) ** 3
  found = correlate_effects(effects)
  assert found.pairs.tolist() == [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]]
  for (i, j), r in zip(found.pairs, found.correlation):
    assert r == pytest.approx(scipy.stats.pearsonr(effects[i], effects[j]).statistic)


@pytest.mark.parametrize('power', [1, 3])
def test_the_standard_error_is_the_spread_of_the_correlation_over_samples(power):
  random, n = np.random.default_rng(1), 600
  drawn, errors = [], []
  for _ in range(400):
    common, own = random.standard_normal(n), random.standard_normal((2, n))
    x = common + own
    x = np.sign(x) * np.abs(x) ** power
    found = correlate_effects(x, n_shuffles=2)
    drawn.append(found.correlation[0])
    errors.append(found.standard_error[0])
  assert np.mean(errors) == pytest.approx(np.std(drawn), rel=0.15)


def test_permuted_neurons_are_uncorrelated_and_stay_in_their_groups():
  random = np.random.default_rng(0)
  shared = random.standard_normal(500)
  groups = np.repeat(np.arange(5), 100)
  effects = np.stack([shared, shared + 0.1 * random.standard_normal(500)])
  found = correlate_effects(effects, groups, n_shuffles=200)
  assert found.correlation[0] > 0.98
  assert abs(found.shuffled.mean()) < 0.02
  assert found.shuffled.std() == pytest.approx(1 / np.sqrt(500), rel=0.2)
  # Effects that are constant within a group are shared by the group alone, which the control keeps.
  level = np.array([3.0, -1, 0, 5, 2])[groups]
  levels = np.stack([level, -level])
  np.testing.assert_allclose(correlate_effects(levels, groups).shuffled, -1)


@pytest.mark.parametrize(
  ('effects', 'options', 'message'),
  [
    (np.ones((1, 9)), {}, 'have no correlation'),
    (np.ones((2, 2)), {}, 'have no correlation'),
    (np.ones((2, 3, 4)), {}, r'effects has shape \[2, 3, 4\]'),
    (np.array([[1, 2, 3], [4, 4, 4.0]]), {}, 'the same effect on fact 1: 4'),
    (np.array([[1, 2, np.inf], [4, 4, 5.0]]), {}, 'NaN or infinity in effects'),
    (np.eye(3), {'groups': [0, 1]}, r'groups= has shape \[2\] for 3 neurons'),
    (np.eye(3), {'groups': [0, np.nan, 1]}, 'for 3 neurons, and dtype float64'),
    (np.eye(3), {'n_shuffles': 1}, 'n_shuffles=1'),
  ],
)
def test_effects_without_a_correlation_are_refused(effects, options, message):
  with pytest.raises(FactsError, match=message):
    correlate_effects(effects, **options)
