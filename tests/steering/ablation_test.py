"""Removal at every write and addition before a layer, against edits of a forward pass in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechjax import harvest
from mechjax.errors import SiteError
from mechjax.steering import WRITES, Ablate, Add, SteeringError, everywhere, in_one_pass
from tests.models import decoders
from tests.patching import plain

R = np.random.default_rng(7).standard_normal(16) * 3
UNIT = R / np.linalg.norm(R)
TOKENS = plain.CLEAN
FAMILIES = ['gpt2', 'neox', 'mistral', 'qwen', 'gemma']
STREAM = 'embed, resid_*'
WRITTEN = ('embed', 'attn_out', 'mlp_out')


def ablate(direction, writes=WRITES, shape=TOKENS.shape):
  """Plants of a removal in one pass."""
  return in_one_pass(Ablate(writes, direction).plants(), shape)


def add(layer, direction, shape=TOKENS.shape):
  """Plants of an addition before a layer in one pass."""
  return in_one_pass(Add('resid_pre', direction, layer=layer, where=everywhere).plants(), shape)


@functools.cache
def passes(name):
  """(direction, layer) -> logits and stream with the direction removed, logits with it added; compiled once."""
  writes = 'embed, attn_out' if name == 'attn-only' else WRITES

  args = decoders.params(name), jnp.asarray(TOKENS)

  @jax.jit
  def run(direction, layer):
    removed = harvest.harvest(plain.forward(name), sites=STREAM)
    added = harvest.plant(plain.forward(name))
    plants = add(layer, direction)
    return removed(ablate(direction, writes), *args), added(plants, *args)

  return run


def remove(site, value):
  """The removal, in NumPy."""
  return value - (value @ UNIT)[..., None] * UNIT if site.split('.')[0] in WRITTEN else value


@pytest.mark.parametrize('name', [*FAMILIES, 'attn-only'])
def test_a_removal_is_that_of_numpy_and_the_stream_is_orthogonal_everywhere(name):
  (logits, acts), _ = passes(name)(jnp.asarray(R, jnp.float32), 0)
  np.testing.assert_allclose(logits, plain.logits(name, TOKENS, remove), rtol=0, atol=2e-4)
  assert np.abs(logits - plain.logits(name, TOKENS)).max() > 0.01
  assert len(acts) >= 5
  for site, x in acts.items():
    assert np.abs(x @ UNIT.astype(np.float32)).max() < 1e-5 * np.abs(x).max(), site


@pytest.mark.parametrize('name', [*FAMILIES, 'attn-only'])
def test_an_addition_is_a_plant_by_hand(name):
  for layer in (0, 1):
    _, logits = passes(name)(jnp.asarray(R, jnp.float32), layer)
    site = f'resid_pre.{layer}'
    expected = plain.logits(name, TOKENS, lambda s, value, at=site: value + R if s == at else value)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-4)


def test_direction_and_layer_are_data_and_the_length_does_not_matter_for_a_removal():
  run = passes('neox')
  (removed, _), added = run(jnp.asarray(R, jnp.float32), 0)
  (again, _), other = run(jnp.asarray(-0.01 * R, jnp.float32), 1)
  assert run._cache_size() == 1
  np.testing.assert_allclose(again, removed, rtol=0, atol=1e-5)
  assert np.abs(other - added).max() > 0.01


def test_a_removal_outside_of_a_jit_is_the_same():
  found = harvest.plant(plain.forward('neox'))(
    ablate(R), decoders.params('neox'), jnp.asarray(TOKENS)
  )
  (removed, _), _ = passes('neox')(jnp.asarray(R, jnp.float32), 0)
  np.testing.assert_allclose(found, removed, rtol=0, atol=1e-5)


def test_twice_is_once():
  with jax.enable_x64(True):
    once = harvest.plant(plain.forward('neox'))
    args = decoders.params('neox', 'float64'), jnp.asarray(TOKENS)
    plants = ablate(R)
    twice = harvest.plant(once)(plants, plants, *args)
    np.testing.assert_allclose(twice, once(plants, *args), rtol=0, atol=1e-12)


def test_a_site_that_a_model_lacks_is_an_error():
  with pytest.raises(SiteError, match='attention-only'):
    harvest.plant(plain.forward('attn-only'))(
      ablate(R), decoders.params('attn-only'), jnp.asarray(TOKENS)
    )


def test_sixteen_bits_keep_their_dtype():
  (change,) = ablate(R, shape=(2, 3)).values()
  x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 16)), jnp.bfloat16)
  vector = R.astype(np.float32)
  for found, expected in (
    (change(x), remove('embed', np.asarray(x, np.float64))),
    (add(1, R, shape=(2, 3))['resid_pre'].value(x), np.asarray(x, np.float64) + vector),
  ):
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(jnp.float32), expected, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize(
  ('direction', 'words'),
  [
    (np.zeros(16), 'is zero'),
    (np.full(16, np.nan), 'NaN'),
    (np.ones((1, 16)), r'shape \(1, 16\)|1 vectors'),
    (np.ones(16, int), 'floating-point'),
  ],
)
def test_what_is_not_a_direction_is_refused(direction, words):
  for make in (ablate, lambda r: add(0, r)):
    with pytest.raises(SteeringError, match=words):
      make(direction)


def test_a_direction_of_another_model_is_refused():
  with pytest.raises(SteeringError, match='another model'):
    passes('neox')(jnp.ones(5), 0)
