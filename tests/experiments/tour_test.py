"""Metrics of the tour, against interventions made another way, and the files that it writes."""

import json

import jax
import numpy as np
import pytest

import mechjax
from experiments import tour
from mechjax import harvest

pytestmark = [pytest.mark.upstream, pytest.mark.optimised]

PROMPT = 'The capital of France is'


@pytest.fixture(scope='module')
def metrics(smollm2):
  return tour.measure(smollm2, PROMPT)


def test_paris_leads_with_its_probability(metrics):
  assert metrics['top'][0] == metrics['answer'] == ' Paris'
  assert len(metrics['top']) == 5
  assert metrics['top_probabilities'][0] == pytest.approx(0.77, abs=0.01)
  assert metrics['top_probabilities'] == sorted(metrics['top_probabilities'], reverse=True)


@pytest.mark.parametrize('layer', [0, 29])
def test_a_knock_out_equals_planting_a_value_with_its_last_position_zeroed(smollm2, metrics, layer):
  tokens = smollm2.tokens(PROMPT)
  site, paris = f'mlp_out.{layer}', smollm2.token(' Paris')
  silenced = harvest.reap(smollm2, sites=site)(tokens)[site].at[:, -1].set(0)
  logits = harvest.plant(smollm2)({site: silenced}, tokens)
  change = jax.nn.log_softmax(logits[0, -1])[paris] - smollm2.log_probs(tokens)[0, -1, paris]
  assert len(metrics['knock_out_nats']) == smollm2.n_layers
  assert metrics['knock_out_nats'][layer] == pytest.approx(float(change), abs=1e-3)


def test_the_lens_ends_in_what_the_model_says(smollm2, metrics):
  probs = np.asarray(jax.nn.softmax(smollm2(smollm2.tokens(PROMPT))[0]))
  assert metrics['lens'][-1] == [smollm2.text(i) for i in probs.argmax(-1)]
  np.testing.assert_allclose(metrics['lens_probabilities'][-1], probs.max(-1), atol=1e-4)
  assert metrics['lens_answer_rank'][-1] == 1
  assert len(metrics['lens']) == len(metrics['lens_answer_rank']) == smollm2.n_layers


def test_the_program_writes_figures_picture_and_page(
  smollm2, metrics, tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr(mechjax, 'load', lambda name, code: smollm2, raising=False)
  monkeypatch.setattr(tour, 'measure', lambda model, prompt: metrics)
  tour.run(tour.Settings(prompt=PROMPT, out=str(tmp_path / 'deep' / 'out')))
  out = tmp_path / 'deep' / 'out'
  assert json.loads((out / 'tour.json').read_text()) == metrics
  assert (out / 'tour.png').stat().st_size > 50_000
  page = (out / 'tour.html').read_text()
  assert '␣Paris' in page
  assert f'{metrics["knock_out_nats"][8]:.3f}' in page
  printed = capsys.readouterr().out
  assert f"{metrics['top_probabilities'][0]:.3f}  ' Paris'" in printed
  assert printed.count(' nats ') == smollm2.n_layers
