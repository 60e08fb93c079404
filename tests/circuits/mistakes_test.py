"""Mistakes that would give a number all the same: targets, graphs, indices and weights of something else."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechjax import harvest, sae, sites
from mechjax.circuits import (
  CrossLayerReplacement,
  Frozen,
  Intervention,
  Maps,
  Neurons,
  Replacement,
  Targets,
  attribute,
  attribute_rows,
  constrain,
  difference,
  direct_weights,
  features,
  head_loadings,
  head_weights,
  logits,
  probe,
  qk_attribution,
)
from mechjax.circuits.graph_export import as_data
from mechjax.circuits.recursion import recurse
from mechjax.decomposition import direction
from mechjax.errors import CircuitError, SAEError
from tests.circuits import small
from tests.circuits.frozen_test import CLT, clt_params
from tests.models import decoders


@pytest.fixture(autouse=True)
def _float64():
  with jax.enable_x64(True):
    yield


@functools.cache
def of_heads():
  """The direction of a latent of an attention dictionary."""
  one = sae.TopK(d_in=24, width=20, k=3)
  return direction(one, one.init(jax.random.key(0)), 7, 4)


def freeze(name='gemma', tokens=small.TOKENS[:1], replaced=None, params=None):
  params = decoders.params(name, 'float64') if params is None else params
  replaced = small.transcoders() if replaced is None else replaced
  return Frozen.of(small.forward(name), params, tokens, replaced, maps=small.maps(name))


def change(name, part, key, function):
  params = decoders.params(name, 'float64')
  layers = params['layers']
  part_of = layers[part] | {key: function(layers[part][key])}
  return params | {'layers': layers | {part: part_of}}


@pytest.mark.parametrize('tokens', [small.TOKENS[1:], small.TOKENS[1:, :4]])
def test_targets_and_graphs_of_another_prompt_are_refused(tokens):
  own, other = small.frozen('gemma'), freeze(tokens=tokens)
  targets = logits(own)
  graph = attribute(own, targets, rows=2)
  for use in (
    lambda: attribute_rows(other, targets),
    lambda: attribute(other, targets, rows=0),
    lambda: constrain(other, {0: 0.0}, targets),
    lambda: Intervention(
      small.forward('gemma'), decoders.params('gemma', 'float64'), other
    ).semi_free({0: 0.0}, targets),
  ):
    with pytest.raises(CircuitError, match='targets of another prompt'):
      use()
  with pytest.raises(CircuitError, match='graph of another run'):
    head_loadings(other, graph, 0, logits(other))


def test_indices_of_features_are_whole_numbers():
  frozen = small.frozen('gemma')
  for wrong in (frozen.features.layer == 1, [1.7], ['1']):
    for use in (
      lambda wrong=wrong: features(frozen, wrong),
      lambda wrong=wrong: direct_weights(frozen, wrong, [40]),
      lambda wrong=wrong: head_weights(frozen, 1, [0], wrong),
    ):
      with pytest.raises(CircuitError, match='indices of features'):
        use()
  with pytest.raises(CircuitError, match='feature -1 of'):
    features(frozen, [-1, 2])
  assert len(features(frozen, [])) == 0
  targets = logits(frozen)
  for wrong in ({1.5: 0.0}, {True: 0.0}, {'1': 0.0}):
    with pytest.raises(CircuitError, match='should be a whole number'):
      constrain(frozen, wrong, targets)
  for wrong in ({1: None}, {1: 'a'}, {1: 1j}, {1: [0.0, 1.0]}, [1], {}):
    with pytest.raises(CircuitError, match='finite factor'):
      constrain(frozen, wrong, targets)


def test_numbers_of_a_wrong_type_are_refused():
  frozen = small.frozen('gemma')
  graph = attribute(frozen, logits(frozen), rows=1)
  for use in (
    lambda: attribute(frozen, rows=2.5),
    lambda: attribute(frozen, rows=True),
    lambda: attribute(frozen, batch=2.5),
    lambda: logits(frozen, position=1.5),
    lambda: logits(frozen, position=None),
    lambda: logits(frozen, at_most=1.5),
    lambda: difference(frozen, 1.5, 3),
    lambda: difference(frozen, ' Paris', ' Tokyo'),
    lambda: graph.node(0.5),
    lambda: head_loadings(frozen, graph, 0.5, graph.targets),
    lambda: head_loadings(frozen, graph, 0, graph.targets, 0.5),
    lambda: as_data(graph, ['a'] * 9, target=0.5),
    lambda: Neurons(top=True),
  ):
    with pytest.raises(CircuitError, match='should be a whole number'):
      use()
  with pytest.raises(CircuitError, match=r"mass='0\.9'"):
    logits(frozen, '0.9')
  for wrong in (np.ones(16) * 1j, np.array(['a'] * 16)):
    with pytest.raises(CircuitError, match='finite real numbers'):
      probe(frozen, 'resid_mid.0', -1, wrong)
  assert Neurons(top=np.int64(3)).top == 3
  read = of_heads()
  for options in ({'layer': 1.5}, {'layer': 'a'}, {'layer': 1, 'position': None}):
    with pytest.raises(CircuitError, match='should be a whole number'):
      recurse(frozen, read, **options)
  with pytest.raises(CircuitError, match='direction is a'):
    recurse(frozen, read.vector, layer=1)
  with pytest.raises(CircuitError, match='different lengths'):
    freeze(tokens=[[1, 2, 3], [1, 2]])


def test_functions_that_check_values_say_so_under_jit():
  frozen = small.frozen('gemma')
  targets = logits(frozen)
  with pytest.raises(CircuitError, match='is traced'):
    jax.jit(lambda f: attribute_rows(f, targets).own)(frozen)
  with pytest.raises(CircuitError, match='is traced'):
    jax.vmap(lambda x: constrain(frozen, {0: x}, targets))(jnp.zeros(2))
  with pytest.raises(CircuitError, match='is traced'):
    jax.jit(lambda p: freeze(params=p).errors)(decoders.params('gemma', 'float64'))


def test_what_neurons_write_is_checked_with_some_of_them():
  """The errors would absorb the difference of W_down, and the rows would still sum."""
  params = change('gemma', 'mlp', 'down', lambda x: x[..., ::-1])
  for replaced in (Neurons(), Neurons(top=5)):
    with pytest.raises(CircuitError, match="'mlp_raw' is not a sum of neurons"):
      freeze(replaced=replaced, params=params)


@pytest.mark.parametrize(
  ('part', 'key'), [('attn', 'q'), ('attn', 'k'), ('attn', 'v'), ('mlp', 'up')]
)
def test_a_score_of_other_parameters_is_refused(part, key):
  frozen, params = small.frozen('gpt2'), change('gpt2', part, key, lambda x: x * 1.1)
  with pytest.raises(CircuitError, match='differ from those of the frozen run'):
    qk_attribution(small.forward('gpt2'), params, frozen, 1, 0, 5, 3)


@pytest.mark.parametrize('name', ['gemma', 'neox'])
@pytest.mark.parametrize('kind', ['some neurons', 'skip transcoders', 'cross-layer'])
def test_direct_weights_are_what_reaches_a_feature_without_attention(name, kind):
  """Through the post-norm before which neurons write, over all layers to which a feature writes, and 0 upwards."""
  if kind == 'cross-layer':
    frozen = freeze(name, replaced=CrossLayerReplacement(CLT, clt_params()))
  else:
    frozen = small.frozen(name, kind)
  f, scales = frozen.features, frozen.scales
  blind = dataclasses.replace(frozen, probs=jnp.zeros_like(frozen.probs), skips=None)
  every = np.arange(len(f))
  direct = attribute_rows(blind, features(blind, every)).features.T
  weights = direct_weights(frozen, every, every)
  post = scales.mlp_post if frozen.writes_raw else None
  written = f.activation * (1 if post is None else np.asarray(post)[f.layer, f.position])
  reading = np.asarray(scales.mlp_norm)[f.layer, f.position]
  same = f.position[:, None] == f.position
  expected = np.where(same, written[:, None] * weights * reading, 0)
  np.testing.assert_allclose(direct, expected, atol=1e-9)
  assert np.abs(direct).max() > 1e-3
  heads = head_weights(frozen, 1, every, every)
  assert not heads[:, f.layer == 1].any()
  assert not heads[:, :, f.layer == 0].any()


@pytest.mark.parametrize('part', ['W_dec', 'b_dec', 'W_skip'])
def test_dictionaries_with_nan_are_refused(part):
  tc, params = small.transcoder(0)
  damaged = params | {part: jnp.full_like(params[part], jnp.nan)}
  with pytest.raises(CircuitError, match='NaN or infinite'):
    freeze(replaced=Replacement({'mlp_norm.0': (tc, damaged)}))


def test_dictionaries_that_are_given_wrongly_are_refused():
  tc, params = small.transcoder(0)
  less = {n: x for n, x in params.items() if n != 'W_skip'}
  for wrong, message in (
    ({0: (tc, params)}, 'load_set'),
    ({'mlp_norm.0': tc}, 'a transcoder and its parameters'),
    ({'mlp_norm.0': (params, tc)}, 'a transcoder and its parameters'),
    ({'mlp_norm': (tc, params)}, 'has no layer'),
    ([(tc, params)], 'dictionaries='),
    ({'mlp_norm.0': (tc, less)}, "parameters \\[\\('W_skip', None\\)\\]"),
    ({'mlp_norm.0': (dataclasses.replace(tc, skip=False), params)}, 'W_skip'),
    ({'mlp_norm.0': (dataclasses.replace(tc, width=30), params)}, 'of another dictionary'),
  ):
    with pytest.raises(CircuitError, match=message):
      freeze(replaced=Replacement(wrong))
  for wrong in ((tc, params), {'mlp_norm.0': (tc, params)}, Neurons):
    with pytest.raises(CircuitError, match='stands in for no MLPs'):
      freeze(replaced=wrong)
  with pytest.raises(CircuitError, match='not a cross-layer transcoder'):
    CrossLayerReplacement(tc, params)
  partial = {n: x for n, x in clt_params().items() if n != 'W_dec_1'}
  with pytest.raises(CircuitError, match='W_dec_1'):
    freeze(replaced=CrossLayerReplacement(CLT, partial))


def test_a_dictionary_whose_files_name_another_layer_is_refused(tmp_path):
  tc, params = small.transcoder(0)
  about = {'hook_name': 'mlp_norm.1', 'hook_name_out': 'mlp_out.1'}
  sae.save(tmp_path / 'tc', tc, params, format='mechjax', about=about)
  loaded = sae.load(tmp_path / 'tc')
  assert Replacement({'mlp_norm.1': loaded}).check(2, 16) is None
  with pytest.raises(SAEError, match=r'site mlp_norm\.0, and the dictionary was trained on'):
    Replacement({'mlp_norm.0': loaded})
  with pytest.raises(SAEError, match=r'target mlp_raw\.1, and the dictionary was trained on'):
    Replacement({'mlp_norm.1': loaded}, {'mlp_norm.1': 'mlp_raw.1'})


def test_a_mask_for_a_model_without_one_and_maps_of_another_type_are_refused():
  forward, params = small.forward('gemma'), decoders.params('gemma', 'float64')
  mask = np.ones((1, 9), bool)
  with pytest.raises(CircuitError, match='a model that takes none'):
    Frozen.of(lambda p, x: forward(p, x), params, small.TOKENS[:1], Neurons(top=3), mask)
  with pytest.raises(CircuitError, match=r'maps=Maps\.of'):
    Frozen.of(forward, params, small.TOKENS[:1], small.transcoders(), maps=params)


def test_a_target_of_zero_has_no_shares_and_one_token_at_two_positions_has_two_ids():
  frozen = small.frozen('gemma')
  pieces = ['a'] * 9
  nothing = attribute(frozen, probe(frozen, 'resid_mid.1', -1, np.zeros(16)))
  assert all(node['share'] is None for node in as_data(nothing, pieces)['nodes'])
  two = Targets.join([difference(frozen, 1, 2, position) for position in (3, -1)])
  found = as_data(attribute(frozen, two), pieces)['nodes']
  outputs = [node['id'] for node in found if node['kind'] == 'logit']
  assert outputs == ['logit 1 - 2@3', 'logit 1 - 2@8']


def test_a_model_with_mlps_in_some_layers_is_refused():
  """Values of all layers would be broadcast over those that have an MLP."""

  def mixed(params, tokens):
    x = harvest.sow(params['E'][tokens], name='embed')
    probs = jnp.broadcast_to(jnp.eye(tokens.shape[1]), (len(tokens), 1, *tokens.shape[1:] * 2))
    for layer in range(2):
      with sites.layer(layer):
        x = harvest.sow(x, name='resid_pre')
        v = harvest.sow(harvest.sow(x, name='attn_norm')[:, :, None], name='v')
        z = jnp.einsum('bnts,bsnh->btnh', harvest.sow(probs, name='attn_probs'), v)
        x = x + harvest.sow(harvest.sow(z, name='z')[:, :, 0], name='attn_out')
        if layer == 1:
          x = harvest.sow(x, name='resid_mid')
          x = x + harvest.sow(jnp.tanh(harvest.sow(x, name='mlp_norm')), name='mlp_out')
        x = harvest.sow(x, name='resid_post')
    return harvest.sow(harvest.sow(x, name='final_norm') @ params['E'].T, name='logits')

  with pytest.raises(CircuitError, match="'resid_mid' is at 1 of 2 layers"):
    Maps.of(mixed, {'E': jnp.eye(5)}, np.array([[1, 2, 3]]))
