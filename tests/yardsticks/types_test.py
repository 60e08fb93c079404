"""The annotations of `mechjax.yardsticks` hold for every public function, from codes to toy models."""

import functools

import jax
import numpy as np
import pytest

from mechjax import probing, yardsticks
from mechjax.yardsticks import category_probes, checks
from tests import typed
from tests.yardsticks import planted

pytestmark = pytest.mark.slow
LABELS = planted.attributes(120)
ACTS, _ = planted.additive(LABELS)
_, F, NEW, X, Y, W = planted.dictionary()


@pytest.fixture(scope='module')
def calls():
  with typed.checked('mechjax.yardsticks') as calls:
    yield calls


def make_codes():
  for method in ('mean', 'mse'):
    codes = yardsticks.fit_codes(ACTS, LABELS, method, coupled=[('io', 'pos')])
    codes.reconstruct(LABELS)
    codes.edit(ACTS, LABELS, {'thing': np.roll(LABELS['thing'], 1).tolist()})
    codes.codes_of(LABELS, 0)
    assert codes.share_explained(ACTS, LABELS) > 0
    codes.variance_shares(ACTS)
  assert codes.coding.names == ('io', 'pos', 's', 'thing')
  assert codes.coding.columns[-1].stop == codes.coding.n_columns
  assert codes.coding.find_features('pos') == (0,)
  assert codes.coding.design(LABELS).sum() == 3 * codes.coding.encode(LABELS).shape[1]


def recover():
  run = lambda values: np.sum(values['a'] ** 2, 1)  # noqa: E731
  found = yardsticks.measure_recovery(run, {'a': ACTS}, {'a': ACTS / 2})
  assert '±' in str(found.sufficiency)


def edit_latents():
  gram = yardsticks.DecoderGram.of(W)
  yardsticks.DecoderGram.of(jax.numpy.asarray(W), np.array([1, 2]))
  edits = [
    yardsticks.edit_greedily(gram, F, NEW, X, Y, 3),
    yardsticks.edit_by_score(F, NEW, np.ones_like(F), 3),
  ]
  for edit in edits:
    edit.apply(X, W, 2)
    edit.distances(X, Y, W)
    yardsticks.sum_weights(yardsticks.measure_weights(F, W), edit)


def score_latents():
  active = np.random.default_rng(0).random((120, 4)) < 0.4
  predicates = yardsticks.list_predicates(LABELS, unions={'io': {'x': ['Ann', 'Bob']}})
  scores = yardsticks.score_f1(active, predicates)
  assert len(predicates) == len(scores.always)
  assert predicates.describe(0) == 'io = Ann'
  scores.is_interpretable()
  assert scores.best.shape == (4,)
  scores.of_prompts(predicates.at(LABELS))
  yardsticks.report_occlusion(yardsticks.fit_codes(ACTS, LABELS), ACTS, scores)
  assert yardsticks.count_parts(active, LABELS['pos']).n >= 0
  yardsticks.find_best_unions(active, LABELS['io']).score(active, LABELS['io'])
  latents = np.maximum(ACTS, 0)
  assert yardsticks.measure_coverage(latents, predicates).mean <= 1
  assert yardsticks.score_reconstruction(latents, predicates, latents, predicates).max() <= 1


def score_answers():
  found = yardsticks.score_edits([1, 2], patched=[1, 1], expected=[1, 2])
  assert found.ceiling.share == 0.5
  one = yardsticks.disentangle(edited='a', asked=['a', 'b'], answers=[1, 2], old=[0, 2], new=[1, 3])
  assert (one.score, one.mean_isolation, one.standard_error, one.isolation_error) == (1, 1, 0, 0)


def probe():
  labels = category_probes.one_against_rest(LABELS['io'])
  splits = probing.split(LABELS['io'], seeds=2)
  basis = functools.partial(probing.principal_directions, n=2)
  curves = category_probes.probe_categories(ACTS, labels, splits, (1, 2), basis=basis)
  assert len(curves.means()) == len(curves.of_task(0)) == 2
  category_probes.probe_densely(ACTS, labels, splits)


def make_toys():
  model = yardsticks.ToyModel(4, 2, steps=3, batch=4)
  toys = yardsticks.train_toys(jax.random.key(0), model, [0.5])
  yardsticks.measure_superposition(toys.W)
  yardsticks.mmcs(toys.W[0], np.asarray(toys.W)[0, :, :3])
  yardsticks.draw_features(jax.random.key(0), 0.5, (2, 3))


def check():
  assert checks.check_share('x', 1) == 1.0
  assert checks.check_whole('n', np.int64(2), 1) == 2


STEPS = (
  make_codes,
  recover,
  edit_latents,
  score_latents,
  score_answers,
  probe,
  make_toys,
  check,
)


@pytest.mark.parametrize('step', STEPS, ids=lambda f: f.__name__)
def test_annotations_hold(calls, step):
  step()


def test_every_public_function_was_called(calls):
  assert calls.missing() == set()


def test_few_public_annotations_say_any():
  share, vague = typed.vague_share('mechjax.yardsticks')
  assert share < 0.05, '\n'.join(vague)
