"""Removal at every write and addition before a layer, against edits of a forward pass in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechjax import harvest
from mechjax.steering import SteeringError, ablate_everywhere, add_before
from tests.models import decoders
from tests.patching import plain

R = np.random.default_rng(7).standard_normal(16) * 3
UNIT = R / np.linalg.norm(R)
TOKENS = plain.CLEAN
FAMILIES = ['gpt2', 'neox', 'mistral', 'qwen', 'gemma']
STREAM = ('embed', 'resid_pre', 'resid_mid', 'resid_post')


def run(name, plants, sites='*', dtype='float32'):
  forward = plain.forward(name)
  return harvest.harvest(forward, sites=sites)(plants, decoders.params(name, dtype), jnp.asarray(TOKENS))


@pytest.mark.parametrize('name', FAMILIES)
def test_a_removal_is_that_of_numpy_and_the_stream_is_orthogonal_everywhere(name):
  writes = ('embed', 'attn_out', 'mlp_out')

  def edit(site, value):
    return value - (value @ UNIT)[..., None] * UNIT if site.split('.')[0] in writes else value

  logits, acts = run(name, ablate_everywhere(R))
  np.testing.assert_allclose(logits, plain.logits(name, TOKENS, edit), rtol=0, atol=2e-4)
  assert np.abs(logits - plain.logits(name, TOKENS)).max() > 0.01
  streams = [acts[site] for site in acts if site.split('.')[0] in STREAM]
  assert len(streams) > 4
  for x in streams:
    assert np.abs(x @ UNIT.astype(np.float32)).max() < 1e-5 * np.abs(x).max()


def test_twice_is_once():
  with jax.enable_x64(True):
    once = harvest.plant(plain.forward('neox'))
    twice = harvest.plant(once)
    args = decoders.params('neox', 'float64'), jnp.asarray(TOKENS)
    plants = ablate_everywhere(R)
    np.testing.assert_allclose(
      twice(plants, plants, *args), once(plants, *args), rtol=0, atol=1e-12
    )


def test_length_and_sign_of_the_direction_do_not_matter():
  one, _ = run('gpt2', ablate_everywhere(R))
  other, _ = run('gpt2', ablate_everywhere(-0.01 * R))
  np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


def test_a_model_without_mlps_is_given_its_writes():
  logits, acts = run('attn-only', ablate_everywhere(R, 'embed, attn_out'))
  assert np.abs(acts['resid_post.1'] @ UNIT.astype(np.float32)).max() < 1e-5
  with pytest.raises(harvest.selecting.SiteError, match='attention-only'):
    run('attn-only', ablate_everywhere(R))


@pytest.mark.parametrize('name', FAMILIES)
@pytest.mark.parametrize('layer', [0, 1])
def test_an_addition_is_a_plant_by_hand(name, layer):
  site = f'resid_pre.{layer}'
  logits, acts = run(name, add_before(layer, R))
  expected = plain.logits(name, TOKENS, lambda s, value: value + R if s == site else value)
  np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-4)
  _, before = run(name, {}, site)
  np.testing.assert_allclose(acts[site], before[site] + R.astype(np.float32), rtol=0, atol=1e-5)


def test_direction_and_layer_are_data():
  @jax.jit
  def changed(direction, layer):
    planted = harvest.plant(plain.forward('qwen'))
    args = decoders.params('qwen'), jnp.asarray(TOKENS)
    added = planted(add_before(layer, direction), *args)
    return added, planted(ablate_everywhere(direction), *args)

  for layer, sign in ((0, 1), (1, -1)):
    vector = jnp.asarray(sign * R, jnp.float32)
    added, removed = changed(vector, layer)
    np.testing.assert_allclose(added, run('qwen', add_before(layer, vector))[0], rtol=0, atol=1e-5)
    np.testing.assert_allclose(removed, run('qwen', ablate_everywhere(R))[0], rtol=0, atol=1e-5)
  assert changed._cache_size() == 1


def test_sixteen_bits_keep_their_dtype():
  params = jax.tree.map(lambda x: x.astype('bfloat16'), decoders.params('neox'))
  for plants in (ablate_everywhere(R), add_before(1, R)):
    _, acts = harvest.harvest(plain.forward('neox'), sites='resid_post')(
      plants, params, jnp.asarray(TOKENS)
    )
    assert acts['resid_post'].dtype == jnp.bfloat16


@pytest.mark.parametrize(
  ('direction', 'words'),
  [
    (np.zeros(16), 'is zero'),
    (np.full(16, np.nan), 'NaN'),
    (np.ones((1, 16)), r'not of shape \(1, 16\)'),
    (np.ones(16, int), 'floating-point vector'),
  ],
)
def test_what_is_not_a_direction_is_refused(direction, words):
  for make in (ablate_everywhere, lambda r: add_before(0, r)):
    with pytest.raises(SteeringError, match=words):
      make(direction)


def test_a_direction_of_another_model_is_refused():
  with pytest.raises(SteeringError, match='another model'):
    run('gpt2', ablate_everywhere(np.ones(5)))
