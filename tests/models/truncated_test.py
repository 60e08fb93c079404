"""A forward pass that stops at the deepest requested site: the same numbers for less work."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechjax import harvest
from mechjax.errors import SiteError
from mechjax.models import decoder
from mechjax.models.forward_pass import Forward
from mechjax.models.language_model import LanguageModel
from tests.models import decoders

TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, decoders.V, (2, decoders.T)))
EMBED, FIRST, LAST = 'embed', 'resid_post.0', 'logits'


def loaded(name):
  return decoders.language_model(name)


def layers(forward, params):
  """Lengths of the scans over layers in the program; XLA's own count of FLOPs takes the body of a loop once."""
  program = jax.make_jaxpr(forward)(params, TOKENS)
  return [e.params['length'] for e in program.eqns if e.primitive.name == 'scan']


@pytest.mark.parametrize(
  ('name', 'wanted'),
  [
    ('qwen', EMBED),
    ('qwen', FIRST),
    ('qwen', ['attn_scores.1', FIRST]),
    ('qwen', f'{FIRST}, final_norm'),
    ('gemma', 'z.*'),
    ('gpt2', FIRST),
  ],
)
def test_what_is_read_is_what_the_whole_pass_gives(name, wanted):
  model = loaded(name)
  short, whole = (
    jax.jit(harvest.reap(f, sites=wanted))(model.params, TOKENS)
    for f in (model.truncate_at(wanted), model.apply)
  )
  assert {*short} == {*whole}
  for site in whole:
    np.testing.assert_allclose(short[site], whole[site], rtol=1e-6, atol=1e-6)


def test_it_runs_the_layers_that_are_needed_and_no_others():
  model = loaded('qwen')
  needed = {EMBED: 0, FIRST: 1, 'resid_post.1, q.0': 2, 'resid_pre.1': 2}
  for wanted, n in needed.items():
    assert sum(layers(model.truncate_at(wanted), model.params)) == n, wanted
  assert model.truncate_at(LAST) == model.apply == model.truncate_at([FIRST, 'final_norm'])


def test_what_is_changed_on_the_way_is_changed():
  model = loaded('qwen')
  edit = {'mlp_out.0': jnp.zeros_like}
  short, whole = (
    harvest.reap(harvest.plant(f), sites='resid_post.1')(edit, model.params, TOKENS)
    for f in (model.truncate_at('resid_post.1'), model.apply)
  )
  np.testing.assert_allclose(short['resid_post.1'], whole['resid_post.1'], rtol=1e-6, atol=1e-6)


def test_a_site_that_is_not_there_is_an_error():
  with pytest.raises(SiteError, match='resid_post'):
    loaded('qwen').truncate_at('resid_post.7')


def test_code_that_writes_its_layers_out_is_left_to_the_compiler():
  config = decoders.CONFIGS['qwen']
  params = decoders.params('qwen')
  apply = lambda params, tokens: decoder.forward(params, tokens, config, unroll=True)  # noqa: E731
  upstream = LanguageModel('upstream', Forward(params, apply, decoder.unembed, 2, 16, 31), None)
  assert upstream.truncate_at(FIRST) is apply


def test_a_fingerprint_tells_one_number_from_another_and_not_one_device_from_eight():
  model = loaded('qwen')
  marks = [model.fingerprint()]
  leaves, tree = jax.tree.flatten(model.params)
  mesh = jax.make_mesh((8,), ('x',), (jax.sharding.AxisType.Auto,))
  spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  model.params = jax.device_put(model.params, spread)
  assert model.fingerprint() == marks[0]
  for n in range(len(leaves)):
    flat = leaves[n].reshape(-1)
    changed, swapped = flat.at[-1].multiply(1.0001), flat.at[:2].set(flat[1::-1])
    for other in (changed, swapped) if flat[0] != flat[1] else (changed,):
      leaf = other.reshape(leaves[n].shape) if (other != flat).any() else leaves[n] + 1
      model.params = tree.unflatten([*leaves[:n], leaf, *leaves[n + 1 :]])
      marks.append(model.fingerprint())
  assert len({*marks}) == len(marks)
  model.params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree.unflatten(leaves))
  assert model.fingerprint() not in marks


def test_a_deep_copy_is_a_model_of_its_own_also_after_a_harvest():
  model = loaded('qwen')
  before = model(TOKENS)
  read = lambda model: harvest.reap(model, sites='logits')(TOKENS)['logits']  # noqa: E731
  read(model)
  other = copy.deepcopy(model)
  np.testing.assert_array_equal(other(TOKENS), before)
  other.params = jax.tree.map(lambda x: 1.5 * x, other.params)
  np.testing.assert_array_equal(model(TOKENS), before)
  assert float(jnp.abs(other(TOKENS) - before).max()) > 0.1
  np.testing.assert_allclose(read(other), other(TOKENS), rtol=1e-5, atol=1e-5)
