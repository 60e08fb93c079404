"""patch_and_run's metrics, against interventions made by iterating, and the file that it writes."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mechjax
from experiments import patch_and_run
from mechjax.errors import MechjaxError, SiteError

pytestmark = [pytest.mark.upstream, pytest.mark.optimised]

PROMPT, OTHER = 'The capital of France is', 'The capital of Italy is'
SITES = ['mlp_out.3', 'mlp_out.4']


@pytest.fixture(scope='module')
def model():
  """The model in our own code, which scans its layers and so compiles faster than upstream's."""
  return mechjax.load('smollm2-135m')


def by_hand(model, change, prompt=PROMPT):
  """Log-probabilities after the prompt when a loop makes the change at the sites."""
  for layer, _, value in (run := mechjax.iterate(model, sites=SITES)(model.tokens(prompt))):
    run.modified_value = change(layer, value)
  return jax.nn.log_softmax(run.retval[0, -1])


@pytest.mark.parametrize(
  ('what', 'change'),
  [
    ('zero', lambda layer, x: jnp.zeros_like(x)),
    ('mean', lambda layer, x: jnp.broadcast_to(x.mean(1, keepdims=True), x.shape)),
    ('scale=0.5', lambda layer, x: x / 2),
  ],
)
def test_an_intervention_equals_the_same_change_in_a_loop(model, what, change):
  metrics = patch_and_run.measure(model, PROMPT, 'mlp_out.{3,4}', what)
  before, after = model.log_probs(model.tokens(PROMPT))[0, -1], by_hand(model, change)
  paris = int(before.argmax())
  assert metrics['sites'] == SITES
  assert metrics['answer'] == metrics['before'][0]['token'] == ' Paris'
  assert metrics['answer_nats'] == pytest.approx(float(after[paris] - before[paris]), abs=1e-3)
  kl = float((jnp.exp(before) * (before - after)).sum())
  assert metrics['kl_nats'] == pytest.approx(kl, abs=1e-3)
  assert metrics['after'][0]['token'] == model.text(int(after.argmax()))


def test_replacing_puts_in_what_another_prompt_has_there(model):
  values = {}
  for layer, _, value in mechjax.iterate(model, sites=SITES)(model.tokens(OTHER)):
    values[layer] = value
  after = by_hand(model, lambda layer, x: values[layer])
  metrics = patch_and_run.measure(model, PROMPT, 'mlp_out.{3,4}', f'replace={OTHER}')
  before = model.log_probs(model.tokens(PROMPT))[0, -1]
  paris = int(before.argmax())
  assert metrics['answer_nats'] == pytest.approx(float(after[paris] - before[paris]), abs=1e-3)


def test_replacing_the_whole_stream_gives_the_other_prompts_answer(model):
  metrics = patch_and_run.measure(model, PROMPT, 'resid_post.29', f'replace={OTHER}')
  expected = jnp.exp(model.log_probs(model.tokens(OTHER))[0, -1]).max()
  assert metrics['after'][0]['token'] == ' Rome'
  assert metrics['after'][0]['probability'] == pytest.approx(float(expected), abs=1e-4)


def test_noise_grows_with_its_size(model):
  kl = [
    patch_and_run.measure(model, PROMPT, 'resid_post.5', f'noise={size}')['kl_nats']
    for size in (0, 0.01, 1)
  ]
  assert kl[0] == pytest.approx(0, abs=1e-5)
  assert 0 < kl[1] < kl[2]


def test_what_does_not_fit_is_refused(model):
  for what, message in [('invert', 'zero, mean'), ('replace=Rome', '1 tokens')]:
    with pytest.raises(MechjaxError, match=message):
      patch_and_run.measure(model, PROMPT, 'mlp_out.3', what)
  with pytest.raises(MechjaxError, match='needs'):
    patch_and_run.measure(model, PROMPT, 'attn_probs.3', 'mean')
  with pytest.raises(SiteError, match='mlp_out'):
    patch_and_run.measure(model, PROMPT, 'mlp_outt.3', 'zero')


def test_main_prints_and_saves(smollm2, tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(mechjax, 'load', lambda name, code: smollm2, raising=False)
  asked = {'sites': 'attn_scores.2', 'intervention': 'scale=0.9', 'out': str(tmp_path)}
  asked |= {'model': 'smollm2-135m', 'code': 'tunix', 'prompt': PROMPT}
  patch_and_run.run(patch_and_run.Settings(**asked))
  metrics = json.loads((tmp_path / 'patch_and_run.json').read_text())
  assert metrics['code'] == 'tunix'
  assert metrics['sites'] == ['attn_scores.2']
  assert np.isfinite(metrics['norms']['attn_scores.2'])
  assert "' Paris'" in capsys.readouterr().out
