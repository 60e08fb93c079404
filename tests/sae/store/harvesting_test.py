"""Activations against a forward pass in NumPy, for any contexts and places; and no layer more than is needed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechjax import harvest
from mechjax.errors import SiteError
from mechjax.sae import SAEError
from mechjax.sae.store import Contexts, Harvester
from tests.models import decoders
from tests.sae.store import toys

FLOAT16 = pytest.param('float16', marks=pytest.mark.float16, id='float16')

PARAMS = toys.params()
CONTEXTS = toys.contexts()
SITE = 'resid_post.2'


@pytest.fixture(scope='module', params=[toys.scanned, toys.written_out])
def harvester(request):
  return Harvester(request.param, PARAMS, [SITE, 'z.1'], CONTEXTS, batch=3)


def wanted(numbers, layer):
  values = toys.by_hand(PARAMS, CONTEXTS.file[numbers], layer)
  good = ~np.isin(CONTEXTS.file[numbers], CONTEXTS.special)
  return values[good]


@pytest.mark.parametrize(
  ('numbers', 'skip', 'n'),
  [([4], 0, 2), ([3, 1, 2], 1, 4), ([9, 10, 11, 0], 2, 5), (range(20), 7, 30), ([5, 6], 3, 1000)],
)
def test_rows_are_those_of_a_plain_forward_pass(harvester, numbers, skip, n):
  numbers = np.array(numbers)
  found = harvester.rows(numbers, skip, n)
  want = wanted(numbers, 2)[skip : skip + n]
  np.testing.assert_allclose(found[SITE], want, atol=1e-5)
  np.testing.assert_allclose(found['z.1'], wanted(numbers, 1)[skip : skip + n], atol=1e-5)
  assert found[SITE].dtype == np.float32


@pytest.mark.parametrize('numbers', [[], [10]])  # the tenth has special tokens only
def test_contexts_without_activations_give_no_rows(harvester, numbers):
  found = harvester.rows(np.array(numbers, int), 0, 5)
  assert {site: x.shape for site, x in found.items()} == {SITE: (0, toys.D), 'z.1': (0, toys.D)}


def test_widths_are_known_without_computing_and_heads_are_laid_end_to_end(harvester):
  assert harvester.widths == {SITE: toys.D, 'z.1': toys.N * toys.H}


@pytest.mark.parametrize('dtype', ['bfloat16', FLOAT16])
def test_activations_are_rounded_to_the_dtype_that_is_asked_for(dtype):
  dtype = jnp.dtype(dtype)
  harvester = Harvester(toys.scanned, PARAMS, [SITE], CONTEXTS, batch=20, dtype=dtype)
  found = harvester.rows(np.arange(20), 0, 1000)[SITE]
  assert found.dtype == dtype
  np.testing.assert_allclose(found.astype(np.float32), wanted(np.arange(20), 2), atol=1e-2)


def test_activations_that_are_not_finite_are_an_error_with_site_and_context():
  tokens = np.full((6, 5), 3, np.int32)
  tokens[4, 2] = 7
  embed = PARAMS['embed'].copy()
  embed[7, 0] = np.nan
  contexts = Contexts(tokens, np.arange(6), (0,), 'x')
  harvester = Harvester(toys.scanned, PARAMS | {'embed': embed}, [SITE], contexts, batch=2)
  assert np.isfinite(harvester.rows(np.arange(4), 0, 100)[SITE]).all()
  with pytest.raises(SAEError, match=r'resid_post\.2 are not finite(.|\n)*context 4'):
    harvester.rows(np.arange(6), 0, 100)


@pytest.mark.float16
def test_activations_beyond_a_short_dtype_are_an_error_and_not_infinite():
  def forward(scale, tokens):
    return harvest.sow(jnp.full((*tokens.shape, 3), scale), name='big')

  kinds = {'sites': ['big'], 'contexts': CONTEXTS, 'dtype': np.float16}
  assert Harvester(forward, np.float32(6e4), **kinds).rows(np.arange(2), 0, 5)['big'].max() == 6e4
  with pytest.raises(SAEError, match='big are not finite'):
    Harvester(forward, np.float32(7e4), **kinds).rows(np.arange(2), 0, 5)


def test_a_site_without_a_vector_for_each_token_is_refused():
  harvester = Harvester(toys.scanned, PARAMS, ['of_a_row.0'], CONTEXTS)
  with pytest.raises(SAEError, match=r'of_a_row\.0 has shape \(32,\)'):
    _ = harvester.widths


@pytest.mark.parametrize('site', ['resid_post.9', 'nowhere', 'resid_post.*'])
def test_a_site_that_is_not_in_the_model_or_is_several_is_an_error(site):
  with pytest.raises(SiteError):
    Harvester(toys.scanned, PARAMS, [site], CONTEXTS).rows(np.arange(2), 0, 1)


@pytest.mark.parametrize('wrong', [{'sites': []}, {'sites': [SITE, SITE]}, {'batch': 0}])
def test_settings_without_meaning_are_refused(wrong):
  (name,) = wrong
  with pytest.raises(SAEError, match=rf'Harvester\.{name}='):
    Harvester(
      **{'forward': toys.scanned, 'params': 0, 'sites': [SITE], 'contexts': CONTEXTS} | wrong
    )


@pytest.mark.parametrize('layer', range(toys.L))
def test_layers_behind_the_deepest_site_are_not_in_the_compiled_program(layer):
  harvester = Harvester(toys.written_out, PARAMS, [f'resid_post.{layer}'], CONTEXTS)
  tokens = jax.ShapeDtypeStruct((32, 5), jnp.int32)
  program = jax.jit(harvester._read).lower(PARAMS, tokens).compile().as_text()
  dots = sum(program.count(word) for word in (' dot(', ' custom-call('))
  assert dots == layer + 1


def test_a_pass_that_is_spread_over_devices_gives_the_same_rows():
  mesh = jax.make_mesh((8,), ('data',), (jax.sharding.AxisType.Auto,))
  rows, whole = (
    jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes)) for axes in (['data'], [])
  )
  spread = Harvester(
    toys.scanned, jax.device_put(PARAMS, whole), [SITE], CONTEXTS, batch=8, placement=rows
  )
  numbers = np.arange(13)
  np.testing.assert_allclose(spread.rows(numbers, 2, 60)[SITE], wanted(numbers, 2)[2:62], atol=1e-5)
  tokens = jax.device_put(np.zeros((8, CONTEXTS.length), np.int32), rows)
  (found,) = spread._compiled(spread.params, tokens).values()
  assert len({shard.device for shard in found.addressable_shards}) == 8


def test_a_model_in_place_of_its_function_is_refused_by_name():
  model = decoders.language_model('gpt2')
  with pytest.raises(SAEError, match=r'LanguageModel, not a function of \(params, inputs\)'):
    Harvester(model, model.params, ['resid_post.0'], CONTEXTS)
