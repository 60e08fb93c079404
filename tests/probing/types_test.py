"""The annotations of `mechjax.probing` hold for every public function, in a study from splits to patches."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from mechjax import probing
from mechjax.models.head_weights import take_head_weights
from mechjax.patching import logit_difference
from mechjax.probing import batching, centring, chance, checks, cross_validation, newton, spaces
from mechjax.probing.heads import HeadWeights
from mechjax.probing.mechanistic import make_probe, search_heads
from mechjax.steering import in_one_pass, last
from tests import typed
from tests.models import decoders
from tests.patching import plain
from tests.probing.examples import examples

pytestmark = pytest.mark.slow

D = decoders.SMALL['d_model']
X, Y = examples(n=36, D=D, C=3)
GROUPS = np.arange(36) // 2


@pytest.fixture(scope='module')
def calls():
  with typed.checked('mechjax.probing') as calls:
    yield calls


def fit_and_judge():
  names = np.array(['a', 'b', 'c'])[Y]
  splits = probing.split(names, seeds=3)
  train, test = probing.stack(splits)
  choice = probing.choose_l2(X[train], names[train], (0.1, 1.0), 3)
  assert choice.at_edge.all()
  probes = probing.fit_logistic(X[train], names[train], choice.l2, standardise=True)
  values = probing.accuracy(names[test], probes.predict(X[test]))
  mean = probing.SeedMean.of(values)
  assert 0 <= mean.standard_error <= mean.error_for_new_examples(29, 7) + 1
  probing.balanced_accuracy(names[test], probes[0].predict(X[test]))
  assert probes.shape == (3,)
  np.testing.assert_allclose(np.exp(probes.log_probabilities(X)), probes.probabilities(X))
  assert probing.fit_logistic(X, Y > 0, [1.0, 2.0]).contrast.shape == (2, D)
  probing.choose_l2(X, np.stack([Y, Y]), (0.1, 1.0), probing.make_folds(Y, 3))


def fit_in_closed_form():
  choice = probing.choose_ridge_l2(X, Y)
  probing.fit_ridge_classifier(X, Y, choice.l2).predict(X)
  assert probing.fit_ridge(X, X[:, 0], [1.0, 2.0]).predict(X).shape == (2, 36)
  probing.leave_one_out(np.stack([X, X]), X[:, 0])
  probing.fit_mean_difference(jnp.asarray(X), Y.tolist(), shrinkage=0.5).scores(X)


def search_columns():
  probing.auc(X, Y)
  null = probing.shuffle_maximum(X, np.repeat(Y[::2], 2), shuffles=5, groups=GROUPS)
  assert null.median <= null.quantile(0.9) <= null.over_classes.max()
  assert null.p_value(1.0) == 1 / 6
  ranks = probing.scoring.rank_blocks(np.asarray(X, np.float64))
  assert len(ranks) == 1
  probing.scoring.auc_of_ranks(ranks[0], np.arange(3)[:, None] == Y)
  for make in (probing.principal_directions, probing.random_directions):
    probe = probing.fit_sparse(X, Y, 2, basis=functools.partial(make, n=4))
    assert probe.scores(X).shape == (36, 3)
    assert probe.predict(X).shape == (36,)
    assert probe.read(X).shape == (36, 2)
  curve = probing.fit_sparse_curve(X, Y, probing.split(Y, seeds=2), (1, 3), criterion='auc')
  assert len(curve.means('auc')) == 2


def patch():
  probe = probing.fit_logistic(X, Y)
  basis = probing.probe_basis(probe)
  probing.draw_subspaces(basis, 2)
  metric = logit_difference(plain.PAIRS, plain.ANSWERS, plain.OTHERS)
  patching = probing.SubspacePatching(plain.forward('gpt2'), 'resid_post')
  effects = patching(decoders.params('gpt2'), plain.PAIRS, metric, basis, layer=0, where=last(3))
  assert np.isfinite(effects.share('subspace'))
  source = jnp.zeros((2, 5, D))
  edit = probing.Interchange('resid_post.0', basis, source)
  (planted,) = in_one_pass(edit.plants(), (2, 5)).values()
  assert planted(source).shape == source.shape


def make_probes_of_heads():
  classes, labels = [4, 17, 9], Y[:12].tolist()
  stream = X[:12].astype(np.float32)
  for family in ('gpt2', 'gemma'):
    taken = take_head_weights(decoders.params(family), decoders.CONFIGS[family])
    weights = HeadWeights.of(**taken)
    probe = make_probe(weights, layer=1, head=0, classes=classes)
    assert probe.predict(stream, centre_on=jnp.asarray(X[12:])).shape == (12,)
    layers = np.stack([stream] * weights.shape[0])
    for x in (stream, layers):
      found = search_heads(weights, x, labels, np.array(classes), centre_on=x + 1)
      assert 0 < found.majority < 1
      assert found.top(1)[0].accuracy == found.accuracy.max()


def use_the_parts():
  encoded = checks.check_labels(Y, 36)
  assert encoded.counts.tolist() == [12, 12, 12]
  x = checks.check_features(X)
  checks.check_width(x, D)
  assert checks.check_share('s', 0.5) == 0.5
  assert checks.check_count('n', 3, 1) == 3
  assert cross_validation.check_candidates((2.0, 1.0)).tolist() == [1.0, 2.0]
  assert chance.find_units(Y, None)[1].tolist() == list(range(36))
  layout = batching.BatchLayout.of((2, 1), (3,))
  assert (layout.groups, layout.members, layout.own, layout.shared) == (2, 3, (0,), (1,))
  groups = layout.group(np.stack([x, x])[:, None])
  l2 = layout.spread(checks.check_penalty([1.0, 2.0, 3.0]), 0)
  assert layout.restore(l2).shape == (2, 3)
  assert len(list(layout.blocks(36, D))) == 1
  centred = centring.Centring.of(groups, True, True)
  codes = layout.spread(encoded.codes, 1)
  random = np.random.default_rng(0)
  for some, penalty in (
    (centred.features[..., :4], l2),
    (random.standard_normal((2, 36, 60)), l2),
    (random.standard_normal((2, 36, 60)), np.ones_like(l2)),
  ):
    found = newton.minimise(some, codes, 3, penalty, True, 1e-7, 50)
    assert (found.error <= 1e-7).all()
  wide = np.zeros((2, 3, 3, D))
  centred.to_raw(wide, np.zeros((2, 3, 3)))
  p = np.full((2, 3, 3, 36), 1 / 3)
  newton.residuals(p, codes[:, :, None] == np.arange(3)[:, None])
  ones = np.ones((2, 3, 2, 5))
  assert spaces.dot(ones, ones).shape == spaces.norm(ones).shape == (2, 3)
  spaces.each(spaces.norm(ones))
  spaces.not_zero(np.zeros(3))
  spaces.multiply(ones, np.ones((2, 5, 4)))
  cross_validation.PenaltyChoice.of(np.array([1.0, 2.0]), np.ones((3, 2)))


STEPS = (
  fit_and_judge,
  fit_in_closed_form,
  search_columns,
  patch,
  make_probes_of_heads,
  use_the_parts,
)


@pytest.mark.parametrize('step', STEPS, ids=lambda f: f.__name__)
def test_annotations_hold(calls, step):
  step()


def test_every_public_function_was_called(calls):
  assert {name for name in calls.missing() if '.Space.' not in name} == set()


def test_few_public_annotations_say_any():
  share, vague = typed.vague_share('mechjax.probing')
  assert share < 0.05, '\n'.join(vague)
