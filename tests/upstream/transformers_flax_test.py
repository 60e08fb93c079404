"""transformers' Flax classes: the patch changes nothing, and every site is what its name says.

One tiny random model for each class. The truths: the same class traced without the patch, each site
recomputed in NumPy from the sites next to it and the parameters, finite differences, and the same
pass in two pieces with a key-value cache. SmolLM2 in FlaxLlama is compared with the other code
bases in load_test.
"""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from mechjax import harvest, sites
from patches import transformers_flax
from tests.upstream import differences
from tests.upstream.flax_families import BERT, CAUSAL, GPT2, MODELS, OPT, Llama
from tests.upstream.flax_model import ENDS, GPT, TOKENS, WIDE, B, Built, L, T, angles, turn

pytestmark = pytest.mark.transformers


@pytest.fixture(autouse=True)
def promotion():
  """Upstream joins integer and boolean masks."""
  with jax.numpy_dtype_promotion('standard'):
    yield


@pytest.fixture(scope='module', autouse=True)
def plain():
  """The program of every class as it was before the patch, which is there from then on."""
  assert not any(patcher.installed for patcher in transformers_flax.PATCHER.patchers)
  with jax.numpy_dtype_promotion('standard'):
    programs = {model: lowered(model) for model in MODELS}
  with transformers_flax.PATCHER:
    yield programs


@functools.cache
def build(model):
  with jax.numpy_dtype_promotion('standard'):
    return Built(model)


@functools.cache
def reaped(model):
  """Values and gradients of a number at every site, and that number as a function of a nudge."""
  built = build(model)

  def metric(params, tokens):
    return jax.nn.log_softmax(built.logits(params, tokens))[0, -1, 3]

  with jax.numpy_dtype_promotion('standard'):
    return harvest.value_and_grad_at(metric, sites='*')(built.params, TOKENS), metric


@pytest.fixture(params=MODELS, ids=lambda m: m.__name__)
def model(request):
  return request.param


def layers_of(model, name):
  return [None] if name in ENDS else list(range(L))


def lowered(model):
  built = build(model)

  def logits(params, tokens):
    return built.logits(params, tokens)

  return jax.jit(logits).lower(built.params, TOKENS)


def test_the_patched_program_is_the_unpatched_program(model, plain):
  if issubclass(model, OPT):  # whose sites have another shape than upstream's variables
    before, after = (
      program.compile()(build(model).params, TOKENS) for program in (plain[model], lowered(model))
    )
    np.testing.assert_array_equal(before, after)
  else:
    assert plain[model].as_text() == lowered(model).as_text()


def test_every_site_of_the_architecture_is_tagged_in_the_order_it_is_met(model):
  (_, acts, _), _ = reaped(model)
  per_layer = [n for n in sites.CANONICAL if n not in (*ENDS, *model.lacks, *sites.POST_NORM)]
  layers = [f'{name}.{i}' for i in range(L) for name in per_layer]
  ends = [n for n in ENDS[1:] if n not in model.lacks]
  assert list(acts) == ['embed', *layers, *ends]


def test_every_site_follows_from_its_neighbours(model):
  (_, acts, _), _ = reaped(model)
  for name in (n for n in sites.CANONICAL if n not in (*model.lacks, *sites.POST_NORM)):
    for layer in layers_of(model, name):
      around = model(build(model).params, acts, TOKENS, layer or 0)
      found, expected = around.at(name), getattr(around, name)()
      assert found.shape == expected.shape, (name, layer)
      seen = expected > -1e38
      assert (found[~seen] < -1e38).all()
      tolerance = 2e-5 * np.abs(expected[seen]).max()
      np.testing.assert_allclose(
        found[seen], expected[seen], atol=tolerance, rtol=1e-5, err_msg=f'{name}.{layer}'
      )


def test_gradients_at_sites_equal_finite_differences(model):
  (_, _, gradients), metric = reaped(model)
  differences.check(metric, gradients, (build(model).params, TOKENS))


def transformed(block, transform):
  """A block that runs inside a lifted transformation, its flags outside."""

  class Transformed(block):
    def __call__(self, *args, **kwargs):
      leaves, tree = jax.tree.flatten((args, kwargs))
      flags = [isinstance(x, bool) for x in leaves]

      def run(module, arrays):
        rest = iter(arrays)
        full = [x if flag else next(rest) for x, flag in zip(leaves, flags)]
        args, kwargs = jax.tree.unflatten(tree, full)
        return block.__call__(module, *args, **kwargs)

      return transform(run)(self, [x for x, flag in zip(leaves, flags) if not flag])

  return Transformed


@pytest.mark.parametrize('transform', [nn.remat, nn.jit])
def test_transformed_blocks_have_the_same_layer_numbers(model, transform, monkeypatch):
  (_, acts, _), _ = reaped(model)
  built = build(model)
  block = transformed(getattr(built.upstream, model.block), transform)
  monkeypatch.setattr(built.upstream, model.block, block)
  infos = harvest.sites_of(lambda *args: built.logits(*args), built.params, TOKENS)
  found = harvest.reap(lambda *args: built.logits(*args), sites='attn_out')(built.params, TOKENS)
  assert [str(info.site) for info in infos] == list(acts)
  for site, value in found.items():
    np.testing.assert_allclose(value, acts[site], rtol=1e-4, atol=1e-5)


def test_bert_numbers_its_own_checkpointed_layers():
  (_, acts, _), _ = reaped(BERT)
  built = build(BERT)

  def logits(params, tokens):
    return built.logits(params, tokens, gradient_checkpointing=True)

  infos = harvest.sites_of(logits, built.params, TOKENS)
  assert [str(info.site) for info in infos] == list(acts)


@pytest.mark.parametrize('model', CAUSAL, ids=lambda m: m.__name__)
def test_a_pass_with_a_cache_has_the_same_values_at_the_same_sites(model):
  (_, acts, _), _ = reaped(model)
  built, room, first = build(model), 8, 3
  every = built.inputs(np.zeros((B, room), int))
  shapes = jax.eval_shape(lambda: built.module().init(jax.random.key(0), *every, init_cache=True))
  cache = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes['cache'])

  def step(cache, tokens, start):
    inputs = built.inputs(tokens, start, room)
    variables = {'params': built.params, 'cache': cache}
    return built.module().apply(variables, *inputs, mutable=['cache'])[1]['cache']

  def both(cache, tokens):
    with sites.layer(0):
      cache = step(cache, tokens[:, :first], 0)
    with sites.layer(1):
      return step(cache, tokens[:, first:], first)

  cached = harvest.reap(both, sites='{k,v,attn_probs,z}.1.*')(cache, TOKENS)
  for site, value in cached.items():
    name, _, layer = site.split('.')
    plain = np.asarray(acts[f'{name}.{layer}'])
    if name in 'kv':
      value, expected = value[:, :T], plain
    elif name == 'attn_probs':
      value, expected = value[..., :T], plain[:, :, first:]
    else:
      expected = plain[:, first:]
    np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-5, err_msg=site)


@pytest.mark.parametrize('name', ['GPT2', 'Bert'])
def test_cross_attention_has_sites_of_its_own(name):
  upstream = importlib.import_module('transformers')
  if name == 'GPT2':
    module = upstream.FlaxGPT2LMHeadModel.module_class
    config = upstream.GPT2Config(**GPT, add_cross_attention=True)
    inputs = build(GPT2).inputs(TOKENS)
  else:
    module = upstream.FlaxBertForCausalLM.module_class
    config = upstream.BertConfig(**WIDE, is_decoder=True, add_cross_attention=True)
    inputs = build(BERT).inputs(TOKENS)
  encoded = jnp.ones((B, 4, 16))

  def logits(key):
    module_ = module(config)
    options = {
      'encoder_hidden_states': encoded,
      'encoder_attention_mask': jnp.ones((B, 4), jnp.int32),
    }
    return module_.init_with_output(key, *inputs, **options)[0].logits

  infos = {str(i.site): i for i in harvest.sites_of(logits, jax.random.key(0))}
  for site in ('q', 'attn_scores', 'attn_probs', 'z', 'attn_out'):
    assert {f'{site}.1', f'cross/{site}.1'} < set(infos)
  assert infos['cross/attn_probs.0'].shape[-2:] == (T, 4)


def test_llama_obeys_its_configuration_once_corrected():
  built = build(Llama)
  upstream = importlib.import_module('transformers')
  config = upstream.LlamaConfig(
    **WIDE, num_key_value_heads=2, rope_theta=500.0, tie_word_embeddings=True
  )
  params = {'model': built.params['model']}

  def logits(params, config):
    module = built.upstream.FlaxLlamaForCausalLMModule(config)
    return module.apply({'params': params}, *built.inputs(TOKENS)).logits

  plain = logits(built.params, built.config)
  with transformers_flax.LLAMA_CORRECTIONS:
    acts = harvest.reap(lambda p: logits(p, config), sites='*')(params)
    untouched = logits(built.params, built.config)
  np.testing.assert_array_equal(untouched, plain)  # another model's configuration, another base
  around = Llama(built.params, acts, TOKENS, 1)
  expected = turn(around.projected('q_proj'), angles(4, base=500.0))
  np.testing.assert_allclose(around.at('q'), expected, rtol=1e-4, atol=1e-5)
  expected = around.at('final_norm') @ around.embedding().T
  np.testing.assert_allclose(around.at('logits'), expected, rtol=1e-4, atol=1e-5)
