"""Direct feature attribution: its sums are the pre-activations, its sources what is lost with a value vector."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechjax import harvest, sae
from mechjax.decomposition import attention
from mechjax.errors import CircuitError
from mechjax.models import decoder
from tests.circuits import models

NAMES = sorted(models.CONFIGS)
B, T, N, K, H, M, D = 2, 9, 4, 2, 6, 12, 24
LATENTS = [7, 0, 3]
DICTIONARIES = {
  'relu': sae.ReLU(d_in=D, width=M, sparsity=0.0),
  'topk': sae.TopK(d_in=D, width=M, k=3),
  'batch_topk': sae.BatchTopK(d_in=D, width=M, k=3),
  'jumprelu': sae.JumpReLU(d_in=D, width=M, sparsity=0.0),
  'gated': sae.Gated(d_in=D, width=M, sparsity=0.0),
  'transcoder': sae.TopK(d_in=D, width=M, k=3, d_out=5, skip=True),
}


@pytest.fixture(autouse=True)
def wide():
  with jax.enable_x64(True):
    yield


def parameters(name='relu', seed=0):
  random = np.random.default_rng(seed)
  shapes = jax.eval_shape(DICTIONARIES[name].init, jax.random.key(0))
  return {n: jnp.asarray(random.standard_normal(s.shape), jnp.float64) for n, s in shapes.items()}


def at(name, layer=1, mask=None):
  acts = models.sites(name)
  return {
    'z': acts[f'z.{layer}'], 'v': acts[f'v.{layer}'], 'probs': acts[f'attn_probs.{layer}']
  } | ({} if mask is None else {'mask': mask})  # fmt: skip


def written_out(name, params, z):
  """Pre-activations [B, T, M] of a dictionary in NumPy."""
  p, x = {n: np.asarray(a) for n, a in params.items()}, np.asarray(z).reshape(B, T, D)
  a = (x if name == 'transcoder' else x - p['b_dec']) @ p['W_enc']
  return np.exp(p['r_mag']) * a + p['b_mag'] if name == 'gated' else a + p['b_enc']


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('layer', [0, 1])
def test_heads_and_sources_sum_to_the_pre_activation_in_every_family(name, layer):
  params, sites = parameters(), at(name, layer)
  table = attention.dfa(DICTIONARIES['relu'], params, LATENTS, **sites)
  expected = written_out('relu', params, sites['z'])[..., LATENTS].transpose(2, 0, 1)
  constant = np.asarray(params['b_enc'] - params['b_dec'] @ params['W_enc'])[LATENTS]
  np.testing.assert_allclose(table.constant, constant, rtol=1e-12)
  np.testing.assert_allclose(table.pre_activations(), expected, rtol=1e-10, atol=1e-10)
  for t in range(T):
    sums = table.by_source(t).sum((-1, -2)) + constant[:, None]
    np.testing.assert_allclose(sums, expected[..., t], rtol=1e-10, atol=1e-10)
    heads = table.by_source(t).sum(-1)
    np.testing.assert_allclose(heads, table.by_head[:, :, t], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('name', sorted(DICTIONARIES))
def test_every_architecture_with_an_encoder_is_attributed(name):
  params, sites = parameters(name), at('gemma')
  table = attention.dfa(DICTIONARIES[name], params, range(M), **sites)
  expected = written_out(name, params, sites['z']).transpose(2, 0, 1)
  np.testing.assert_allclose(table.pre_activations(), expected, rtol=1e-10, atol=1e-10)
  active = np.asarray(DICTIONARIES[name].encode(params, sites['z'].reshape(B, T, D)))
  on = active.transpose(2, 0, 1) > 0
  assert on.any()
  np.testing.assert_allclose(active.transpose(2, 0, 1)[on], expected[on], rtol=1e-6)


@pytest.mark.parametrize('name', ['gemma', 'qwen', 'mistral'])
def test_a_source_is_lost_with_its_value_vector_under_the_frozen_pattern(name):
  sites, params, t = at(name), parameters(), 6
  table = attention.dfa(DICTIONARIES['relu'], params, LATENTS, **sites)
  forward = functools.partial(models.apply, name)

  def pre_activations(plants):
    _, acts = harvest.harvest(forward, sites='z.1')(
      {'attn_probs.1': sites['probs'], **plants}, models.params(name), jnp.asarray(models.TOKENS)
    )
    return written_out('relu', params, acts['z.1'])[:, t, LATENTS].T

  plain = pre_activations({})
  by_value = np.asarray(table.by_value(t))
  assert by_value.shape == (3, B, K, T)
  for s, k in ((0, 0), (3, 1), (5, 0), (6, 1)):
    less = pre_activations({'v.1': sites['v'].at[:, s, k].set(0)})
    np.testing.assert_allclose(plain - less, by_value[..., k, s], rtol=1e-9, atol=1e-10)


def test_a_window_has_no_sources_outside_of_it():
  table = attention.dfa(DICTIONARIES['relu'], parameters(), LATENTS, **at('mistral'))
  by_source = np.asarray(table.by_source(7))
  assert (by_source[..., 5:8] != 0).all()
  assert not by_source[..., :5].any()
  assert not by_source[..., 8:].any()


def test_the_first_token_is_reported_apart_and_not_dropped():
  table = attention.dfa(DICTIONARIES['relu'], parameters(), LATENTS, **at('gpt2'))
  first = np.asarray(table.from_first())
  for t in (0, 4, T - 1):
    np.testing.assert_allclose(first[:, :, t], table.by_source(t)[..., 0], rtol=1e-12)
  # The first position sees nothing else.
  np.testing.assert_allclose(first[:, :, 0], table.by_head[:, :, 0], rtol=1e-10)


def test_permuted_heads_permute_the_table():
  """Pairs of query heads that share a value head stay together; their order and the order of groups change."""
  order, groups = [3, 2, 0, 1], [1, 0]
  config, params = models.CONFIGS['qwen'], models.params('qwen')
  attn = params['layers']['attn']
  moved = attn | {
    'q': attn['q'][:, :, order], 'q_bias': attn['q_bias'][:, order], 'o': attn['o'][:, order],
    'k': attn['k'][:, :, groups], 'v': attn['v'][:, :, groups],
    'k_bias': attn['k_bias'][:, groups], 'v_bias': attn['v_bias'][:, groups],
  }  # fmt: skip
  other = params | {'layers': params['layers'] | {'attn': moved}}
  run = harvest.reap(lambda p, t: decoder.forward(p, t, config), sites='z.1, v.1, attn_probs.1')
  acts = run(other, jnp.asarray(models.TOKENS))
  dictionary = parameters()
  columns = np.arange(D).reshape(N, H)[order].reshape(-1)
  twin = dictionary | {'W_enc': dictionary['W_enc'][columns], 'b_dec': dictionary['b_dec'][columns]}
  found = attention.dfa(
    DICTIONARIES['relu'], twin, LATENTS, z=acts['z.1'], v=acts['v.1'], probs=acts['attn_probs.1']
  )
  plain = attention.dfa(DICTIONARIES['relu'], dictionary, LATENTS, **at('qwen'))
  np.testing.assert_allclose(found.by_head, plain.by_head[..., order], rtol=1e-9, atol=1e-12)
  np.testing.assert_allclose(
    found.by_source(5), plain.by_source(5)[:, :, order], rtol=1e-9, atol=1e-12
  )


@pytest.mark.parametrize('side', ['left', 'right'])
def test_a_padded_row_has_the_table_of_its_text_alone(side):
  n = 6
  real = np.ones((B, T), bool)
  real[1] = np.arange(T) >= T - n if side == 'left' else np.arange(T) < n
  tokens = np.where(real, 0, 1).astype(np.int32)
  tokens[real] = np.concatenate([models.TOKENS[0], models.TOKENS[1, :n]])
  run = harvest.reap(functools.partial(models.apply, 'gemma'), sites='z.1, v.1, attn_probs.1')

  def attribute(tokens, mask):
    acts = run(models.params('gemma'), jnp.asarray(tokens), jnp.asarray(mask))
    spoiled = jnp.where(mask[..., None, None], acts['v.1'], jnp.nan)
    return attention.dfa(
      DICTIONARIES['relu'], parameters(), LATENTS, z=acts['z.1'], v=spoiled,
      probs=acts['attn_probs.1'], mask=mask,
    )  # fmt: skip

  padded = attribute(tokens, real)
  alone = attribute(models.TOKENS[1:, :n], np.ones((1, n), bool))
  columns = np.flatnonzero(real[1])
  np.testing.assert_allclose(padded.by_head[:, 1:, columns], alone.by_head, rtol=1e-9, atol=1e-11)
  assert not np.asarray(padded.by_head[:, 1, ~real[1]]).any()
  found = padded.by_source(np.array([T - 1, columns[3]]))
  np.testing.assert_allclose(
    found[:, 1][..., columns], alone.by_source(3)[:, 0], rtol=1e-9, atol=1e-11
  )
  np.testing.assert_allclose(
    padded.from_first()[:, 1, columns], alone.from_first()[:, 0], rtol=1e-9, atol=1e-11
  )
  with pytest.raises(CircuitError, match='is padding in row 1'):
    padded.by_source(np.array([0, np.flatnonzero(~real[1])[0]]))


def test_parameters_of_scaled_inputs_are_folded():
  scale, params, sites = 3.7, parameters(), at('gpt2')
  x = sites['z'].reshape(B, T, D)
  trained = DICTIONARIES['relu'].pre_activations(params, x / scale)
  table = attention.dfa(DICTIONARIES['relu'], params, LATENTS, scale=scale, **sites)
  np.testing.assert_allclose(
    table.pre_activations(),
    scale * trained[..., jnp.asarray(LATENTS)].transpose(2, 0, 1),
    rtol=1e-9,
  )
  with pytest.raises(CircuitError, match=r'scale=3\.7 of a transcoder'):
    attention.dfa(
      DICTIONARIES['transcoder'], parameters('transcoder'), LATENTS, scale=scale, **sites
    )


def test_a_direction_reads_the_stream_at_the_source():
  """W_V and the norm before it, with its scale frozen, give the source table up to the biases."""
  for name in ('gemma', 'neox', 'qwen'):
    config, params, sites = models.CONFIGS[name], parameters(), at(name)
    layers = jax.tree.map(lambda x: np.asarray(x[1]), models.params(name)['layers'])
    table = attention.dfa(DICTIONARIES['relu'], params, [5], **sites)
    found = attention.direction(DICTIONARIES['relu'], params, 5, N)
    assert found.constant == pytest.approx(float(table.constant[0]))
    np.testing.assert_array_equal(found.vector.reshape(-1), params['W_enc'][:, 5])
    norm, centred = layers['attn_norm'], config.norm == 'layer'
    read = found.read_stream(
      layers['attn']['v'], norm['scale'] + config.norm_offset, centred=centred
    )
    x = np.asarray(models.sites(name)['resid_pre.1'])
    apart = x - x.mean(-1, keepdims=True) if centred else x
    r = 1 / np.sqrt((apart**2).mean(-1) + config.norm_eps)
    stream = np.einsum('nd,bsd,bs->bns', read, x, r)
    bias = layers['attn'].get('v_bias', np.zeros((K, H)))
    bias = bias + np.einsum('d,dkh->kh', norm.get('bias', np.zeros(16)), layers['attn']['v'])
    by_head = np.repeat(bias, N // len(bias), 0) if len(bias) < N else bias
    constant = np.einsum('nh,nh->n', found.vector, by_head)
    A = np.asarray(sites['probs'])[:, :, 4]
    np.testing.assert_allclose(
      A * (stream + constant[:, None]), table.by_source(4)[0], rtol=1e-9, atol=1e-10
    )


# --- shares ---------------------------------------------------------------------------------------------------


@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_shares_are_lengths_of_blocks(n_heads, width, seed):
  W = np.random.default_rng(seed).standard_normal((3, n_heads * width)) * 10
  found = attention.head_shares({'W_dec': W, 'W_enc': W.T}, n_heads)
  for i in range(3):
    lengths = [np.linalg.norm(W[i, n * width : (n + 1) * width]) for n in range(n_heads)]
    np.testing.assert_allclose(found[i], np.array(lengths) / sum(lengths), rtol=1e-12)
  np.testing.assert_array_equal(
    attention.head_shares({'W_dec': W, 'W_enc': W.T}, n_heads, [2]), found[2:]
  )


def test_a_row_of_zeros_has_no_shares():
  W = np.eye(3, 4)
  W[1] = 0
  found = attention.head_shares({'W_dec': W, 'W_enc': W.T}, 2)
  assert np.isnan(found[1]).all()
  assert found[[0, 2]].tolist() == [[1, 0], [0, 1]]


# --- refusals -------------------------------------------------------------------------------------------------


def test_gated_attention_is_refused():
  sites = at('qwen')
  gate = np.ones((B, T, N, H))
  gate[1, 4, 2] = 0.9
  with pytest.raises(CircuitError, match=r'differs from sum_s A v(.|\n)*row 1, position 4, head 2'):
    attention.dfa(DICTIONARIES['relu'], parameters(), LATENTS, **sites | {'z': sites['z'] * gate})
  with pytest.raises(CircuitError, match='differs from sum_s A v'):
    attention.dfa(DICTIONARIES['relu'], parameters(), LATENTS, **sites | {'v': at('qwen', 0)['v']})


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_rounding_is_not_a_gate(dtype):
  sites = {n: x.astype(dtype) for n, x in at('gemma').items()}
  params = {n: x.astype('float32') for n, x in parameters().items()}
  table = attention.dfa(DICTIONARIES['relu'], params, LATENTS, **sites)
  assert table.by_head.dtype == jnp.float32
  exact = attention.dfa(DICTIONARIES['relu'], parameters(), LATENTS, **at('gemma'))
  atol = 1e-5 if dtype == 'float32' else 0.2
  np.testing.assert_allclose(table.by_head, exact.by_head, rtol=0, atol=atol)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'latents': [12]}, 'should be from 0 to 11'),
    ({'latents': []}, 'a list of them'),
    ({'latents': [0.5]}, 'a list of them'),
    ({'sae': dataclasses.replace(DICTIONARIES['relu'], d_in=20)}, 'another site'),
    ({'sae': sae.Pursuit}, 'no encoder'),
    ({'params': 'topk of an ensemble'}, r'W_enc has shape \[2'),
    ({'z': np.zeros((B, T, N, 5))}, 'arrays of two models'),
    ({'z': np.zeros((B, T, N, H), int)}, 'type int'),
    ({'z': np.full((B, T, N, H), np.nan)}, 'z contains NaN'),
    ({'v': np.zeros((B, T, 3, H))}, '4 query heads are not a multiple of 3'),
    ({'probs': np.zeros((B, N, T, 0))}, 'at axis S'),
    ({'mask': np.ones((B, T))}, 'a mask of shape'),
    ({'params': {}}, 'parameters without W_enc'),
    ({'mask': np.zeros((B, T), bool)}, 'row 0 of the mask has no token'),
  ],
)
def test_input_that_does_not_fit_is_refused(changes, message):
  given = {'sae': DICTIONARIES['relu'], 'params': parameters(), 'latents': LATENTS, **at('gemma')}
  if isinstance(changes.get('params'), str):
    changes = {'params': jax.tree.map(lambda x: jnp.stack([x, x]), parameters())}
  with pytest.raises(CircuitError, match=message):
    attention.dfa(**given | changes)


def test_pursuits_have_no_encoder():
  pursuit = sae.Pursuit(k=2)
  with pytest.raises(CircuitError, match='has no encoder'):
    attention.dfa(sae.Pursued(DICTIONARIES['relu'], pursuit), parameters(), LATENTS, **at('gemma'))


def test_a_traced_call_is_refused():
  sites = at('gemma')
  run = jax.jit(lambda z: attention.dfa(
    DICTIONARIES['relu'], parameters(), LATENTS, **sites | {'z': z}
  ).by_head)  # fmt: skip
  with pytest.raises(CircuitError, match='z is traced'):
    run(sites['z'])


@pytest.mark.parametrize('position', [T, -T - 1, 0.5, [1, 2, 3]])
def test_positions_that_do_not_exist_are_refused(position):
  table = attention.dfa(DICTIONARIES['relu'], parameters(), LATENTS, **at('gpt2'))
  with pytest.raises(CircuitError, match='positions='):
    table.by_source(position)
  np.testing.assert_array_equal(table.by_source(-1), table.by_source(T - 1))


@pytest.mark.parametrize(
  ('params', 'n_heads', 'message'),
  [
    ({'W_dec': np.ones((3, 4)), 'W_enc': np.ones((4, 3))}, 3, 'not a multiple of 3 heads'),
    ({'W_dec': np.ones((3, 4)), 'W_enc': np.ones((5, 3))}, 2, 'one autoencoder'),
    ({'W_dec': np.full((3, 4), np.inf), 'W_enc': np.ones((4, 3))}, 2, 'NaN or infinity'),
    ({'W_dec': np.ones((3, 4)), 'W_enc': np.ones((4, 3))}, 0, 'n_heads=0'),
    ({'W_enc': np.ones((4, 3))}, 2, 'parameters without W_dec'),
    (None, 2, 'parameters without W_enc: NoneType'),
  ],
)
def test_shares_of_other_dictionaries_are_refused(params, n_heads, message):
  with pytest.raises(CircuitError, match=message):
    attention.head_shares(params, n_heads)


def test_directions_of_other_heads_are_refused():
  with pytest.raises(CircuitError, match='not a multiple of 5 heads'):
    attention.direction(DICTIONARIES['relu'], parameters(), 0, 5)
  with pytest.raises(CircuitError, match=r'latent=\[0, 1\] should be one'):
    attention.direction(DICTIONARIES['relu'], parameters(), [0, 1], N)
  found = attention.direction(DICTIONARIES['relu'], parameters(), 0, N)
  with pytest.raises(CircuitError, match='4 query heads are not a multiple of 3'):
    found.read_stream(np.ones((16, 3, H)))
  with pytest.raises(CircuitError, match='W_V has 5 at axis H'):
    found.read_stream(np.ones((16, 2, 5)))


def test_other_latents_compile_nothing():
  sites = at('gemma')
  attention.dfa(DICTIONARIES['relu'], parameters(), LATENTS, **sites).by_source(3)
  before = attention._attribute._cache_size(), attention._multiply._cache_size()
  attention.dfa(DICTIONARIES['relu'], parameters(seed=1), [1, 2, 9], **sites).by_source(5)
  assert (attention._attribute._cache_size(), attention._multiply._cache_size()) == before
