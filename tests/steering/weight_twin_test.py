"""The weight twin equals the removal while the model runs, in every family that has a twin."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechjax import harvest
from mechjax.errors import MechjaxError
from mechjax.models import decoder, switches, writers
from mechjax.steering import WRITES, Ablate, SteeringError, in_one_pass, orthogonalise
from tests.models import decoders
from tests.patching import plain

R = np.random.default_rng(7).standard_normal(16) * 3
UNIT = R / np.linalg.norm(R)
TOKENS = jnp.asarray(plain.CLEAN)
CONFIGS = {
  'gpt2': decoders.CONFIGS['gpt2'],
  'gpt2 untied': dataclasses.replace(decoders.CONFIGS['gpt2'], tied=False),
  'neox': decoders.CONFIGS['neox'],
  'llama': decoder.Config(**{**switches.LLAMA, **decoders.SMALL}),
  'llama tied': decoder.Config(**{**switches.LLAMA, **decoders.SMALL}, tied=True),
  'qwen2': decoder.Config(**{**switches.QWEN2, **decoders.SMALL}),
  'qwen3 tied, with biases': dataclasses.replace(
    decoders.CONFIGS['qwen'], o_bias=True, mlp_bias=True
  ),
  'attention only': decoders.CONFIGS['attn-only'],
}


def random_params(config):
  """Random parameters in float64; norms and biases are not the identity."""
  random = np.random.default_rng(0)

  def fill(path, shape):
    centre = 1 if path[-1].key in ('scale', 'q_norm', 'k_norm') else 0
    return centre + 0.3 * random.standard_normal(shape.shape)

  return jax.tree_util.tree_map_with_path(fill, decoder.shapes(config))


def forward(config):
  return lambda params, tokens: decoder.forward(params, tokens, config)


def ablate(sites=WRITES):
  """Plants of the removal of R in one pass."""
  return in_one_pass(Ablate(sites, R).plants(), TOKENS.shape)


def read_stream(config):
  return jax.jit(harvest.call_and_reap(forward(config), sites='embed, resid_*'))


@pytest.mark.parametrize('name', CONFIGS)
def test_the_twin_is_the_removal(name):
  config = CONFIGS[name]
  sites = 'embed, attn_out, mlp_out' if config.d_mlp else 'embed, attn_out'
  with jax.enable_x64(True):
    params = random_params(config)
    removed = harvest.plant(forward(config))(ablate(sites), params, TOKENS)
    own, untied = writers.untie(params, config)
    run = read_stream(untied)
    plain_logits, _ = run(own, TOKENS)
    found, acts = run(orthogonalise(own, R, writers.stream_writers(untied)), TOKENS)
    np.testing.assert_allclose(found, removed, rtol=0, atol=1e-10)
    assert np.abs(found - plain_logits).max() > 0.01
    for x in acts.values():
      assert np.abs(x @ UNIT).max() < 1e-12
    if config.tied:
      np.testing.assert_allclose(forward(config)(params, TOKENS), plain_logits, rtol=0, atol=1e-12)


def test_the_table_has_every_parameter_with_an_axis_of_the_model_width_that_is_no_input():
  """Brute force: a parameter writes to the stream if and only if a change of it along R reaches R · stream."""
  with jax.enable_x64(True):
    config = CONFIGS['gpt2 untied']
    own = orthogonalise(random_params(config), R, writers.stream_writers(config))
    run = read_stream(config)
    leaves, structure = jax.tree_util.tree_flatten_with_path(jax.tree.map(np.asarray, own))
    writing = set()
    for i, (path, x) in enumerate(leaves):
      for axis in [n for n, size in enumerate(x.shape) if size == config.d_model]:
        shape = [1] * x.ndim
        shape[axis] = -1
        changed = [y for _, y in leaves]
        changed[i] = x + UNIT.reshape(shape)
        params = jax.tree.unflatten(structure, changed)
        stream = run(params, TOKENS)[1]['resid_post']
        if np.abs(np.asarray(stream) @ UNIT).max() > 1e-9:
          writing.add('/'.join(key.key for key in path))
    assert writing == set(writers.stream_writers(config))


def test_tied_models_without_untying_have_another_output():
  config = CONFIGS['llama tied']
  with pytest.raises(MechjaxError, match='untie'):
    writers.stream_writers(config)
  with jax.enable_x64(True):
    params = random_params(config)
    removed = harvest.plant(forward(config))(ablate(), params, TOKENS)
    table = writers.stream_writers(dataclasses.replace(config, tied=False))
    tied = orthogonalise(params, R, table)
    assert np.abs(forward(config)(tied, TOKENS) - removed).max() > 1e-3


def test_norms_after_the_matrices_leave_no_twin():
  """Matrices can be made so that Gemma's stream stays orthogonal to R, and the logits are still others."""
  config = decoders.CONFIGS['gemma']
  with pytest.raises(MechjaxError, match='post_norms=True'):
    writers.stream_writers(config)
  with jax.enable_x64(True):
    own = jax.tree.map(np.asarray, decoders.params('gemma', 'float64'))
    removed = harvest.plant(forward(config))(ablate(), own, TOKENS)
    params, untied = writers.untie(own, config)
    twin = jax.tree.map(np.array, orthogonalise(params, R, {'embed/tokens': -1}))
    layers = twin['layers']
    for part, name, gain in (('attn', 'o', 'attn_post_norm'), ('mlp', 'down', 'mlp_post_norm')):
      for l in range(config.n_layers):
        # r . (g * W x / rms) = (g * r) . W x / rms
        through = (layers[gain]['scale'][l] + config.norm_offset) * UNIT
        q, W = through / np.linalg.norm(through), layers[part][name][l]
        W -= (W @ q)[..., None] * q
    found, acts = read_stream(untied)(twin, TOKENS)
    for x in acts.values():
      assert np.abs(x @ UNIT).max() < 1e-10
    assert np.abs(found - removed).max() > 1e-3


def test_matrices_in_any_layout_are_found_by_their_path():
  random = np.random.default_rng(1)
  layers = [
    {'o': {'weight': random.standard_normal((16, 3))}, 'q': random.standard_normal((3, 16))}
    for _ in 'ab'
  ]
  params = {'embed': random.standard_normal((5, 16)), 'layers': layers}
  twin = orthogonalise(params, R, {'embed': 1, 'layers/*/o/weight': 0})
  with pytest.raises(SteeringError, match='no parameter has the path'):
    orthogonalise(params, R, {'layers/*/weight': 0})  # a star stands for one part
  assert np.abs(twin['embed'] @ UNIT).max() < 1e-5
  for old, new in zip(layers, twin['layers']):
    expected = (np.eye(16) - np.outer(UNIT, UNIT)) @ old['o']['weight']
    np.testing.assert_allclose(new['o']['weight'], expected, rtol=0, atol=1e-5)
    assert new['q'] is old['q']


@pytest.mark.parametrize(
  ('table', 'words'),
  [
    ({}, 'table of writers is empty'),
    ({'embed/tokens': -1, 'layers/attn/out': -1}, "no parameter has the path 'layers/attn/out'"),
    ({'embed/tokens': 0}, 'axis 0 is not of the size 16'),
    ({'embed/tokens': 2}, 'axis 2'),
    ({'embed/tokens': -1, 'embed/*': 0}, 'has the axes'),
  ],
)
def test_a_table_that_does_not_fit_is_refused(table, words):
  with pytest.raises(SteeringError, match=words):
    orthogonalise(decoders.params('neox'), R, table)


@pytest.mark.parametrize('scale', [1e-42, 1e-300])
def test_a_direction_of_any_length_has_the_same_twin(scale):
  params = {'w': np.random.default_rng(2).standard_normal((4, 16)).astype(np.float32)}
  found, expected = (orthogonalise(params, r, {'w': 1})['w'] for r in (scale * R, R))
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_a_direction_of_zeros_is_refused():
  with pytest.raises(SteeringError, match='is zero'):
    orthogonalise(decoders.params('neox'), np.zeros(16), {'embed/tokens': -1})
