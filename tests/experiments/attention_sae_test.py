"""The study of attention dictionaries, on a decoder with planted heads: numbers against full runs, and files."""

import dataclasses
import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags as absl_flags

import mechjax
from experiments.attention_sae import __main__ as program
from experiments.attention_sae import (
  estimates,
  induction,
  ioi,
  measure,
  prefix,
  report,
  roles,
  subject,
  tables,
)
from experiments.attention_sae.passes import Passes
from experiments.attention_sae.settings import Settings
from mechjax import flags, harvest, sae
from mechjax.decomposition import attention
from mechjax.errors import CircuitError
from mechjax.neurons import Repetition
from mechjax.sae.features import Examples
from tests.experiments import loading
from tests.experiments import planted_induction as planted
from tests.experiments.planted_attention import make_settings, write_dictionaries, write_text
from tests.viz.viz_test import Reader

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module', autouse=True)
def _planted_model():
  with loading.replaced(lambda name: planted.model()):
    yield


@pytest.fixture(scope='module')
def places(tmp_path_factory):
  return write_dictionaries(tmp_path_factory.mktemp('dictionaries'))


@pytest.fixture(scope='module')
def text(tmp_path_factory):
  return write_text(tmp_path_factory.mktemp('text') / 'text.txt')


@pytest.fixture(scope='module')
def study(text, places, tmp_path_factory):
  """Settings, subject, results and the names of the steps that were computed."""
  settings, lines = make_settings(text, places, tmp_path_factory.mktemp('out') / 'study'), []
  found = subject.prepare(settings, mechjax.load('planted'))
  return settings, found, measure.measure(settings, found, lines.append), lines


# --- the prefix study ------------------------------------------------------------------------------------------


def test_the_planted_head_attends_once_a_prefix_is_repeated(study):
  _, found, results, _ = study
  value = np.array(results['prefixes']['value'])
  assert value.shape == (4, planted.L, planted.N)
  layer, head = planted.INDUCTION
  assert value[0, layer, head] < 0.1
  assert (value[1:, layer, head] > 0.9).all()
  assert tables.find_top_heads(results)[0] == planted.INDUCTION
  texts = found.prefixes
  for k in (0, 2):
    tokens = jnp.asarray(texts.repeat(k))
    probs = harvest.reap(found.model.apply, sites='attn_probs.1')(found.model.params, tokens)
    rows = np.arange(len(tokens))
    each = np.asarray(probs['attn_probs.1'])[rows, :, texts.queries, texts.keys]
    np.testing.assert_allclose(value[k, 1], each.mean(0), rtol=1e-4, atol=1e-7)
    se = each.std(0, ddof=1) / np.sqrt(len(each))
    np.testing.assert_allclose(results['prefixes']['se'][k][1], se, rtol=1e-3, atol=1e-7)


def test_only_the_prefix_is_repeated_and_it_ends_at_the_query():
  random = np.random.default_rng(0)
  texts = prefix.PrefixTexts.draw(np.arange(1, 40), 0, n=50, length=12, prefixes=5, random=random)
  assert (texts.tokens[:, 0] == 0).all()
  for row, key, query in zip(texts.tokens, texts.keys, texts.queries):
    assert len({*row}) == 12
    assert 5 < key <= query - 5
  for k in range(6):
    for row, key, query, plain in zip(texts.repeat(k), texts.keys, texts.queries, texts.tokens):
      assert row[query + 1 - k : query + 1].tolist() == row[key - k : key].tolist()
      assert (row != plain).sum() == k


# --- roles of heads --------------------------------------------------------------------------------------------


def test_latents_of_a_head_are_those_with_the_largest_shares(study):
  settings, found, results, _ = study
  one, heads = found.dictionaries[0], results['dictionaries'][0]['roles']
  shares = attention.head_shares(one.params, planted.N)
  recorded = roles.record(settings, found, one)
  enough = recorded.top.found.sum(1) >= settings.min_peaks
  assert heads['live'] == enough.sum()
  for head in range(planted.N):
    best = np.sort(shares[enough, head])[::-1][: settings.top]
    np.testing.assert_allclose(heads['shares'][head], best)
    np.testing.assert_allclose(shares[heads['latents'][head], head], best)
  assert 0 in np.argsort(-shares[:, planted.INDUCTION[1]])[:1]


def test_scores_are_means_of_jaccard_indices_of_sets():
  random = np.random.default_rng(1)
  tokens = random.integers(-1, 12, (6, 5, 3)).astype(np.int32)
  sequence = np.where(random.random((6, 5)) < 0.8, 1, -1).astype(np.int64)
  top = Examples(sequence, sequence.astype(np.int32), tokens, tokens.astype(np.float32), own=1)
  for kind, columns in (('peaks', [1]), ('contexts', [0, 1, 2])):
    sets = [
      {int(t) for n in range(5) if sequence[i, n] >= 0 for t in tokens[i, n, columns]} - {-1}
      for i in range(6)
    ]
    matrix = roles.measure_jaccard(roles.count_tokens(top, np.arange(6), kind))
    truth = [[len(a & b) / len(a | b) for b in sets] for a in sets]
    np.testing.assert_allclose(matrix, truth)
    pairs = [truth[0][2], truth[0][5], truth[2][5]]
    found = roles.average_pairs(matrix, np.array([[0, 2, 5]]))
    np.testing.assert_allclose(found, [np.mean(pairs)])


def test_a_head_whose_latents_share_their_tokens_is_above_the_control(study):
  settings, found, _, _ = study
  one = found.dictionaries[0]
  recorded = roles.record(settings, found, one)
  shares = attention.head_shares(one.params, planted.N)
  tokens = np.random.default_rng(0).integers(1, 1000, recorded.top.tokens.shape)
  alike = np.argsort(-shares[:, 3])[: settings.top]
  tokens[alike] = 7
  every = np.zeros(recorded.top.sequence.shape, np.int64)
  top = dataclasses.replace(recorded.top, tokens=tokens.astype(np.int32), sequence=every)
  compared = roles.compare(settings, one, dataclasses.replace(recorded, top=top))
  scores = compared['scores']['peaks']
  assert scores['score'][3] == 1
  assert scores['p_above'][3] < 0.1 < scores['p_above'][:3].min()
  none = dataclasses.replace(recorded, top=dataclasses.replace(recorded.top, sequence=every - 1))
  with pytest.raises(CircuitError, match=r'0 latents of z\.1 ReLU have 2 contexts'):
    roles.compare(settings, one, none)


# --- induction latents -----------------------------------------------------------------------------------------


def test_the_planted_latent_is_found_and_its_source_is_the_token_after(study):
  _, _, results, _ = study
  one = results['dictionaries'][0]['induction']
  assert one['latents'] == [0]
  shares = one['shares']
  assert shares['after']['value'][0] > 0.9
  assert shares['largest']['value'][0] == 1
  assert abs(shares['next']['value'][0]) < 0.1
  total = np.sum([np.array(shares[part]['value'], float) for part in induction.PARTS], axis=0)
  kept = np.isfinite(total)
  np.testing.assert_allclose(total[kept], 1, rtol=1e-6)
  assert one['example']['latent'] == 0
  by_source = np.array(one['example']['by_source'])
  assert by_source.shape == (planted.N, one['example']['position'] + 1)
  assert by_source.sum(0).argmax() == one['example']['position'] - 7
  assert len(one['example']['pieces']) == 17


def test_shares_are_sums_of_attributions_where_the_latent_is_active(study):
  settings, found, _, _ = study
  one, halves = found.dictionaries[1], Repetition(settings.half)
  texts = found.repeated[6:]
  sites = ['z.0', 'v.0', 'attn_probs.0']
  acts = harvest.reap(found.model.apply, sites=sites)(found.model.params, jnp.asarray(texts))
  z, v, probs = (np.asarray(acts[site], np.float64) for site in sites)
  latents = np.arange(8, 16)
  sums = induction.attribute(settings, found, one, latents)
  f = np.asarray(one.encode(acts['z.0']))
  truth = np.zeros((2, len(texts), len(latents)))
  for b, text in enumerate(texts):
    for t in halves.second:
      if (text[:t] == text[t]).sum() != 1:
        continue
      (earlier,) = np.flatnonzero(text[:t] == text[t])
      for n, i in enumerate(latents):
        if f[b, t, i] > 0:
          w = np.asarray(one.params['W_enc'])[:, i].reshape(planted.N, planted.H)
          value = sum(
            probs[b, h, t, earlier + 1] * w[h] @ v[b, earlier + 1, h // 2] for h in range(4)
          )
          pre = w.reshape(-1) @ z[b, t].reshape(-1) + float(one.params['b_enc'][i])
          truth[:, b, n] += value, pre
  assert truth[1].any()
  np.testing.assert_allclose(sums['after'], truth[0], rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(sums['whole'], truth[1], rtol=1e-4, atol=1e-6)


def test_a_ratio_has_the_error_of_the_ratio_estimate():
  random = np.random.default_rng(0)
  z = random.uniform(1, 2, (2000, 1))
  y = 0.7 * z + 0.3 * random.standard_normal((2000, 1))
  found = estimates.ratio(y, z)
  drawn = random.integers(0, 2000, (400, 2000))
  again = y[drawn, 0].sum(1) / z[drawn, 0].sum(1)
  np.testing.assert_allclose(found['value'], y.sum() / z.sum())
  np.testing.assert_allclose(found['se'], again.std(), rtol=0.15)
  assert np.isnan(estimates.ratio(y, 0 * z)['value']).all()


def test_a_dictionary_without_induction_is_refused(study):
  settings, found, _, _ = study
  wanted = dataclasses.replace(settings, induction=40)
  with pytest.raises(CircuitError, match='more active where a text repeats itself, and 40 were'):
    induction.choose(wanted, found, found.dictionaries[0])


# --- IOI -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('n', [0, 1])
def test_effects_are_those_of_the_whole_model_with_one_latent_removed(study, n):
  _, found, _, _ = study
  one, prompts = found.dictionaries[n], found.prompts['BABA']
  model, rows = found.model, np.arange(len(prompts))
  tokens = jnp.asarray(prompts.tokens)
  z = np.asarray(harvest.reap(model.apply, sites=one.site)(model.params, tokens)[one.site])

  def differ(z):
    logits = harvest.plant(model.apply)({one.site: jnp.asarray(z)}, model.params, tokens)
    last = np.asarray(logits, np.float64)[:, -1]
    return last[rows, prompts.answers] - last[rows, prompts.others]

  plain, passes = differ(z), Passes(model, 4, 8)
  moved = []
  for place in ('S2', 'END'):
    column = prompts.columns[place]
    found_ = ioi.ablate(passes, one, prompts, place)
    np.testing.assert_allclose(found_['clean'], plain, rtol=1e-4, atol=1e-5)
    f = np.asarray(one.encode(z[:, column]))
    assert {*zip(found_['prompt'], found_['latent'])} == {*zip(*np.nonzero(f > 0))}
    averaged = ioi.average(found_)
    for i in np.unique(found_['latent'])[:6]:
      less = z.copy()
      row = np.asarray(one.params['W_dec'])[i]
      less[:, column] -= (f[:, i, None] * row).reshape(-1, planted.N, planted.H)
      effect = differ(less) - plain
      at = averaged['latents'].tolist().index(i)
      np.testing.assert_allclose(averaged['effect'][at], effect.mean(), rtol=1e-3, atol=2e-5)
      se = effect.std(ddof=1) / np.sqrt(len(effect))
      np.testing.assert_allclose(averaged['effect_se'][at], se, rtol=1e-2, atol=2e-5)
      moved.append(abs(effect.mean()))
    pairs = ioi.list_pairs(f, np.asarray(one.params['W_dec']), seed=0)
    for m in (0, len(pairs['prompt']) - 1):
      p, rest = pairs['prompt'][m], z.copy()
      vector = pairs['size'][m] * np.asarray(one.params['W_dec'])[pairs['random'][m]]
      rest[p, column] -= vector.reshape(planted.N, planted.H)
      control = (differ(rest) - plain)[p]
      np.testing.assert_allclose(found_['control'][m], control, rtol=1e-3, atol=2e-5)
    gone = z.copy()
    gone[:, column] = 0
    np.testing.assert_allclose(found_['all'], differ(gone) - plain, rtol=1e-3, atol=2e-5)
  assert max(moved) > 1e-3


def test_the_latent_of_the_giver_matters_at_the_end_and_nothing_at_s2_of_the_last_layer(study):
  _, _, results, _ = study
  places = results['dictionaries'][0]['places']
  for order in ('ABBA', 'BABA'):
    end, s2 = (places[place]['orders'][order] for place in ('END', 'S2'))
    effects = dict(zip(end['latents'], end['effect']))
    names = sum(abs(effects.get(i, 0)) for i in range(1, 8))
    assert names > 3 * sum(abs(v) for i, v in effects.items() if i > 7)
    assert max(map(abs, s2['effect']), default=0) < 1e-5
    assert results['plain'][order]['right'] == 1


def test_the_control_removes_as_much_along_a_latent_that_is_not_active():
  random = np.random.default_rng(0)
  f = np.array([[1.0, 0, 0, 2.0], [0, 3.0, 0, 0], [1.0, 1.0, 1.0, 1.0]])
  prompt, _ = np.nonzero(f)
  drawn = ioi.draw_inactive(f, prompt, random)
  assert (f[prompt, drawn][prompt < 2] == 0).all()
  assert len(drawn) == 7
  W_dec = random.standard_normal((4, 5))
  pairs = ioi.list_pairs(f, W_dec, seed=3)
  lengths = np.linalg.norm(W_dec, axis=1)
  removed = pairs['activation'] * lengths[pairs['latent']]
  np.testing.assert_allclose(pairs['size'] * lengths[pairs['random']], removed)


def test_noise_prompts_change_what_they_say(study):
  _, found, results, _ = study
  for order, other in (('ABBA', 'BABA'), ('BABA', 'ABBA')):
    p = found.prompts[order]
    word = {k: planted.WORDS.index(k) for k in ('and', 'alongside')}
    changed = p.noise['alongside'] != p.tokens
    assert (changed.sum(1) == 1).all()
    assert (p.tokens[changed] == word['and']).all()
    assert (p.noise['alongside'][changed] == word['alongside']).all()
    np.testing.assert_array_equal(p.noise['order'], found.prompts[other].tokens)
    s2 = p.columns['S2']
    assert (p.tokens[:, s2] == p.others).all()
    assert (p.noise['moved'][:, s2 + p.shifts['moved']] == p.others).all()
    assert (p.tokens[:, p.columns['END']] == planted.WORDS.index('to')).all()
    assert (np.roll(p.tokens, -1, 0) == p.noise['words']).all()
  noise = results['noise']['z.1']['END']['ABBA']
  left = {name: noise[name]['left']['value'] for name in noise}
  assert left['order'] > 0.4  # the same names attract the head
  assert left['words'] < 0.3
  assert results['noise']['z.1']['S2']['ABBA']['words']['left']['value'] == pytest.approx(1)
  assert [*results['noise']] == ['z.1', 'z.0', 'z.1 + z.0']


def test_noise_is_that_of_the_whole_model_with_the_values_planted(study):
  _, found, results, _ = study
  model, p = found.model, found.prompts['ABBA']
  rows, column = np.arange(len(p)), p.columns['S2']
  read = harvest.reap(model.apply, sites='z.0')
  z = np.array(read(model.params, jnp.asarray(p.tokens))['z.0'])
  theirs = np.asarray(read(model.params, jnp.asarray(p.noise['moved']))['z.0'])

  def differ(z):
    logits = harvest.plant(model.apply)(
      {'z.0': jnp.asarray(z)}, model.params, jnp.asarray(p.tokens)
    )
    last = np.asarray(logits, np.float64)[:, -1]
    return last[rows, p.answers] - last[rows, p.others]

  plain = differ(z)
  z[:, column] = theirs[:, column + p.shifts['moved']]
  value = results['noise']['z.0']['S2']['ABBA']['moved']
  assert value['left']['value'] == pytest.approx(differ(z).mean() / plain.mean(), rel=1e-4)


# --- files -----------------------------------------------------------------------------------------------------


def test_a_finished_run_computes_nothing_again_and_another_choice_is_refused(study):
  settings, found, results, lines = study
  assert len(lines) == len({*lines})
  assert {'prefixes', 'features_1', 'roles_0', 'induction_1', 'ablated_1_S2_BABA'} <= {*lines}
  more: list[str] = []
  again = measure.measure(dataclasses.replace(settings, batch=3, pairs=5), found, more.append)
  assert more == []
  speed = {'batch': 3, 'pairs': 5}
  assert again == results | {'settings': results['settings'] | speed}
  with pytest.raises(CircuitError, match='results of other settings: prompts'):
    measure.measure(dataclasses.replace(settings, prompts=5), found, more.append)


def test_the_program_writes_what_it_measures(study, monkeypatch, capsys):
  settings, _, results, _ = study
  values = absl_flags.FlagValues()
  handle = flags.define(Settings, flag_values=values)
  given = dataclasses.asdict(settings) | {'dictionaries': ','.join(settings.dictionaries)}
  values(['attention_sae', *(f'--{name}={value}' for name, value in given.items())])
  monkeypatch.setattr('sys.argv', ['attention_sae', '--model=here'])
  program.main(['attention_sae'], handle)
  place = pathlib.Path(settings.out)
  written = json.loads((place / 'attention_sae.json').read_text())
  assert written == results | {'command': 'python -m experiments.attention_sae --model=here'}
  assert (place / 'attention_sae.png').stat().st_size > 30_000
  reader = Reader((place / 'attention_sae.html').read_text())
  texts, printed = ' '.join(reader.texts), capsys.readouterr().out
  for table in tables.make_tables(results):
    assert table.title in texts
    assert table.title in printed
    assert all(len(row) == len(table.heads) for row in table.rows)
    assert len({*table.heads}) == len(table.heads)
  assert 'Latent 0: an induction latent of z.1 ReLU' in texts
  assert 'Latents of z.0 TopK' in (place / 'features_1.html').read_text()


def test_a_page_of_features_has_the_latents_of_the_tables(study):
  settings, _, results, _ = study
  recorded = sae.features.load(pathlib.Path(settings.out) / 'features_0.npz')
  latents = np.array(sorted(map(int, results['dictionaries'][0]['latents'])))
  taken = report.take_latents(recorded, latents)
  np.testing.assert_array_equal(taken.latents, latents)
  np.testing.assert_array_equal(taken.firings, recorded.firings[latents])
  np.testing.assert_array_equal(taken.top.tokens[1], recorded.top.tokens[latents[1], :20])
