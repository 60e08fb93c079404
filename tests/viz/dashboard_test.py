"""The dashboard as a browser shows it: the page shows the collected data, whatever the tokens contain.

Tests with a browser run wherever there is a Chromium or Chrome.
"""

import base64
import dataclasses
import hashlib
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import jax.numpy as jnp
import numpy as np
import pytest

from mechjax.sae import ReLU, features
from mechjax.sae.features import Examples, Features, Ranked
from mechjax.viz.dashboard import DashboardHeader, dashboard
from mechjax.viz.dashboard.payload import as_json, payload
from mechjax.viz.logs import ChartError

pytestmark = pytest.mark.slow

BROWSER = next(
  filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome', 'chrome'))), None
)
NASTY = '</script><img src=x onerror=alert(1)>'
PIECES = [
  NASTY,
  ' the',
  '\n',
  '\u202eback',
  '日本',
  '\u2028',
  '<b>bold</b>',
  ' Paris',
  'ing',
  '\ud800',
  "'--><!--",
]
V, D, M, T = len(PIECES), 6, 9, 12
DEAD = 6
ABOUT = DashboardHeader('<i>toy', 'resid_post.8', 'ReLU', 10.25, 0.31, 'random & words')


@pytest.fixture(scope='module')
def found():
  rng = np.random.default_rng(0)
  embed = rng.normal(size=(V, D)).astype(np.float32)
  params = {
    'W_enc': rng.normal(size=(D, M)), 'W_dec': rng.normal(size=(M, D)), 'b_dec': np.zeros(D),
    'b_enc': np.where(np.arange(M) == DEAD, -1e3, -1.5),
  }  # fmt: skip
  return features.collect(
    lambda tokens: jnp.asarray(embed)[tokens],
    ReLU(d_in=D, width=M, sparsity=0.0),
    {name: array.astype(np.float32) for name, array in params.items()},
    [(rng.integers(0, V, (8, T)), rng.random((8, T)) < 0.9)],
    unembed=lambda d: d @ embed.T,
    settings=features.FeatureSettings(n_top=3, before=4, after=2, n_logits=3, n_near=2),
  )


@pytest.fixture(scope='module')
def content(found):
  return dashboard(found, PIECES, title='A <dictionary>', header=ABOUT)


@pytest.fixture(scope='module')
def thousand():
  """A page of a thousand latents, twenty and twelve contexts of 32 tokens each, from a vocabulary of 49,152."""
  rng = np.random.default_rng(0)
  L, W, V = 1000, 32, 49152

  def examples(n):
    return Examples(
      sequence=rng.integers(0, 10**6, (L, n)),
      position=rng.integers(0, 1024, (L, n)).astype(np.int32),
      tokens=rng.integers(0, V, (L, n, W)).astype(np.int32),
      activations=rng.random((L, n, W)).astype(np.float32),
      own=20,
    )

  def ranked(n):
    return Ranked(rng.integers(0, L, (L, n)), rng.normal(size=(L, n)).astype(np.float32))

  many = Features(
    width=L, n_tokens=10**8, latents=np.arange(L), histogram=rng.integers(0, 10**5, (L, 160)),
    top=examples(20), drawn=examples(12), level=rng.integers(0, 6, (L, 12)), n_levels=6,
    promoted=ranked(10), suppressed=ranked(10), decoder_near=ranked(8), encoder_near=ranked(8),
  )  # fmt: skip
  return dashboard(many, [f' piece{i}' for i in range(V)], title='t', header=ABOUT)


# --- the browser ------------------------------------------------------------------------------------------


class Node(HTMLParser):
  """Elements and texts of a document that a browser wrote out: (path of tags and ids, attributes, text)."""

  VOID = frozenset({'meta', 'input', 'img', 'br', 'link'})

  def __init__(self, content):
    super().__init__()
    self.elements, self._open = [], []
    self.feed(content)

  def handle_starttag(self, tag, attrs):
    element = {'tag': tag, **dict(attrs), 'text': '', 'within': [*self._open]}
    self.elements.append(element)
    if tag not in self.VOID:
      self._open.append(element)

  def handle_endtag(self, tag):
    while self._open and self._open.pop()['tag'] != tag:
      pass

  def handle_data(self, data):
    for element in self._open:
      element['text'] += data

  def all(self, tag=None, within=None, kind=None):
    return [
      e
      for e in self.elements
      if (tag is None or e['tag'] == tag)
      and (kind is None or kind in e.get('class', '').split())
      and (within is None or any(w.get('id') == within for w in e['within']))
    ]

  def text(self, id):
    (element,) = [e for e in self.elements if e.get('id') == id]
    return element['text']


@pytest.fixture
def browse(tmp_path):
  if BROWSER is None:
    pytest.skip('there is no Chromium')

  def browse(content, address='', driver=''):
    """The document after its script has run, and then a driver's, which the page's own policy would forbid."""
    if driver:
      content = re.sub('<meta http-equiv[^>]*>', '', content) + f'<script>{driver}</script>'
    (tmp_path / 'page.html').write_text(content, encoding='utf-8')
    done = subprocess.run(
      [BROWSER, '--headless', '--no-sandbox', '--disable-gpu', f'--user-data-dir={tmp_path}/user',
       '--virtual-time-budget=2000', '--dump-dom', f'file://{tmp_path}/page.html{address}'],
      capture_output=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return Node(done.stdout.decode())

  return browse


def plain(piece):
  """The text of a token as the script shows it."""
  signs = {'\n': '↵', '\u202e': '\\u{202e}', '\u2028': '\\u{2028}', '\ud800': '\\u{d800}'}
  return ''.join(signs.get(c, c) for c in piece)


def contexts(examples, row):
  """The text of each example, a gap where tokens do not count."""
  texts = []
  for tokens in examples.tokens[row][examples.found[row]]:
    (there,) = np.nonzero(tokens >= 0)
    inside = tokens[there[0] : there[-1] + 1]
    texts.append(''.join('┆' if t < 0 else plain(PIECES[t]) for t in inside))
  return texts


def test_a_page_opened_at_a_latent_shows_what_is_known_of_it(content, found, browse):
  row = 4
  seen = browse(content, f'#latent={row}')
  assert seen.text('name') == f'Latent {row}'
  shown = [e['text'] for e in seen.all('div', 'latent', 'text')]
  assert shown[: found.top.found[row].sum()] == contexts(found.top, row)
  assert shown[found.top.found[row].sum() :] == contexts(found.drawn, row)
  for examples, lines in ((found.top, slice(0, 3)), (found.drawn, slice(3, None))):
    numbers = [float(e['text']) for e in seen.all('b') if e['within'][-1]['tag'] == 'li'][lines]
    np.testing.assert_allclose(numbers, examples.strength[row][examples.found[row]], rtol=0.006)
  marked = [e['text'] for e in seen.all('span', 'latent', 'own')][1:]  # the first is the legend's
  own = [
    t[examples.own]
    for examples in (found.top, found.drawn)
    for t in examples.tokens[row]
    if t[examples.own] >= 0
  ]
  assert marked == [plain(PIECES[t]) for t in own]
  words = [e['title'] for e in seen.all('span', 'latent', 'name')]
  ids = [*found.promoted.ids[row], *found.suppressed.ids[row]]
  assert words == [plain(PIECES[i]).replace(' ', '␣') for i in ids]
  links = [e['href'] for e in seen.all('a', 'latent')]
  assert links == [
    f'#latent={n}' for near in (found.decoder_near, found.encoder_near) for n in near.ids[row]
  ]
  assert f'{100 * found.density[row]:.3g} %' in seen.text('latent')


def test_activations_are_colours_and_are_said_where_one_points(content, found, browse):
  row = 4
  seen = browse(content, f'#latent={row}')
  tokens = [e for e in seen.all('span', 'latent', 'token') if 'title' in e]
  examples = found.top
  wanted = [
    (activation, n)
    for example, line in zip(examples.tokens[row], examples.activations[row])
    for n, (token, activation) in enumerate(zip(example, line))
    if token >= 0
  ]
  assert len(wanted) > 10
  for element, (activation, place) in zip(tokens, wanted):
    weight = float(re.search(r'--w: ?([\d.]+)', element['style'])[1])
    assert weight == pytest.approx(activation / found.maximum[row], abs=1 / 254)
    said = element['title'].split('\n')[1]
    if activation == 0:
      assert said == 'not active'
    else:
      assert said.startswith('about ') == (place != examples.own)
      assert float(said.removeprefix('about ')) == pytest.approx(
        float(activation), abs=0.006 * float(found.maximum[row])
      )


def test_texts_that_pretend_to_be_elements_are_inert(content, browse):
  harmless = {'div', 'span', 'b', 'i', 'ol', 'li', 'dl', 'dt', 'dd', 'h3', 'small', 'a', 'p'}
  hits = 0
  for row in range(3):
    seen = browse(content, f'#latent={row}', driver='document.body.dataset.driven = 1;')
    assert {e['tag'] for e in seen.all(within='latent')} <= harmless
    assert not seen.all('img')
    assert [e.get('id') for e in seen.all('script')] == ['data', None, None]
    hits += seen.text('latent').count(NASTY)
  assert hits > 3


@pytest.mark.parametrize(
  ('query', 'address'), [('paris', 'search=PARIS'), (NASTY, None), ('7', 'search=7')]
)
def test_search_finds_latents_by_number_and_by_text(content, found, browse, query, address):
  address = address or 'search=' + query.replace('<', '%3C').replace('>', '%3E').replace(' ', '%20')
  seen = browse(content, f'#{address}')
  rows = [int(e['text']) for e in seen.all('a', 'rows')]
  wanted = []
  for row in range(M):
    ids = [*found.promoted.ids[row], *found.suppressed.ids[row]]
    texts = [PIECES[i] for i in ids]
    texts += [''.join(PIECES[t] for t in line if t >= 0) for line in found.top.tokens[row]]
    if any(query.lower() in text.lower() for text in texts) or query == str(row):
      wanted.append(row)
  assert sorted(rows) == wanted
  assert len(rows) > 0
  assert seen.text('name') == f'Latent {rows[0]}'
  assert seen.text('count').startswith(f'{len(rows)} of {M} ')


def test_the_list_is_sorted_and_keys_walk_through_it(content, found, browse):
  driver = """
    document.querySelector('th button[value=density]').click();
    const press = (key) => document.dispatchEvent(new KeyboardEvent('keydown', {key}));
    location.hash = 'latent=' + document.querySelector('#rows a').textContent;
    setTimeout(() => press('j'), 100);
    setTimeout(() => document.getElementById('next').click(), 200);
    setTimeout(() => press('ArrowLeft'), 300);
  """
  seen = browse(content, driver=driver)
  rows = [int(e['text']) for e in seen.all('a', 'rows')]
  assert sorted(rows) == list(range(M))
  assert (np.diff(found.firings[rows]) <= 0).all()
  assert seen.text('name') == f'Latent {rows[1]}'
  (sorted_by,) = [e for e in seen.all('th') if 'aria-sort' in e]
  assert (sorted_by['text'], sorted_by['aria-sort']) == ('density', 'descending')
  (current,) = [e for e in seen.all('tr') if 'aria-current' in e]
  assert current['text'].startswith(str(rows[1]))


def test_a_long_list_shows_the_stretch_around_the_latent_and_more_when_asked(thousand, browse):
  driver = """
    const rows = () => document.querySelectorAll('#rows tr').length;
    document.body.dataset.rows = rows();
    for (const id of ['fewer', 'more']) document.getElementById(id).click();
  """
  seen = browse(thousand, '#latent=700', driver)
  (body,) = seen.all('body')
  assert body['data-rows'] == '200'
  assert [int(e['text']) for e in seen.all('a', 'rows')] == list(range(450, 1000))
  (current,) = [e for e in seen.all('tr') if 'aria-current' in e]
  assert current['text'].startswith('700')


def test_dead_latents_and_strangers_are_said_to_be_so(content, browse):
  assert 'active on none' in browse(content, f'#latent={DEAD}').text('latent')
  assert 'not among them' in browse(content, '#latent=4711').text('latent')


def test_a_page_of_some_latents_links_to_those_only(found, browse):
  chosen = [4, 1]
  few = dataclasses.replace(
    found,
    latents=found.latents[chosen],
    histogram=found.histogram[chosen],
    level=found.level[chosen],
    **{
      name: Ranked(*(array[chosen] for array in getattr(found, name)))
      for name in ('promoted', 'suppressed', 'decoder_near', 'encoder_near')
    },
    **{
      name: Examples(
        own=getattr(found, name).own,
        **{k: v[chosen] for k, v in vars(getattr(found, name)).items() if k != 'own'},
      )
      for name in ('top', 'drawn')
    },
  )
  seen = browse(dashboard(few, PIECES, title='few', header=ABOUT), '#latent=1')
  assert seen.text('name') == 'Latent 1'
  near = [*found.decoder_near.ids[1], *found.encoder_near.ids[1]]
  links = [int(e['text']) for e in seen.all('a', 'latent')]
  assert links == [n for n in near if n in chosen]
  assert seen.text('count') == f'2 of 2 latents, of {M}'


# --- the file ---------------------------------------------------------------------------------------------


def test_the_header_says_what_the_dictionary_is(content, found):
  texts = Node(content)
  facts = dict(zip((e['text'] for e in texts.all('dt')), (e['text'] for e in texts.all('dd'))))
  assert facts == {
    'Model': '<i>toy',
    'Site': 'resid_post.8',
    'Architecture': 'ReLU',
    'Width': str(M),
    'L0': '10.25',
    'FVU': '0.31',
    'Tokens seen': str(found.n_tokens),
    'Text': 'random & words',
  }
  dead = (found.firings == 0).sum()
  assert f'{dead} of {M} latents ({100 * dead / M:.1f} %)' in content


def test_a_page_needs_nothing_from_elsewhere_and_runs_only_its_own_script(content):
  outside = re.sub(r'(?s)<script type="application/json".*?</script>', '', content)
  assert not re.search(r'https?:|url\(|@import|innerHTML|insertAdjacent|document\.write', outside)
  assert not re.search(r'<[^>]* (src|on\w+)=', outside)
  script = re.search(r'(?s)<script>(.*?)</script>', content)[1]
  digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
  policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', content)[1]
  assert f"script-src 'sha256-{digest}'" in policy
  assert policy.startswith("default-src 'none'")
  assert not re.search(
    r'#[0-9a-fA-F]{3}', re.search(r'(?s)body \{ max-width: 88.*?</style>', content)[0]
  )


def test_the_data_hold_every_token_and_activation(found):
  data = json.loads(as_json(payload(found, PIECES)))
  for name, examples in (('top', found.top), ('drawn', found.drawn)):
    part = data[name]
    ids = np.frombuffer(base64.b64decode(part['tokens']), '<u2').reshape(examples.tokens.shape)
    heat = np.frombuffer(base64.b64decode(part['heat']), np.uint8).reshape(ids.shape)
    texts = np.array([*PIECES, ''], object)[examples.tokens]
    assert (np.array(data['pieces'], object)[ids] == texts).all()
    scale = np.maximum(found.maximum, 1e-9)[:, None, None]
    assert (np.abs(heat / 255 - examples.activations / scale) <= 1 / 255).all()
    np.testing.assert_array_equal(heat > 0, examples.activations > 0)
  for row, (first, *counts) in enumerate(data['histogram']):
    whole = np.zeros(found.histogram.shape[1], int)
    whole[first : first + len(counts)] = counts
    np.testing.assert_array_equal(whole, found.histogram[row])


def test_json_cannot_end_the_element_that_it_stands_in():
  text = as_json([NASTY, '\u2028', '<!--'])
  assert '<' not in text
  assert text.isascii()
  assert json.loads(text) == [NASTY, '\u2028', '<!--']


def test_a_thousand_latents_of_twenty_contexts_fit_into_a_mail(thousand):
  assert len(thousand) < 10e6


def test_a_token_without_a_text_is_refused(found):
  with pytest.raises(
    ChartError, match=f'token {V - 1} is to be shown, but there are only {V - 1} texts'
  ):
    payload(found, PIECES[:-1])
