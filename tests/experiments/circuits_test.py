"""The experiment on attribution graphs, on a tiny decoder whose MLPs are ReLU and so are transcoders themselves.

With its own weights as a dictionary nothing is left over, and a feature is a neuron that can be switched off in the
model: a planted answer for every number of the experiment.
"""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from absl import flags as absl_flags

from experiments.circuits import __main__ as program
from experiments.circuits import effects, measure, subject, tables, texts
from experiments.circuits.settings import Settings
from mechjax import flags, harvest
from mechjax.circuits import neuronpedia, neuronpedia_features
from mechjax.errors import CircuitError
from tests.experiments import loading
from tests.experiments.own_transcoders import (
  BOS,
  EOS,
  F,
  L,
  exact,
  join,
  make_settings,
  split,
  tiny,
  write_home,
)
from tests.viz.viz_test import Reader

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module', autouse=True)
def _tiny_model():
  with loading.replaced(tiny):
    yield


@pytest.fixture(scope='module')
def home(tmp_path_factory):
  """Directory of a text, of prompts and of dictionaries."""
  return write_home(tmp_path_factory.mktemp('circuits'))


@pytest.fixture(scope='module')
def study(home, tmp_path_factory):
  """Settings, subject, results, graphs and the names of the steps that were computed."""
  settings = make_settings(home, tmp_path_factory.mktemp('out'))
  found, lines = subject.prepare(settings, tiny()), []
  return settings, found, *measure.measure(settings, found, lines.append), lines


def prompt_of(study, label, name='one-two-three-four'):
  return study[2]['dictionaries'][label]['prompts'][name]


def test_a_dictionary_that_is_the_model_leaves_nothing_over(study):
  for label in ('transcoders', 'cross-layer transcoder'):
    one = study[2]['dictionaries'][label]['evaluation']
    assert max(one['fvu']) < 1e-8
    assert one['loss_spliced'] == pytest.approx(one['loss'], abs=1e-5)
    found = prompt_of(study, label)
    assert found['scores']['completeness'] == pytest.approx(1, abs=1e-4)
    assert found['scores']['replacement'] == pytest.approx(1, abs=1e-4)
    assert found['rows'] == found['features']
    assert abs(found['shares']['error']) < 1e-4
  a, b = (prompt_of(study, label) for label in ('transcoders', 'cross-layer transcoder'))
  assert a['features'] == b['features']
  assert a['chosen']['top']['feature'] == b['chosen']['top']['feature']
  np.testing.assert_allclose(a['chosen']['top']['total'], b['chosen']['top']['total'], atol=1e-4)
  for kind in ('semi-free', 'iterative'):
    pair = (np.array(x['measured']['top'][kind]) for x in (a, b))
    np.testing.assert_allclose(*pair, atol=1e-4)


def test_books_are_complete_with_every_dictionary(study):
  for label, prompt, found in tables.iterate_prompts(study[2]):
    assert found['row_error']['largest'] < 1e-4, (label, prompt)
    assert sum(found['shares'].values()) == pytest.approx(1, abs=1e-3)
    assert sum(found['influence'].values()) == pytest.approx(1)
    last = found['curve'][-1]
    assert last['features'] == found['rows'] == found['features']
    for name in tables.SCORES:
      assert last[name] == pytest.approx(found['scores'][name])
    sizes = [p['features'] for p in found['curve']]
    assert sizes == sorted({*sizes})


def clean_run():
  tokens = jnp.asarray([[BOS, *split('one two three four')]])
  logits, acts = harvest.call_and_reap(tiny().apply, sites='mlp_post, attn_probs')(
    tiny().params, tokens
  )
  return tokens, logits, acts


def test_removing_a_feature_is_removing_the_neuron_that_it_is(study):
  found = prompt_of(study, 'transcoders')
  tokens, logits, acts = clean_run()
  centre = lambda x: np.asarray(x, np.float64)[0, -1] - np.asarray(x, np.float64)[0, -1].mean()  # noqa: E731
  outputs = [t['token'] for t in found['outputs']['tokens']]
  for name in ('top', 'random'):
    f = found['chosen'][name]
    for row, (l, t, i) in enumerate(zip(f['layer'], f['position'], f['latent'])):
      post = acts[f'mlp_post.{l}']
      assert f['activation'][row] == pytest.approx(float(post[0, t, i]), rel=1e-4)
      plants = {'attn_probs': acts.stack('attn_probs')}
      plants[f'mlp_post.{l}'] = lambda x, t=t, i=i: x.at[0, t, i].set(0)
      changed = harvest.plant(tiny().apply)(plants, tiny().params, tokens)
      expected = (centre(changed) - centre(logits))[outputs]
      for kind in ('semi-free', 'iterative'):
        np.testing.assert_allclose(found['measured'][name][kind][row], expected, atol=2e-4)
    np.testing.assert_allclose(found['measured'][name]['constrained'], f['direct'], atol=1e-4)


def test_the_first_predictions_are_the_features_with_the_most_influence(study):
  for _, _, found in tables.iterate_prompts(study[2]):
    top, random = (found['chosen'][n] for n in ('top', 'random'))
    assert top['influence'] == sorted(top['influence'], reverse=True)
    assert min(top['influence']) >= max(random['influence'])
    assert len(top['feature']) == 4
    assert len(random['feature']) == 5
    assert not {*top['feature']} & {*random['feature']}


def test_neurons_are_evaluated_as_by_plain_loops(study):
  settings, found, results = study[:3]
  rows = found.rows[: -(-settings.tokens // settings.context)]
  logits, acts = harvest.call_and_reap(tiny().apply, sites='mlp_post, mlp_out')(
    tiny().params, jnp.asarray(rows)
  )
  kept = ~np.isin(rows, (BOS, EOS))
  cut, fvu = {}, []
  for n in range(L):
    W = np.asarray(exact(n)[1]['W_dec'], np.float64)
    post = np.array(acts[f'mlp_post.{n}'], np.float64)
    small = post.copy()
    for row, t in np.argwhere(kept):
      order = np.argsort(-np.abs(post[row, t]) * np.linalg.norm(W, axis=1))
      small[row, t, order[5:]] = 0
    cut[f'mlp_post.{n}'] = small
    y = np.asarray(acts[f'mlp_out.{n}'], np.float64)[kept]
    error = ((post - small) @ W)[kept]
    fvu.append((error**2).sum() / ((y - y.mean(0)) ** 2).sum())
  one = results['dictionaries']['neurons']['evaluation']
  np.testing.assert_allclose(one['fvu'], fvu, rtol=1e-4)

  def mean_loss(logits):
    P = jax.nn.log_softmax(jnp.asarray(logits))
    counts = kept[:, 1:] & kept[:, :-1]
    at = jnp.take_along_axis(P[:, :-1], jnp.asarray(rows)[:, 1:, None], -1)[..., 0]
    return -float(np.asarray(at)[counts].mean())

  assert one['loss'] == pytest.approx(mean_loss(logits), rel=1e-5)
  lengths = [np.linalg.norm(np.asarray(exact(n)[1]['W_dec']), axis=1) for n in range(L)]

  def keep(n, x):
    order = np.argsort(-np.abs(np.asarray(x)) * lengths[n], axis=-1)
    mask = np.ones(x.shape, bool)
    np.put_along_axis(mask, order[..., 5:], False, axis=-1)
    return jnp.where(jnp.asarray(mask | ~kept[..., None]), x, 0)

  # The model layer by layer: what the first layer changes is what the second one sees.
  first = harvest.Masked(keep(0, acts['mlp_post.0']), jnp.ones(acts['mlp_post.0'].shape, bool))
  _, after = harvest.harvest(tiny().apply, sites='mlp_post.1')(
    {'mlp_post.0': first}, tiny().params, jnp.asarray(rows)
  )
  second = harvest.Masked(keep(1, after['mlp_post.1']), jnp.ones(first.value.shape, bool))
  both = {'mlp_post.0': first, 'mlp_post.1': second}
  spliced = harvest.plant(tiny().apply)(both, tiny().params, jnp.asarray(rows))
  assert one['loss_spliced'] == pytest.approx(mean_loss(spliced), rel=1e-4)
  assert max(one['l0']) <= 5


def test_neurons_cannot_be_computed_again_and_all_others_are(study):
  for label, _, found in tables.iterate_prompts(study[2]):
    assert (found['measured']['top']['iterative'] is None) == (label == 'neurons')
    assert ('iterative' in found['agreement']['top']) == (label != 'neurons')


def test_the_answer_has_its_probability_and_rank(study):
  outputs = prompt_of(study, 'transcoders')['outputs']
  logits = np.asarray(clean_run()[1], np.float64)[0, -1]
  p = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
  (five,) = split('five')
  assert outputs['answer']['probability'] == pytest.approx(p[five], rel=1e-4)
  assert outputs['answer']['rank'] == int((p > p[five]).sum()) + 1
  assert outputs['tokens'][0]['token'] == int(p.argmax())
  assert prompt_of(study, 'transcoders', 'six-seven-eight-nine')['outputs']['answer'] is None


def test_agreement_is_that_of_scipy_and_has_an_error():
  random = np.random.default_rng(0)
  x = random.standard_normal(40)
  y = 2 * x + random.standard_normal(40)
  found = effects.agree(x, y, 0)
  assert found['spearman'][0] == pytest.approx(scipy.stats.spearmanr(x, y).statistic)
  assert found['signs'][0] == pytest.approx(np.mean(x * y > 0))
  assert found['slope'] == pytest.approx(np.polynomial.polynomial.polyfit(x, y, [1])[1])
  assert 0.01 < found['spearman'][1] < 0.15
  assert found['signs'][1] == pytest.approx(
    np.sqrt(found['signs'][0] * (1 - found['signs'][0]) / 40), rel=0.3
  )
  assert np.isnan(effects.agree(x, np.zeros(40), 0)['spearman'][0])


def test_texts_are_those_of_the_strongest_tokens(study, home, tmp_path):
  _, found, _, data, _ = study
  settings = make_settings(home, tmp_path, contexts=60)
  sets, clt = found.dictionaries[0], found.dictionaries[2]
  latents = [0, 3, 8]
  known = texts.collect(settings, found, sets, {1: latents})
  assert texts.collect(settings, found, clt, {1: latents}) == known
  scan = 'tiny-' + clt.slug
  records = neuronpedia_features.read_latents(tmp_path / 'neuronpedia', scan)
  assert {*records} == {(1, latent) for latent in latents}
  content = neuronpedia_features.read_latents(tmp_path / 'neuronpedia', 'tiny-' + sets.slug)
  assert content[1, 3]['top_logits'] == records[1, 3]['top_logits']
  assert (content[1, 3]['transcoder_id'], records[1, 3]['transcoder_id']) == (sets.place, clt.place)
  rows = found.rows[:5]
  post = harvest.reap(tiny().apply, sites='mlp_post.1')(tiny().params, jnp.asarray(rows))
  post = np.where(np.isin(rows, (BOS, EOS))[..., None], 0, post['mlp_post.1'])
  effects_MxV = np.asarray(texts.make_unembed(tiny())(exact(1)[1]['W_dec']))
  active = [n for n in latents if post[..., n].max() > 0]
  assert len(active) > 1
  for latent in latents:
    text = known['1'][str(latent)]
    assert text['promoted'][0] == join([effects_MxV[latent].argmax()])
    if latent in active:
      best = max(text['contexts'][0], key=lambda pair: pair[1])
      assert best[1] == pytest.approx(post[..., latent].max(), abs=1e-3)
      assert best[0] == join([rows.ravel()[post[..., latent].argmax()]])
  wanted = texts.find_latents({'a': data['transcoders_one-two-three-four']})
  assert {*wanted} <= {0, 1}
  assert all(wanted.values())


def test_promoted_tokens_of_neurons_follow_the_sign_of_their_activations(study):
  found = study[1]
  both = texts.promote(found, [(1, 3, 1), (1, 3, -1)])
  scores = np.asarray(texts.make_unembed(tiny())(exact(1)[1]['W_dec'][3:4]))[0]
  flipped = np.asarray(texts.make_unembed(tiny())(-exact(1)[1]['W_dec'][3:4]))[0]
  assert both[1, 3, 1][0] == join([scores.argmax()])
  assert both[1, 3, -1][0] == join([flipped.argmax()])


# --- steps --------------------------------------------------------------------------------------------------


def test_a_finished_run_computes_nothing_again_and_more_prompts_compute_their_own_steps(study):
  settings, found, results, data, lines = study
  assert 'evaluation_transcoders' in lines
  assert 'effects_neurons_six-seven-eight-nine' in lines
  more: list[str] = []
  other = dataclasses.replace(settings, batch=3, memory=64)
  again, same = measure.measure(other, found, more.append)
  assert more == []
  assert same == data
  assert again == results | {'settings': results['settings'] | {'batch': 3, 'memory': 64}}
  third = dataclasses.replace(
    settings, prompts='', prompt='nine ten six two', dictionaries=('neurons',)
  )
  measure.measure(third, subject.prepare(third, tiny()), more.append)
  assert more == ['graph_neurons_nine-ten-six-two', 'effects_neurons_nine-ten-six-two']
  with pytest.raises(CircuitError, match='results of other settings: rows'):
    measure.measure(dataclasses.replace(settings, rows=3), found, more.append)


def test_few_rows_leave_features_without_one(home, tmp_path):
  settings = make_settings(
    home, tmp_path, rows=6, tokens=0, contexts=9, dictionaries=('few=neurons',), top=F
  )
  found = subject.prepare(settings, tiny())
  results, data = measure.measure(settings, found, lambda name: None)
  nodes = data['few_one-two-three-four']['nodes']
  assert all(len(x['promoted']) == 8 for x in nodes if x['kind'] == 'feature')
  one = results['dictionaries']['few']['prompts']['one-two-three-four']
  assert one['rows'] == 6 < one['features']
  assert abs(one['shares']['feature without a row']) > 0
  assert one['curve'][-1]['features'] == 6
  # All neurons have no errors, so that what counts as one are the features without a row.
  assert one['scores']['completeness'] == pytest.approx(1, abs=1e-5)
  assert one['curve'][-1]['completeness'] < 0.99
  assert results['dictionaries']['few']['evaluation'] is None


def test_the_program_writes_what_it_measures(study, monkeypatch, capsys):
  settings, _, results, data, _ = study
  values = absl_flags.FlagValues()
  handle = flags.define(Settings, flag_values=values)
  given = dataclasses.asdict(settings) | {'dictionaries': ','.join(settings.dictionaries)}
  values(['circuits', *(f'--{name}={value}' for name, value in given.items())])
  monkeypatch.setattr('sys.argv', ['circuits', '--model=here'])
  program.main(['circuits'], handle)
  place = pathlib.Path(settings.out)
  written = json.loads((place / 'circuits.json').read_text())
  assert written.pop('command') == 'python -m experiments.circuits --model=here'
  dropped = written.pop('neuronpedia')
  assert written == results
  assert (place / 'circuits.png').stat().st_size > 30_000
  page = Reader((place / 'circuits.html').read_text())
  printed = capsys.readouterr().out
  for table in tables.list_tables(results):
    assert table.title in ' '.join(page.texts)
    assert table.title in printed
  for name, graph in data.items():
    assert (place / 'graphs' / f'{name}.html').stat().st_size > 10_000
    path = place / 'neuronpedia' / f'{name}.json'
    assert json.loads(path.read_text())['metadata']['scan'].startswith('tiny-')
    again = neuronpedia.read_graph(path)
    kinds = [node['kind'] for node in again['nodes']]
    for kind in ('feature', 'embedding', 'logit'):
      n = sum(x['kind'] == kind and x['id'] not in dropped[name] for x in graph['nodes'])
      assert kinds.count(kind) == n


def test_tables_have_means_over_prompts_with_their_errors(study):
  results = study[2]
  found = results['dictionaries']['skip transcoders']['prompts'].values()
  values = [f['agreement']['top']['iterative']['spearman'][0] for f in found]
  mean, error = np.mean(values), np.std(values, ddof=1) / np.sqrt(2)
  rows = tables.tabulate_agreement(results).rows
  (row,) = (r for r in rows if r[:3] == ['skip transcoders', 'top', 'iterative'])
  assert row[3] == f'{mean:.2f} ± {error:.2f}'
  assert len(tables.tabulate_layers(results).rows) == L
  assert tables.give(None) == tables.give(float('nan')) == '–'
