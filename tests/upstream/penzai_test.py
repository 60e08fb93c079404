"""penzai's models: the patch changes nothing, and every site is what its name says.

Tiny random models with everything a family has: grouped heads, one key-value head, soft caps,
windows, post-norms, parallel halves; as lists and as LayerStacks. The truths are the program traced
without the patch, the equations in NumPy, finite differences, and a pass in two pieces with a
cache. SmolLM2 in penzai is compared with the other code bases in load_test.
"""

import dataclasses
import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechjax import harvest, sites
from patches import penzai
from tests.upstream import differences, equations

pytestmark = pytest.mark.penzai

B, T, V, D, F, H, L, WINDOW = 2, 5, 17, 12, 20, 4, 2, 3
TOKENS = np.random.default_rng(0).integers(0, V, (B, T))
SIZES = {'embedding_dim': D, 'projection_dim': H, 'mlp_hidden_dim': F, 'vocab_size': V}
LLAMA = {'num_kv_heads': 2, 'query_head_multiplier': 2, 'tie_embedder_and_logits': False}
HEADS = ('heads', 'head_groups', 'query_heads')


@pytest.fixture(autouse=True)
def promotion():
  """Upstream divides integer positions."""
  with jax.numpy_dtype_promotion('standard'):
    yield


@dataclasses.dataclass(frozen=True)
class Case:
  """A model: its family, and the arguments of its config besides the sizes."""

  family: str
  options: tuple = ()

  def build(self):
    """The tree without parameters, and random ones."""
    name = {'gpt_neox': 'gpt_neox', 'llama': 'llamalike_common', 'gemma': 'llamalike_common'}
    module = importlib.import_module(f'penzai.models.transformer.variants.{name[self.family]}')
    options = {**SIZES, 'num_decoder_blocks': L, **dict(self.options)}
    if self.family == 'gpt_neox':
      options |= {'num_attention_heads': 2, 'activation_fn': 'gelu_approx', 'rope_subset_size': 2}
      options |= {'rope_wavelength': 1e4, 'layernorm_epsilon': 1e-6}
      options |= {'parameter_dtype': jnp.float32, 'activation_dtype': jnp.float32}
      config, make = module.GPTNeoXTransformerConfig, module.build_gpt_neox_transformer
    else:
      options = {**LLAMA, 'mlp_variant': 'swiglu', **options}
      config, make = module.LlamalikeTransformerConfig, module.build_llamalike_transformer
    if self.family == 'gemma':
      kinds = (module.AttentionTypeSlidingWindowCausal(WINDOW), module.AttentionTypeGlobalCausal())
      options |= {'attention_type': kinds, 'mlp_variant': 'geglu_approx'}
      options |= {'use_post_attn_norm': True, 'use_post_ffw_norm': True}
      options |= {'attn_logits_soft_cap': 2.0, 'final_logit_softcap': 3.0}
      options |= {'tie_embedder_and_logits': True}
    pz = importlib.import_module('penzai.pz')
    values = jax.eval_shape(
      lambda key: pz.unbind_params(make(config(**options), key, name='m'), freeze=True)[1],
      jax.random.key(0),
    )
    rng = np.random.default_rng(1)
    leaves, structure = jax.tree.flatten(values)
    drawn = [jnp.asarray(0.4 * rng.standard_normal(x.shape), jnp.float32) for x in leaves]
    return make(config(**options), None, name='m'), jax.tree.unflatten(structure, drawn)


CASES = {
  'llama': Case('llama'),
  'llama stacked': Case('llama', (('use_layer_stack', True),)),
  'one key-value head': Case('llama', (('num_kv_heads', 1),)),
  'as many key-value heads': Case('llama', (('query_head_multiplier', 1),)),
  'gemma 2': Case('gemma'),
  'gpt-neox': Case('gpt_neox'),
  'gpt-neox stacked': Case('gpt_neox', (('use_layer_stack', True),)),
}


@functools.cache
def build(name):
  return CASES[name].build()


def named(tokens):
  return importlib.import_module('penzai.pz').nx.wrap(jnp.asarray(tokens)).tag('batch', 'seq')


def logits(tree, values, tokens):
  pz = importlib.import_module('penzai.pz')
  return pz.bind_variables(tree, values)(named(tokens)).unwrap('batch', 'seq', 'vocabulary')


def lowered(name):
  tree, values = build(name)

  def program(values, tokens):
    return logits(tree, values, tokens)

  return jax.jit(program).lower(values, TOKENS).as_text()


@functools.cache
def reaped(name):
  """Values and gradients of a number at every site, and that number as a function."""
  tree, values = build(name)

  def metric(values, tokens):
    return jax.nn.log_softmax(logits(tree, values, tokens))[0, -1, 3]

  with jax.numpy_dtype_promotion('standard'):
    return harvest.value_and_grad_at(metric, sites='*')(values, TOKENS), metric


@pytest.fixture(scope='module', autouse=True)
def plain():
  """The program of every model as it was before the patch, which is there from then on."""
  assert not any(patcher.installed for patcher in penzai.PATCHER.patchers)
  with jax.numpy_dtype_promotion('standard'):
    programs = {name: lowered(name) for name in CASES}
  with penzai.PATCHER:
    yield programs


@pytest.fixture(params=CASES)
def name(request):
  return request.param


def test_the_patched_program_is_the_unpatched_program(name, plain):
  assert lowered(name) == plain[name]


# --- every site is what its name says


def array(value):
  """A NamedArray with the canonical axes, heads joined."""
  rest = [a for a in value.named_shape if a not in ('batch', 'seq', 'kv_seq', *HEADS)]
  heads = [a for a in HEADS if a in value.named_shape]
  keys = [a for a in ('kv_seq',) if a in value.named_shape]
  size = [int(np.prod([value.named_shape[a] for a in heads]))] if heads else []
  n_texts, length = value.named_shape['batch'], value.named_shape['seq']
  if keys:
    x = value.unwrap('batch', *heads, 'seq', *keys)
    return np.asarray(x, np.float64).reshape(n_texts, *(size or [1]), length, -1)
  x = value.unwrap('batch', 'seq', *heads, *rest)
  one_head = [1] if rest == ['projection'] and not size else size
  return np.asarray(x, np.float64).reshape(n_texts, length, *one_head, x.shape[-1])


def parameters(name):
  """Each parameter as an array with outputs last and heads joined in front, by label."""
  found = {}
  for parameter in build(name)[1]:
    shape = parameter.value.named_shape
    for layer in range(L) if 'blocks' in shape else [None]:
      value = parameter.value if layer is None else parameter.value[{'blocks': layer}]
      axes = [a for a in (*HEADS, 'projection', 'neurons', 'vocabulary') if a in shape]
      out = '/out' in parameter.label
      model = ['embedding'] if 'embedding' in shape else []
      heads = [a for a in HEADS if a in shape]
      width = [a for a in axes if a not in heads]
      x = value.unwrap(*heads, *(width + model if out else model + width))
      if 'projection' in shape:
        x = x.reshape(-1, *x.shape[len(heads) :])
      where = parameter.label.replace('m/blocks', f'm/block_{layer}')
      found[where.removeprefix('m/')] = np.asarray(x, np.float64)
  return found


def truth(name):
  """The equations of a llama-like model."""
  p, gemma = parameters(name), CASES[name].family == 'gemma'

  def block(i):
    at = {k.removeprefix(f'block_{i}/'): v for k, v in p.items() if k.startswith(f'block_{i}/')}
    return equations.Block(
      attn_gain=at['pre_attention_norm/scale.weights'],
      q=at['attention/query.weights'],
      k=at['attention/key.weights'],
      v=at['attention/value.weights'],
      o=at['attention/output.weights'],
      mlp_gain=at['pre_ffw_norm/scale.weights'],
      gate=at['mlp/gating_linear.weights'],
      up=at['mlp/value_linear.weights'],
      down=at['mlp/out_linear.weights'],
      activation=equations.gelu if gemma else equations.silu,
      post_attn_gain=at.get('post_attention_norm/scale.weights'),
      post_mlp_gain=at.get('post_ffw_norm/scale.weights'),
      query_scale=H**-0.5,
      cap=2.0 if gemma else None,
      window=WINDOW if gemma and i == 0 else None,
      has_raw=False,
    )

  embedding = p['embedder.embeddings'].T
  return equations.Model(
    embedding=embedding,
    embedding_scale=D**0.5 if gemma else 1.0,
    blocks=[block(i) for i in range(L)],
    final_gain=p['final_norm/scale.weights'],
    head=embedding.T if gemma else p['lm_head.weights'],
    final_cap=3.0 if gemma else None,
  )


@pytest.mark.parametrize('name', [n for n, c in CASES.items() if c.family != 'gpt_neox'])
def test_every_site_follows_from_its_neighbours(name):
  (_, acts, _), _ = reaped(name)
  truth(name).check({site: array(value) for site, value in acts.items()}, TOKENS)


@pytest.mark.parametrize('name', [n for n, c in CASES.items() if c.family == 'gpt_neox'])
def test_every_site_of_a_parallel_block_follows_from_its_neighbours(name):
  p, (_, acts, _) = parameters(name), reaped(name)[0]
  acts = {site: array(value) for site, value in acts.items()}
  absent = ('embed', 'final_norm', 'logits', *sites.POST_NORM)
  per_layer = [n for n in sites.CANONICAL if n not in absent]
  expected = {f'{n}.{i}' for n in per_layer for i in range(L)} - {'resid_mid.0', 'resid_mid.1'}
  assert set(acts) == {*expected, 'embed', 'final_norm', 'logits'}

  def affine(x, where):
    return x @ p[f'{where}/Linear.weights'] + p[f'{where}/AddBias.bias']

  def norm(x, where, eps=1e-6):
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)
    return x * p[f'{where}/scale.weights'] + p[f'{where}/shift.bias']

  def close(site, value):
    seen = value > -1e38
    np.testing.assert_allclose(acts[site][seen], value[seen], rtol=1e-4, atol=1e-4, err_msg=site)

  close('embed', p['embedder.embeddings'].T[TOKENS])
  for i in range(L):
    at, where = (lambda n, i=i: acts[f'{n}.{i}']), f'block_{i}'
    close(f'resid_pre.{i}', acts[f'resid_post.{i - 1}' if i else 'embed'])
    close(f'attn_norm.{i}', norm(at('resid_pre'), f'{where}/pre_attention_norm'))
    close(f'mlp_norm.{i}', norm(at('resid_pre'), f'{where}/pre_ffw_norm'))
    for n, full in (('q', 'query'), ('k', 'key'), ('v', 'value')):
      weights = p[f'{where}/attention/{full}/Linear.weights']
      bias = p[f'{where}/attention/{full}/AddBias.bias']
      x = np.einsum('btd,ndh->btnh', at('attn_norm'), weights) + bias
      if n != 'v':
        x = np.concatenate([equations.rotate(x[..., :2], 1e4), x[..., 2:]], -1)
      close(f'{n}.{i}', x * (H**-0.5 if n == 'q' else 1))
    scores = np.einsum('btnh,bsnh->bnts', at('q'), at('k'))
    close(f'attn_scores.{i}', np.where(np.tri(T, dtype=bool), scores, -np.inf))
    close(f'attn_probs.{i}', equations.softmax(at('attn_scores')))
    close(f'z.{i}', np.einsum('bnts,bsnh->btnh', at('attn_probs'), at('v')))
    out = np.einsum('btnh,nhd->btd', at('z'), p[f'{where}/attention/output/Linear.weights'])
    close(f'attn_out.{i}', out + p[f'{where}/attention/output/AddBias.bias'])
    close(f'mlp_pre.{i}', affine(at('mlp_norm'), f'{where}/mlp/in'))
    close(f'mlp_post.{i}', equations.gelu(at('mlp_pre')))
    close(f'mlp_out.{i}', affine(at('mlp_post'), f'{where}/mlp/out'))
    close(f'resid_post.{i}', at('resid_pre') + at('attn_out') + at('mlp_out'))
  close('final_norm', norm(acts[f'resid_post.{L - 1}'], 'final_norm'))
  close('logits', acts['final_norm'] @ p['lm_head.weights'])


def test_gradients_at_sites_equal_finite_differences(name):
  (_, _, gradients), metric = reaped(name)
  differences.check(metric, gradients, (build(name)[1], TOKENS))


@pytest.mark.parametrize('transform', [jax.checkpoint, jax.jit])
@pytest.mark.parametrize('name', ['llama', 'gpt-neox'])
def test_transformed_blocks_have_the_same_layer_numbers(name, transform):
  pz = importlib.import_module('penzai.pz')
  parts = importlib.import_module('penzai.models.transformer.model_parts')

  @pz.pytree_dataclass(has_implicitly_inherited_fields=True)
  class Transformed(parts.TransformerBlock):
    def __call__(self, value, **side_inputs):
      return transform(parts.TransformerBlock.__call__)(self, value, **side_inputs)

  tree, values = build(name)

  def transformed(values, tokens):
    blocks = pz.select(pz.bind_variables(tree, values)).at_instances_of(parts.TransformerBlock)
    model = blocks.apply(lambda block: Transformed(sublayers=block.sublayers))
    return model(named(tokens)).unwrap('batch', 'seq', 'vocabulary')

  (_, acts, _), _ = reaped(name)
  found = harvest.reap(transformed, sites='*')(values, TOKENS)
  assert list(found) == list(acts)
  for site in ('resid_post.0', 'resid_post.1'):
    np.testing.assert_allclose(array(found[site]), array(acts[site]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('name', ['llama', 'llama stacked', 'gemma 2', 'gpt-neox'])
def test_a_pass_with_a_cache_has_the_same_values_at_the_same_sites(name):
  pz = importlib.import_module('penzai.pz')
  sampling = importlib.import_module('penzai.models.transformer.sampling_mode')
  tree, values = build(name)
  room, first = 8, 3

  def both(values, tokens):
    cached = sampling.KVCachingTransformerLM.from_uncached(
      pz.bind_variables(tree, values), cache_len=room, batch_axes={'batch': B}, pad_id=V
    )
    with sites.layer(0):
      cached(named(tokens[:, :first]))
    with sites.layer(1):
      return cached(named(tokens[:, first:])).unwrap('batch', 'seq', 'vocabulary')

  (_, acts, _), _ = reaped(name)
  found = harvest.reap(both, sites='{k,attn_probs,z,resid_post}.1.*')(values, TOKENS)
  assert len(found) == 4 * L
  for site, value in found.items():
    kind, _, layer = site.split('.')
    whole, cut = acts[f'{kind}.{layer}'], slice(first, None)
    if kind == 'k':
      value, cut = value[{'seq': slice(0, T)}], slice(None)
    if kind == 'attn_probs':
      value = value[{'kv_seq': slice(0, T)}]
    expected = whole[{'seq': cut}].order_like(value).unwrap(*value.named_axes)
    value = value.unwrap(*value.named_axes)
    np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-5, err_msg=site)
