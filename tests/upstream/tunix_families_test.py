"""Qwen2, Llama 3, Gemma and Gemma 3 of google-tunix: nothing changes, and every site is what its name says.

Each family runs as a tiny random model that has everything the family has (grouped heads, local and
global layers, soft caps, post-norms), and Gemma 3 with its real weights too. The truths are
upstream's file executed without the patch, the equations in NumPy, and finite differences. The real
weights have terms of use, which MECHJAX_ACCEPT_GEMMA_TERMS=1 accepts.
"""

import dataclasses
import functools
import importlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh

import mechjax
from mechjax import harvest, sites
from mechjax.errors import SiteError, WeightsError
from mechjax.models import tunix as loader
from mechjax.weights import fetch
from mechjax.weights.gemma import gemma3_shape
from mechjax.weights.gguf import GGUFFile
from patches import tunix
from tests.upstream import comparing, differences, equations, gemmas

pytestmark = pytest.mark.upstream

B, T, V, D, F, N, K, H, WINDOW = 2, 7, 23, 12, 20, 4, 2, 8, 3


@pytest.fixture(autouse=True)
def promotion():
  """Upstream divides integer positions by floats; the real model is loaded under strict rules."""
  with jax.numpy_dtype_promotion('standard'):
    yield


# --- the families


@dataclasses.dataclass(frozen=True)
class Family:
  """A tiny model: its module and class, the arguments of its config, and its equations."""

  module: str
  cls: str
  config: Callable[[Any], dict]
  equations: Callable[[dict], equations.Model]

  def upstream(self):
    return importlib.import_module(self.module)

  def build(self, module, remat: str = 'NONE'):
    """The class of `module` (upstream's, or a copy), split into graph and abstract state."""
    config = module.ModelConfig(**self.config(module), remat_config=module.RematConfig[remat])
    cls = getattr(module, self.cls)
    return nnx.split(nnx.eval_shape(lambda: cls(config, rngs=nnx.Rngs(0))))

  def params(self) -> dict:
    return comparing.drawn(nnx.to_pure_dict(self.build(self.upstream())[1]))

  def apply(self, module, remat: str = 'NONE') -> Callable:
    """(params, tokens, cache=None, start=0) -> (logits, cache)."""
    graphdef, state = self.build(module, remat)

    def apply(params, tokens, cache=None, start=0):
      merged = jax.tree.map(lambda leaf: leaf, state)
      nnx.replace_by_pure_dict(merged, params)
      batch, length = tokens.shape
      positions = jnp.broadcast_to(start + jnp.arange(length), (batch, length))
      seen = length if cache is None else cache['layer_0']['k'].shape[1]
      mask = jnp.arange(seen) <= positions[..., None]
      return nnx.merge(graphdef, merged)(tokens, positions, cache, mask)

    return apply


def llama_config(module):
  sizes = {'num_layers': 2, 'vocab_size': V, 'embed_dim': D, 'hidden_dim': F, 'num_heads': N}
  return sizes | {'head_dim': H, 'num_kv_heads': K, 'rope_theta': 10**6, 'norm_eps': 1e-5}


def llama_block(w: dict) -> equations.Block:
  """Llama 3's, and Qwen2's, which has biases besides."""
  biases = {name: b.reshape(-1, H) for name, b in w['attn'].items() if name.endswith('_bias')}
  return equations.Block(
    attn_gain=w['input_layernorm']['w'],
    **{s: w['attn'][f'{s}_proj']['w'].swapaxes(0, 1) for s in 'qkv'},
    **biases,
    o=w['attn']['o_proj']['w'],
    mlp_gain=w['post_attention_layernorm']['w'],
    **{s: w['mlp'][f'{s}_proj']['kernel'] for s in ('gate', 'up', 'down')},
    activation=equations.silu,
    score_scale=H**-0.5,
    rope_base=1e6,
    eps=1e-5,
  )


def llama(params) -> equations.Model:
  blocks = [llama_block(w) for _, w in sorted(params['layers'].items())]
  embedding, gain = params['embedder']['input_embedding'], params['final_norm']['w']
  return equations.Model(embedding, 1.0, blocks, gain, params['lm_head']['w'])


GEMMA_SIZES = {'num_embed': V, 'embed_dim': D, 'hidden_dim': F, 'head_dim': H}


def gemma1_config(module):
  """One key-value head for all queries, neither caps nor post-norms."""
  return GEMMA_SIZES | {
    'num_layers': 2,
    'num_heads': N,
    'num_kv_heads': 1,
    'final_logit_softcap': None,
    'use_post_attn_norm': False,
    'use_post_ffw_norm': False,
    'attention_types': (module.AttentionType.GLOBAL,) * 2,
  }


def gemma2_config(module):
  """Grouped heads, local and global layers, both caps, post-norms."""
  local, whole = module.AttentionType.LOCAL_SLIDING, module.AttentionType.GLOBAL
  return GEMMA_SIZES | {
    'num_layers': 2,
    'num_heads': N,
    'num_kv_heads': K,
    'final_logit_softcap': 3.0,
    'use_post_attn_norm': True,
    'use_post_ffw_norm': True,
    'attention_types': (local, whole),
    'attn_logits_soft_cap': 2.0,
    'sliding_window_size': WINDOW,
  }


def gemma2_of_full_heads_config(module):
  """A config with as many key-value heads as query heads, which upstream stores and computes differently."""
  return gemma2_config(module) | {'num_kv_heads': N}


def gemma3_config(module):
  sizes = {'num_layers': 6, 'num_heads': N, 'num_kv_heads': K, 'sliding_window_size': WINDOW}
  rope = {'global_base_frequency': 10**6, 'global_scale_factor': 8.0, 'param_dtype': jnp.float32}
  return GEMMA_SIZES | sizes | rope


def gemma(per_layer: Callable[[int], dict], final_cap, params) -> equations.Model:
  def block(i, w):
    mlp = (w['mlp'][f'{name}_proj']['kernel'] for name in ('gate', 'up', 'down'))
    return gemmas.block(w, mlp, **per_layer(i))

  return gemmas.model(params, block, final_cap)


def gemma2_layer(i):
  return {'cap': 2.0, 'window': None if i == 1 else WINDOW}


def gemma3_layer(i, window=WINDOW, stretch=8.0):
  whole = {'rope_base': 1e6, 'rope_stretch': stretch}
  return whole if i % 6 == 5 else {'window': window}


def case(name, module, cls, config, equations_of):
  family = Family(f'tunix.models.{module}.model', cls, config, equations_of)
  return pytest.param(family, id=name)


def of_gemma(name, config, *layer_and_cap):
  return case(name, 'gemma', 'Gemma', config, functools.partial(gemma, *layer_and_cap))


FAMILIES = [
  case('qwen2', 'qwen2', 'Qwen2', llama_config, llama),
  case('llama3', 'llama3', 'Llama3', llama_config, llama),
  of_gemma('gemma1', gemma1_config, lambda i: {}, None),
  of_gemma('gemma2', gemma2_config, gemma2_layer, 3.0),
  of_gemma('gemma2-full', gemma2_of_full_heads_config, gemma2_layer, 3.0),
  case('gemma3', 'gemma3', 'Gemma3', gemma3_config, functools.partial(gemma, gemma3_layer, None)),
]


# The most expensive tests run once for each file upstream; the others differ in the storage of heads.
thorough = pytest.mark.parametrize(
  'family', [f for f in FAMILIES if f.id in ('qwen2', 'llama3', 'gemma2', 'gemma3')], indirect=True
)


@pytest.fixture(scope='module', params=FAMILIES)
def family(request):
  with tunix.PATCHER:
    yield request.param


@pytest.fixture(scope='module')
def params(family):
  return family.params()


@pytest.fixture(scope='module')
def tokens():
  return jnp.asarray(np.random.default_rng(1).integers(0, V, (B, T)))


@pytest.fixture(scope='module')
def plain(family):
  """(params, tokens) -> logits."""
  apply = family.apply(family.upstream())
  return lambda params, tokens: apply(params, tokens)[0]


@pytest.fixture(scope='module')
def read(plain, params, tokens):
  """The values and the gradients at every site."""
  with jax.numpy_dtype_promotion('standard'):
    return harvest.value_and_grad_at(comparing.metric_of(plain), '*')(params, tokens)[1:]


# --- tests


@pytest.mark.optimised
def test_patched_logits_equal_unpatched_ones_bit_for_bit_and_those_of_the_equations(
  family, plain, params, tokens, monkeypatch
):
  family.upstream()
  original = family.apply(comparing.executed_again(family.module, monkeypatch))
  assert harvest.sites_of(original, params, tokens) == []
  expected = jax.jit(lambda p, t: original(p, t)[0])(params, tokens)
  np.testing.assert_array_equal(jax.jit(plain)(params, tokens), expected)
  model = family.equations(jax.tree.map(np.asarray, params))
  np.testing.assert_allclose(expected, model.logits(tokens), rtol=1e-4, atol=1e-4)
  assert np.abs(expected).max() > 0.1


def test_every_site_is_there_in_order_and_follows_from_its_neighbours(family, params, tokens, read):
  acts, _ = read
  model = family.equations(jax.tree.map(np.asarray, params))
  layers = [f'{name}.{i}' for i in params['layers'] for name in model.blocks[0].names()]
  assert list(acts) == ['embed', *layers, 'final_norm', 'logits']
  model.check(acts, tokens)


def test_attention_has_the_canonical_axes(read):
  acts, _ = read
  assert acts['attn_scores.1'].shape == acts['attn_probs.1'].shape == (B, N, T, T)
  assert acts['z.1'].shape == (B, T, N, H)


@thorough
def test_gradients_at_sites_equal_finite_differences(family, plain, params, tokens, read):
  names = family.equations(jax.tree.map(np.asarray, params)).blocks[1].names()
  chosen = ['embed', *(f'{name}.1' for name in names), 'final_norm', 'logits']
  gradients = {site: read[1][site] for site in chosen}
  assert all(np.abs(gradient).max() > 1e-4 for gradient in gradients.values())
  differences.check(comparing.metric_of(plain), gradients, (params, tokens))


@thorough
@pytest.mark.parametrize('remat', ['BLOCK', 'DECODER'])
def test_rematted_models_have_the_same_sites_values_and_gradients(
  family, params, tokens, read, remat
):
  assert_same(read, family.apply(family.upstream(), remat), params, tokens)


@thorough
def test_jitted_blocks_have_the_same_sites_values_and_gradients(
  family, params, tokens, read, monkeypatch
):
  module = family.upstream()
  monkeypatch.setattr(module.DecoderLayer, 'block', nnx.jit(module.DecoderLayer.block))
  assert_same(read, family.apply(module), params, tokens)


def assert_same(read, apply, params, tokens):
  metric = comparing.metric_of(lambda params, tokens: apply(params, tokens)[0])
  found = harvest.value_and_grad_at(metric, '*')(params, tokens)[1:]
  for mine, theirs in zip(read, found):
    comparing.same(mine, theirs)


@thorough
def test_a_cached_pass_has_the_same_sites_and_the_values_of_the_uncached_one(
  family, params, tokens, read
):
  """A prefill, then one position; the cache is longer than the text."""
  (acts, _), apply = read, family.apply(family.upstream())
  one = {name: jnp.zeros((B, T + 2, acts['k.0'].shape[2], H), jnp.float32) for name in 'kv'}
  one['end_index'] = jnp.zeros(B, jnp.int32)
  cache = {f'layer_{i}': dict(one) for i in params['layers']}
  step = harvest.call_and_reap(apply, sites='*')
  for start, stop in [(0, T - 1), (T - 1, T)]:
    (_, cache), found = step(params, tokens[:, start:stop], cache, start)
    comparing.same_cached(acts, found, start, stop)


# --- a path without sites


@pytest.mark.parametrize('cls', ['Qwen2', 'Gemma3'])
def test_a_mask_gives_rows_padded_on_the_left_the_logits_that_they_have_alone(cls, tokens):
  """The two classes that models are loaded into; Gemma's windows are shorter than the rows."""
  family = next(p.values[0] for p in FAMILIES if p.values[0].cls == cls)
  apply = functools.partial(loader._apply, *family.build(family.upstream()))
  mask = jnp.pad(jnp.ones(tokens.shape, bool), ((0, 0), (3, 0)))
  padded = jnp.pad(tokens, ((0, 0), (3, 0)), constant_values=5)
  params = family.params()
  found = jax.jit(apply)(params, padded, mask)[:, 3:]
  np.testing.assert_allclose(found, jax.jit(apply)(params, tokens), rtol=1e-4, atol=1e-4)


def test_asking_flash_attention_for_probabilities_says_why_not_and_what_to_do():
  model = importlib.import_module('tunix.models.qwen2.model')
  sizes = {'num_layers': 2, 'vocab_size': V, 'embed_dim': D, 'hidden_dim': F, 'num_heads': N}
  heads = {'head_dim': 128, 'num_kv_heads': N, 'rope_theta': 10_000, 'norm_eps': 1e-5}
  flash = {'use_flash_attention': True, 'flash_attention_block_size': 128}
  config = model.ModelConfig(**sizes, **heads, **flash, use_tied_embedding=True)
  graphdef, state = nnx.split(nnx.eval_shape(lambda: model.Qwen2(config, rngs=nnx.Rngs(0))))

  def apply(state, tokens):
    positions = jnp.broadcast_to(jnp.arange(128), (1, 128))
    return nnx.merge(graphdef, state)(tokens, positions, None, None)[0]

  mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ('fsdp', 'tp'))
  with tunix.PATCHER, mesh:
    arguments = state, jax.ShapeDtypeStruct((1, 128), jnp.int32)
    names = {info.site.name for info in harvest.sites_of(apply, *arguments)}
    with pytest.raises(SiteError, match=r'use_flash_attention=False') as e:
      harvest.reap(apply, sites='attn_probs.1')(*arguments)
  assert names == set(sites.CANONICAL) - {'attn_scores', 'attn_probs', *sites.POST_NORM}
  assert 'qwen2/model.py' in e.value.where
  assert 'never forms the scores' in e.value.cause


# --- real weights


@pytest.fixture(scope='module')
def gemma3():
  """Gemma 3 270M, under strict promotion like every model of ours."""
  with jax.numpy_dtype_promotion('strict'):
    yield mechjax.load('gemma3-270m', code='tunix')


@pytest.fixture(scope='module')
def prompt(gemma3):
  return gemma3.tokens('Michael Jordan plays the sport of')


def test_basketball(gemma3, prompt):
  with jax.numpy_dtype_promotion('strict'):
    probs = jnp.exp(gemma3.log_probs(prompt)[0, -1])
  assert gemma3.text(int(probs.argmax())) == ' basketball'
  assert float(probs.max()) == pytest.approx(0.758, abs=1e-3)


def test_the_sites_and_logits_of_the_real_model_are_those_of_the_equations(gemma3, prompt):
  acts = harvest.reap(gemma3, sites='*')(prompt)
  model = gemma(functools.partial(gemma3_layer, window=512, stretch=1.0), None, gemma3.params)
  model.check(acts, prompt)
  np.testing.assert_allclose(gemma3(prompt), model.logits(prompt), atol=5e-4)


def test_unembedding_the_last_residual_gives_the_logits(gemma3, prompt):
  last = harvest.reap(gemma3, sites='resid_post.17')(prompt)['resid_post.17']
  np.testing.assert_allclose(gemma3.unembed(last), gemma3(prompt), atol=1e-4)


def test_our_decoder_gives_the_logits_of_the_upstream_code_within_and_beyond_the_window(
  gemma3, prompt
):
  beyond = jax.random.randint(jax.random.key(0), (1, 560), 2, gemma3.tokenizer.n_vocab)
  with jax.numpy_dtype_promotion('strict'):
    ours = mechjax.load('gemma3-270m')
    np.testing.assert_allclose(ours(prompt), gemma3(prompt), rtol=1e-4, atol=1e-3)
    # What the logits are made of: those of 560 tokens themselves are 590 MB.
    read = [harvest.reap(m, sites='final_norm')(beyond)['final_norm'] for m in (ours, gemma3)]
    np.testing.assert_allclose(*read, rtol=1e-4, atol=1e-3)
  assert set(ours.sites()) == set(gemma3.sites())


def test_a_llama_is_no_gemma_and_neither_is_an_unknown_architecture(monkeypatch):
  file = GGUFFile(fetch.path_of('smollm2-135m'))
  with pytest.raises(WeightsError, match="architecture 'llama'"):
    gemma3_shape(file)
  monkeypatch.setitem(file.metadata, 'general.architecture', 'mamba')
  with pytest.raises(WeightsError, match=r"(?s)'mamba'.*llama"):
    loader.forward(file)
