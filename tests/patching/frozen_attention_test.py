"""A model with frozen attention equals a NumPy forward with the average patterns planted by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import timing
from mechjax import harvest
from mechjax.models import ours
from mechjax.patching import Kept, PatchingError, ablate, components_of, measure_means
from mechjax.patching.frozen_attention import freeze_attention, measure_patterns
from tests.models import decoders
from tests.patching import plain

TOKENS = np.random.default_rng(4).integers(0, decoders.V, (5, 4)).astype(np.int32)
NAMES = ['gpt2', 'gemma']


@pytest.fixture(autouse=True)
def wide():
  with jax.enable_x64(True):
    yield


@functools.cache
def params(name):
  return jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), decoders.params(name))


@functools.cache
def forward(name):
  return plain.forward(name)


@functools.cache
def patterns(name):
  return measure_patterns(forward(name), params(name), TOKENS, batch=2)


def by_hand(name, cut=()):
  own = plain.values(name, TOKENS)

  def edit(site, value):
    stem, _, layer = site.partition('.')
    if stem != 'attn_probs':
      return value
    value = np.broadcast_to(own[site].mean(0), value.shape).copy()
    for where, query, key in cut:
      if where == int(layer):
        value[:, :, query, key] = 0
    return value

  return plain.logits(name, TOKENS, edit)


@pytest.mark.parametrize('name', NAMES)
def test_patterns_are_means_of_the_probabilities(name):
  own = plain.values(name, TOKENS)
  expected = np.stack([own[f'attn_probs.{i}'].mean(0) for i in range(2)])
  np.testing.assert_allclose(patterns(name), expected, atol=1e-12)


@pytest.mark.parametrize('cut', [(), [(1, -1, -1), (0, 2, 0)]])
@pytest.mark.parametrize('name', NAMES)
def test_frozen_attention_is_the_forward_with_average_patterns(name, cut):
  model = freeze_attention(forward(name), patterns(name), cut=cut)
  expected = by_hand(name, cut)
  np.testing.assert_allclose(model(params(name), TOKENS), expected, atol=1e-9)
  assert np.abs(expected - by_hand(name, [] if cut else [(0, 3, 3)])).max() > 1e-2


def test_cuts_and_patterns_are_data():
  name, p = 'gpt2', params('gpt2')
  run = jax.jit(lambda model, params, tokens: model(params, tokens))
  reap = lambda model: harvest.reap(model, sites='resid_post, attn_probs.1')(p, TOKENS)  # noqa: E731
  first = freeze_attention(forward(name), patterns(name))
  run(first, p, TOKENS), reap(first)
  other = freeze_attention(forward(name), patterns(name)[::-1].copy(), cut=[(1, -1, -1)])
  with timing.compilations() as again:
    run(other, p, TOKENS)
    acts = reap(other)
  assert again.count == 0
  np.testing.assert_array_equal(acts['attn_probs.1'][:, :, -1, -1], 0)


def test_components_of_it_are_ablated_like_those_of_any_model():
  name, p = 'gemma', params('gemma')
  frozen = freeze_attention(ours.forward(p, decoders.CONFIGS[name]).apply, patterns(name))
  parts = components_of(harvest.sites_of(frozen, p, TOKENS))
  means = measure_means(frozen, p, TOKENS, parts)
  found = ablate(frozen, Kept.all_but(parts, 'mlp_out.0'), means)(p, TOKENS)
  mean = np.asarray(harvest.reap(frozen, sites='mlp_out.0')(p, TOKENS)['mlp_out.0']).mean(0)
  own = plain.values(name, TOKENS)

  def edit(site, value):
    if site.partition('.')[0] == 'attn_probs':
      return np.broadcast_to(own[site].mean(0), value.shape)
    return np.broadcast_to(mean, value.shape) if site == 'mlp_out.0' else value

  np.testing.assert_allclose(found, plain.logits(name, TOKENS, edit), atol=1e-9)


def test_a_site_without_layers_has_one_pattern():
  w = np.random.default_rng(0).standard_normal((5, 3))

  def single(params, tokens):
    scores = jnp.asarray(params)[tokens] @ jnp.asarray(w).T[:, :4]
    probs = harvest.sow(jax.nn.softmax(scores)[:, None], name='attn_probs')
    return (probs[:, 0] @ jnp.ones((4, 2))).sum(-1) + probs[:, 0, :, 1]

  p, tokens = np.random.default_rng(1).standard_normal((decoders.V, 3)), TOKENS
  mean = measure_patterns(single, p, tokens)
  assert mean.shape == (1, 1, 4, 4)
  expected = np.broadcast_to(2 * mean[0, 0].sum(-1) + mean[0, 0, :, 1], (5, 4))
  np.testing.assert_allclose(freeze_attention(single, mean)(p, tokens), expected, atol=1e-12)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'cut': [(2, -1, -1)]}, r'there is no weight \(2, -1, -1\) in 2 layers of 4 positions'),
    ({'cut': [(0, 1, 2)]}, 'a key after its query'),
    ({'cut': [(-1, 1, 1)]}, 'there is no weight'),
    ({'cut': [(0, 1)]}, 'there is no weight'),
    ({'patterns': np.ones((2, 4, 4))}, r'expected \[L, N, T, T\]'),
    ({'forward': decoders.language_model('gpt2')}, 'not a function'),
  ],
)
def test_patterns_and_cuts_that_do_not_exist_are_refused(options, message):
  given = {'forward': forward('gpt2'), 'patterns': patterns('gpt2'), **options}
  with pytest.raises(PatchingError, match=message):
    freeze_attention(**given)


def test_prompts_that_do_not_fit_are_refused():
  model = freeze_attention(forward('gpt2'), patterns('gpt2'))
  for run in (model, harvest.reap(model, sites='logits')):
    with pytest.raises(PatchingError, match=r'2 layers, 4 heads and 4 positions, .*\[5, 4, 3, 3\]'):
      run(params('gpt2'), TOKENS[:, :3])
    with pytest.raises(PatchingError, match='these have padding'):
      run(params('gpt2'), TOKENS, mask=np.arange(4) < np.array([[4], [3], [4], [4], [4]]))
  broken = jax.tree.map(lambda x: x * np.nan, params('gpt2'))
  with pytest.raises(PatchingError, match='NaN or infinity'):
    measure_patterns(forward('gpt2'), broken, TOKENS)
  with pytest.raises(PatchingError, match='traced'):
    jax.jit(lambda t: measure_patterns(forward('gpt2'), params('gpt2'), t))(TOKENS)
  grouped = lambda p, x: harvest.sow(jnp.ones((len(x), 2, 2, 4, 4)), name='attn_probs').sum()  # noqa: E731
  with pytest.raises(PatchingError, match=r'has shape \[5, 2, 2, 4, 4\]'):
    measure_patterns(grouped, {}, TOKENS)
