"""Explanations and scores on a dashboard as a browser shows them: as texts, in a list that is filtered and sorted."""

import base64
import dataclasses
import hashlib
import json
import math
import re

import numpy as np
import pytest

from mechjax.autointerp.record import Excerpt, Explanation, Score
from mechjax.sae.features import Examples, Features, Ranked
from mechjax.viz.dashboard import DashboardHeader, dashboard
from mechjax.viz.dashboard.explained import MAX_EXCERPTS
from mechjax.viz.logs import ChartError
from tests.viz import browser
from tests.viz.dashboard_test import Node, browse  # noqa: F401

pytestmark = pytest.mark.slow
NASTY = '</script><script>document.body.dataset.ran = 1</script><img src=x onerror="document.body.dataset.ran = 1">'
TRICKY = f'{NASTY} "quoted" \'too\' & \u202ebidi \u2028\nsecond line'
PIECES = [' the', NASTY, '\n', '\u202eback', ' Paris', 'ing']
HEADER = DashboardHeader('toy', 'resid_post.8', 'ReLU', 10.0, 0.3, 'random')
L, T = 6, 5


def make_features(n=L):
  rng = np.random.default_rng(0)

  def examples(k):
    return Examples(
      rng.integers(0, 9, (n, k)), rng.integers(0, 9, (n, k)).astype(np.int32),
      rng.integers(0, 6, (n, k, T)).astype(np.int32),
      np.sort(rng.random((n, k, T)).astype(np.float32) * 4, 1)[:, ::-1], 2,
    )  # fmt: skip

  def ranked(k):
    return Ranked(rng.integers(0, 6, (n, k)), rng.random((n, k)).astype(np.float32))

  return Features(
    width=n, n_tokens=100, latents=np.arange(n), histogram=rng.integers(1, 3, (n, 160)),
    top=examples(3), drawn=examples(2), level=rng.integers(0, 2, (n, 2)), n_levels=2,
    promoted=ranked(2), suppressed=ranked(2), decoder_near=ranked(2), encoder_near=ranked(2),
  )  # fmt: skip


def make_excerpt(sequence, seed=0):
  rng = np.random.default_rng([seed, sequence])
  tokens = rng.integers(0, 6, T)
  strength = rng.random(T) * (rng.random(T) < 0.5) * 6
  pieces = (*(PIECES[i] for i in tokens[:-1]), f' new{sequence}')
  return Excerpt(sequence, 10, tokens, pieces, strength.astype(np.float32))


FEATURES = make_features()
EXCERPTS = tuple(map(make_excerpt, range(4)))
PREDICTED = tuple(np.random.default_rng(n).random(T) for n in range(3)) + (np.full(T, math.nan),)
VALUES = {0: 0.5, 1: -0.25, 2: 0.75, 3: math.nan, 4: 0.125}
SCORES = [
  Score(latent, 'levels', 'simulation', 'own', latent, value, 20, reason='a constant' * math.isnan(value))
  for latent, value in VALUES.items()
] + [
  Score(2, 'levels', 'simulation', 'shuffled', 4, 0.0625, 20, predicted=PREDICTED[::-1], excerpts=EXCERPTS),
  Score(2, 'levels', NASTY, 'own', 2, 0.875, 9, 3, more={NASTY: 0.5}),
  Score(2, 'table', 'simulation', 'table', 2, 0.25, 20),
]  # fmt: skip
SCORES[2] = dataclasses.replace(SCORES[2], predicted=PREDICTED[::-1], excerpts=EXCERPTS[::-1])
EXPLANATIONS = [
  Explanation(0, 'levels', 'cities'),
  Explanation(2, 'levels', TRICKY),
  Explanation(2, NASTY, None, NASTY),
  Explanation(3, 'levels', 'Rare words, zebras'),
]


def make_page(**changes):
  given = {'explanations': EXPLANATIONS, 'scores': SCORES} | changes
  return dashboard(FEATURES, PIECES, title='t', header=HEADER, **given)


@pytest.fixture(scope='module')
def content():
  return make_page()


def plain(text):
  """A text as the script shows it, line breaks aside."""
  for sign in '\u202e\u2028':
    text = text.replace(sign, f'\\u{{{ord(sign):x}}}')
  return text


def test_explanations_are_shown_as_text_and_run_nothing(content, browse):  # noqa: F811
  seen = browse(content, '#latent=2')  # under the policy of the page
  (body,) = seen.all('body')
  assert 'data-ran' not in body
  assert not seen.all('img')
  assert [e.get('id') for e in seen.all('script')] == ['data', None]
  assert [e['text'] for e in seen.all('div', kind='prose')] == [plain(TRICKY)]
  assert [e['text'] for e in seen.all('div', 'latent', 'method')] == ['levels', NASTY]
  assert [e['text'] for e in seen.all('div', 'latent', 'missing')] == [f'no explanation: {NASTY}']
  assert {e['tag'] for e in seen.all(within='latent')} <= {
    'div', 'span', 'b', 'i', 'ol', 'li', 'dl', 'dt', 'dd', 'h3', 'small', 'a', 'label', 'select', 'option',
    'table', 'thead', 'tbody', 'tr', 'th', 'td',
  }  # fmt: skip
  assert not any(name.startswith('on') for e in seen.elements for name in e)
  assert 'has no explanation' in browse(content, '#latent=5').text('latent')


def test_scores_stand_in_a_table_by_scorer_explainer_and_control(content, browse):  # noqa: F811
  seen = browse(content, '#latent=2')
  (table,) = seen.all('table', 'latent', 'scores')
  lines = [e for e in seen.all('tr') if any(w is table for w in e['within'])]
  cells = [
    [e for e in seen.elements if e['within'][-1:] == [line] and e['tag'] in ('th', 'td')]
    for line in lines
  ]
  assert [[cell['text'] for cell in row] for row in cells] == [
    ['explanation', 'simulation', NASTY],
    ['levels', '0.75', '0.883 failed'],
    ['levels, shuffled (latent 4)', '0.06', '–'],
    ['token table', '0.25', '–'],
  ]
  assert f'{NASTY}: 0.50' in cells[1][2]['title']
  assert '3 replies failed' in cells[1][2]['title']
  undefined = [e for e in browse(content, '#latent=3').all('td', 'latent') if 'title' in e]
  assert [e['text'] for e in undefined] == ['–undefined', '–']
  assert 'undefined: a constant' in undefined[0]['title']


LIST = """[...document.querySelectorAll('#rows tr')].map((line) =>
  [line.querySelector('a').textContent, line.children[3].textContent])"""


@browser.needed
def test_the_list_is_filtered_and_sorted_by_a_score_and_missing_ones_are_last(tmp_path, content):
  script = f"""(() => {{
    const rows = () => {LIST}, found = [rows()];
    const set = (id, value, event) => {{
      const element = document.getElementById(id);
      element.value = value;
      element.dispatchEvent(new Event(event, {{bubbles: true}}));
      found.push(rows());
    }};
    const sort = () => {{
      document.querySelector('th button[value=score]').click();
      found.push(rows());
    }};
    sort(); sort(); set('minimum', '-0.25', 'input'); set('minimum', '0.5', 'input');
    const count = document.getElementById('count').textContent;
    set('minimum', '', 'input'); set('scored', '1', 'change'); set('search', 'ZEBRAS', 'input');
    return [found, count, [...document.getElementById('scored').options].map((o) => o.textContent)];
  }})()"""
  found, count, options = browser.measure(tmp_path, content, script)
  dash = '–'
  shown = {0: '0.50', 1: '−0.25', 2: '0.75', 3: dash, 4: '0.13', 5: dash}

  def rows(*latents):
    return [[str(latent), shown[latent]] for latent in latents]

  first, down, up, all_defined, high, again, table, zebras = found
  assert first == rows(0, 1, 2, 3, 4, 5)
  assert down == rows(2, 0, 4, 1, 3, 5)
  assert up == rows(1, 4, 0, 2, 3, 5)
  assert all_defined == rows(1, 4, 0, 2)
  assert high == rows(0, 2)
  assert count == '2 of 6 latents'
  assert again == up
  assert table == [['2', '0.25'], *([n, dash] for n in '01345')]
  assert zebras == [['3', dash]]
  assert options == ['simulation · levels', 'simulation · token table', f'{NASTY} · levels']


@browser.needed
def test_predicted_activations_stand_below_the_true_ones(tmp_path, content):
  script = """(() => {
    const spans = () => [...document.querySelectorAll('.both')].map((s) => [s.textContent,
      Number(s.style.getPropertyValue('--w')), Number(s.style.getPropertyValue('--p')),
      s.classList.contains('failed'), s.title]);
    const select = document.getElementById('prediction'), found = [spans()];
    select.value = 1;
    select.dispatchEvent(new Event('change'));
    found.push(spans());
    return [found, [...select.options].map((o) => o.textContent)];
  })()"""
  found, options = browser.measure(tmp_path, content, script, address='#latent=2')
  assert options == ['simulation · levels', 'simulation · levels, shuffled']
  scale = max(float(FEATURES.maximum[2]), max(float(e.activations.max()) for e in EXCERPTS))
  order = sorted(range(4), key=lambda n: -EXCERPTS[n].activations.max())
  for seen, places in zip(found, ([0, 1, 2, 3], [3, 2, 1, 0])):
    assert len(seen) == 4 * T
    tokens = iter(seen)
    for n in order:
      for piece, true, predicted in zip(
        EXCERPTS[n].pieces, EXCERPTS[n].activations, PREDICTED[places[n]]
      ):
        text, weight, height, failed, title = next(tokens)
        assert text == plain(piece).replace('\n', '↵')
        assert weight == pytest.approx(float(true) / scale, abs=5e-3)
        assert (weight > 0) == (true > 0)
        assert failed == math.isnan(predicted)
        assert height == pytest.approx(0 if failed else predicted, abs=3e-3)
        assert title.splitlines()[-1].startswith(
          'predicted: failed' if failed else 'predicted: about'
        )


LUMINANCE = """(() => {
  const parse = (colour) => colour.includes('color(') ? colour.match(/[\\d.]+/g).map(Number).slice(-3)
    : colour.match(/[\\d.]+/g).map((x) => x / 255).slice(0, 3);
  const linear = (x) => x <= .04 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4;
  const light = (colour) => {
    const [r, g, b] = parse(colour).map(linear);
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const one = document.querySelector('.both');
  one.style.setProperty('--w', 1);
  const layers = getComputedStyle(one).backgroundImage.split('linear-gradient').slice(1)
    .map((text) => text.match(/(color\\([^)]*\\)|rgb\\([^)]*\\))/)[1]);
  const paper = getComputedStyle(document.body).backgroundColor;
  return {bar: light(layers[0]), strong: light(layers[1]), ink: light(getComputedStyle(one).color),
    paper: light(paper), fits: [document.documentElement.clientWidth, document.documentElement.scrollWidth],
    height: parseFloat(getComputedStyle(one).paddingBottom)};
})()"""


@browser.needed
@pytest.mark.parametrize('dark', [False, True])
def test_colours_are_legible_in_light_dark_and_greyscale_and_a_narrow_page_fits(
  tmp_path, content, dark
):
  seen = browser.measure(tmp_path, content, LUMINANCE, width=500, dark=dark, address='#latent=2')

  def contrast(a, b):
    low, high = sorted((seen[a], seen[b]))
    return (high + 0.05) / (low + 0.05)

  assert (seen['paper'] < 0.1) == dark
  assert contrast('ink', 'strong') > 4.5
  # Contrasts are of luminance, which is what greyscale keeps.
  assert contrast('strong', 'paper') > 1.5
  assert contrast('bar', 'paper') > 3
  assert seen['height'] >= 8
  assert seen['fits'][0] == seen['fits'][1]


def test_the_policy_allows_the_two_scripts_as_one_and_nothing_else(content):
  texts = re.findall(r'(?s)<script>(.*?)</script>', content)
  assert len(texts) == 1
  digest = base64.b64encode(hashlib.sha256(texts[0].encode()).digest()).decode()
  policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', content)[1]
  assert policy.startswith("default-src 'none'")
  assert f"script-src 'sha256-{digest}'" in policy
  outside = re.sub(r'(?s)<script type="application/json".*?</script>', '', content)
  assert not re.search(r'https?:|url\(|@import|innerHTML|insertAdjacent|document\.write', outside)
  assert '\u202e' not in content


def test_a_page_without_explanations_has_nothing_of_them():
  page = dashboard(FEATURES, PIECES, title='t', header=HEADER)
  assert page == make_page(explanations=[], scores=())
  assert not re.search(r'explanationsOf = |id="filter"|value="score"|class="explanation"', page)
  data = json.loads(re.search(r'(?s)id="data">(.*?)</script>', page)[1])
  assert 'explained' not in data
  assert not Node(page).all('select')


def test_a_page_may_have_scores_or_explanations_only():
  for given in ({'scores': ()}, {'explanations': ()}):
    data = json.loads(re.search(r'(?s)id="data">(.*?)</script>', make_page(**given))[1])
    assert len(data['explained']['rows']) == L


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'explanations': [Explanation(L, 'm', 'x')]}, f'latent {L}, which is not on the page'),
    ({'scores': [Score(L, 'm', 's', 'own', L, 0.5, 1)]}, f'latent {L}, which is not on the page'),
    ({'explanations': EXPLANATIONS[:1] * 2}, 'two explanations of one kind'),
    ({'scores': SCORES[:1] * 2}, 'two scores of one kind'),
    ({'scores': [Score(1, 'm', 's', 'other', 1, 0.5, 1)]}, "control='other'"),
    ({'scores': [dataclasses.replace(SCORES[2], predicted=PREDICTED[:2])]}, '2 predictions for 4'),
    (
      {'scores': [dataclasses.replace(SCORES[2], predicted=(PREDICTED[0] * 9,) * 4)]},
      'largest level',
    ),
  ],
)
def test_explanations_and_scores_that_do_not_fit_are_refused(changes, message):
  with pytest.raises(ChartError, match=message):
    make_page(**changes)


def test_explanations_and_scores_take_a_few_kilobytes_of_a_latent():
  features = make_features(20)
  rng = np.random.default_rng(0)
  scores = []
  for latent in range(20):
    excerpts = tuple(
      Excerpt(n, 0, np.arange(64), tuple(f' w{i}' for i in range(64)), rng.random(64).astype(np.float32))
      for n in range(40)
    )  # fmt: skip
    for control in ('own', 'shuffled'):
      predicted = tuple(rng.random(64) for _ in excerpts)
      scores.append(
        Score(latent, 'm', 'simulation', control, latent, 0.5, 640, predicted=predicted, excerpts=excerpts)
      )  # fmt: skip
  base = dashboard(features, PIECES, title='t', header=HEADER)
  page = dashboard(features, PIECES, title='t', header=HEADER, scores=scores)
  data = json.loads(re.search(r'(?s)id="data">(.*?)</script>', page)[1])
  assert len(data['explained']['rows'][7]['excerpts']) <= 2 * MAX_EXCERPTS
  assert (len(page) - len(base)) / 20 < 7500
