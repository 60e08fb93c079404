"""`sae.train` in one call: on arrays, generators and sources, alone or resumed, with figures that NumPy confirms."""

import dataclasses
import itertools
import json

import jax
import numpy as np
import pytest

from mechjax import sae
from mechjax.sae import CrossLayerTopK, GradientTopK, JumpReLU, ReLU, SAEError, TopK
from mechjax.sae.store import InMemory
from mechjax.sae.training import Ensemble, LoopSettings, Optimisation
from mechjax.sae.training.grouping import group
from tests.sae import training
from tests.sae.training import D

M, B, STEPS = 24, 16, 24
SITE = 'resid_post.3'
pytestmark = pytest.mark.slow
SHAPE = {'d_in': D, 'width': M}
TOPK, JUMP = TopK(**SHAPE, k=3), JumpReLU(**SHAPE, sparsity=1e-2, bandwidth=0.1)
OPTIMISATION = Optimisation(
  steps=STEPS, learning_rate=1e-2, warm_up_steps=5, sparsity_warm_up_steps=10
)
X = 4 * np.concatenate([training.MadeUp().bucket(n)['x'] for n in range(4)]) + 1


def train(data=X, dictionaries=(TOPK,), **given):
  return sae.train(
    data, SITE, dictionaries, **{'optimisation': OPTIMISATION, 'batch': B, 'seed': 2} | given
  )


def same(found, expected):
  assert found.sae == expected.sae
  for name, value in expected.params.items():
    np.testing.assert_array_equal(found.params[name], value)
  assert found.figures == expected.figures


@pytest.fixture(scope='module')
def alone():
  """An uninterrupted training on an array."""
  return train()[0]


def test_dictionaries_learn_and_come_back_in_their_order_for_activations_as_they_are():
  several = [TOPK, JUMP, dataclasses.replace(TOPK, k=5), dataclasses.replace(JUMP, sparsity=0.1)]
  longer = dataclasses.replace(OPTIMISATION, steps=150)
  found = train(dictionaries=several, seeds=[0, 1, 2, 3], optimisation=longer)
  assert [one.name for one in found] == ['topk/0', 'jumprelu/0', 'topk/1', 'jumprelu/1']
  assert [one.sae for one in found] == several
  for one in found:
    fvu = one.figures['fvu']
    assert fvu < 0.6
    x_hat = one.sae.decode(one.params, one.sae.encode(one.params, X))
    short = np.linalg.norm(X, axis=1) <= 10 * np.median(np.linalg.norm(X, axis=1))
    error = np.square(X - x_hat)[short].sum() / np.square(X[short] - X[short].mean(0)).sum()
    np.testing.assert_allclose(fvu, error, rtol=1e-4)
    f = np.asarray(one.sae.encode(one.params, X))[short]
    np.testing.assert_allclose(one.figures['l0'], (f > 0).sum(1).mean(), rtol=1e-6)
    np.testing.assert_allclose(one.figures['dead'], (f == 0).all(0).mean(), atol=1e-9)
    assert not one.held_out


def test_blocks_of_a_generator_and_a_source_train_as_the_array_does(alone):
  parts = np.split(X, [100, 130])
  same(train(itertools.cycle(parts), bucket_tokens=len(X))[0], alone)
  blocks = [{SITE: part, 'other': part} for part in parts]
  same(train(lambda: blocks, bucket_tokens=len(X))[0], alone)
  same(train({SITE: jax.numpy.asarray(X)})[0], alone)


def test_a_grouped_dictionary_equals_one_that_is_trained_alone(alone):
  found = train(dictionaries=[dataclasses.replace(TOPK, k=2), TOPK], seeds=[1, 0])
  assert [one.name for one in found] == ['topk/0', 'topk/1']
  for name, value in alone.params.items():
    np.testing.assert_allclose(found[1].params[name], value, rtol=1e-5, atol=1e-6)


def interrupt(step):
  """A report that ends the training as an error of the user would."""

  def report(one):
    if one.step >= step:
      raise InterruptedError

  return report


def test_a_training_that_was_stopped_resumes_and_equals_an_uninterrupted_one(alone, tmp_path):
  loop = LoopSettings(log_every=5, save_every=4)
  home = {'directory': tmp_path / 'run', 'loop': loop, 'licence': 'mit'}
  with pytest.raises(InterruptedError):
    train(**home, report=interrupt(15))
  assert not (tmp_path / 'run' / 'dictionaries').exists()
  seen = []
  (found,) = train(**home, report=lambda one: seen.append(one.step))
  assert seen[0] > 12  # it did not start again
  same(found, alone)
  same(train(**home, report=interrupt(0))[0], alone)  # finished: nothing is trained
  loaded = sae.load(tmp_path / 'run' / 'dictionaries' / 'topk' / '0')
  for name, value in alone.params.items():
    np.testing.assert_array_equal(loaded.params[name], value)
  assert loaded.metadata.hook_name == SITE
  card = (tmp_path / 'run' / 'dictionaries' / 'topk' / '0' / 'README.md').read_text()
  assert f'| fvu, training activations | {alone.figures["fvu"]:.6g} |' in card
  assert 'license: "mit"' in card
  lines = (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()
  assert [json.loads(line)['step'] for line in lines] == [5, 10, 15, 20, STEPS]


def test_a_directory_of_another_call_is_refused_and_left(tmp_path):
  with pytest.raises(InterruptedError):
    train(directory=tmp_path, loop=LoopSettings(log_every=1), report=interrupt(1))
  before = sorted(path.name for path in tmp_path.iterdir())
  for change, message in (
    ({'dictionaries': [dataclasses.replace(TOPK, k=4)]}, 'dictionaries topk'),
    ({'optimisation': dataclasses.replace(OPTIMISATION, steps=30)}, 'optimisation'),
    ({'batch': 8}, 'batch'),
    ({'seed': 3}, 'seed'),
    ({'seeds': 1}, 'dictionaries topk'),
    ({'max_norm_ratio': 9.0}, 'max_norm_ratio'),
    ({'data': 2 * X}, 'data'),
  ):
    with pytest.raises(SAEError, match=f'a training with other settings: {message}'):
      train(directory=tmp_path, **change)
  assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_source_of_other_activations_does_not_resume_a_training(tmp_path):
  first, other = (InMemory({SITE: data}, B) for data in (X, X[::-1]))
  with pytest.raises(InterruptedError):
    train(first, directory=tmp_path, loop=LoopSettings(log_every=1), report=interrupt(1))
  with pytest.raises(SAEError, match='a training with other settings: data'):
    train(other, directory=tmp_path)
  assert train(first, directory=tmp_path)


def test_transcoders_and_cross_layer_transcoders_read_one_site_and_reconstruct_another():
  y = (X @ np.random.default_rng(0).normal(size=(D, 5))).astype(np.float32)
  one = ReLU(d_in=D, d_out=5, width=M, skip=True, sparsity=1e-3)
  longer = dataclasses.replace(OPTIMISATION, steps=100)
  data = {SITE: X, 'mlp_out.3': y}
  (found,) = train(data, [one], target='mlp_out.3', optimisation=longer)
  assert found.params['W_skip'].shape == (D, 5)
  assert found.figures['fvu'] < 0.5
  assert found.sae.provenance.hook_name_out == 'mlp_out.3'
  clt = CrossLayerTopK(n_layers=2, d_in=D, d_out=D, width=M, k=3)
  layers = dict.fromkeys(('a.0', 'a.1', 'b.0', 'b.1'), X)
  (found,) = sae.train(
    layers, ['a.0', 'a.1'], [clt], target=['b.0', 'b.1'], optimisation=longer, batch=B
  )
  assert found.figures['fvu'] < 0.9
  assert found.figures['l0'] <= 2 * 3


def test_held_out_activations_give_the_figures():
  held = X[:40] * np.float32(1.5)
  (found,) = train(held_out=held)
  assert found.held_out
  f = found.sae.encode(found.params, held)
  error = np.square(held - found.sae.decode(found.params, f)).sum()
  np.testing.assert_allclose(
    found.figures['fvu'], error / np.square(held - held.mean(0)).sum(), rtol=1e-4
  )
  assert found.figures['tokens'] == 40


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    ({'dictionaries': []}, 'should be a list of architectures'),
    ({'dictionaries': [1]}, '1 is not an architecture'),
    ({'dictionaries': [TopK(d_in=D + 1, width=M, k=3)]}, f'd_in={D + 1}.*width {D}'),
    ({'seeds': [0, 1]}, '2 seeds for 1 dictionaries'),
    ({'target': 'mlp_out.3'}, 'a TopK without d_out'),
    ({'dictionaries': [TopK(d_in=D, d_out=D, width=M, k=3)]}, 'writes=None'),
    ({'data': {'mlp_out.3': X}}, r"no activations of \['resid_post.3'\]"),
    ({'data': 'resid_post'}, 'a str has no activations'),
    ({'data': lambda: None}, 'a function of activations returned None'),
    ({'data': X.astype(int)}, 'int64'),
    ({'data': X * np.float32(np.nan)}, 'not finite'),
    (
      {'dictionaries': [Ensemble(sae=TOPK, reads='resid_post.4')]},
      r"ensemble of \['resid_post.4'\]",
    ),
    ({'contexts': np.zeros((2, 3), int)}, 'contexts for a ndarray'),
    ({'batch': 2 * len(X)}, 'activations for batches of'),
    ({'held_out': X[:, :3]}, 'width 3'),
    ({'held_out': X[:1]}, 'targets of the figures do not vary'),
    ({'held_out': 1e4 * X}, 'no token is left for the figures'),
    ({'format': 'sparse'}, 'unknown format'),
    ({'dictionaries': [TOPK], 'format': 'gemma_scope'}, 'selects latents by rank'),
    ({'licence': 'ask us'}, "licence='ask us'"),
    ({'about': {'context_size': np.int64(3)}}, 'cannot be written as JSON'),
  ],
)
def test_mistakes_are_errors_before_anything_is_trained_or_written(given, message, tmp_path):
  never = {'report': interrupt(0), 'loop': LoopSettings(log_every=1)}
  with pytest.raises(SAEError, match=message):
    train(**{'directory': tmp_path / 'run', **never, **given})
  made = sorted(path.name for path in tmp_path.glob('run/*'))
  assert made == (['call.json', 'scales.npz'] if 'figures' in message else [])


def test_a_directory_of_something_else_is_not_written_to(tmp_path):
  (tmp_path / 'mine.txt').write_text('kept')
  with pytest.raises(SAEError, match='is not empty and has no call'):
    train(directory=tmp_path)
  for place in (tmp_path / 'mine.txt', tmp_path / 'mine.txt' / 'run'):
    with pytest.raises(SAEError, match=r'cannot be made: .*mine\.txt is a file'):
      train(directory=place)
  assert [path.name for path in tmp_path.iterdir()] == ['mine.txt']


def test_an_iterator_that_runs_once_cannot_be_resumed(tmp_path):
  with pytest.raises(SAEError, match='runs only once'):
    train(iter([X]), directory=tmp_path / 'run', bucket_tokens=len(X))
  assert not (tmp_path / 'run').exists()


def test_numbers_that_are_not_finite_stop_a_training_without_a_directory():
  high = dataclasses.replace(OPTIMISATION, learning_rate=1e30)
  with pytest.raises(SAEError, match='not finite') as raised:
    train(dictionaries=[ReLU(**SHAPE, sparsity=1e-3)], optimisation=high)
  assert 'start again with a lower learning rate' in str(raised.value)


def test_ensembles_are_taken_as_they_are_and_alike_architectures_are_joined():
  own = Ensemble(sae=TOPK, reads=SITE, seeds=(4, 5))
  ensembles, order = group([JUMP, own, TOPK, TOPK], SITE, None, [1, 0, 2, 3], 1000)
  assert order == [('jumprelu', 0), ('topk', 0), ('topk', 1), ('topk-2', 0), ('topk-2', 1)]
  assert ensembles['topk'] is own
  assert (ensembles['topk-2'].seeds, ensembles['topk-2'].dead_after_tokens) == ((2, 3), 1000)
  assert ensembles['jumprelu'].member(0) == JUMP


def test_dictionaries_of_other_widths_are_not_joined():
  """The k of the larger one is more than the width of the smaller one."""
  both = [TopK(d_in=D, width=w, k=k) for w, k in ((16, 8), (64, 32))]
  ensembles, order = group(both, SITE, None, 0, 1000)
  assert order == [('topk', 0), ('topk-2', 0)]
  assert [one.member(0) for one in ensembles.values()] == both


def test_a_guide_is_the_gradient_at_the_site_that_is_reconstructed():
  one = GradientTopK(d_in=D, width=M, k=3)
  coder = dataclasses.replace(one, d_out=5)
  for sae_of, target, guide in ((one, None, SITE), (coder, 'mlp_out.3', 'mlp_out.3')):
    (ensemble,) = group([sae_of], SITE, target, 0, 1000)[0].values()
    assert ensemble.guide == f'grad:{guide}'
