"""Pictures of circuits: tokens, cells and bars show the numbers of their tables, on pages that need nothing else."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechjax.circuits.recursion import TraceNode
from mechjax.decomposition import CompositionScores, DirectEffects, FeatureAttribution, LensTable
from mechjax.errors import CircuitError
from mechjax.viz import attention, composition, direct_effects, lens, page
from tests.viz import browser
from tests.viz.viz_test import Reader

pytestmark = pytest.mark.slow
PIECES = ['<s>', ' the', '\n', ' <b>', ' Paris', 'x']
B, T, N, M = 2, 6, 4, 2
PNG = b'\x89PNG\r\n\x1a\n'


def table(outlier=False):
  random = np.random.default_rng(0)
  probs = np.tril(random.random((B, N, T, T)))
  probs /= probs.sum(-1, keepdims=True)
  values = random.standard_normal((M, B, N, T))
  if outlier:
    values[..., 0] = 100
  real = np.ones((B, T), bool)
  real[1, 4:] = False
  probs = np.where(real[:, None, :, None], probs, 0)
  by_head = np.einsum('bnts,mbns->mbtn', probs, values)
  return FeatureAttribution(
    np.array([17, 4]), jnp.asarray(by_head), jnp.array([0.5, -0.25]), jnp.asarray(values), jnp.asarray(probs), real, 2
  )  # fmt: skip


def tokens(content):
  """Class, weight and note of each token of each text."""
  texts = re.findall(r'<p class="tokens word">(.*?)</p>', content, re.DOTALL)
  pattern = r'<span class="([^"]*)"(?: style="--w:([\d.]+)")? title="([^"]*)">'
  return [re.findall(pattern, text) for text in texts]


def test_tokens_are_shaded_by_their_contributions():
  found = table()
  content = attention.dfa_page(found, PIECES, position=4, names={17: '<name>'})
  for m, spans in enumerate(tokens(content)):
    values = np.asarray(found.by_source(np.array([4, 0])))[m, 0].sum(0)[:5]
    assert len(spans) == T
    for column, (kind, weight, note) in enumerate(spans):
      if column > 4:
        assert kind == 'after'
        continue
      assert ('down' in kind.split()) == (values[column] < 0)
      assert ('here' in kind.split()) == (column == 4)
      assert float(weight) == pytest.approx(abs(values[column]) / np.abs(values).max(), abs=1e-3)
      assert float(re.match(r'position \d: (\S+)', note)[1]) == pytest.approx(
        values[column], rel=1e-3
      )
  read = Reader(content)
  for piece in ('<s>', '␣the', '↵', '␣<b>', '␣Paris', 'x', 'Latent 17: <name>', 'Latent 4'):
    assert piece in read.texts
  assert not read.addresses
  assert 'script' not in read.tags
  assert not re.search(r'https?:|url\(|@import', content)


def test_the_sum_is_written_with_the_first_token_and_the_constant_apart():
  found = table()
  one = attention.take(found, position=3, row=1)[0]
  first = float(found.from_first()[0, 1, 3].sum())
  total = float(found.pre_activations()[0, 1, 3])
  assert one.pre_activation == pytest.approx(total)
  numbers = [float(x) for x in re.findall(r'-?\d+\.?\d*', one.describe())]
  np.testing.assert_allclose(numbers, [total, first, total - first - 0.5, 0.5], rtol=2e-3)


def test_a_first_token_that_outweighs_the_rest_is_cut_and_framed():
  spans = tokens(attention.dfa_page(table(outlier=True), PIECES, position=4))[0]
  assert 'cut' in spans[0][0].split()
  assert all('cut' not in kind.split() for kind, *_ in spans[1:])
  others = [float(weight) for _, weight, _ in spans[1:5]]
  assert max(others) == pytest.approx(1 / 1.2, abs=1e-3)


def test_heads_are_bars_and_cells():
  found = table()
  content = attention.dfa_page(found, PIECES, position=4)
  values = np.asarray(found.by_source(np.array([4, 0])), np.float64)[0, 0, :, :5]
  part = content[content.index('Latent 17') : content.index('Latent 4')]
  cells = re.findall(r'<td class="([^"]*)" style="--w:[\d.]+" title="([^"]*)"', part)
  assert len(cells) == N * 5
  for (kind, note), value in zip(cells, values.ravel()):
    assert ('down' in kind) == (value < 0)
    assert float(note.rpartition(': ')[2]) == pytest.approx(value, rel=1e-3, abs=1e-3)
  bars = re.findall(r'<b style="[^"]*">([^<]*)</b>', part)
  np.testing.assert_allclose([float(b) for b in bars], values.sum(1), atol=0.006)


def trace(position, latent=17):
  leaf = TraceNode('feature 3 of layer 0 at 1', 'feature', -0.5, -0.25, 0, 1, 3)
  rest = TraceNode('rest: 4 more', 'rest', 1.0, 0.5)
  source = TraceNode('source 3', 'source', 0.5, 0.25, position=3, children=(leaf, rest))
  return TraceNode('latent', 'latent', 2.0, 1.0, 5, position, latent, (source,))


def test_a_trace_is_a_tree_with_the_tokens_of_its_positions():
  content = attention.dfa_page(table(), PIECES, position=4, traces=[trace(4)])
  tree = content[content.index('<ul class="tree">') :]
  lines = re.findall(
    r'([\w: ]+?)(?: <span class="word">([^<]*)</span>)? <b( class="down")?>([^<]*)</b>', tree
  )
  assert [(name.strip(), token, bool(down), value) for name, token, down, value in lines] == [
    ('latent', '␣Paris', False, '2'), ('source 3', '␣&lt;b&gt;', False, '0.5'),
    ('feature 3 of layer 0 at 1', '␣the', True, '-0.5'), ('rest: 4 more', '', False, '1'),
  ]  # fmt: skip
  assert tree.count('<details') == 2
  assert tree.count('<details open') == 1
  for wrong in (trace(3), trace(4, latent=5)):
    with pytest.raises(CircuitError, match='a trace of'):
      attention.dfa_page(table(), PIECES, position=4, traces=[wrong])


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'position': 6}, 'position=6'),
    ({'position': 4, 'row': 1}, 'is padding'),
    ({'row': 2}, 'row=2'),
    ({'pieces': PIECES[:3]}, '3 pieces of text for 6 columns'),
    ({'pieces': PIECES[1:], 'position': 2}, '5 pieces of text for 6 columns'),
    ({'pieces': [*PIECES, 'y']}, '7 pieces of text for 6 columns'),
    ({'pieces': [3, 1, 4, 1, 5, 9]}, '3 is not a piece of text'),
    ({'position': 1.5}, 'position=1.5 should be a whole number'),
    ({'row': 'a'}, "row='a' should be a whole number"),
  ],
)
def test_positions_without_tokens_are_refused(options, message):
  with pytest.raises(CircuitError, match=message):
    attention.dfa_page(**{'table': table(), 'pieces': PIECES} | options)


def test_a_latent_is_written_as_a_picture(tmp_path):
  path = tmp_path / 'latent.png'
  attention.picture(table(outlier=True), PIECES, path, latent=4, position=4, name='$x$')
  assert path.read_bytes()[:8] == PNG
  with pytest.raises(CircuitError, match='latent 3 is not among'):
    attention.picture(table(), PIECES, path, latent=3)


@browser.needed
def test_a_browser_shows_the_page_wide_narrow_light_and_dark(tmp_path):
  content = attention.dfa_page(table(), PIECES * 1, position=4)
  script = (
    f'[...{browser.FITS}, {browser.PAPER}, document.querySelectorAll(".tokens span").length, '
    'getComputedStyle(document.querySelector(".tokens .on")).backgroundColor]'
  )
  seen = {
    (width, dark): browser.measure(tmp_path, content, script, width=width, dark=dark)
    for width, dark in ((1200, False), (500, False), (1200, True))
  }
  for inner, whole, _, n_tokens, _ in seen.values():
    assert whole <= inner
    assert n_tokens == M * T
  (*_, light, _, shade), (*_, dark, _, other) = seen[1200, False], seen[1200, True]
  assert light != dark
  assert shade != other


# --- direct effects -------------------------------------------------------------------------------------------


def effects(parts=True):
  random = np.random.default_rng(1)
  made = lambda *shape: jnp.asarray(random.standard_normal(shape))  # noqa: E731
  more = {
    'heads': made(3, N, B),
    'attn_rest': made(3, B),
    'neurons': made(2, 50, B),
    'mlp_rest': made(2, B),
  }
  return DirectEffects(
    embed=made(B), attn=made(3, B), mlp=made(2, B), constant=made(B), rounding=jnp.zeros(B), attn_layers=(0, 1, 2),
    mlp_layers=(0, 2), scale=made(B), **(more if parts else {}),
  )  # fmt: skip


def test_bars_are_parts_in_the_order_of_the_pass():
  found = effects()
  names, values = found.name_parts()
  assert names == ['embed', 'attn 0', 'mlp 0', 'attn 1', 'attn 2', 'mlp 2', 'biases']
  np.testing.assert_allclose(values.sum(0), found.total, rtol=1e-5)
  layers, heads, neurons = direct_effects.sections(found, row=1, target='<x>', k=5)
  shown = [float(x) for x in re.findall(r'<b style="[^"]*">([^<]*)</b>', layers)]
  np.testing.assert_allclose(shown, values[:, 1], atol=0.006)
  assert '&lt;x&gt;' in layers
  assert heads.count('<td') == 3 * N
  labels, largest = direct_effects.find_largest(found, 5, 1)
  expected = np.sort(np.abs(np.asarray(found.neurons)[:, :, 1].ravel()))[::-1][:5]
  np.testing.assert_allclose(np.abs(largest), expected)
  layer, neuron = re.fullmatch(r'layer (\d) neuron (\d+)', labels[0]).groups()
  assert float(found.neurons[found.mlp_layers.index(int(layer)), int(neuron), 1]) == largest[0]
  assert neurons.count('class="track"') == 5


def test_effects_without_weights_have_one_section(tmp_path):
  assert len(direct_effects.sections(effects(parts=False))) == 1
  for n, parts in enumerate((False, True)):
    direct_effects.picture(effects(parts), tmp_path / f'{n}.png', target='$x$')
    assert (tmp_path / f'{n}.png').read_bytes()[:8] == PNG
  with pytest.raises(CircuitError, match='row=2 of 2 rows'):
    direct_effects.sections(effects(), row=2)
  with pytest.raises(CircuitError, match='effects without neurons'):
    direct_effects.find_largest(effects(parts=False), 3)


# --- composition ----------------------------------------------------------------------------------------------


def test_cells_are_the_largest_scores_of_two_layers(tmp_path):
  random, L = np.random.default_rng(2), 3
  scores = random.random((3, L, N, L, N))
  below = np.arange(L)[:, None] < np.arange(L)
  scores = np.where(below[:, None, :, None], scores, np.nan)
  found = CompositionScores(*scores, baseline=0.25)
  for kind, content in zip(range(3), composition.sections(found, k=4)):
    notes = re.findall(r'title="layer (\d) reads layer (\d): (-?[\d.]+|nan)"', content)
    assert len(notes) == L * L
    for upper, lower, value in notes:
      l, u = int(lower), int(upper)
      if l < u:
        assert float(value) == pytest.approx(scores[kind, l, :, u].max() - 0.25, abs=1e-4)
      else:
        assert value == 'nan'
    assert content.count('class="track"') == 4
    assert content.count('class="none"') == L * L - 3
  composition.picture(found, tmp_path / 'x.png')
  assert (tmp_path / 'x.png').read_bytes()[:8] == PNG


# --- lenses ---------------------------------------------------------------------------------------------------


def readings(seed=0, targets=(3,)):
  random, (L, V, k) = np.random.default_rng(seed), (4, 9, 2)
  p = jax.nn.log_softmax(jnp.asarray(random.standard_normal((L, B, T, V)) * 2))
  p = np.asarray(p)
  ids = np.argsort(-p, -1)[..., :k]
  chosen = p[..., list(targets)]
  return LensTable(
    ids, np.take_along_axis(p, ids, -1), -(np.exp(p) * p).sum(-1), (np.exp(p[-1]) * (p[-1] - p)).sum(-1),
    np.array(targets, np.int32), chosen, 1 + (p[..., None] > chosen[..., None, :]).sum(-2),
  )  # fmt: skip


def name(token):
  return f'<{token}>'


def test_a_table_shows_the_likeliest_token_of_each_layer(tmp_path):
  tables = {'logit lens': readings(), 'Jacobian <lens>': readings(1)}
  content = page.page('t', 'l', lens.sections(tables, PIECES, text=name, row=1, position=2), 'f')
  cells = re.findall(r'<td class="word" style="--w:([\d.]+)" title="[\d.]+">([^<]*)</td>', content)
  expected = [
    (f'{np.exp(t.log_probs[l, 1, c, 0]):.3f}', f'&lt;{t.ids[l, 1, c, 0]}&gt;')
    for t in tables.values()
    for l in range(4)
    for c in range(T)
  ]
  assert cells == expected
  assert content.count('<svg') == 2
  assert not Reader(content).addresses
  lens.picture(tables, PIECES, tmp_path / 'x.png', text=name)
  assert (tmp_path / 'x.png').read_bytes()[:8] == PNG
  without = {n: readings(targets=()) for n in 'ab'}
  assert len(lens.sections(without, PIECES, text=name)) == 3


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'tables': {}}, '0 tables'),
    ({'pieces': PIECES[1:]}, '5 pieces'),
    ({'row': 2}, 'row=2'),
    ({'layers': [0]}, '1 names for 4 layers'),
  ],
)
def test_tables_that_do_not_fit_are_refused(options, message):
  given = {'tables': {'a': readings()}, 'pieces': PIECES, 'text': name}
  with pytest.raises(CircuitError, match=message):
    lens.sections(**given | options)
