"""AtP* on a task, with a tiny random decoder: the metrics against slower computations, and the files written."""

import dataclasses
import json

import numpy as np
import pytest
from absl import flags as absl_flags

import mechjax
from experiments import tasks
from experiments.atp_star import __main__ as program
from experiments.atp_star import measure as measuring
from experiments.atp_star import methods, report
from experiments.atp_star.settings import Program, Settings
from mechjax import flags, harvest
from mechjax.models.tokenizers import Tokenizer
from mechjax.patching import Pairs, PatchingError
from mechjax.patching.baselines import Search
from tests.models import decoders

pytestmark = pytest.mark.slow
CLEAN = np.array([[3, 7, 11, 4, 2], [3, 8, 12, 4, 2], [3, 9, 13, 4, 5], [3, 7, 14, 4, 5]])
NOISE = np.array([[3, 7, 21, 4, 2], [3, 8, 22, 4, 2], [3, 9, 23, 4, 5], [3, 7, 24, 4, 5]])
PLACES = ('<s>', ' $x$', '{who}', ' &', ' to')
HEADS = 2 * 4 * 4 * 5  # layers, sites, heads, positions
JOINT = ('random', 'subsampling', 'blocks', 'hierarchical')
SETTINGS = Settings(
  positions='each', methods=('atp', 'atp_star', *JOINT), ks=(3, 10), joint=20, verify=40
)


def tiny(name):
  tokenizer = Tokenizer(lambda text: [], lambda ids: '', decoders.V, None, None)
  return decoders.language_model(name, tokenizer)


@pytest.fixture(scope='module')
def model():
  return tiny('attn-only')


@pytest.fixture(scope='module')
def task(model):
  """Four pairs, of which the model gets three right and the second one wrong."""
  last = np.asarray(model(CLEAN))[:, -1]
  best, worst = last.argmax(-1), last.argmin(-1)
  wrong = np.arange(4) == 1
  answers, others = np.where(wrong, worst, best), np.where(wrong, best, worst)
  prompts = tuple(
    tasks.Prompts('one', f'<b>clean {i}', f'noise {i}', PLACES, PLACES, PLACES, ' A&B', ' other')
    for i in range(4)
  )
  return tasks.Task('toy', 'Who is <it>?', Pairs.of(CLEAN, NOISE), answers, others, prompts)


@pytest.fixture(scope='module')
def said():
  return []


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  return tmp_path_factory.mktemp('atp_star') / 'truth.npz'


@pytest.fixture(scope='module')
def measured(model, task, said, saved):
  return measuring.measure(model, task, SETTINGS, save=saved, log=said.append)


def walk(search, truth, k):
  """Passes made when the true top k have been measured, one node after the other."""
  wanted = set(np.argsort(-truth)[:k].tolist())
  for node, passes in zip(search.ranking, search.passes):
    wanted -= {int(node)}
    if not wanted:
      return passes
  raise AssertionError('the search does not reach every node')


def test_what_the_model_can_do_is_said_first_and_wrong_pairs_are_left_out(measured, said):
  assert 'answer above the other in 75%' in said[0]
  assert said[1] == '3 of 4 pairs kept: those where attn-only gets the clean prompt right'
  assert measured.metrics['ability']['clean_right'] == 0.75
  assert measured.metrics['ability_kept']['clean_right'] == 1
  assert [p['clean'] for p in measured.metrics['task']['prompts']] == [
    f'<b>clean {i}' for i in (0, 2, 3)
  ]


def test_the_truth_is_what_planting_by_hand_does(model, task, measured):
  kept = task.rows([0, 2, 3])
  metric, truth = kept.metric(), measured.truth
  assert len(truth.nodes) == HEADS
  base = np.asarray(metric(model(kept.pairs.clean)))
  np.testing.assert_allclose(truth.base, base, atol=1e-5)
  noise = harvest.reap(model, sites='q, k, v, z')(kept.pairs.noise)
  clean = harvest.reap(model, sites='q, k, v, z')(kept.pairs.clean)
  for i in truth.ranking()[[0, 20, 40]]:
    node = truth.nodes[i]
    at = (slice(None), node.position, node.head)
    value = clean[node.site].at[at].set(noise[node.site][at])
    patched = metric(harvest.plant(model)({node.site: value}, kept.pairs.clean))
    np.testing.assert_allclose(truth.values[i], patched - base, atol=1e-5, err_msg=str(node))


def test_positions_that_the_change_does_not_reach_do_nothing_and_are_left_out(
  model, task, measured
):
  position = measured.truth.nodes.table[:, 3]
  assert np.abs(measured.truth.values[position < 2]).max() < 1e-5
  assert np.abs(measured.truth.values[position >= 2]).max() > 0.1
  reached = measuring.ask(model, task, Settings()).nodes
  np.testing.assert_array_equal(reached.table, measured.truth.nodes[position >= 2].table)


def test_costs_are_those_of_walking_down_each_ranking(measured):
  true, metrics = measured.truth.contribution(), measured.metrics
  assert list(measured.found) == list(SETTINGS.methods) == list(metrics['methods'])
  assert metrics['curve']['k'] == list(range(1, HEADS + 1))
  for key, one in measured.found.items():
    judged, curve = metrics['methods'][key], metrics['curve']['costs'][key]
    assert judged['costs'] == [walk(one.search, true, k) for k in (3, 10)] == [curve[2], curve[9]]
    assert all(k <= cost <= HEADS + one.spent for k, cost in enumerate(curve, 1))
    tops = [(set(np.argsort(-true)[:k]), set(one.search.ranking[:k])) for k in (3, 10)]
    assert judged['missed'] == [len(wanted - found) for wanted, found in tops]


def test_the_truth_itself_would_be_a_perfect_method(measured):
  true = measured.truth.contribution()
  oracle = methods.MethodResult('oracle', Search.by(true, 0), true, 0, 0.0, measured.truth)
  judged = measuring.judge(oracle, {}, measured.truth, SETTINGS, measured.tokens)
  assert judged['spearman'] == pytest.approx(1)
  assert judged['costs'] == [3, 10]
  assert judged['aggregate_over_oracle'] == pytest.approx(1)
  assert judged['missed'] == [0, 0]
  assert judged['false_negatives'] == []


def test_methods_are_charged_what_the_convention_says(model, task, measured):
  spent = {key: one.spent for key, one in measured.found.items()}
  halves = spent.pop('hierarchical')
  assert 20 <= halves < 20 + methods.AT_ONCE
  assert spent == {'atp': 4, 'atp_star': 7, 'random': 0, 'subsampling': 20, 'blocks': 20}
  heads = measuring.ask(model, task, Settings())
  layers = measuring.ask(tiny('qwen'), task, Settings(nodes='layers'))
  for fixes, in_heads, in_layers in (
    ({'qk_fix': False, 'graddrop': False}, 4, 4),
    ({'qk_fix': True, 'graddrop': False}, 5, 4),
    ({'qk_fix': False, 'graddrop': True}, 6, 6),
    ({'qk_fix': True, 'graddrop': True}, 7, 6),
  ):
    assert methods.passes(heads, **fixes) == in_heads
    assert methods.passes(layers, **fixes) == in_layers


def test_methods_that_come_to_the_same_are_measured_once(model, task):
  layers = measuring.ask(tiny('qwen'), task, Settings(nodes='layers'))
  assert methods.drop_duplicates(layers, ('atp', 'atp_qk', 'random')) == ['atp', 'random']
  assert methods.drop_duplicates(layers, ('atp_qk', 'atp_star')) == ['atp_qk', 'atp_star']
  heads = measuring.ask(model, task, Settings())
  assert methods.drop_duplicates(heads, ('atp', 'atp_qk')) == ['atp', 'atp_qk']


def test_a_false_negative_names_the_methods_that_have_it(measured):
  true, k = measured.truth.contribution(), 10
  tops = {
    one.name: set(one.search.ranking[:k])
    for one in measured.found.values()
    if one.effects is not None
  }
  assert set(tops) == {'AtP', 'AtP*'}
  missed = measured.metrics['methods']['random']['false_negatives']
  assert missed
  for m in missed:
    assert m['label'] == measured.truth.nodes[m['node']].label(PLACES)
    assert m['contribution'] == true[m['node']]
    assert m['found_by'] == [name for name, top in tops.items() if m['node'] in top]


def test_bounds_hold_of_what_is_true(measured):
  for key in ('atp', 'atp_star'):
    bounds = measured.metrics['methods'][key]['verified']
    assert (bounds['path'], bounds['checks'], bounds['subsets']) == (20, 20, 20)
    assert bounds['missed'] <= bounds['missed_bound']
    assert bounds['largest'] <= bounds['largest_bound']
  assert 'verified' not in measured.metrics['methods']['random']


def test_metrics_survive_json(measured):
  assert json.loads(json.dumps(measured.metrics)) == measured.metrics


@pytest.mark.parametrize(
  ('settings', 'shape'),
  [
    (Settings(nodes='neurons', layers='1'), (1, 1, 3, 20)),
    (Settings(nodes='neurons', layers='0..1', positions='last'), (2, 1, 1, 20)),
    (Settings(nodes='neurons', layers='0', positions='together'), (1, 1, 1, 20)),
    (Settings(nodes='layers', positions='each'), (2, 1, 5, 1)),
  ],
)
def test_nodes_are_those_asked_for(task, settings, shape):
  nodes = measuring.ask(tiny('qwen'), task, settings).nodes
  assert {grid.shape for grid in nodes.grids} == {shape}
  last = {'last': 4, 'together': -1}.get(settings.positions)
  assert last is None or (nodes.table[:, 3] == last).all()


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'methods': ('atp', 'atp_kq')}, r"unknown method 'atp_kq'[\s\S]*did you mean 'atp_qk'"),
    ({'nodes': 'head'}, r"unknown set of nodes 'head'[\s\S]*mean 'heads'"),
    ({'positions': 'first'}, r"'first'[\s\S]*reached, each, last, together"),
    ({'mode': 'zero'}, r"'zero'[\s\S]*noising, denoising"),
    ({'nodes': 'neurons'}, "neurons of all layers[\\s\\S]*layers='2,14,27'"),
    ({'ks': (10, 3)}, r'ks \[10, 3\]'),
    ({'methods': ()}, r'methods \[\]'),
    ({'joint': 5}, 'joint is 5[\\s\\S]*20 or more'),
    ({'verify': 39}, 'verify is 39[\\s\\S]*40 or more'),
  ],
)
def test_settings_without_meaning_are_refused_with_what_is_known(options, message):
  with pytest.raises(PatchingError, match=message):
    Settings(**options)


def test_fewer_nodes_than_the_largest_k_are_refused_before_the_sweep(model, task):
  settings = Settings(layers='1', positions='last', ks=(5, 17))
  with pytest.raises(PatchingError, match='K 17 of 16 nodes'):
    measuring.measure(model, task, settings, log=lambda line: None)


def test_a_sweep_is_taken_up_again(model, task, measured, saved):
  question = measuring.ask(model, task.rows([0, 2, 3]), SETTINGS)
  truth, cost = measuring.sweep(question, saved, progress=False)
  assert (measured.metrics['truth']['saved_before'], cost['saved_before']) == (0, 3 * HEADS)
  assert (measured.metrics['truth']['patches'], cost['patches']) == (3 * HEADS, 0)
  np.testing.assert_array_equal(truth.values, measured.truth.values)


def parsed(**given):
  """The program's flags, as a command line gives them."""
  values = absl_flags.FlagValues()
  handle = flags.define(Program, flag_values=values)
  values(['atp_star', *(f'--{name}={value}' for name, value in given.items())])
  return handle


def test_the_program_measures_what_the_flags_ask_for_and_writes_it(
  model, task, measured, tmp_path, monkeypatch, capsys
):
  asked = []
  monkeypatch.setattr(mechjax, 'load', lambda *a, **k: asked.append((a, k)) or model, raising=False)
  monkeypatch.setattr(tasks, 'build', lambda *a: asked.append(a) or task)
  monkeypatch.setattr(program, 'measure', lambda *a, **k: asked.append((a, k)) or measured)
  monkeypatch.setattr('sys.argv', ['atp_star', "--task=it's"])
  out = tmp_path / 'deep' / 'out'
  program.main(['atp_star'], parsed(
    model='here', code='tunix', task='toy', templates='a,b', pairs='4', seed='5', nodes='neurons',
    layers='0,1', positions='last', mode='denoising', methods='atp,random', ks='2,4', joint='30',
    verify='50', budget='123', out=str(out),
  ))  # fmt: skip
  load, build, ((*given, settings), options) = asked
  assert load == (('here',), {'code': 'tunix'})
  assert build == ('toy', model, 4, 5, ['a', 'b'])
  assert given == [model, task]
  assert settings == Settings(
    'neurons', '0,1', 'last', 'denoising', ('atp', 'random'), (2, 4), 30, 50, 123, 5
  )
  assert options == {'save': out / 'atp_star.npz', 'progress': True}
  metrics = json.loads((out / 'atp_star.json').read_text())
  assert metrics['command'] == """python -m experiments.atp_star '--task=it'"'"'s'"""
  assert metrics == measured.metrics
  assert (out / 'atp_star.png').stat().st_size > 50_000
  assert (out / 'atp_star.html').read_text() == report.document(measured)
  printed = capsys.readouterr().out
  assert 'random order' in printed
  assert 'oracle' in printed


def test_a_report_needs_no_method_with_estimates(measured, tmp_path):
  judged = {'random': measured.metrics['methods']['random']}
  curve = measured.metrics['curve']
  curve = curve | {'costs': {'random': curve['costs']['random']}}
  metrics = measured.metrics | {'methods': judged, 'curve': curve}
  alone = dataclasses.replace(measured, metrics=metrics, found={'random': measured.found['random']})
  report.picture(alone, tmp_path / 'alone.png')
  assert (tmp_path / 'alone.png').stat().st_size > 50_000
  page = report.document(alone)
  assert 'Places of the largest nodes' in page
  assert 'Nodes missed by random order' not in page


def test_the_page_says_what_the_model_can_do_and_escapes_every_token(measured):
  page = report.document(measured)
  assert 'answer above the other in 75%' in page
  assert 'position 2 &#x27;{who}&#x27;' in page
  assert '␣&amp;' in page
  assert '&lt;b&gt;clean 2' in page
  assert 'Who is &lt;it&gt;?' in page
  assert '<b>clean' not in page
  assert page.index('Ability of the model') < page.index('The truth: q')
  for name in ('AtP*', 'hierarchical', 'Bounds on the missed nodes', 'Nodes missed by AtP'):
    assert name in page


def test_flags_that_are_no_numbers_are_refused():
  with pytest.raises(absl_flags.IllegalFlagValueError, match='ks=10,many'):
    parsed(ks='10,many')
