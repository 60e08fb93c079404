"""Patches of a probe's subspace equal edits by hand in NumPy, and the probe reads what was patched in."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import timing
from mechjax import harvest
from mechjax.patching import ActivationPatching, PatchingError, custom, logit_difference
from mechjax.probing import (
  Interchange,
  ProbingError,
  SubspacePatching,
  draw_subspaces,
  fit_logistic,
  fit_mean_difference,
  probe_basis,
)
from mechjax.steering import SteeringError, at, everywhere, in_one_pass, last, orthonormal_basis
from tests.models import decoders
from tests.patching import linear, plain
from tests.probing.examples import examples

D = decoders.SMALL['d_model']
METRIC = logit_difference(plain.PAIRS, plain.ANSWERS, plain.OTHERS)
BASIS = np.linalg.qr(np.random.default_rng(0).standard_normal((D, 2)))[0].T
PARAMS = decoders.params('gemma')
LAST = last(1)


forward = plain.forward('gemma')


@functools.cache
def patching_of(site, **options):
  """A method, made once for all tests that use it, because it compiles."""
  return SubspacePatching(forward, site, **options)


def patch(basis=BASIS, layer=1, site='resid_post', where=LAST, draws=2, metric=METRIC, **options):
  patching = patching_of(site, **options)
  return patching(PARAMS, plain.PAIRS, metric, basis, layer=layer, where=where, draws=draws)


def by_hand(row, base, other, site, projection, positions):
  """Effect on one pair when `projection` of the difference is added at some positions, in NumPy and float64."""
  there = plain.values('gemma', other[row : row + 1])[site]

  def edit(where, value):
    if where == site:
      value = value.copy()
      for t in positions:
        value[:, t] += (there[:, t] - value[:, t]) @ projection
    return value

  runs = [plain.logits('gemma', base[row : row + 1], e) for e in (edit, lambda site, x: x)]
  changed, before = (plain.logit_difference(out, row)[0] for out in runs)
  return changed - before


P = BASIS.T @ BASIS
ARMS = {'subspace': P, 'complement': np.eye(D) - P, 'whole': np.eye(D)}


@pytest.mark.parametrize('mode', ['noising', 'denoising'])
def test_effects_are_those_of_an_edit_by_hand(mode):
  sides = (plain.CLEAN, plain.NOISE) if mode == 'noising' else (plain.NOISE, plain.CLEAN)
  found = patch(mode=mode, where=at(0, 2), layer=0)
  for row in range(2):
    for arm, projection in ARMS.items():
      expected = by_hand(row, *sides, 'resid_post.0', projection, [0, 2])
      np.testing.assert_allclose(getattr(found, arm)[row], expected, rtol=0, atol=2e-4)
      assert abs(expected) > 1e-2
    for number, q in enumerate(draw_subspaces(BASIS, 2)):
      q = np.asarray(q, np.float64)
      expected = by_hand(row, *sides, 'resid_post.0', q.T @ q, [0, 2])
      np.testing.assert_allclose(found.random[number, row], expected, rtol=0, atol=2e-4)


def test_the_last_position_is_that_of_each_pair_though_one_is_shorter():
  """The prompts of the second pair have padding, and a position at which both prompts differ is patched."""
  found = patch(where=last(3))
  for row, n in enumerate((plain.T, plain.T - 1)):
    expected = by_hand(row, plain.CLEAN, plain.NOISE, 'resid_post.1', P, [n - 3, n - 2, n - 1])
    np.testing.assert_allclose(found.subspace[row], expected, rtol=0, atol=2e-4)


def test_the_whole_activation_is_the_node_of_an_exact_sweep():
  nodes = plain.nodes('gemma', 'mlp_out.0', positions=[2])
  exact = ActivationPatching(plain.forward('gemma'), nodes)(PARAMS, plain.PAIRS, METRIC)
  found = patch(site='mlp_out', layer=0, where=at(2))
  np.testing.assert_allclose(found.whole, exact.values[0], rtol=0, atol=2e-4)
  np.testing.assert_allclose(found.base, exact.base, rtol=0, atol=1e-6)
  np.testing.assert_allclose(found.other, exact.other, rtol=0, atol=1e-6)
  assert np.abs(found.whole).min() > 1e-3


def test_in_a_linear_model_the_subspace_and_the_rest_add_up_to_the_whole():
  basis = orthonormal_basis(np.random.default_rng(1).standard_normal((2, linear.D)))
  patching = SubspacePatching(linear.forward, 'mlp_out', batch=3)
  found = patching(linear.PARAMS32, linear.PAIRS, linear.METRIC, basis, layer=1, where=everywhere)
  np.testing.assert_allclose(found.subspace + found.complement, found.whole, rtol=1e-3, atol=1e-3)
  assert found.share('whole') == 1
  np.testing.assert_allclose(found.share('subspace') + found.share('complement'), 1, atol=1e-3)
  np.testing.assert_allclose(found.share('random'), found.random.mean() / found.whole.mean())
  assert found.title == 'subspace noising: logit difference'


def test_blocks_of_pairs_are_the_same_as_all_at_once():
  one, all_at_once = patch(batch=1), patch()
  for name in ('base', 'other', 'subspace', 'complement', 'whole', 'random'):
    a, b = getattr(one, name), getattr(all_at_once, name)
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


def test_another_prompt_of_the_same_set_is_a_source_too():
  """With two pairs, each draws the clean prompt of the other."""
  found = patch(mode='resample', where=at(1))
  expected = by_hand(0, plain.CLEAN, plain.CLEAN[::-1], 'resid_post.1', P, [1])
  np.testing.assert_allclose(found.subspace[0], expected, rtol=0, atol=2e-4)


def test_layers_positions_bases_and_controls_share_one_executable():
  patch(layer=0)
  others = draw_subspaces(BASIS, 2, seed=5)
  with timing.compilations() as seen:
    found = [
      patch(basis, layer, where=last(n), draws=3).subspace
      for basis in others
      for layer, n in ((0, 1), (1, 2))
    ]
  assert seen.count == 0
  assert len({tuple(x) for x in found}) == 4


# --- the probe and its subspace ---------------------------------------------------------------------------


@pytest.mark.parametrize('C', [2, 3])
def test_after_the_patch_the_probe_reads_the_other_prompt_and_nothing_else_has_changed(C):
  x, y = examples(30, D, C)
  probe = fit_logistic(x, y, standardise=True)
  basis = probe_basis(probe)
  assert basis.shape == (C - 1, D)
  base, other = np.random.default_rng(2).standard_normal((2, 1, 4, D)).astype(np.float32)
  edit = Interchange('resid_post.0', basis, other, where=at(1, 2))
  (planted,) = in_one_pass(edit.plants(), (1, 4)).values()
  found = np.asarray(planted(jnp.asarray(base)), np.float64)[0]
  p = probe.probabilities(found)
  np.testing.assert_allclose(p[1:3], probe.probabilities(other[0])[1:3], atol=1e-4)
  np.testing.assert_array_equal(found[[0, 3]], base[0, [0, 3]])
  moved = found - base[0]
  q = np.asarray(basis, np.float64)
  np.testing.assert_allclose(moved, moved @ q.T @ q, atol=1e-5)


def test_the_subspace_of_two_classes_is_the_contrast():
  x, y = examples(30, 8, 2)
  for probe in (fit_logistic(x, y), fit_mean_difference(x, y)):
    (row,) = np.asarray(probe_basis(probe))
    np.testing.assert_allclose(
      row * np.linalg.norm(probe.contrast), probe.contrast, atol=1e-5 * np.abs(probe.contrast).max()
    )


def test_random_subspaces_are_orthonormal_and_begin_alike():
  drawn = draw_subspaces(BASIS, 3, seed=1)
  for q, again in zip(drawn, draw_subspaces(BASIS, 2, seed=1)):
    np.testing.assert_array_equal(q, again)
  for q in drawn:
    np.testing.assert_allclose(q @ q.T, np.eye(2), atol=1e-6)


# --- errors -----------------------------------------------------------------------------------------------


def nan_metric():
  return custom('none', lambda out, data: jnp.full(2, jnp.nan))


@pytest.mark.parametrize(
  ('call', 'error', 'words'),
  [
    (lambda: patch(mode='zero'), ProbingError, "unknown mode of a subspace patch 'zero'"),
    (lambda: patch(batch=0), ProbingError, 'batch=0'),
    (lambda: patch(draws=0), ProbingError, 'draws=0'),
    (lambda: patch(BASIS[:, :5] * 2), ProbingError, 'that is not orthonormal'),
    (lambda: patch(2 * BASIS), ProbingError, 'that is not orthonormal'),
    (lambda: patch(BASIS[0]), ProbingError, 'that is not orthonormal'),
    (lambda: patch(np.eye(2, 7)), ProbingError, "width 7 at the site 'resid_post' of width 16"),
    (lambda: patch(layer=2), ProbingError, r'layer=2(.|\n)*the layers \[0, 1\]'),
    (lambda: patch(layer=None), ProbingError, 'layer=None'),
    (lambda: patch(layer=-1), ProbingError, 'layer=-1'),
    (lambda: patch(site='final_norm'), ProbingError, 'layer=1(.|\n)*no layers'),
    (lambda: patch(site='resid_post.1'), ProbingError, "'resid_post.1', which does not exist"),
    (lambda: patch(site='z'), ProbingError, "'z' has the shape"),
    (lambda: patch(layer=True), ProbingError, 'layer=True'),
    (lambda: patch(where=last(5)), SteeringError, 'row 1 has 4 tokens'),
    (
      lambda: SubspacePatching(decoders.language_model('gemma'), 'resid_post'),
      PatchingError,
      'not a function',
    ),
    (lambda: patch(metric=nan_metric()), ProbingError, 'the metric of a run is NaN'),
    (lambda: patch().share('rest'), ProbingError, "unknown part 'rest'"),
    (lambda: patch(where=at(1)).share('whole'), ProbingError, 'has no effect'),
    (lambda: probe_basis(fit_logistic(*examples(), [1.0, 2.0])), ProbingError, r'shape \(2,\)'),
  ],
)
def test_bad_input_is_refused(call, error, words):
  with pytest.raises(error, match=words):
    call()


def test_activations_of_other_texts_are_refused():
  edit = Interchange('resid_post.0', BASIS, np.zeros((1, 4, D), np.float32))
  (planted,) = in_one_pass(edit.plants(), (2, 4)).values()
  with pytest.raises(ProbingError, match='texts of another shape'):
    planted(jnp.zeros((2, 4, D)))


def test_a_changed_closure_of_the_model_is_noticed():
  scale = {'by': 1.0}

  def forward(params, tokens):
    x = harvest.sow(jnp.asarray(params)[tokens], name='embed')
    return x * scale['by']

  params = np.random.default_rng(0).standard_normal((decoders.V, D)).astype(np.float32)
  patching = SubspacePatching(forward, 'embed')
  metric = custom('sum', lambda out, data: out[:, 0].sum(-1))
  run = functools.partial(patching, params, plain.PAIRS, metric, BASIS, where=at(0))
  before = run().subspace
  scale['by'] = 3.0
  np.testing.assert_allclose(run().subspace, 3 * before, rtol=1e-5, atol=1e-5)
  assert np.abs(before).max() > 1e-3
  assert jax.config.jax_numpy_dtype_promotion == 'strict'
