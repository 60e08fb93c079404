"""A frozen run is what the parameters say, is refused where the model is of another kind, and ignores padding."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechjax import harvest, sae, sites
from mechjax.circuits import (
  CrossLayerReplacement,
  Frozen,
  Maps,
  Neurons,
  Replacement,
  attribute_rows,
  features,
  logits,
)
from mechjax.errors import CircuitError
from mechjax.sae import CrossLayerTopK
from tests.circuits import small
from tests.models import decoders


@pytest.mark.parametrize('name', ['gpt2', 'gemma', 'attn-only'])
def test_maps_are_those_of_the_parameters(name):
  with jax.enable_x64(True):
    maps, config = small.maps(name), decoders.CONFIGS[name]
    layers = decoders.params(name, 'float64')['layers']
    np.testing.assert_allclose(maps.values.weight, layers['attn']['v'], atol=1e-12)
    np.testing.assert_allclose(maps.outputs.weight, layers['attn']['o'], atol=1e-12)
    np.testing.assert_allclose(
      maps.outputs.bias, layers['attn'].get('o_bias', jnp.zeros((2, 16))), atol=1e-12
    )
    if name == 'attn-only':
      return
    np.testing.assert_allclose(
      maps.mlp_norm.gain, layers['mlp_norm']['scale'] + config.norm_offset, rtol=1e-9
    )
    assert maps.mlp_norm.centred.tolist() == [config.norm == 'layer'] * 2
    np.testing.assert_allclose(maps.neurons.down.weight, layers['mlp']['down'], atol=1e-12)
    assert (maps.attn_post is None) == (not config.post_norms)


def test_neurons_leave_no_error_and_no_dictionary_leaves_all():
  with jax.enable_x64(True):
    outputs = jnp.stack([small.acts('gemma')[f'mlp_raw.{l}'][0] for l in range(2)])
    whole = small.frozen('gemma', 'neurons')
    assert np.abs(whole.errors).max() < 1e-12
    assert len(whole.features) == 2 * 9 * 20
    some = small.frozen('gemma', 'some neurons')
    assert len(some.features) == 2 * 9 * 5
    assert np.linalg.norm(some.errors) < np.linalg.norm(outputs)
    none = small.frozen('gemma', 'nothing')
    expected = jnp.stack([small.acts('gemma')[f'mlp_out.{l}'][0] for l in range(2)])
    np.testing.assert_allclose(none.errors, expected, atol=1e-12)


def test_gradients_of_neurons_are_those_of_the_mlp():
  with jax.enable_x64(True):
    frozen, layer, t, i = small.frozen('gemma', 'neurons'), 1, 3, 7
    index = np.flatnonzero(
      (frozen.features.layer == layer)
      & (frozen.features.position == t)
      & (frozen.features.latent == i)
    )
    p = jax.tree.map(lambda x: x[layer], decoders.params('gemma', 'float64')['layers']['mlp'])

    def neuron(h):
      return jax.nn.gelu(h @ p['gate'][:, i], approximate=True) * (h @ p['up'][:, i])

    h = small.acts('gemma')['mlp_norm.1'][0, t]
    found = features(frozen, index)
    scale = frozen.maps.mlp_norm.gain[layer] * frozen.scales.mlp_norm[layer, t]
    np.testing.assert_allclose(found.vector[0], jax.grad(neuron)(h) * scale, rtol=1e-9)
    np.testing.assert_allclose(found.value[0], neuron(h), rtol=1e-9)


CLT = CrossLayerTopK(n_layers=2, d_in=16, d_out=16, width=12, k=5, skip=True)


def clt_params():
  random = np.random.default_rng(3)
  shapes = {'W_enc': (2, 16, 12), 'b_enc': (2, 12), 'b_dec': (2, 16), 'W_skip': (2, 16, 16)}
  shapes |= {'W_dec_0': (12, 2, 16), 'W_dec_1': (12, 1, 16)}
  return {n: jnp.asarray(random.standard_normal(s), 'float32') for n, s in shapes.items()}


def five_largest(z):
  kept = np.maximum(z, 0)
  return np.where(kept >= np.sort(kept, -1)[:, -5:-4], kept, 0)


def test_features_of_a_cross_layer_transcoder_write_to_all_layers_above():
  with jax.enable_x64(True):
    params, clt = decoders.params('gemma', 'float64'), clt_params()
    frozen = Frozen.of(
      small.forward('gemma'), params, small.TOKENS[:1], CrossLayerReplacement(CLT, clt),
      maps=small.maps('gemma'),
    )  # fmt: skip
    f, values = frozen.features, small.acts('gemma')
    inputs = [np.asarray(values[f'mlp_norm.{l}'][0]) for l in range(2)]
    active = [
      five_largest(x @ np.asarray(clt['W_enc'][l]) + np.asarray(clt['b_enc'][l]))
      for l, x in enumerate(inputs)
    ]
    assert len(f) == sum((a > 0).sum() for a in active)
    written = active[0] @ np.asarray(clt['W_dec_0'][:, 1]) + active[1] @ np.asarray(
      clt['W_dec_1'][:, 0]
    )
    written = written + inputs[1] @ np.asarray(clt['W_skip'][1])
    rest = np.asarray(values['mlp_out.1'][0]) - written - np.asarray(clt['b_dec'][1])
    np.testing.assert_allclose(frozen.errors[1], rest, atol=1e-4)
    targets = logits(frozen, 0.9)
    rows = attribute_rows(frozen, targets)
    assert np.abs(rows.total() - targets.value).max() < 1e-10
    with pytest.raises(CircuitError, match='model of 3 layers of width 16'):
      CrossLayerReplacement(CLT, clt).check(3, 16)


def test_maps_of_a_short_prompt_serve_a_longer_one():
  """The prompt has more positions, and a layer more neurons at a position, than the maps have slots."""
  with jax.enable_x64(True):
    run, params = small.forward('gemma'), decoders.params('gemma', 'float64')
    maps = Maps.of(run, params, small.TOKENS[:, :4], neurons=True)
    frozen = Frozen.of(run, params, small.TOKENS[:1], Neurons(), maps=maps)
    index = np.arange(0, len(frozen.features), 7)
    found, expected = features(frozen, index), features(small.frozen('gemma', 'neurons'), index)
    np.testing.assert_allclose(found.vector, expected.vector, atol=1e-10)
    targets = logits(frozen)
    assert np.abs(attribute_rows(frozen, targets).total() - targets.value).max() < 1e-10


@pytest.mark.parametrize('left', [True, False])
def test_padding_is_removed(left):
  with jax.enable_x64(True):
    params, pad = decoders.params('gemma', 'float64'), 3
    row = np.asarray(small.TOKENS[0])
    fill = np.full(pad, 7, row.dtype)
    tokens = np.stack([np.concatenate([fill, row] if left else [row, fill]), np.resize(row, 12)])
    mask = np.stack([np.arange(12) >= pad if left else np.arange(12) < 9, np.ones(12, bool)])
    alone = small.frozen('gemma')
    found, other = Frozen.batch(
      small.forward('gemma'), params, tokens, small.transcoders(), mask, maps=small.maps('gemma')
    )
    assert len(other.tokens) == 12
    np.testing.assert_array_equal(found.tokens, alone.tokens)
    np.testing.assert_array_equal(found.features.latent, alone.features.latent)
    for name in ('probs', 'embed', 'errors', 'stream'):
      np.testing.assert_allclose(getattr(found, name), getattr(alone, name), atol=1e-10)


# --- models that cannot be frozen


def toy(params, tokens, gate=False, squash=False, values=False):
  """A tagged model of one layer: attention over RMS norms, and changes that break its frozen form."""
  x = harvest.sow(params['E'][tokens], name='embed')
  with sites.layer(0):
    x = harvest.sow(x, name='resid_pre')
    h = x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6)
    h = harvest.sow(jnp.tanh(x) if squash else h, name='attn_norm')
    v = jnp.einsum('btd,dkh->btkh', h, params['V'])
    v = v / jnp.sqrt(jnp.mean(v**2, -1, keepdims=True) + 1e-6) if values else v
    v = harvest.sow(v, name='v')
    T = tokens.shape[1]
    probs = jnp.tril(jnp.ones((T, T))) / jnp.arange(1.0, T + 1)[:, None]
    probs = harvest.sow(jnp.broadcast_to(probs, (len(tokens), 2, T, T)), name='attn_probs')
    z = jnp.einsum('bnts,bsnh->btnh', probs, v)
    z = z * jax.nn.sigmoid(h.mean(-1))[:, :, None, None] if gate else z
    z = harvest.sow(z, name='z')
    out = harvest.sow(jnp.einsum('btnh,nhd->btd', z, params['O']), name='attn_out')
    x = harvest.sow(x + out, name='resid_post')
  x = x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6)
  return harvest.sow(harvest.sow(x, name='final_norm') @ params['U'], name='logits')


def toy_params():
  shapes = {'E': (11, 8), 'V': (8, 2, 3), 'O': (2, 3, 8), 'U': (8, 11)}
  random = np.random.default_rng(0)
  return {n: jnp.asarray(random.standard_normal(s), 'float32') for n, s in shapes.items()}


TOY_TOKENS = np.array([[3, 1, 4, 1, 5]])


class Unhashable:
  """A model that is a pytree of its arrays, as those of equinox are."""

  __hash__ = None

  def __call__(self, params, tokens):
    return toy(params, tokens)


@pytest.mark.parametrize('forward', [toy, Unhashable()])
def test_a_toy_of_one_layer_is_frozen(forward):
  frozen = Frozen.of(forward, toy_params(), TOY_TOKENS, Replacement({}))
  targets = logits(frozen)
  rows = attribute_rows(frozen, targets)
  np.testing.assert_allclose(rows.total(), targets.value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
  ('change', 'site'), [('gate', 'z'), ('squash', 'attn_norm'), ('values', 'v')]
)
def test_a_model_of_another_kind_is_refused_with_the_site(change, site):
  def changed(params, tokens):
    return toy(params, tokens, **{change: True})

  with pytest.raises(CircuitError, match=f"'{site}' is not a") as e:
    Frozen.of(changed, toy_params(), TOY_TOKENS, Replacement({}))
  assert e.value.where == site


def test_maps_of_other_parameters_are_refused():
  maps = Maps.of(toy, toy_params(), TOY_TOKENS)
  other = {**toy_params(), 'V': toy_params()['V'] * 1.01}
  with pytest.raises(CircuitError, match="'v' is not a map"):
    Frozen.of(toy, other, TOY_TOKENS, Replacement({}), maps=maps)


def test_values_of_16_bits_are_refused_with_the_remedy():
  def run(params, tokens):
    with jax.numpy_dtype_promotion('standard'):
      return small.forward('gpt2')(params, tokens)

  params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), decoders.params('gpt2'))
  with pytest.raises(CircuitError, match='bfloat16') as e:
    Frozen.of(run, params, small.TOKENS[:1], Replacement({}))
  assert 'float32' in e.value.hint


def test_a_model_without_a_site_is_refused():
  def untagged(params, tokens):
    return params['E'][tokens] @ params['U']

  with pytest.raises(CircuitError, match='no site'):
    Frozen.of(untagged, toy_params(), TOY_TOKENS, Replacement({}))


def wide():
  tc = sae.TopK(d_in=8, d_out=8, width=4, k=2)
  return tc, tc.init(jax.random.key(0))


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: Replacement({'resid_mid.0': small.transcoder(0)}), 'resid_mid.0'),
    (
      lambda: Replacement({'mlp_norm.0': small.transcoder(0)}, {'mlp_norm.0': 'mlp_out.1'}),
      'another layer',
    ),
    (lambda: Replacement({}, {'mlp_norm.0': 'mlp_out.0'}), 'no dictionary'),
    (
      lambda: Replacement({'mlp_norm.0': (sae.ReLU(d_in=16, width=4, sparsity=1.0), {})}),
      'autoencoder',
    ),
    (lambda: Replacement({'mlp_norm.7': small.transcoder(0)}).check(2, 16), '2 layers'),
    (lambda: Replacement({'mlp_norm.0': wide()}).check(2, 16), 'width 8 to 8'),
    (lambda: Neurons(top=0), 'top=0'),
  ],
)
def test_dictionaries_that_do_not_fit_are_refused(make, message):
  with pytest.raises(CircuitError, match=message):
    make()


def test_inputs_that_do_not_fit_are_refused():
  run, params = small.forward('gpt2'), decoders.params('gpt2')
  maps, replaced = small.maps('gpt2', 'float32'), small.transcoders()
  with pytest.raises(CircuitError, match='for one prompt'):
    Frozen.of(run, params, small.TOKENS, replaced, maps=maps)
  with pytest.raises(CircuitError, match='tokens of shape'):
    Frozen.batch(run, params, small.TOKENS[0], replaced, maps=maps)
  with pytest.raises(CircuitError, match='mask'):
    Frozen.batch(run, params, small.TOKENS, replaced, np.zeros((2, 9), bool), maps=maps)
  with pytest.raises(CircuitError, match='budget'):
    Frozen.of(run, params, small.TOKENS[:1], replaced, maps=maps, budget=100)
  bare = dataclasses.replace(maps, neurons=None)
  with pytest.raises(CircuitError, match='neurons read and write'):
    Frozen.of(run, params, small.TOKENS[:1], Neurons(), maps=bare)
  raw = Replacement({'mlp_norm.0': small.transcoder(0)}, {'mlp_norm.0': 'mlp_raw.0'})
  with pytest.raises(CircuitError, match='no post-norms'):
    Frozen.of(run, params, small.TOKENS[:1], raw, maps=maps)
  with pytest.raises(CircuitError, match='maps of'):
    Frozen.of(run, params, small.TOKENS[:1], replaced, maps=small.maps('neox', 'float32'))


def test_features_that_are_not_affine_are_refused():
  class Squared(sae.ReLU):
    def encode(self, params, x):
      return super().encode(params, x) ** 2

  tc = Squared(d_in=16, d_out=16, width=4, sparsity=1.0)
  replaced = Replacement({'mlp_norm.0': (tc, tc.init(jax.random.key(0)))})
  run, params = small.forward('gpt2'), decoders.params('gpt2')
  with pytest.raises(CircuitError, match='differ from x @ W_enc'):
    Frozen.of(run, params, small.TOKENS[:1], replaced, maps=small.maps('gpt2', 'float32'))
