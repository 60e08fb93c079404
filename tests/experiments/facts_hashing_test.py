"""Hashing and neurons in the experiment on facts, against plain passes of the decoder that knows the sports."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.facts import hashing, neurons, readers, weights
from experiments.facts import names as names_lib
from experiments.facts import subject as subjects
from experiments.facts.knowledge import SPORTS
from experiments.saved import Saved
from mechjax import harvest
from mechjax.errors import FactsError
from mechjax.facts.excess import nonlinear_excess
from tests.experiments import loading, planted_facts
from tests.experiments.small_facts import make_settings, write_home
from tests.models import decoders

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module', autouse=True)
def _planted_model():
  with loading.replaced(planted_facts.load):
    yield


@pytest.fixture(scope='module')
def home(tmp_path_factory):
  return write_home(tmp_path_factory.mktemp('facts'))


@pytest.fixture(scope='module')
def settings(home):
  return make_settings(home)


@pytest.fixture(scope='module')
def subject(settings):
  return subjects.prepare(settings, planted_facts.load())


@pytest.fixture(scope='module')
def names(home, settings, subject):
  """The names that the model knows, as a run chooses them."""
  return names_lib.choose_names(settings, subject, Saved(home, lambda name: None))


# --- hashing --------------------------------------------------------------------------------------------------


def make_random_probe(subject):
  """A probe that reads what all components write; nothing but the embeddings writes what the planted head reads."""
  probe = readers.make_reader(readers.read_weights(subject.model), (1, 0), subject.sports)
  directions = np.random.default_rng(2).normal(size=probe.directions.shape)
  return dataclasses.replace(probe, directions=jnp.asarray(directions, jnp.float32))


def test_weights_to_the_probe_are_those_of_its_reading(subject, names, settings):
  """Sum over neurons of output times weight is the part of the reading that the MLPs write, with norms frozen."""
  product = hashing.make_product(settings, subject, names)
  probe = make_random_probe(subject)
  found = hashing.read_excess(settings, subject, product, probe)
  rows = product.names.rows(product.names.pairs)
  sites = 'mlp_post.{0,1}, mlp_out.{0,1}, resid_post.1'
  acts = harvest.reap(subject.model.apply, sites=sites)(subject.model.params, rows)
  out = np.asarray(acts['mlp_out.0'] + acts['mlp_out.1'], np.float64)[:, -1]
  x = np.asarray(acts['resid_post.1'], np.float64)[:, -1]
  d = weights.centre_directions(probe)[:, product.labels].T
  expected = (out * d).sum(1) / np.sqrt((x**2).mean(1))
  post = np.moveaxis(np.asarray(acts.stack('mlp_post'))[:, :, -1], 0, 1)
  np.testing.assert_allclose((post * found['weights']).sum((1, 2)), expected, rtol=1e-3, atol=1e-5)


def test_components_write_the_excess_of_the_stream(subject, names, settings):
  """With norms frozen, excesses of attention and MLPs sum to that of the stream, as the embedding has none."""
  product = hashing.make_product(settings, subject, names)
  probe = make_random_probe(subject)
  found = hashing.read_excess(settings, subject, product, probe)
  a, b = product.names.shape
  pairs = np.stack(np.meshgrid(np.arange(a), np.arange(b), indexing='ij'), -1).reshape(-1, 2)
  rows = product.names.rows(pairs)
  acts = harvest.reap(subject.model.apply, sites='resid_post.1')(subject.model.params, rows)
  x = np.asarray(acts['resid_post.1'], np.float64)[:, -1]
  nle = nonlinear_excess(x.reshape(a, b, -1))[tuple(product.names.pairs.T)]
  d = weights.centre_directions(probe)[:, product.labels].T
  own = x.reshape(a, b, -1)[tuple(product.names.pairs.T)]
  expected = (nle * d).sum(1) / np.sqrt((own**2).mean(1))
  total = found['nle_attn_out'].sum(1) + found['nle_mlp_out'].sum(1)
  np.testing.assert_allclose(total, expected, rtol=1e-3, atol=1e-5)
  assert np.abs(expected).max() > 1e-3


def test_the_scale_of_a_norm_after_the_mlp_is_found_or_refused():
  model = decoders.language_model('gemma')
  tokens = np.arange(12).reshape(2, 6)
  acts = harvest.reap(model.apply, sites='mlp_post, mlp_out')(model.params, tokens)
  post, out = (
    np.moveaxis(np.asarray(acts.stack(n))[:, :, -1], 0, 1) for n in ('mlp_post', 'mlp_out')
  )
  writers = weights.read_writers(model, 2)
  scale = weights.freeze_scale(post, out, writers)
  np.testing.assert_allclose(
    np.einsum('blf,lfd->bld', post, writers) * scale[..., None], out, rtol=1e-4, atol=1e-5
  )
  with pytest.raises(FactsError, match='the output of MLP 0 is not a multiple'):
    weights.freeze_scale(post, out, writers[::-1])


def test_made_up_pairs_are_not_listed_and_have_every_token_once(settings, subject, names):
  product = hashing.make_product(settings, subject, names).names
  assert max(product.shape) <= settings.grid
  unknown = hashing.draw_unknown(product, 0)
  assert not {tuple(x) for x in unknown.tolist()} & {tuple(x) for x in product.pairs.tolist()}
  assert all(len({*column}) == len(unknown) for column in unknown.T.tolist())


# --- neurons --------------------------------------------------------------------------------------------------


def test_the_neuron_that_tells_a_sport_is_found_by_one_half_and_measured_on_the_other(
  settings, names
):
  random = np.random.default_rng(1)
  post = random.normal(size=(len(names), 2, 7))
  post[:, 1, 4] -= 100.0 * (names.labels == 1)
  found = neurons.find_best(settings, names, post)
  one = found['sports'][SPORTS[1]]
  assert one['neuron'] == [1, 4]
  assert one['measured'] == one['chosen'] == 1
  assert one['auc'] == 0
  assert found['tries'] == 14 * 3
  assert found['sports'][SPORTS[0]]['measured'] < found['sports'][SPORTS[0]]['chosen']


def test_logits_at_the_ends_of_padded_rows_are_those_of_each_row_alone(subject):
  rows = [subject.prompts[0].ids, subject.prompts[1].ids[:9]]
  tokens = np.zeros((2, 20), np.int32)
  for i, row in enumerate(rows):
    tokens[i, : len(row)] = row
  found = np.asarray(neurons.read_ends(subject.model, jnp.asarray(tokens)))
  for i, row in enumerate(rows):
    alone = np.asarray(subject.model(np.array([row])))[0, -1]
    np.testing.assert_allclose(
      found[i], np.broadcast_to(alone, (20, len(alone))), rtol=1e-4, atol=1e-4
    )


def test_the_largest_neurons_of_any_fact_are_chosen():
  effects = np.zeros((2, 3, 4))
  effects[0, 1, 2], effects[0, 0, 1], effects[1, 2, 3] = -5, 4, 3
  assert {tuple(x) for x in neurons.choose_largest(effects, 1).tolist()} == {(1, 2), (2, 3)}
