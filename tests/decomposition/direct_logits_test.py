"""Direct logit attribution: parts in NumPy from the weights, sums that are the model's logits, and refusals."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechjax import harvest
from mechjax.decomposition import PartWeights, attribute_logits, split_part
from mechjax.decomposition.direct_logits import SITES
from mechjax.errors import CircuitError, MechjaxError, NeuronError
from mechjax.models.part_weights import take_part_weights
from mechjax.models.readers import take_readout
from mechjax.neurons import Readout
from tests.circuits import models

NAMES = sorted(models.CONFIGS)
TOKENS, OTHERS, AT = [4, 17], [9, 2], np.array([8, 5])
ROWS = np.arange(2)


@pytest.fixture(autouse=True)
def wide():
  with jax.enable_x64(True):
    yield


@functools.cache
def readout(name):
  return Readout.of(**take_readout(models.params(name), models.CONFIGS[name]))


@functools.cache
def weights(name):
  return PartWeights.of(**take_part_weights(models.params(name), models.CONFIGS[name]))


@functools.cache
def acts(name):
  wanted = SITES if models.CONFIGS[name].d_mlp else 'embed, attn_out, resid_post, z, logits'
  run = harvest.reap(functools.partial(models.apply, name), sites=wanted)
  return run(models.params(name), jnp.asarray(models.TOKENS))


def attribute(name, *args, **options):
  return attribute_logits(acts(name), readout(name), *args, **{'positions': AT} | options)


def tree(name):
  return jax.tree.map(np.asarray, models.params(name))


def logits(name):
  """The model's logits before a cap, [B, V]."""
  found, cap = (
    np.asarray(models.sites(name)['logits'])[ROWS, AT],
    models.CONFIGS[name].logit_softcap,
  )
  return found if cap is None else cap * np.arctanh(found / cap)


def read_out(name, vectors, tokens=TOKENS, others=OTHERS):
  """Differences of the logits of vectors [..., B, D] at the scale of the final norm, without biases."""
  c, p = models.CONFIGS[name], tree(name)
  W_U = p['embed']['tokens'].T if c.tied else p['unembed']['kernel']
  centre = (lambda x: x - x.mean(-1, keepdims=True)) if c.norm == 'layer' else (lambda x: x)
  x = centre(np.asarray(models.sites(name)['resid_post.1'])[ROWS, AT])
  if c.final_norm:
    s = np.sqrt((x**2).mean(-1, keepdims=True) + c.norm_eps)
    vectors = centre(vectors) / s * (p['final_norm']['scale'] + c.norm_offset)
  out = vectors @ W_U
  return out[..., ROWS, tokens] - (out.mean(-1) if others is None else out[..., ROWS, others])


def write_out(name, kind, layer, vectors):
  """Vectors before the norm after a matrix, [..., B, D], as they reach the stream with its scale held."""
  c, layers = models.CONFIGS[name], tree(name)['layers']
  if not c.post_norms:
    return vectors
  matrix, site = ('o', 'z') if kind == 'attn' else ('down', 'mlp_post')
  inputs = np.asarray(models.sites(name)[f'{site}.{layer}'])[ROWS, AT].reshape(2, -1)
  raw = inputs @ layers[kind][matrix][layer].reshape(inputs.shape[1], -1)
  r = 1 / np.sqrt((raw**2).mean(-1, keepdims=True) + c.norm_eps)
  return vectors * r * (layers[f'{kind}_post_norm']['scale'][layer] + c.norm_offset)


@pytest.mark.parametrize('name', NAMES)
def test_the_books_are_complete(name):
  raw = logits(name)
  found = attribute(name, TOKENS, OTHERS)
  np.testing.assert_allclose(
    found.total, raw[ROWS, TOKENS] - raw[ROWS, OTHERS], rtol=1e-9, atol=1e-10
  )
  single = attribute(name, TOKENS)
  np.testing.assert_allclose(single.total, raw[ROWS, TOKENS] - raw.mean(1), rtol=1e-9, atol=1e-10)
  for effects in (found, single):
    names, values = effects.name_parts()
    np.testing.assert_allclose(values.sum(0), effects.total, rtol=1e-9, atol=1e-10)
    assert len(set(names)) == len(names) == 2 + 2 * (1 + bool(models.CONFIGS[name].d_mlp))
  np.testing.assert_allclose(found.rounding, 0, rtol=0, atol=1e-10)


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('others', [OTHERS, None])
def test_layers_are_read_out_as_in_numpy(name, others):
  found, sites = attribute(name, TOKENS, others), models.sites(name)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-10)
  read = functools.partial(read_out, name, others=others)
  close(found.embed, read(np.asarray(sites['embed'])[ROWS, AT]))
  for l in range(2):
    close(found.attn[l], read(np.asarray(sites[f'attn_out.{l}'])[ROWS, AT]))
    if found.mlp_layers:
      close(found.mlp[l], read(np.asarray(sites[f'mlp_out.{l}'])[ROWS, AT]))


@pytest.mark.parametrize('name', NAMES)
def test_heads_and_neurons_are_read_out_as_in_numpy(name):
  found, sites, layers = (
    attribute(name, TOKENS, OTHERS, weights=weights(name)),
    models.sites(name),
    tree(name)['layers'],
  )
  close = functools.partial(np.testing.assert_allclose, rtol=1e-8, atol=1e-10)
  zero = np.zeros(16)
  for l in range(2):
    z, W_O = np.asarray(sites[f'z.{l}'])[ROWS, AT], layers['attn']['o'][l]
    for n in range(4):
      close(found.heads[l, n], read_out(name, write_out(name, 'attn', l, z[:, n] @ W_O[n])))
    bias = layers['attn'].get('o_bias', [zero, zero])[l]
    close(found.attn_rest[l], read_out(name, write_out(name, 'attn', l, np.tile(bias, (2, 1)))))
    close(found.heads[l].sum(0) + found.attn_rest[l], found.attn[l])
    if not found.mlp_layers:
      continue
    a, W_out = np.asarray(sites[f'mlp_post.{l}'])[ROWS, AT], layers['mlp']['down'][l]
    for f in (0, 7, 19):
      close(
        found.neurons[l, f], read_out(name, write_out(name, 'mlp', l, a[:, f, None] * W_out[f]))
      )
    bias = layers['mlp'].get('down_bias', [zero, zero])[l]
    close(found.mlp_rest[l], read_out(name, write_out(name, 'mlp', l, np.tile(bias, (2, 1)))))
    close(found.neurons[l].sum(0) + found.mlp_rest[l], found.mlp[l])
  if name == 'attn-only':
    assert found.neurons is None


@pytest.mark.parametrize('name', ['gpt2', 'gemma'])
def test_results_of_heads_sum_to_the_output_of_the_attention(name):
  sites, W = models.sites(name), weights(name)
  z, out = (jnp.stack([sites[f'{s}.{l}'][0] for l in range(2)]) for s in ('z', 'attn_out'))
  part = split_part(W.heads, z.reshape(2, 9, -1), out)
  results = np.asarray(part.write(4))
  bias = tree(name)['layers']['attn'].get('o_bias', np.zeros((2, 16)))[:, None]
  rest = bias * part.gain[:, None] * part.scale[..., None]
  np.testing.assert_allclose(results.sum(2) + rest, out, rtol=1e-9, atol=1e-10)
  single = np.einsum('bh,hd->bd', z[1, :, 2], tree(name)['layers']['attn']['o'][1, 2])
  np.testing.assert_allclose(
    results[1, :, 2], single * part.gain[1] * part.scale[1][:, None], rtol=1e-9, atol=1e-12
  )
  with pytest.raises(CircuitError, match='24 inputs are not a multiple of 5 parts'):
    part.write(5)


def test_single_precision_has_small_differences():
  with jax.enable_x64(False):
    params = jax.tree.map(lambda x: x.astype(jnp.float32), models.params('gemma'))
    wanted = SITES
    found = harvest.reap(functools.partial(models.apply, 'gemma'), sites=wanted)(
      params, jnp.asarray(models.TOKENS)
    )
    config = models.CONFIGS['gemma']
    effects = attribute_logits(
      found, Readout.of(**take_readout(params, config)), TOKENS, OTHERS, positions=AT,
      weights=PartWeights.of(**take_part_weights(params, config)),
    )  # fmt: skip
  exact = attribute('gemma', TOKENS, OTHERS, weights=weights('gemma'))
  np.testing.assert_allclose(effects.heads, exact.heads, rtol=0, atol=1e-4)
  np.testing.assert_allclose(effects.total, exact.total, rtol=0, atol=1e-4)


def test_one_token_serves_all_rows():
  found, each = attribute('gpt2', 4), attribute('gpt2', [4, 4])
  np.testing.assert_array_equal(found.total, each.total)


# --- refusals -------------------------------------------------------------------------------------------------


def reap(name, wanted, plants=None):
  run = harvest.harvest(functools.partial(models.apply, name), sites=wanted)
  return run(plants or {}, models.params(name), jnp.asarray(models.TOKENS))[1]


@pytest.mark.parametrize(
  ('wanted', 'message'),
  [
    ('attn_out, mlp_out, resid_post', 'embed was not read'),
    ('embed, attn_out, mlp_out', 'resid_post was not read'),
    ('embed, attn_out, resid_post', 'differs from the final resid_post'),
    ('embed, attn_out, mlp_out.0, resid_post', 'differs from the final resid_post'),
    ('embed, attn_out, mlp_out, resid_post.0', 'differs from the final resid_post'),
  ],
)
def test_missing_parts_are_refused(wanted, message):
  with pytest.raises(CircuitError, match=message):
    attribute_logits(reap('gpt2', wanted), readout('gpt2'), 4)


def test_a_readout_of_another_model_is_refused():
  with pytest.raises(NeuronError, match='log-probabilities of the readout'):
    attribute_logits(acts('gpt2'), readout('neox'), 4)
  narrow = Readout.of(None, np.ones((8, 5)) * np.arange(5), 0.0, 'none')
  with pytest.raises(CircuitError, match='width 16 for a readout of width 8'):
    attribute_logits(acts('gpt2'), narrow, 4)


@pytest.mark.parametrize('kind', ['heads', 'neurons'])
def test_weights_of_other_layers_and_forgotten_biases_are_refused(kind):
  plain = weights('gpt2')
  part = getattr(plain, kind)
  swapped = dataclasses.replace(part, matrix=part.matrix[::-1])
  for wrong in (swapped, dataclasses.replace(part, bias=None)):
    with pytest.raises(CircuitError, match=r'_out from its inputs differs(.|\n)*of layer, row'):
      attribute('gpt2', 4, weights=dataclasses.replace(plain, **{kind: wrong}))
  without_norm = getattr(weights('gemma'), kind)
  wrong = dataclasses.replace(
    weights('gemma'), **{kind: dataclasses.replace(without_norm, gain=None)}
  )
  with pytest.raises(CircuitError, match='_out from its inputs differs'):
    attribute('gemma', 4, weights=wrong)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'tokens': 31}, 'tokens=31'),
    ({'tokens': [1, 2, 3]}, 'tokens has 3 ids for 2 rows'),
    ({'tokens': 4, 'others': -1}, 'others=-1'),
    ({'tokens': 4, 'positions': 9}, 'positions=9'),
    (
      {'tokens': 4, 'mask': np.arange(9) < np.array([[9], [8]]), 'positions': -1},
      'padding in row 1',
    ),
  ],
)
def test_targets_and_positions_that_do_not_exist_are_refused(options, message):
  with pytest.raises(CircuitError, match=message):
    attribute_logits(acts('gpt2'), readout('gpt2'), **options)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'W_O': np.ones((2, 4, 6))}, 'W_O has shape'),
    ({'attn_bias': np.ones((2, 15))}, 'attn_bias has 15 at axis D'),
    ({'W_out': np.ones((2, 20, 15))}, 'W_out has 15 at axis D'),
    ({'W_out': None}, 'mlp_bias or mlp_gain without W_out'),
  ],
)
def test_weights_that_do_not_fit_are_refused(changes, message):
  given = take_part_weights(models.params('gpt2'), models.CONFIGS['gpt2'])
  with pytest.raises(CircuitError, match=message):
    PartWeights.of(**given | changes)


def test_only_our_decoder_knows_its_weights():
  with pytest.raises(MechjaxError, match='upstream code'):
    take_part_weights({}, None)
  config = dataclasses.replace(models.CONFIGS['gpt2'], post_norms=True)
  with pytest.raises(MechjaxError, match='no such model is known'):
    take_part_weights({}, config)
