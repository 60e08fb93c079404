"""Every product of float32 requests full precision in its own parameters; the user's setting overrules it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from mechjax import circuits, compat, harvest, precision, sae
from mechjax.circuits import rows
from mechjax.errors import MechjaxError
from mechjax.models import decoder, shipped
from mechjax.patching import AtPStar, Pairs, logit_difference, nodes_of
from mechjax.sae.evaluation import sums
from mechjax.sae.training import MFR
from mechjax.weights.names import Sizes
from tests.circuits import small
from tests.models import decoders

HIGHEST = jax.lax.Precision.HIGHEST
NAMES = ['gpt2', 'gemma']


def products(f, *args):
  """(operands, precision) of every product in the program of a function."""

  def walk(jaxpr):
    for eqn in compat.raw(jaxpr).eqns:
      if eqn.primitive.name in ('dot_general', 'ragged_dot_general', 'conv_general_dilated'):
        asked = eqn.params['precision']
        yield str(eqn.invars[0].aval.dtype), asked[0] if isinstance(asked, tuple) else asked
      for inner in [*jaxprs_in_params(eqn.params), *compat.hidden_jaxprs(eqn.params)]:
        yield from walk(inner)

  return list(walk(jax.make_jaxpr(f)(*args)))


def forward(name, params, tokens):
  return decoder.forward(params, tokens, decoders.CONFIGS[name])


def check_exact(found):
  assert found
  assert {kind for kind in found if 'float' in kind[0]} == {('float32', HIGHEST)}


@pytest.mark.parametrize('name', NAMES)
def test_products_of_the_decoder_ask_for_all_digits(name):
  config, params, tokens = decoders.CONFIGS[name], decoders.params(name), decoders.TOKENS
  x = jnp.ones((2, 9, 16))
  run = functools.partial(forward, name)
  check_exact(products(run, params, tokens))
  check_exact(products(jax.grad(lambda p, t: run(p, t).sum()), params, tokens))
  cache = decoder.new_cache(config, 2, 9)
  check_exact(products(lambda p, t, c: decoder.step(p, t, c, config), params, tokens, cache))
  check_exact(products(lambda p, t: decoder.forward_from(p, t, x, 1, config), params, tokens))
  check_exact(products(lambda p: decoder.unembed(p, x, config), params))
  check_exact(products(harvest.reap(run, sites='*'), params, tokens))


def test_products_of_bfloat16_are_left_alone():
  found = products(
    functools.partial(forward, 'gpt2'), decoders.params('gpt2', 'bfloat16'), decoders.TOKENS
  )
  assert {*found} == {('bfloat16', None)}


SAES = [
  sae.ReLU(d_in=6, width=12, sparsity=0.1),
  sae.TopK(d_in=6, width=12, k=2, aux_loss=sae.AuxK(k=3, after_tokens=10)),
  sae.BatchTopK(d_in=6, width=12, k=2, prefixes=(4, 12)),
  sae.BatchTopK(d_in=6, width=12, k=2, parts=(2, 4), aux_loss=sae.AuxK(k=3, after_tokens=10)),
  sae.JumpReLU(d_in=6, width=12, sparsity=0.1, d_out=5, skip=True),
  sae.Gated(d_in=6, width=12, sparsity=0.1, aux_loss=sae.GhostGrads.original(10)),
  sae.FeatureChoice(d_in=6, width=12, k=4, aux_loss=sae.AuxZipf(k=3)),
  sae.TargetedJumpReLU(d_in=6, width=12, l0=3),
]


@pytest.mark.parametrize('dictionary', SAES, ids=lambda s: type(s).__name__)
def test_products_of_a_dictionary_ask_for_all_digits_unless_rounded_ones_are_wanted(dictionary):
  params = dictionary.init(jax.random.key(0))
  x, y = jnp.ones((4, 6)), None if dictionary.d_out is None else jnp.ones((4, 5))
  dead = jnp.arange(12) < 4

  def loss(dictionary, params):
    return dictionary.loss(params, x, y, None, dead)[0]

  def used(dictionary, params):
    latents = dictionary.encode(params, x)
    return dictionary.decode(params, latents, x), latents

  for f in (used, loss, lambda d, p: jax.grad(functools.partial(loss, d))(p)):
    check_exact(products(functools.partial(f, dictionary), params))
  rounded = dataclasses.replace(dictionary, matmuls='bfloat16')
  assert ('bfloat16', None) in products(functools.partial(used, rounded), params)
  assert HIGHEST not in {
    asked for kind, asked in products(functools.partial(used, rounded), params)
  }


def test_products_that_gradients_select_by_and_of_the_agreement_of_decoders_ask_for_all_digits():
  guided = sae.GradientTopK(d_in=6, width=12, k=2)
  params, x = guided.init(jax.random.key(0)), jnp.ones((4, 6))
  check_exact(products(jax.grad(lambda p: guided.loss(p, x, guide=x)[0]), params))
  check_exact(products(lambda W: MFR(every=1).gradient(W, 0), jnp.ones((2, 12, 6))))


def test_products_of_an_evaluation_ask_for_all_digits():
  dictionary = SAES[0]
  params, x = dictionary.init(jax.random.key(0)), jnp.ones((4, 6))
  batch = sums.Batch(jnp.zeros((1, 4), jnp.int32), jnp.ones((1, 4), bool), jnp.ones((1, 4), bool))
  check_exact(products(lambda p: sums.site_totals(dictionary, p, x, x, x, batch), params))


def test_attribution_asks_for_all_digits(monkeypatch):
  asked = set()
  bind = jax.lax.dot_general_p.bind

  def recorded(*args, **params):
    if args[0].dtype == jnp.float32:
      asked.add(str(params['precision']))
    return bind(*args, **params)

  monkeypatch.setattr(jax.lax.dot_general_p, 'bind', recorded)
  # Of shapes that no other test has: a program that is traced already is not traced again.
  config = dataclasses.replace(decoders.CONFIGS['qwen'], n_layers=1, d_model=10, d_head=4, d_mlp=14)
  params = decoder.init(jax.random.key(0), config)

  def apply(params, tokens):
    return decoder.forward(params, tokens, config)

  clean = np.asarray(decoders.TOKENS)
  pairs = Pairs(clean, np.where(np.arange(9) == 3, (clean + 1) % 31, clean), np.ones((2, 9), bool))
  metric = logit_difference(pairs, [1, 2], [3, 4])
  nodes = nodes_of(harvest.sites_of(apply, params, clean), 'q, k')
  AtPStar(apply, nodes)(params, pairs, metric)
  assert asked == {str((HIGHEST, HIGHEST))}


def test_somebody_elses_code_asks_for_all_digits_and_what_it_says_itself_counts():
  def upstream(params, tokens):
    x = jnp.dot(params[tokens], params.T, precision='tensorfloat32')
    return x + jnp.dot(params[tokens], params.T)

  sizes = Sizes(1, 4, 4, 1, 1, 4, 7)
  model = shipped.forward(sizes, jnp.ones((7, 4)), upstream, lambda p, x: x @ p.T)
  tokens = jnp.zeros((1, 3), jnp.int32)
  found = [asked for _, asked in products(model.apply, model.params, tokens)]
  assert found[1] == HIGHEST != found[0]
  check_exact(products(model.unembed, model.params, jnp.ones((2, 4))))
  assert jax.config.jax_default_matmul_precision is None


def test_the_users_own_setting_overrules_it():
  with jax.default_matmul_precision('tensorfloat32'):
    found = products(functools.partial(forward, 'gpt2'), decoders.params('gpt2'), decoders.TOKENS)
  assert found
  assert HIGHEST not in {asked for _, asked in found}


# --- float64, and dtypes that parameters cannot have --------------------------------------------------------


@pytest.mark.parametrize('name', NAMES)
def test_float64_parameters_are_computed_with_in_float64(name):
  config = decoders.CONFIGS[name]
  with jax.enable_x64(True):
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), decoders.params(name))
    acts = harvest.reap(functools.partial(forward, name), sites='*')(params, decoders.TOKENS)
    assert {value.dtype for value in acts.values()} == {jnp.dtype('float64')}
    decoders.check(config, params, acts, decoders.TOKENS, tolerance=1e-12)


@pytest.mark.parametrize('dtype', ['int8', 'int32', 'bool', 'float8_e4m3fn', 'complex64', 'text'])
def test_only_floating_dtypes_make_parameters(dtype):
  with pytest.raises(MechjaxError, match=f"dtype='{dtype}'"):
    decoder.shapes(decoders.CONFIGS['gpt2'], dtype)


def test_an_abbreviated_dtype_gets_the_name_that_was_meant():
  for given, meant in (('bf16', 'bfloat16'), ('fp16', 'float16'), ('flaot32', 'float32')):
    with pytest.raises(MechjaxError) as error:
      precision.check_dtype(given)
    assert error.value.hint == f'did you mean {meant!r}?'
  with pytest.raises(MechjaxError, match=r'which integers cannot hold(.|\n)*float64, float32'):
    precision.check_dtype('int8')


def test_float64_without_64_bits_is_an_error_and_not_float32():
  with pytest.raises(MechjaxError, match=r'(?s)float64.*jax_enable_x64'):
    precision.check_dtype(np.float64)


def test_a_dtype_that_is_float64_under_another_name_says_so():
  with pytest.raises(MechjaxError, match='dtype=None for parameters'):
    precision.check_dtype(None)
  with pytest.raises(MechjaxError, match='dtype=float, which is float64') as error:
    precision.check_dtype(float)
  assert 'float32' in error.value.hint


def test_products_of_attribution_rows_ask_for_all_digits():
  frozen = small.frozen('gemma', dtype='float32')
  targets = circuits.logits(frozen)
  check_exact(products(rows._rows, frozen, *targets.data(np.arange(len(targets)))))
  source = circuits.Source(jnp.zeros_like(frozen.embed), frozen.errors)
  check_exact(products(circuits.push, frozen, source))
