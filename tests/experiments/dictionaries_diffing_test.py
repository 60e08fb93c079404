"""Diffing of a planted model with its fine-tuned copy: latents that only the copy has are those of its text."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from experiments import contexts
from experiments.dictionaries import diffing, measure, report, subject, tuning
from mechjax import sae
from mechjax.errors import SAEError
from mechjax.sae.store import Scale
from tests.experiments import loading
from tests.experiments import planted_dictionaries as planted
from tests.experiments.tiny_dictionaries import make_settings, write_home

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module', autouse=True)
def _planted_model():
  with loading.replaced(planted.model):
    yield


@pytest.fixture(scope='module')
def home(tmp_path_factory):
  return write_home(tmp_path_factory.mktemp('dictionaries'))


def test_latents_that_only_the_fine_tuned_model_has_are_those_of_its_text(
  home, tmp_path, monkeypatch
):
  monkeypatch.setattr(diffing, 'tune', planted.tune_planted)
  settings = make_settings(home, tmp_path / 'out', studies=('diffing',), steps=1000, latents=32)
  results = measure.measure(settings, subject.prepare(settings, planted.model()), lambda name: None)
  found = results['studies']['diffing']
  assert found['losses']['change']['ordinary'] == [0.0, 0.0]
  assert found['losses']['change']['other'][0] != 0
  exact = found['kinds']['relu']
  assert exact['count']['second'][0] >= 1
  assert exact['count']['first'] == [0.0, 0.0]
  assert exact['count']['genuine'] == exact['count']['second']
  assert exact['precision']['shared'][0] < 0.2 < 0.6 < exact['precision']['second'][0]
  assert exact['selectivity']['shared'][0] < 0.6 < 0.85 < exact['selectivity']['genuine'][0]
  for kind in found['kinds'].values():
    assert kind['auc'][0] > 0.8
    assert 0 < sum(kind['histogram']) <= settings.latents
    assert kind['count']['all'][0] >= sum(
      kind['count'][g][0] for g in ('first', 'shared', 'second')
    )
  report.write(results, settings.out)
  assert (tmp_path / 'out' / 'diffing.png').stat().st_size > 10_000
  assert 'fine-tuned model alone' in (tmp_path / 'out' / 'diffing.html').read_text()


def test_only_latents_that_are_active_are_counted():
  """Three latents: of both models on both texts, of the second one on the other text, and one that is never active."""
  one = sae.ReLU(d_in=4, width=3, sparsity=0.0, parts=(2, 2))
  W = np.array([[1, 0, 1, 0], [0, 0, 0, 1], [0, 1, 0, 1]], np.float32)
  params = {
    'W_enc': jnp.asarray(np.array([[0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]], np.float32).T),
    'W_dec': jnp.asarray(W), 'b_enc': jnp.array([0.0, 0.0, -1.0]), 'b_dec': jnp.zeros(4),
  }  # fmt: skip
  f = np.random.default_rng(0).uniform(0.5, 1, (2, 20, 3)).astype(np.float32) * [1, 1, 0]
  held_out = {'ordinary': f[0] * [1, 0, 0] @ W, 'other': f[1] @ W}
  found = diffing.measure_member(
    one, params, {k: x.astype(np.float32) for k, x in held_out.items()}
  )
  assert found['count'] == {'first': 0, 'shared': 1, 'second': 1, 'genuine': 1, 'all': 2}
  assert (found['precision']['second'], found['precision']['all']) == (1.0, 0.5)
  assert (found['selectivity']['shared'], found['auc']) == (0.5, 1.0)
  assert sum(found['histogram']) == 2
  assert found['fvu'] == pytest.approx(0, abs=1e-10)
  assert found['l0'] == 1.5


def test_a_fine_tuned_copy_learns_its_text_and_the_model_stays(home):
  model = planted.model()
  before = model.fingerprint()
  rows = contexts.read_contexts(model, str(home / 'other.txt'), 60, 16, SAEError, '')
  params, losses = tuning.tune(model, rows, steps=15, size=4, rate=3e-2)
  kept = lambda tokens: ~np.isin(tokens, (planted.BOS, planted.EOS))  # noqa: E731
  base, tuned = (tuning.measure_losses(model, p, rows[:8], kept) for p in (model.params, params))
  assert len(losses) == 15
  assert tuned[:, 0].sum() < base[:, 0].sum()
  assert (tuned[:, 1] == base[:, 1]).all()
  logits = np.asarray(model(jnp.asarray(rows[:1])), np.float64)[0]
  wanted = -scipy.special.log_softmax(logits, -1)[np.arange(1, 15), rows[0, 2:]].sum()
  assert base[0] == pytest.approx([wanted, 14], rel=1e-4)
  assert model.fingerprint() == before
  with pytest.raises(SAEError, match='model_rate'):
    tuning.tune(model, rows, steps=15, size=4, rate=1e30)


def test_auc_is_the_probability_of_a_larger_value():
  values, wanted = np.array([0.1, 0.5, 0.5, 0.9]), np.array([False, False, True, True])
  assert diffing.rank_groups(values, wanted) == (0.5 + 1 + 1 + 1) / 4
  assert diffing.rank_groups(values, np.ones(4, bool)) is None


def test_scales_of_two_models_are_united():
  scales = {
    'base': Scale(1.0, np.ones(2, np.float32), 5.0),
    'tuned': Scale(3.0, np.ones(2, np.float32)),
  }
  found = diffing.unite_scales(scales)
  assert [one.scale for one in found.values()] == pytest.approx([np.sqrt(5)] * 2)
  for part, one in found.items():
    np.testing.assert_allclose(
      one.mean * one.scale, scales[part].mean * scales[part].scale, rtol=1e-6
    )
  assert found['base'].limit == 5.0
