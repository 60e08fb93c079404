"""The study of confidence neurons, on tiny decoders: its numbers against plain ablations, resuming, and the files."""

import dataclasses
import json
import pathlib
import re

import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags as absl_flags

import mechjax
from experiments.neurons import __main__ as program
from experiments.neurons import measure, panels, report, subject, tables
from experiments.neurons.settings import Settings
from mechjax import flags, harvest
from mechjax.errors import MechjaxError, NeuronError
from mechjax.logits import log_probs
from mechjax.models.tokenizers import Tokenizer
from mechjax.neurons import NeuronAblation, Repetition, measure_predictions
from tests.experiments import loading
from tests.models import decoders
from tests.neurons import small
from tests.viz.viz_test import Reader

pytestmark = pytest.mark.slow
BREAK, BOS = 3, 1
MODELS = ('llama', 'gemma 3')


def split(text):
  """A token for each word, and one for each line break."""
  pieces = re.findall(r'\w+|\n', text)
  return [BREAK if p == '\n' else 4 + sum(map(ord, p)) % 27 for p in pieces]


def tiny(name):
  tokenizer = Tokenizer(split, lambda ids: ' '.join(map(str, ids)), decoders.V, BOS, 2)
  return small.language_model(name, tokenizer)


@pytest.fixture(scope='module', autouse=True)
def _tiny_model():
  with loading.replaced(tiny):
    yield


@pytest.fixture(scope='module')
def text(tmp_path_factory):
  path = tmp_path_factory.mktemp('text') / 'text.txt'
  random = np.random.default_rng(0)
  words = [''.join(random.choice([*'abcdefgh'], 4)) for _ in range(900)]
  path.write_text('\n'.join(' '.join(words[i : i + 9]) for i in range(0, 900, 9)))
  return str(path)


def make_settings(text, out, **changes):
  given = {
    'model': 'llama', 'text': text, 'tokens': 40, 'context': 14, 'sequences': 6, 'half': 7, 'clipped': 2, 'heads': 3,
    'head_sequences': 4, 'rows': 4, 'controls': 5, 'block': 8, 'memory': 4, 'batch': 3, 'k': 2, 'out': str(out),
  }  # fmt: skip
  return Settings(**(given | changes))


@pytest.fixture(scope='module')
def out(tmp_path_factory):
  return tmp_path_factory.mktemp('neurons')


@pytest.fixture(scope='module', params=MODELS)
def study(request, text, tmp_path_factory):
  """Settings, subject, results and the names of the steps that were computed."""
  settings = make_settings(text, tmp_path_factory.mktemp('neurons'), model=request.param)
  found, lines = subject.prepare(settings, mechjax.load(settings.model)), []
  return settings, found, measure.measure(settings, found, lines.append), lines


def test_effects_are_those_of_one_call_over_all_neurons(study):
  settings, found, results, _ = study
  layer = found.read(settings)
  assert results['tokens']['effects'] == len(layer.x) == 40
  assert not {*found.contexts[layer.rows, layer.columns]} & {BREAK, BOS}
  assert layer.columns.min() == 3
  ablate = NeuronAblation(found.readout, found.writes)
  effects = ablate(layer.x, layer.a, layer.next_tokens, unigram=found.unigram, units=layer.rows)
  for name in ('total', 'direct', 'share', 'entropy', 'frequency_share', 'kl'):
    np.testing.assert_allclose(
      results['effects'][name], getattr(effects, name).value, rtol=1e-3, atol=1e-5, err_msg=name
    )
    np.testing.assert_allclose(
      results['effects'][f'{name}_se'], getattr(effects, name).se, rtol=1e-2, atol=1e-5
    )
  assert ('mlp_frozen' in results['effects']) == (settings.model == 'gemma 3')
  order = [results['effects']['mediated'][i] for i in results['chosen']['norm']]
  assert order == sorted(results['effects']['mediated'], reverse=True)[:4]
  plain = measure_predictions(found.readout, layer.x, layer.next_tokens)
  assert results['tokens']['loss'] == pytest.approx(plain.loss.mean(), rel=1e-5)


def test_the_unigram_is_that_of_the_whole_text(study, text):
  _, found, results, _ = study
  ids = split(pathlib.Path(text).read_text())
  assert results['tokens']['counted'] == len(ids)
  p = np.bincount(ids, minlength=small.V) + 1
  np.testing.assert_allclose(found.unigram, p / p.sum())


def test_clipped_neurons_are_those_of_the_model_with_the_clip_planted(study):
  settings, found, results, _ = study
  one, halves = results['repeated'], Repetition(settings.half)
  model, texts = found.model, jnp.asarray(found.repeated)
  assert len(one['neurons']) == 4
  assert len({*one['neurons']}) == 4
  last = f'mlp_post.{results["last_layer"]}'
  logits, acts = harvest.call_and_reap(model.apply, sites=last)(model.params, texts)

  def entropy(logits):
    log_P = np.asarray(log_probs(logits), np.float64)
    return -(np.exp(log_P) * log_P).sum(-1)

  plain, a = entropy(logits), np.asarray(acts[last])
  np.testing.assert_allclose(one['entropy'], plain[:, :-1].mean(0), rtol=1e-4)
  assert one['entropy_second']['value'] == pytest.approx(plain[:, halves.second].mean(), rel=1e-4)
  for n, i in enumerate(one['neurons']):
    bound = a[:, halves.first, i].mean()
    rises = a[:, halves.second, i].mean() > bound
    clipped = (np.minimum if rises else np.maximum)(a[:, :, i], bound)
    value = jnp.asarray(a).at[:, halves.second, i].set(clipped[:, halves.second])
    planted = entropy(harvest.plant(model.apply)({last: value}, model.params, texts))
    change = (planted - plain)[:, halves.second].mean(1)
    assert one['rises'][n] == rises
    assert one['clipped_entropy']['value'][n] == pytest.approx(change.mean(), abs=1e-5)
    se = change.std(ddof=1) / np.sqrt(len(change))
    assert one['clipped_entropy']['se'][n] == pytest.approx(se, abs=1e-5)
    np.testing.assert_allclose(one['activations'][n], a[:, :-1, i].mean(0), rtol=1e-3, atol=1e-5)


def test_heads_are_those_with_the_largest_scores(study):
  settings, found, results, _ = study
  one, halves = results['heads'], Repetition(settings.half)
  texts = jnp.asarray(found.repeated[:4])
  probs = harvest.reap(found.model.apply, sites='attn_probs')(found.model.params, texts)
  scores = np.asarray(probs['attn_probs'])[..., halves.second, halves.induced].mean((1, -1))
  np.testing.assert_allclose(one['scores'], scores, rtol=1e-4)
  best = np.sort(scores, axis=None)[::-1][:3]
  np.testing.assert_allclose([scores[layer, head] for layer, head in one['heads']], best)
  assert len(one['entropy']['value']) == 3
  assert np.shape(one['activations']['value']) == (3, 4)


def test_controls_of_rho_have_other_directions(study):
  _, _, results, _ = study
  w = results['weights']
  assert w['k'] == 2
  assert w['chance'] == pytest.approx(np.sqrt(2 / 16))
  for name in ('rho_rotated', 'rho_shuffled'):
    assert len(w[name]) == len(w['rho']) == small.F
    assert not np.allclose(w[name], w['rho'], atol=0.05)


def test_a_finished_run_computes_nothing_again_and_another_speed_is_the_same_run(study):
  settings, found, results, lines = study
  blocks = [f'effects_{n}' for n in (0, 8, 16)]
  assert lines == ['weights', 'layer', *blocks, 'own_unigram', 'repeated', 'heads']
  more: list[str] = []
  other = dataclasses.replace(settings, memory=8, batch=2)
  again = measure.measure(other, found, more.append)
  assert more == []
  speed = {'memory': 8, 'batch': 2}
  assert again == results | {'settings': results['settings'] | speed}
  with pytest.raises(NeuronError, match='results of other settings: tokens'):
    measure.measure(dataclasses.replace(settings, tokens=39), found, more.append)


def test_the_program_writes_what_it_measures(study, monkeypatch, capsys):
  settings, _, results, _ = study
  values = absl_flags.FlagValues()
  handle = flags.define(Settings, flag_values=values)
  given = dataclasses.asdict(settings).items()
  values(['neurons', *(f'--{name}={value}' for name, value in given)])
  monkeypatch.setattr('sys.argv', ['neurons', '--model=here'])
  program.main(['neurons'], handle)
  place = pathlib.Path(settings.out)
  written = json.loads((place / 'neurons.json').read_text())
  assert written == results | {'command': 'python -m experiments.neurons --model=here'}
  assert (place / 'neurons.png').stat().st_size > 30_000
  texts = ' '.join(Reader((place / 'neurons.html').read_text()).texts)
  printed = capsys.readouterr().out
  for title in tables.list_tables(results):
    assert title in texts
    assert title in printed
  for title in (
    *panels.list_clouds(results),
    *panels.list_curves(results),
    *panels.list_bars(results),
  ):
    assert title in texts
  if settings.model == 'gemma 3':
    assert 'MLP norm frozen' in texts


def test_tables_have_the_standard_errors(study):
  _, _, results, _ = study
  i = results['chosen']['norm'][0]
  e = results['effects']
  _, rows = tables.tabulate_norm(results)
  assert rows[0][0] == f'1.{i}'
  assert f'{e["total"][i]:.4f} ± {e["total_se"][i]:.4f}' in rows[0]
  assert len(rows) == 4 + 3
  text = report.format_text(results)
  assert '5 random, median' in text


# --- texts and settings -------------------------------------------------------------------------------------


def test_contexts_and_sequences_are_different_pieces_of_the_text(text, out):
  settings = make_settings(text, out, sequences=20)
  found = subject.prepare(settings, tiny('llama'))
  ids = split(pathlib.Path(text).read_text())
  pieces = np.reshape(ids[: len(ids) // 13 * 13], (-1, 13)).tolist()
  used = [row[1:].tolist() for row in found.contexts]
  assert all(row in pieces for row in used)
  halves = [row[1:7].tolist() for row in found.repeated]
  starts = [p[:6] for p in pieces]
  assert all(row in starts for row in halves)
  taken = [pieces.index(row) for row in used] + [starts.index(row) for row in halves]
  assert len({*taken}) == len(taken)
  assert (found.contexts[:, 0] == BOS).all()
  assert found.skipped == (BOS, 2, BREAK)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'tokens': 5000}, 'pieces of 13 tokens'),
    ({'sequences': 200}, 'and 200 sequences need'),
    ({'counted': 60}, 'has 4 pieces of 13 tokens'),
  ],
)
def test_too_little_text_is_refused_before_anything_is_measured(text, out, changes, message):
  with pytest.raises(NeuronError, match=message):
    subject.prepare(make_settings(text, out, **changes), tiny('llama'))


def test_models_that_cannot_be_read_are_refused(text, out):
  model = tiny('llama')
  model.config = None
  with pytest.raises(MechjaxError, match='upstream code'):
    subject.prepare(make_settings(text, out), model)
  silent = Tokenizer(split, lambda ids: '', decoders.V, None, None)
  with pytest.raises(NeuronError, match='neither a BOS nor an EOS'):
    subject.prepare(make_settings(text, out), small.language_model('llama', silent))


def test_capped_logits_are_refused_by_the_step_that_needs_them(text, tmp_path):
  settings = make_settings(text, tmp_path, model='gemma 2')
  found = subject.prepare(settings, tiny('gemma 2'))
  with pytest.raises(NeuronError, match='a cap of 2'):
    measure.measure(settings, found, lambda name: None)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'tokens': 0}, 'tokens=0 should be at least 1'),
    ({'context': 4}, r'context=4 should be more than first \+ 1'),
    ({'half': 3}, 'half=3 should be at least 4'),
    ({'head_sequences': 300}, 'head_sequences=300 should be from 1 to sequences'),
    ({'k': -1}, 'k=-1 should be at least 0'),
    ({'memory': 0}, 'memory=0 should be at least 1'),
  ],
)
def test_settings_without_meaning_are_refused(options, message):
  with pytest.raises(NeuronError, match=message):
    Settings(**options)


def test_errors_end_the_program_with_their_text(text):
  values = absl_flags.FlagValues()
  handle = flags.define(Settings, flag_values=values)
  values(['neurons', '--half=2'])
  with pytest.raises(SystemExit, match='NeuronError: half=2'):
    program.main(['neurons'], handle)
