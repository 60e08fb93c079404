"""Models in a Python loop, put under one scan: same results, same sites, one copy of the layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechjax import harvest, sites, stacking
from mechjax.errors import StackingError
from tests.models import decoders

L, D, V = 4, 6, 11
TOKENS = jnp.array([[1, 5, 2, 7], [0, 3, 3, 9]])


@pytest.fixture(autouse=True)
def in_double_precision():
  with jax.enable_x64(True):
    yield


def make_params(n=L):
  def normal(*shape):
    make_params.key, key = jax.random.split(make_params.key)
    return jax.random.normal(key, shape) / 2

  make_params.key = jax.random.key(0)
  return {
    'embed': normal(V, D),
    'layers': [{'q': normal(D, D), 'mlp': {'w': normal(D, D), 'b': normal(D)}} for _ in range(n)],
    'norm': normal(D),
  }


def block(p, x, mask, scale):
  x = harvest.sow(x, name='resid_pre')
  scores = jnp.where(mask, x @ p['q'] @ x.swapaxes(-1, -2) * scale, -1e9)
  x = x + harvest.sow(jax.nn.softmax(scores), name='attn_probs') @ x
  out = harvest.sow(jax.nn.silu(x @ p['mlp']['w'] + p['mlp']['b']), name='mlp_out')
  return harvest.sow(x + out, name='resid_post'), (x @ p['q']).mean(-1)


def model(params, tokens, *, wrap=lambda f: f, scale=lambda i: 0.3):
  x = params['embed'][tokens]
  mask = jnp.tril(jnp.ones((tokens.shape[1],) * 2, bool))
  cache = {}
  for i, p in enumerate(params['layers']):
    with sites.layer(i):
      x, cache[i] = wrap(block)(p, x, mask, scale(i))
  logits = (x * params['norm']) @ params['embed'].T
  return {'logits': harvest.sow(logits, name='logits'), 'cache': cache}


VARIANTS = {
  'plain': model,
  'jitted block': lambda p, t: model(p, t, wrap=jax.jit),
  'checkpointed block': lambda p, t: model(p, t, wrap=jax.checkpoint),
  'jitted model': jax.jit(model),
  'checkpointed model': jax.checkpoint(model),
  'a number of its own in each layer': lambda p, t: model(p, t, scale=lambda i: 0.1 * (i + 1)),
  'an array of its own in each layer': lambda p, t: model(
    p, t, scale=lambda i: jnp.arange(4.0) + i
  ),
}


def close(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-9), a, b)


@pytest.mark.parametrize('name', VARIANTS)
def test_results_gradients_and_sites_are_those_of_the_loop(name):
  f, params = VARIANTS[name], make_params()
  flat = stacking.stack(f, params, TOKENS)
  assert flat.n_layers == L
  close(jax.jit(flat)(flat.params, TOKENS), f(params, TOKENS))

  def loss(f):
    return lambda p: (f(p, TOKENS)['logits'] ** 2).mean()

  close(flat.unstack(jax.grad(loss(flat))(flat.params)), jax.grad(loss(f))(params))
  assert [i.site for i in harvest.sites_of(flat, flat.params, TOKENS)] == [
    i.site for i in harvest.sites_of(f, params, TOKENS)
  ]
  read = harvest.reap(flat, sites='*')(flat.params, TOKENS)
  want = harvest.reap(f, sites='*')(params, TOKENS)
  for site in want:
    np.testing.assert_allclose(read[site], want[site], rtol=1e-9, atol=1e-9)
  plant = {'mlp_out.2': jnp.zeros((2, 4, D))}
  close(harvest.plant(flat)(plant, flat.params, TOKENS), harvest.plant(f)(plant, params, TOKENS))


def test_the_layer_is_in_the_program_once():
  params = make_params()
  flat = stacking.stack(model, params, TOKENS)
  text = str(jax.make_jaxpr(flat)(flat.params, TOKENS))
  assert text.count(' exp') == str(
    jax.make_jaxpr(lambda p: model(p, TOKENS))(make_params(1))
  ).count(' exp')
  assert set(flat.params) == {'embed', 'norm', 'layers.*.q', 'layers.*.mlp.w', 'layers.*.mlp.b'}
  assert flat.params['layers.*.mlp.b'].shape == (L, D)


def test_parameters_come_back_and_others_go_in():
  params = make_params()
  flat = stacking.stack(model, params, TOKENS)
  jax.tree.map(np.testing.assert_array_equal, flat.unstack(flat.params), params)
  doubled = jax.tree.map(lambda x: 2 * x, params)
  close(flat(flat.stack(doubled), TOKENS), model(doubled, TOKENS))
  with pytest.raises(StackingError, match='expected'):
    flat.stack({'embed': params['embed']})


@pytest.mark.parametrize('name', ['block_{}/{}', '{1}{0}'])
def test_parameters_in_a_flat_dict_keep_names_of_their_own(name):
  nested = make_params()
  layers = [{'q': p['q'], **p['mlp']} for p in nested['layers']]
  flat_layers = {name.format(i, k): p[k] for i, p in enumerate(layers) for k in p}
  params = {'embed': nested['embed'], 'norm': nested['norm'], **flat_layers}

  def unflat(params, tokens):
    at = lambda i, k: params[name.format(i, k)]  # noqa: E731
    layers = [{'q': at(i, 'q'), 'mlp': {'w': at(i, 'w'), 'b': at(i, 'b')}} for i in range(L)]
    return model({**params, 'layers': layers}, tokens)

  flat = stacking.stack(unflat, params, TOKENS)
  assert set(flat.params) == {'embed', 'norm', *(name.format('*', k) for k in layers[0])}
  close(flat(flat.params, TOKENS), model(nested, TOKENS))
  jax.tree.map(np.testing.assert_array_equal, flat.unstack(flat.params), params)


def test_arguments_of_other_shapes_are_staged_again():
  params = make_params()
  flat = stacking.stack(model, params, jax.ShapeDtypeStruct((1, 2), jnp.int32))
  close(flat(flat.params, TOKENS), model(params, TOKENS))


def test_checkpointing_changes_what_is_kept_and_not_what_comes_out():
  params = make_params()
  plain, kept = (stacking.stack(model, params, TOKENS, checkpoint=c) for c in (False, True))

  def gradient(f):
    return jax.jit(jax.grad(lambda p: (f(p, TOKENS)['logits'] ** 2).mean()))

  close(gradient(kept)(kept.params), gradient(plain)(plain.params))
  names = [
    len(jax.make_jaxpr(f)(f.params, TOKENS).pretty_print().split('remat')) for f in (plain, kept)
  ]
  assert names[0] < names[1]


@pytest.mark.parametrize('policy', [None, jax.checkpoint_policies.dots_saveable])
def test_layers_in_one_checkpoint_are_checkpointed_one_by_one(policy):
  params = make_params()
  flat = stacking.stack(jax.checkpoint(model, policy=policy), params, TOKENS)
  text = str(jax.make_jaxpr(flat)(flat.params, TOKENS))
  assert text.count('prevent_cse=False') == 1
  assert ('policy=None' in text) is (policy is None)


def test_layers_inside_a_branch_are_not_said_to_lack_a_mark():
  def branching(params, tokens):
    return jax.lax.cond(tokens[0, 0] > 0, model, model, params, tokens)

  with pytest.raises(StackingError, match="inside the primitive 'cond'") as e:
    stacking.stack(branching, make_params(), TOKENS)
  assert 'function_test.py' in e.value.where


def test_it_can_be_mapped_and_jitted():
  params = make_params()
  flat = stacking.stack(model, params, TOKENS[:1])
  mapped = jax.jit(jax.vmap(flat, in_axes=(None, 0)))(flat.params, TOKENS[:, None])
  close(mapped['logits'][:, 0], model(params, TOKENS)['logits'])


def test_a_model_without_marks_says_what_to_do():
  def unmarked(params, tokens):
    return params['embed'][tokens].sum()

  with pytest.raises(StackingError, match=r'sites.layer\(i\)'):
    stacking.stack(unmarked, make_params(), TOKENS)


def test_layers_of_two_kinds_are_named_with_their_lines():
  def alternating(params, tokens):
    x = params['embed'][tokens]
    for i, p in enumerate(params['layers']):
      with sites.layer(i):
        x = jnp.sin(x @ p['q']) if i % 2 else jnp.cos(x @ p['q'])
    return x

  with pytest.raises(
    StackingError, match=r'layer 1 is another program than layer 0.*sin.*cos'
  ) as e:
    stacking.stack(alternating, make_params(), TOKENS)
  assert 'function_test.py' in e.value.where


def test_a_layer_that_reaches_back_further_is_refused():
  def skipping(params, tokens):
    x = params['embed'][tokens]
    base = 2 * x
    for i, p in enumerate(params['layers']):
      with sites.layer(i):
        inner = jnp.sin(x @ p['q'])
        x = inner + base
      base = inner if i == 0 else base
    return x

  with pytest.raises(StackingError, match='layer 2 takes a value of layer 0'):
    stacking.stack(skipping, make_params(), TOKENS)


def test_an_equation_between_layers_is_refused_with_its_line():
  def between(params, tokens):
    x = params['embed'][tokens]
    for i, p in enumerate(params['layers']):
      with sites.layer(i):
        x = x @ p['q']
      x = jnp.sin(x)
    return x

  with pytest.raises(StackingError, match='sin between two layers') as e:
    stacking.stack(between, make_params(), TOKENS)
  assert 'function_test.py' in e.value.where


def test_a_model_in_place_of_its_function_is_refused_by_name():
  model = decoders.language_model('gpt2')
  with pytest.raises(StackingError, match=r'LanguageModel, not a function of \(params, inputs\)'):
    stacking.stack(model, model.params, decoders.TOKENS)
