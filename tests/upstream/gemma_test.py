"""Google's gemma package: the patch changes nothing, and every site is what its name says.

Gemma 2 and Gemma 3 run as tiny random models cut from upstream's own configurations, and Gemma 3
with its real weights. The truths are upstream's files executed without the patch, the equations in
NumPy, and finite differences. Gemma Scope's three sites are checked by name at the end. The real
weights have terms of use, which MECHJAX_ACCEPT_GEMMA_TERMS=1 accepts.
"""

import dataclasses
import functools
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen

import mechjax
from mechjax import harvest
from mechjax.models import gemma as driver
from mechjax.weights import fetch
from mechjax.weights.gguf import GGUFFile
from patches import gemma
from tests.upstream import comparing, differences, equations, gemmas

pytestmark = pytest.mark.gemma

B, T, V, D, F, N, K, H, WINDOW = 2, 7, 23, 12, 20, 4, 2, 8, 3
TINY = {'num_embed': V, 'embed_dim': D, 'hidden_dim': F, 'num_heads': N, 'head_dim': H}


@pytest.fixture(autouse=True)
def promotion():
  """Upstream adds integer positions to floats; the real model is loaded under strict rules."""
  with jax.numpy_dtype_promotion('standard'):
    yield


# --- the models


def gemma2(nn, **changes):
  """One local and one global layer of Gemma 2, with its soft caps and post-norms."""
  local_and_global = nn.Gemma2_2B.config.attention_types[:2]
  tiny = {'attention_types': local_and_global, 'num_kv_heads': K, 'sliding_window_size': WINDOW}
  caps = {'attn_logits_soft_cap': 2.0, 'final_logit_softcap': 3.0}
  return dataclasses.replace(nn.Gemma2_2B.config, **TINY | tiny | caps | changes)


def gemma2_of_full_heads(nn):
  """A model with as many key-value heads as query heads, and with the MLP stored as in the larger models."""
  return gemma2(nn, num_kv_heads=N, transpose_gating_einsum=True)


def gemma3(nn):
  """The last local and the first global layer of Gemma 3, one key-value head for all queries."""
  local_and_global = nn.Gemma3_270M.config.attention_types[4:6]
  tiny = {'attention_types': local_and_global, 'sliding_window_size': WINDOW}
  return dataclasses.replace(nn.Gemma3_270M.config, **TINY, **tiny, global_scale_factor=8.0)


MODELS = [gemma2, gemma2_of_full_heads, gemma3]


def block_of(config, i: int, w: dict) -> equations.Block:
  """The equations of layer `i`, from upstream's configuration and parameters."""
  gating = w['mlp']['gating_einsum']
  gate, up = gating.swapaxes(1, 2) if config.transpose_gating_einsum else gating
  local = config.attention_types[i].name == 'LOCAL_SLIDING'
  return gemmas.block(
    w,
    (gate, up, w['mlp']['linear']),
    rope_base=config.local_base_frequency if local else config.global_base_frequency,
    rope_stretch=config.local_scale_factor if local else config.global_scale_factor,
    cap=config.attn_logits_soft_cap,
    window=config.sliding_window_size if local else None,
  )


def equations_of(config, params) -> equations.Model:
  blocks = functools.partial(block_of, config)
  return gemmas.model(params, blocks, config.final_logit_softcap)


def forward_of(model):
  """(params, tokens) -> logits."""
  return lambda params, tokens: model.apply({'params': params}, tokens).logits


@pytest.fixture(scope='module')
def nn():
  from gemma import gm

  with gemma.PATCHER:
    yield gm.nn


@pytest.fixture(scope='module', params=MODELS, ids=[m.__name__ for m in MODELS])
def config(request, nn):
  return request.param(nn)


@pytest.fixture(scope='module')
def model(nn, config):
  return nn.Transformer(config=config, dtype=jnp.float32)


@pytest.fixture(scope='module')
def tokens():
  """No token is 0, which upstream takes for padding."""
  return jnp.asarray(np.random.default_rng(1).integers(1, V, (B, T)))


@pytest.fixture(scope='module')
def params(model, tokens):
  with jax.numpy_dtype_promotion('standard'):
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)['params']
  return comparing.drawn(shapes)


@pytest.fixture(scope='module')
def read(model, params, tokens):
  """The values and the gradients at every site."""
  with jax.numpy_dtype_promotion('standard'):
    metric = comparing.metric_of(forward_of(model))
    return harvest.value_and_grad_at(metric, '*')(params, tokens)[1:]


# --- tests


def test_a_mask_gives_rows_padded_on_the_left_the_logits_that_they_have_alone(
  model, params, tokens
):
  mask = jnp.pad(jnp.ones(tokens.shape, bool), ((0, 0), (3, 0)))
  padded = jnp.pad(tokens, ((0, 0), (3, 0)), constant_values=5)
  found = driver._apply(model, params, padded, mask)[:, 3:]
  np.testing.assert_allclose(found, driver._apply(model, params, tokens), rtol=1e-4, atol=1e-4)


@pytest.fixture
def unpatched(nn, monkeypatch):
  """Upstream's Transformer as its files lie on the disk, executed under other names."""

  transformer, modules = (
    comparing.executed_again(f'gemma.gm.nn.{name}', monkeypatch)
    for name in ('_transformer', '_modules')
  )
  # The configuration holds members of the original enumeration.
  transformer._modules, modules.AttentionType = modules, nn.AttentionType
  return transformer.Transformer


@pytest.mark.optimised
def test_patched_logits_equal_unpatched_ones_bit_for_bit_and_those_of_the_equations(
  unpatched, config, model, params, tokens
):
  original = unpatched(config=config, dtype=jnp.float32)
  assert harvest.sites_of(forward_of(original), params, tokens) == []
  expected = jax.jit(forward_of(original))(params, tokens)
  np.testing.assert_array_equal(jax.jit(forward_of(model))(params, tokens), expected)
  equal = equations_of(config, params).logits(tokens)
  np.testing.assert_allclose(expected, equal, rtol=1e-4, atol=1e-4)
  assert np.abs(expected).max() > 0.1


def test_every_site_is_there_in_order_and_follows_from_its_neighbours(config, params, tokens, read):
  acts, _ = read
  model = equations_of(config, params)
  layers = [f'{name}.{i}' for i in range(config.num_layers) for name in model.blocks[0].names()]
  assert list(acts) == ['embed', *layers, 'final_norm', 'logits']
  assert acts['attn_scores.1'].shape == acts['attn_probs.1'].shape == (B, N, T, T)
  model.check(acts, tokens)


def test_gradients_at_sites_equal_finite_differences(model, config, params, tokens, read):
  names = equations_of(config, params).blocks[1].names()
  chosen = ['embed', *(f'{name}.1' for name in names), 'final_norm', 'logits']
  gradients = {site: read[1][site] for site in chosen}
  assert all(np.abs(gradient).max() > 1e-4 for gradient in gradients.values())
  differences.check(comparing.metric_of(forward_of(model)), gradients, (params, tokens))


@pytest.mark.parametrize('wrapper', [linen.remat, linen.jit])
def test_wrapped_blocks_have_the_same_sites_values_and_gradients(
  model, params, tokens, read, wrapper, monkeypatch
):
  """Both trace a block apart from the loop that numbers it."""
  modules = sys.modules['gemma.gm.nn._modules']
  monkeypatch.setattr(modules, 'Block', wrapper(modules.Block))
  wrapped = model.clone()
  found = harvest.value_and_grad_at(comparing.metric_of(forward_of(wrapped)), '*')(params, tokens)[
    1:
  ]
  for mine, theirs in zip(read, found):
    comparing.same(mine, theirs)


def test_a_cached_pass_has_the_same_sites_and_the_values_of_the_uncached_one(
  config, model, params, tokens, read
):
  """A prefill, then one position; the cache is longer than the text."""
  acts, length = read[0], T + 2

  def apply(params, tokens, cache, start):
    positions = jnp.broadcast_to(start + jnp.arange(tokens.shape[1]), tokens.shape)
    mask = jnp.arange(length) <= positions[..., None]
    out = model.apply(
      {'params': params}, tokens, positions=positions, cache=cache, attention_mask=mask
    )
    return out.cache

  cache = config.init_cache(B, jnp.float32, cache_length=length)
  step = harvest.call_and_reap(apply, sites='*')
  for start, stop in [(0, T - 1), (T - 1, T)]:
    cache, found = step(params, tokens[:, start:stop], cache, start)
    comparing.same_cached(acts, found, start, stop)


# --- what Gemma Scope reads


def test_gemma_scope_finds_its_three_sites(config, params, tokens, read):
  """Its attention, MLP and residual dictionaries, at layer 1, from the parameters."""
  acts = {site: np.asarray(value) for site, value in read[0].items()}
  layer = equations_of(config, params).blocks[1]
  concatenated = acts['z.1'].reshape(B, T, N * H)
  attn = layer.norm(concatenated @ np.asarray(layer.o).reshape(N * H, D), layer.post_attn_gain)
  mlp = layer.norm(acts['mlp_post.1'] @ np.asarray(layer.down), layer.post_mlp_gain)
  np.testing.assert_allclose(acts['mlp_out.1'], mlp, rtol=1e-4, atol=1e-4)
  residual = acts['resid_pre.1'] + attn + mlp
  np.testing.assert_allclose(acts['resid_post.1'], residual, rtol=1e-4, atol=1e-4)


# --- real weights


@pytest.fixture(scope='module')
def real():
  """Gemma 3 270M, under strict promotion like every model of ours."""
  with jax.numpy_dtype_promotion('strict'):
    yield mechjax.load('gemma3-270m', code='gemma')


@pytest.fixture(scope='module')
def prompt(real):
  return real.tokens('Michael Jordan plays the sport of')


def test_basketball(real, prompt):
  with jax.numpy_dtype_promotion('strict'):
    probs = jnp.exp(real.log_probs(prompt)[0, -1])
  assert real.text(int(probs.argmax())) == ' basketball'
  assert float(probs.max()) == pytest.approx(0.758, abs=1e-3)


def test_the_sites_and_logits_of_the_real_model_are_those_of_the_equations(nn, real, prompt):
  acts = harvest.reap(real, sites='*')(prompt)
  model = equations_of(nn.Gemma3_270M.config, real.params)
  model.check(acts, prompt)
  np.testing.assert_allclose(real(prompt), model.logits(prompt), atol=5e-4)


TEXTS = [
  'Michael Jordan plays the sport of',
  '  two spaces,\ttab\r\n\n\nand naïve 漢字 👩‍🔬 \x00 end  ',
  'def f(x):\n    return {x: [1234567, "aaaaaaaaaaaaa"]}  # <b>bold</b>',
  f'x{" " * 40}y <start_of_turn>user <b> </b>\u00a0<eos> <unused7>\n\n',
  'Antidisestablishmentarianism!!!???...... http://example.org/a_b?c=d',
]


def test_tokens_are_those_of_the_sentencepiece_library(real):
  """With a model made of the vocabulary in the weights file and Gemma's settings."""
  from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

  metadata = GGUFFile(fetch.path_of('gemma3-270m')).metadata
  model = sentencepiece_model_pb2.ModelProto()
  columns = (metadata[f'tokenizer.ggml.{name}'] for name in ('tokens', 'scores', 'token_type'))
  for piece, score, kind in zip(*columns):
    # The library wants an unknown piece, which the file lists as a control token.
    kind = model.SentencePiece.UNKNOWN if piece == '<unk>' else int(kind)
    # The file writes the spaces of user-defined pieces as spaces, and the library as it writes all spaces.
    piece = piece.replace(' ', '\u2581')
    model.pieces.add(piece=piece, score=float(score), type=kind)
  model.trainer_spec.model_type = model.trainer_spec.BPE
  model.trainer_spec.byte_fallback = True
  model.normalizer_spec.name = 'identity'
  model.normalizer_spec.add_dummy_prefix = False
  model.normalizer_spec.remove_extra_whitespaces = False
  library = SentencePieceProcessor(model_proto=model.SerializeToString())
  for text in [*TEXTS, (pathlib.Path(__file__).parents[1] / 'data' / 'prose.txt').read_text()]:
    assert real.tokenizer.encode(text) == [2, *library.encode(text)]
    assert real.tokenizer.decode(real.tokenizer.encode(text)) == text


def test_id_0_is_a_token_like_any_other_and_not_padding(real, prompt):
  """Later positions can see it, as in the other code bases."""
  begun_with_0 = prompt.at[0, 0].set(0)
  probs = harvest.reap(real, sites='attn_probs.5')(begun_with_0)
  assert float(probs['attn_probs.5'][0, :, -1, 0].min()) > 0


def test_unembedding_the_last_residual_gives_the_logits(real, prompt):
  last = harvest.reap(real, sites='resid_post.17')(prompt)['resid_post.17']
  np.testing.assert_allclose(real.unembed(last), real(prompt), atol=1e-4)
