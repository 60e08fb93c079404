"""The annotations of `mechjax.facts` hold for every public function, in a study from names to local processing."""

import jax.numpy as jnp
import numpy as np
import pytest

from mechjax import facts
from mechjax.models import ours
from tests import typed
from tests.models import decoders

pytestmark = pytest.mark.slow
FAMILY = 'gpt2'
L, F = decoders.CONFIGS[FAMILY].n_layers, decoders.SMALL['d_mlp']
MODEL = ours.forward(decoders.params(FAMILY), decoders.CONFIGS[FAMILY])
BOS = 2
IDS = {'Ann Bell': [9, 4], 'Dan Cole': [3, 7], 'Eve Frey': np.array([5, 12]), 'Gil Hale': [8, 1]}
SITES = 'mlp_pre.*, mlp_post.*'


@pytest.fixture(scope='module')
def calls():
  with typed.checked('mechjax.facts') as calls:
    yield calls


def read_a_product():
  names = facts.NameProduct.of(IDS, prefix=[BOS])
  whole = facts.read_whole(MODEL.apply, MODEL.params, names.prefix, SITES)
  step, new_cache = MODEL.generator.step, MODEL.generator.new_cache
  shared = facts.share_prefix(step, new_cache, MODEL.params, names.prefix, SITES)
  sums = facts.read_product(whole, names, batch=6)
  others = facts.read_product(shared, names, at=names.unlisted, batch=6)
  assert (len(sums.tiles), len(others.chosen['mlp_pre'])) == (4, 12)
  copy = facts.ProductSums(names, batch=6)
  copy.load(sums.arrays())
  assert copy.is_complete
  nle = copy.excess()
  computed = facts.excess_computed(nle['mlp_post'], nle['mlp_pre'])
  assert computed.shape == (4, L, F)
  for weights in (np.ones(F), np.ones((4, F))):
    share = facts.share_of_and(computed[:, 0], weights, np.ones(4), 3)
    assert share.shuffled.shape == (3,)
  table = np.ones((2, 3, 4), np.float32)
  assert facts.nonlinear_excess(table).shape == facts.nonlinear_excess(table[..., 0]).shape + (4,)
  facts.check_gate(table, jnp.zeros_like(table), table, jnp.exp)


def compare_names():
  names = facts.NameProduct.of(IDS, prefix=[BOS])
  swaps = facts.draw_swaps(names, repeats=5)
  read = facts.make_row_reader(MODEL.apply, 'mlp_out')
  for kind in ('entries', 'rows'):
    params = facts.shuffle_weights(MODEL.params, 'mlp', kind=kind, stacked=1)
    values = read(params, names.rows(swaps.pairs))['mlp_out']
    assert facts.measure_linearity(values, swaps).mean.shape == (L,)
  lengths = [
    np.linalg.norm(read(MODEL.params, names.rows(pairs))['mlp_out'], axis=-1)
    for pairs in (names.pairs, names.unlisted)
  ]
  assert facts.compare_groups(*lengths, 5).shuffled.shape == (5, L)
  assert facts.compare_groups(lengths[0][:, 0], lengths[1][:, 0], 5).auc.shape == ()


def remove_neurons():
  prompts = facts.Facts.of([[BOS, 9, 4, 11], np.array([BOS, 5, 12])], name=[2, -1], answer=[13, 8])
  ablation = facts.NeuronMeanAblation(MODEL.apply)
  means = ablation.measure_means(MODEL.params, prompts)
  effects = ablation.attribute(MODEL.params, prompts, means).values
  exact = ablation.measure(MODEL.params, prompts, means, [(0, 3), (1, 7)])
  assert exact.values.shape == (2, 2)
  shared = facts.correlate_effects(effects.reshape(2, -1), np.repeat(np.arange(L), F), 3)
  assert shared.correlation.shape == (1,)
  found = facts.measure_alignment(jnp.asarray(means), rotations=3)
  assert len(found.mean) == len(found.rotated_mean) == 2


def cut_the_context():
  texts = [[5, 9, 4, 11, 6], np.array([7, 1, 12, 3]), (4, 8, 8, 1, 9, 3)]
  centre = facts.measure_centre(MODEL.apply, MODEL.params, texts, bos=BOS)
  comparison = facts.ContextComparison(MODEL.apply, max_k=2)
  local = comparison(MODEL.params, texts, centre, bos=BOS)
  kinds = facts.classify_tokens([',' if i % 2 else 'word' for i in local.token])
  for chosen in (None, kinds == 'comma'):
    assert local.summarise(chosen, resamples=3).median.shape == (L, 2)


def compare_embeddings():
  rows = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
  assert facts.mean_cosine(jnp.asarray(rows)) < 1
  assert facts.measure_offset(rows, rows[::-1], draws=3).explained < 1


STEPS = (read_a_product, compare_names, remove_neurons, cut_the_context, compare_embeddings)


@pytest.mark.parametrize('step', STEPS, ids=lambda f: f.__name__)
def test_annotations_hold(calls, step):
  step()


def test_every_public_function_was_called(calls):
  assert calls.missing() == set()


def test_few_public_annotations_say_any():
  share, vague = typed.vague_share('mechjax.facts')
  assert share < 0.05, '\n'.join(vague)
