"""Effective models equal NumPy forwards in which the ablated outputs are replaced by hand."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mechjax
from experiments.benchmarks import timing
from mechjax import harvest
from mechjax.errors import SiteError
from mechjax.models import ours
from mechjax.patching import (
  AblationValues,
  Kept,
  PatchingError,
  ablate,
  components_of,
  measure_means,
  nodes_of,
  resample_values,
)
from tests.models import decoders
from tests.patching import plain

T, N = 6, 4
RANDOM = np.random.default_rng(7)
LENGTHS = np.array([6, 4, 5, 6])
TOKENS = RANDOM.integers(0, decoders.V, (len(LENGTHS), T)).astype(np.int32)
MASK = np.arange(T) < LENGTHS[:, None]
ROWS = np.array([[-1, -3], [-2, -4], [-1, -2], [-4, -5]])
"""Two positions of each prompt."""
WHERE = {'every': None, 'last two': [-1, -2], 'rows': ROWS}
NAMES = ['gpt2', 'neox', 'gemma', 'mistral']


@pytest.fixture(autouse=True)
def wide():
  with jax.enable_x64(True):
    yield


@pytest.fixture(scope='module', autouse=True)
def deep():
  """A decoder of three layers, for paths that follow each other."""
  with pytest.MonkeyPatch.context() as patch:
    config = dataclasses.replace(decoders.CONFIGS['mistral'], n_layers=3, local=())
    patch.setitem(decoders.CONFIGS, 'deep', config)
    yield


@functools.cache
def params(name):
  return jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), decoders.params(name))


@functools.cache
def forward(name):
  return plain.forward(name)


@functools.cache
def parts(name, heads=True):
  return components_of(harvest.sites_of(forward(name), params(name), TOKENS), heads=heads)


def measure(name, where='every', heads=True, make=measure_means, **options):
  found = (forward(name), params(name), TOKENS, parts(name, heads))
  return make(*found, positions=WHERE[where], mask=MASK, **options)


# --- the truth ----------------------------------------------------------------------------------------


@functools.cache
def values(name):
  return plain.values(name, TOKENS)


def columns(where, row):
  """(number, column) of each ablated position of a prompt."""
  n = LENGTHS[row]
  if where == 'every':
    return [(n - 1 - t, t) for t in range(n)]
  at = WHERE[where] if where == 'last two' else ROWS[row]
  return [(i, n + p) for i, p in enumerate(at)]


def mean(where, value):
  """Means by number of the position, from rows and columns one by one."""
  found = {}
  for row in range(len(LENGTHS)):
    for number, t in columns(where, row):
      found.setdefault(number, []).append(value[row, t])
  return {number: np.mean(rows, axis=0) for number, rows in found.items()}


def by_mean(where, site, name):
  means = mean(where, values(name)[site])
  return lambda row, number, t: means[number]


def by_other(where, site, name, other):
  value = values(name)[site]
  return lambda row, number, t: value[other[row], dict(columns(where, other[row]))[number]]


def by_zero(where, site, name):
  return lambda row, number, t: 0.0


def by_hand(name, where, kept, replacement, heads=True):
  """Logits if what is not kept is replaced; `kept(site, head)` says what is."""

  def edit(site, value):
    stem = site.partition('.')[0]
    if stem not in ('z' if heads else 'attn_out', 'mlp_out'):
      return value
    value, new = value.copy(), replacement(where, site, name)
    for row in range(len(LENGTHS)):
      for number, t in columns(where, row):
        for h in range(N) if stem == 'z' else [None]:
          if not kept(site, h):
            part = np.asarray(new(row, number, t))
            index = (row, t) if h is None else (row, t, h)
            value[index] = part if h is None or not part.ndim else part[h]
    return value

  return plain.logits(name, TOKENS, edit)


def check(found, expected, tolerance=1e-9):
  """Compares logits at real tokens."""
  found, expected = np.asarray(found)[MASK], expected[MASK]
  np.testing.assert_allclose(found, expected, atol=tolerance, rtol=tolerance)


def nothing(site, head):
  return False


def some(site, head):
  return site == 'mlp_out.0' or (site, head) in (('z.1', 2), ('z.0', 0))


def keep_some(name):
  nodes = parts(name)
  heads = [
    str(n.site) == 'mlp_out.0' or (str(n.site), n.head) in (('z.1', 2), ('z.0', 0)) for n in nodes
  ]
  return Kept.of(nodes, nodes[heads])


# --- what is kept and what is replaced ----------------------------------------------------------------


@pytest.mark.parametrize('name', ['neox', 'gemma'])
def test_a_model_that_keeps_everything_is_the_model_bit_for_bit(name):
  model = ablate(forward(name), Kept.of(parts(name), '*'), measure(name))
  run = lambda f: jax.jit(harvest.call_and_reap(f, sites='z, resid_post'))  # noqa: E731
  one, other = (run(f)(params(name), TOKENS) for f in (model, forward(name)))
  assert len(jax.tree.leaves(one)) == len(jax.tree.leaves(other)) == 3
  jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize(('name', 'where'), [*zip(NAMES, ['every', 'rows', 'last two', 'every'])])
def test_a_model_that_keeps_nothing_has_means_everywhere(name, where):
  model = ablate(forward(name), Kept.of(parts(name), []), measure(name, where))
  found = model(params(name), TOKENS, mask=MASK)
  check(found, by_hand(name, where, nothing, by_mean))


@pytest.mark.parametrize(
  ('name', 'where'), [*zip(NAMES, ['last two', 'every', 'rows', 'last two'])]
)
def test_a_model_that_keeps_some_parts_is_the_forward_of_these_parts(name, where):
  model = ablate(forward(name), keep_some(name), measure(name, where))
  expected = by_hand(name, where, some, by_mean)
  check(model(params(name), TOKENS, mask=MASK), expected)
  assert np.abs(expected - plain.logits(name, TOKENS))[MASK].max() > 0.1


@pytest.mark.parametrize('name', ['gemma', 'neox'])
def test_whole_attention_layers_are_replaced_at_their_output(name):
  nodes = parts(name, heads=False)
  model = ablate(forward(name), Kept.all_but(nodes, 'attn_out.{1..-1}'), measure(name, heads=False))
  expected = by_hand(name, 'every', lambda site, _: site != 'attn_out.1', by_mean, heads=False)
  check(model(params(name), TOKENS, mask=MASK), expected)


@pytest.mark.parametrize('where', ['last two', 'rows'])
def test_resampled_values_are_those_of_another_prompt(where):
  name = 'mistral'
  found = measure(name, where, make=resample_values, seed=3, batch=3)
  other = draws(found, name, where)
  assert sorted(other) == [*range(len(LENGTHS))]
  assert (other != np.arange(len(LENGTHS))).all()
  model = ablate(forward(name), keep_some(name), found)
  replacement = functools.partial(by_other, other=other)
  check(model(params(name), TOKENS, mask=MASK), by_hand(name, where, some, replacement))


def draws(found, name, where):
  """The prompt that each prompt drew, found from the values."""
  mine = values(name)['mlp_out.0']
  read = np.array([[mine[row, t] for _, t in columns(where, row)] for row in range(len(LENGTHS))])
  drawn = np.asarray(found.values['mlp_out'][0])
  distance = np.abs(drawn[:, None] - read).max((2, 3))
  assert distance.min(1).max() < 1e-9
  return distance.argmin(1)


def test_without_positions_resampled_prompts_have_one_length():
  name, tokens = 'gpt2', TOKENS[:3]
  found = resample_values(forward(name), params(name), tokens, parts(name), seed=1)
  model = ablate(forward(name), Kept.of(parts(name), []), found)
  own = plain.values(name, tokens)
  drawn = np.abs(np.asarray(found.values['mlp_out'][0])[:, None] - own['mlp_out.0'][:, ::-1])
  other = drawn.max((2, 3)).argmin(1)

  def edit(site, value):
    return own[site][other] if site.partition('.')[0] in ('z', 'mlp_out') else value

  expected = plain.logits(name, tokens, edit)
  np.testing.assert_allclose(model(params(name), tokens), expected, atol=1e-9)


@pytest.mark.parametrize('where', ['every', 'rows'])
def test_zeros_replace_whole_outputs(where):
  name = 'gpt2'
  zeros = AblationValues.zeros(parts(name), WHERE[where])
  model = ablate(forward(name), keep_some(name), zeros)
  check(model(params(name), TOKENS, mask=MASK), by_hand(name, where, some, by_zero))


@pytest.mark.parametrize('batch', [1, 3, 16])
@pytest.mark.parametrize('where', [*WHERE])
def test_means_are_those_of_numpy(where, batch):
  name = 'gemma'
  found = measure(name, where, batch=batch)
  for site in ('z', 'mlp_out'):
    for layer in range(2):
      expected = mean(where, values(name)[f'{site}.{layer}'])
      assert len(expected) == found.values[site].shape[1]
      for number, value in expected.items():
        np.testing.assert_allclose(found.values[site][layer, number], value, atol=1e-10)
  counts = [int(sum(e < LENGTHS)) for e in range(T)] if where == 'every' else [len(LENGTHS)] * 2
  assert found.counts.tolist() == counts


def test_positions_may_be_some_of_those_that_were_measured():
  name = 'gpt2'
  whole, few = measure(name), measure(name, 'last two')
  for means in (whole.at([-2]), few.at([-2]), whole.at(np.full((4, 1), -2))):
    assert means.positions.tolist() == [-2]
    assert means.counts.tolist() == [4]
    model = ablate(forward(name), Kept.of(parts(name), []), means)
    expected = ablate(forward(name), Kept.of(parts(name), []), few, positions=[-2])
    one, other = (f(params(name), TOKENS, mask=MASK) for f in (model, expected))
    np.testing.assert_allclose(one, other, atol=1e-12)


def test_means_at_positions_of_each_prompt_serve_other_prompts():
  name = 'mistral'
  means, at = measure(name, 'rows'), np.array([[-2, -1]])
  model = ablate(forward(name), Kept.of(parts(name), []), means, positions=at)
  tokens = TOKENS[2:3, :5]

  def edit(site, value):
    if site.partition('.')[0] in ('z', 'mlp_out'):
      value, known = value.copy(), mean('rows', values(name)[site])
      value[0, 3], value[0, 4] = known[0], known[1]
    return value

  expected = plain.logits(name, tokens, edit)
  np.testing.assert_allclose(model(params(name), tokens), expected, atol=1e-9)


# --- padding ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(('side', 'where'), [('left', 'every'), ('right', 'rows')])
def test_rows_of_a_ragged_batch_are_the_rows_alone(side, where):
  name = 'gemma'
  apply = ours.forward(params(name), decoders.CONFIGS[name]).apply
  tokens, mask = TOKENS.copy(), MASK
  if side == 'left':
    mask = MASK[:, ::-1]
    for row, n in enumerate(LENGTHS):
      tokens[row] = np.roll(TOKENS[row], T - n)
  means = measure_means(apply, params(name), tokens, parts(name), positions=WHERE[where], mask=mask)
  np.testing.assert_allclose(means.values['z'], measure(name, where).values['z'], atol=1e-9)
  kept = keep_some(name)
  found = ablate(apply, kept, means)(params(name), jnp.asarray(tokens), mask=jnp.asarray(mask))
  for row, n in enumerate(LENGTHS):
    at = None if where == 'every' else ROWS[row : row + 1]
    alone = ablate(forward(name), kept, means, positions=at)
    expected = alone(params(name), TOKENS[row : row + 1, :n])[0]
    np.testing.assert_allclose(found[row][mask[row]], expected, atol=1e-9)


def test_a_prompt_that_is_refused_is_nan_if_its_length_is_traced():
  name = 'gpt2'
  short = np.arange(T) < np.array([6, 2, 5, 6])[:, None]
  model = ablate(forward(name), keep_some(name), measure(name).at([-3]))
  run = jax.jit(lambda mask: model(params(name), TOKENS, mask=mask))
  found = np.asarray(run(short))
  assert np.isnan(found[1, :2]).any(-1).all()
  assert np.isfinite(found[[0, 2, 3]]).all()
  with pytest.raises(PatchingError, match='prompt 1 has 2 tokens, and position -3'):
    model(params(name), TOKENS, mask=short)
  longer = np.concatenate([TOKENS, TOKENS[:, :1]], 1)
  every = ablate(forward(name), keep_some(name), measure(name))
  run = jax.jit(lambda mask: every(params(name), longer, mask=mask))
  assert np.isnan(run(np.ones((4, T + 1), bool))).any((1, 2)).all()


# --- paths --------------------------------------------------------------------------------------------


def cut_by_hand(name, where, kept, paths):
  """Logits if receivers read a stream with the senders' outputs replaced: an edit of the norm's input."""
  config = decoders.CONFIGS[name]
  tree = jax.tree.map(lambda x: np.asarray(x, np.float64), decoders.params(name))
  seen = {}
  base = {site: by_mean(where, site, name) for site in ('mlp_out.0', 'mlp_out.1', 'attn_out.0')}

  def edit(site, value):
    stem, _, layer = site.partition('.')
    if stem in ('z', 'mlp_out'):
      new, value = by_mean(where, site, name), value.copy()
      for row in range(len(LENGTHS)):
        for number, t in columns(where, row):
          if not kept(site, None):
            value[row, t] = new(row, number, t)
    senders = [sender for sender, receiver in paths if receiver == site]
    if senders:
      stream = f'resid_post.{config.n_layers - 1}'
      scale = tree['final_norm']
      if stem != 'final_norm':
        kind = stem.partition('_')[0]
        stream = (
          f'resid_mid.{layer}'
          if f'resid_mid.{layer}' in seen and kind == 'mlp'
          else f'resid_pre.{layer}'
        )
        scale = jax.tree.map(lambda x: x[int(layer)], tree['layers'][stem])
      x, value = seen[stream].copy(), value.copy()
      for sender in senders:
        for row in range(len(LENGTHS)):
          for number, t in columns(where, row):
            x[row, t] += base[sender](row, number, t) - seen[sender][row, t]
      changed = decoders._norm(config, x, scale)
      for row in range(len(LENGTHS)):
        for _, t in columns(where, row):
          value[row, t] = changed[row, t]
    seen[site] = value
    return value

  return plain.logits(name, TOKENS, edit)


PATHS = {
  'one': [('mlp_out.0', 'mlp_norm.1')],
  'to attention and the end': [('mlp_out.0', 'attn_norm.1'), ('mlp_out.1', 'final_norm')],
  'two that follow': [('mlp_out.0', 'mlp_norm.1'), ('mlp_out.1', 'mlp_norm.2')],
  'two of one': [('mlp_out.0', 'mlp_norm.2'), ('mlp_out.1', 'mlp_norm.2')],
}


@pytest.mark.parametrize(
  ('name', 'paths', 'where'),
  [
    ('gpt2', 'one', 'every'),
    ('neox', 'one', 'rows'),
    ('gemma', 'one', 'last two'),
    ('gemma', 'to attention and the end', 'every'),
    ('deep', 'two that follow', 'rows'),
    ('deep', 'two of one', 'every'),
  ],
)
def test_an_ablated_path_changes_what_its_receiver_reads_and_nothing_else(name, paths, where):
  kept = lambda site, head: site != 'z.1'  # noqa: E731
  means = measure(name, where)
  model = ablate(forward(name), Kept.all_but(parts(name), 'z.1'), means, paths=PATHS[paths])
  expected = cut_by_hand(name, where, kept, PATHS[paths])
  check(model(params(name), TOKENS, mask=MASK), expected)
  without = cut_by_hand(name, where, kept, [])
  assert np.abs(expected - without)[MASK].max() > 1e-3


def test_a_head_sends_through_the_norm_after_its_attention():
  """The truth is two passes by hand: the first with all other components held."""
  name, where = 'gemma', 'last two'
  head = nodes_of(
    harvest.sites_of(forward(name), params(name), TOKENS), 'z.0', heads=[1], positions='together'
  )
  model = ablate(
    forward(name), Kept.of(parts(name), '*'), measure(name, where), paths=[(head, 'mlp_norm.1')]
  )
  new = by_mean(where, 'z.0', name)
  first = {}

  def hold(site, value):
    if site.partition('.')[0] in ('z', 'mlp_out'):
      value = values(name)[site].copy()
    for row in range(len(LENGTHS)) if site == 'z.0' else ():
      for number, t in columns(where, row):
        value[row, t, 1] = new(row, number, t)[1]
    first[site] = value
    return value

  def second(site, value):
    return first[site] if site == 'mlp_norm.1' else value

  plain.logits(name, TOKENS, hold)
  check(model(params(name), TOKENS, mask=MASK), plain.logits(name, TOKENS, second))


def test_a_path_leaves_the_sites_of_one_pass():
  name = 'gpt2'
  model = ablate(
    forward(name), Kept.of(parts(name), '*'), measure(name), paths=[('mlp_out.0', 'mlp_norm.1')]
  )
  acts = harvest.reap(model, sites='*')(params(name), TOKENS, mask=MASK)
  own = values(name)
  assert set(acts) == set(own)
  for site in ('resid_mid.1', 'mlp_out.0', 'z.1'):
    np.testing.assert_allclose(acts[site], own[site], atol=1e-9)
  assert np.abs(acts['mlp_norm.1'] - own['mlp_norm.1'])[MASK].max() > 1e-2


# --- a forward like any other -------------------------------------------------------------------------


def test_a_sweep_of_sets_positions_and_paths_has_one_executable():
  name = 'gpt2'
  means, p = measure(name), params(name)
  run = jax.jit(lambda model, params, tokens, mask: model(params, tokens, mask=mask))
  reap = lambda model: harvest.reap(model, sites='resid_post')(p, TOKENS, mask=MASK)  # noqa: E731

  def sweep(keep, position, paths=()):
    kept = Kept.of(components_of(harvest.sites_of(forward(name), p, TOKENS)), keep)
    model = ablate(forward(name), kept, means, positions=position, paths=paths)
    return run(model, p, TOKENS, MASK), reap(model)

  sweep('z.0', [-1])
  sweep('z.0', [-1], [('mlp_out.0', 'mlp_norm.1')])
  made = [sweep(keep, [at]) for keep, at in (('z.1', -2), ([], -3), ('mlp_out', -1))]
  with timing.compilations() as again:
    for keep, at in (('mlp_out.0, z.0', -4), ('mlp_out, z.0', -2), ('mlp_out.0, z', -1)):
      made += [sweep(keep, [at]), sweep(keep, [at], [('z.0', 'mlp_norm.0')])]
  assert again.count == 0
  different = [np.abs(a - b).max() for (a, _), (b, _) in itertools.combinations(made, 2)]
  assert min(different) > 1e-6


def test_sets_can_be_stacked():
  name = 'mistral'
  nodes, means = parts(name), measure(name)
  many = np.random.default_rng(0).random((3, len(nodes))) < 0.5
  run = lambda members: ablate(forward(name), Kept(nodes, members), means)(params(name), TOKENS)  # noqa: E731
  found = jax.jit(jax.vmap(run))(many)
  for members, out in zip(many, found):
    np.testing.assert_allclose(out, run(members), atol=1e-9)


def test_it_is_planted_iterated_and_differentiated_like_any_model():
  name = 'gpt2'
  model = ablate(forward(name), keep_some(name), measure(name, 'last two'))
  out = model(params(name), TOKENS, mask=MASK)
  with_plant = harvest.plant(model)(
    {'resid_post.0': lambda x: 2 * x}, params(name), TOKENS, mask=MASK
  )
  for _, _, value in (
    run := mechjax.iterate(model, sites='resid_post.0')(params(name), TOKENS, mask=MASK)
  ):
    run.modified_value = 2 * value
  np.testing.assert_allclose(run.retval, with_plant, atol=1e-12)
  assert np.abs(with_plant - out).max() > 1e-3
  loss = lambda p: model(p, TOKENS, mask=MASK)[:, -1].sum()  # noqa: E731
  step = jax.tree.map(lambda x: RANDOM.standard_normal(x.shape), params(name))
  moved = [loss(jax.tree.map(lambda p, d: p + h * d, params(name), step)) for h in (1e-5, -1e-5)]
  products = jax.tree.map(lambda g, d: (g * d).sum(), jax.grad(loss)(params(name)), step)
  slope = (moved[0] - moved[1]) / 2e-5
  np.testing.assert_allclose(sum(jax.tree.leaves(products)), slope, rtol=1e-5)


def test_a_model_that_is_ablated_twice_has_both_ablations():
  name = 'neox'
  nodes, means = parts(name), measure(name)
  inner = ablate(forward(name), Kept.all_but(nodes, 'z.0'), means)
  twice = ablate(inner, Kept.all_but(nodes, 'mlp_out.1'), means)
  once = ablate(forward(name), Kept.all_but(nodes, 'z.0, mlp_out.1'), means)
  one, other = (f(params(name), TOKENS, mask=MASK) for f in (twice, once))
  np.testing.assert_allclose(one, other, atol=1e-12)


def test_a_change_of_a_value_that_the_model_reads_is_noticed():
  strength = {'x': 1.0}

  def scaled(params, tokens):
    return forward('gpt2')(params, tokens) * strength['x']

  model = ablate(scaled, keep_some('gpt2'), measure('gpt2'))
  reap = lambda: harvest.call_and_reap(model, sites='mlp_out.0')(params('gpt2'), TOKENS)[0]  # noqa: E731
  before = reap()
  strength['x'] = 3.0
  np.testing.assert_allclose(reap(), 3 * before, rtol=1e-12)


# --- a small model in plain JAX -----------------------------------------------------------------------


W = RANDOM.standard_normal((3, 5, 5)) / 3
EMBED = RANDOM.standard_normal((decoders.V, 5))


def small(params, inputs):
  """Heads in front of positions, one site without a layer, inputs in a dict."""
  x = jnp.asarray(params['embed'])[inputs['tokens']]
  heads = jnp.stack([jnp.cumsum(x @ params['w'][i], 1) for i in range(2)], 1)
  x = x + harvest.sow(jnp.tanh(heads), name='z').sum(1)
  x = x + harvest.sow(jnp.tanh(x @ params['w'][2]), name='mlp_out')
  return harvest.sow(x, name='logits')


def small_by_hand(kept):
  x = EMBED[TOKENS]
  z = np.tanh(np.stack([np.cumsum(x @ W[i], 1) for i in range(2)], 1))
  plain_z = z.copy()
  for h in range(2):
    if h not in kept:
      z[:, h, -2] = plain_z[:, h, -2].mean(0)
  x = x + plain_z.sum(1)
  out = np.tanh(x @ W[2])
  x = EMBED[TOKENS] + z.sum(1)
  mine = np.tanh(x @ W[2])
  if 'mlp' not in kept:
    mine[:, -2] = out[:, -2].mean(0)
  return x + mine


@pytest.mark.parametrize('kept', [(), (0,), (1, 'mlp'), (0, 1, 'mlp')])
def test_a_model_of_another_layout_is_ablated_in_the_same_way(kept):
  p, inputs = {'embed': EMBED, 'w': W}, {'tokens': TOKENS}
  nodes = components_of(harvest.sites_of(small, p, inputs), axes={'z': 'BNTD'})
  means = measure_means(small, p, inputs, nodes, positions=[-2], batch=3)
  chosen = np.array([n.head in kept if n.site.name == 'z' else 'mlp' in kept for n in nodes])
  found = ablate(small, Kept.of(nodes, chosen), means)(p, inputs)
  np.testing.assert_allclose(found, small_by_hand(kept), atol=1e-12)


def test_neurons_are_components_too():
  name = 'neox'
  infos = harvest.sites_of(forward(name), params(name), TOKENS)
  nodes = nodes_of(infos, 'mlp_post.1', neurons='each', positions='together')
  means = measure_means(forward(name), params(name), TOKENS, nodes, mask=MASK)
  model = ablate(forward(name), Kept.all_but(nodes, nodes[[3, 5]]), means)

  def edit(site, value):
    if site == 'mlp_post.1':
      value, new = value.copy(), mean('every', value)
      for row in range(len(LENGTHS)):
        for number, t in columns('every', row):
          value[row, t, [3, 5]] = new[number][[3, 5]]
    return value

  check(model(params(name), TOKENS, mask=MASK), plain.logits(name, TOKENS, edit))


# --- errors -------------------------------------------------------------------------------------------


def build(keep='z.0', where='last two', **options):
  return ablate(forward('gpt2'), Kept.of(parts('gpt2'), keep), measure('gpt2', where), **options)


def other_model():
  return measure('deep', 'last two')


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: build(keep=parts('gpt2')[:0]), 'empty node set names nothing'),
    (lambda: build(keep=parts('deep')[-1:]), 'mlp_out.2 is not among the components'),
    (lambda: build(keep=np.ones(3, bool)), r'a kept set is bool \[10\]'),
    (lambda: build(keep=np.ones(10)), r'got float64\[10\]'),
    (lambda: Kept.of(parts('gpt2')[:0], []), 'there are no components'),
    (lambda: Kept.of(parts('gpt2') + parts('gpt2'), []), 'two of the components at .* overlap'),
    (lambda: Kept.of(parts('gpt2'), []) | Kept.of(parts('deep'), []), 'of different components'),
    (lambda: build(positions=[-3]), 'no mean value at position -3'),
    (lambda: build(positions=[0]), 'position 0 is counted from the beginning'),
    (lambda: build(positions=[-1, -1]), 'name a position twice'),
    (lambda: build(positions=[]), 'should be negative integers'),
    (lambda: build(positions=[-1.0]), 'should be negative integers'),
    (lambda: build(positions=[[-1, -2], [-1]]), 'prompt 1 has 1 positions, and prompt 0 has 2'),
    (lambda: build(positions=ROWS), r'positions differ between prompts, \[-1, -3\] in prompt 0'),
    (lambda: build(where='every', positions=ROWS), 'positions differ between prompts'),
    (lambda: build(where='rows', positions=ROWS[:, :1]), 'of 2 positions of each prompt'),
    (lambda: build(where='rows', positions=[-1, -2]), 'of 2 positions of each prompt'),
    (lambda: measure('gpt2', 'last two').at(None), 'not of every position'),
    (lambda: build(paths=[('mlp_out.1', 'mlp_norm.0')]), 'mlp_out.1 does not lie below mlp_norm.0'),
    (lambda: build(paths=[('mlp_out.0', 'resid_mid.1')]), "unknown receiver of a path 'resid_mid'"),
    (lambda: build(paths=[([], 'mlp_norm.1')]), 'the path to mlp_norm.1 has no sender'),
    (lambda: build(paths=[(np.ones(2, bool), 'mlp_norm.1')]), r'a kept set is bool \[10\]'),
  ],
)
def test_sets_positions_and_paths_that_have_no_meaning_are_refused(make, message):
  with pytest.raises(PatchingError, match=message):
    make()


def test_values_of_another_model_are_refused():
  kept = Kept.of(parts('deep'), 'z.0')
  with pytest.raises(PatchingError, match='there are no values for z'):
    ablate(forward('deep'), kept, measure('gpt2'))
  narrow = dataclasses.replace(
    measure('gpt2'), values={k: v[..., :3] for k, v in measure('gpt2').values.items()}
  )
  with pytest.raises(PatchingError, match=r"'z' has the shape \[4, 3\] .* \[4, 6\] was expected"):
    ablate(forward('gpt2'), Kept.of(parts('gpt2'), 'z.0'), narrow)
  with pytest.raises(PatchingError, match='this model has no site z'):
    ablate(forward('gpt2'), kept, measure('deep'))(params('gpt2'), TOKENS)
  with pytest.raises(PatchingError, match='values must be of the class AblationValues'):
    ablate(forward('gpt2'), Kept.of(parts('gpt2'), 'z.0'), measure('gpt2').values, positions=[-1])
  with pytest.raises(PatchingError, match='kept must be of the class Kept'):
    ablate(forward('gpt2'), 'z.0', measure('gpt2'))


def test_patterns_that_select_nothing_are_refused():
  for keep in ('z.5', 'mlp_oot', ''):
    with pytest.raises(SiteError):
      build(keep=keep)
  model = build(paths=[('mlp_out.0', 'mlp_norm.7')])
  for run in (model, harvest.reap(model, sites='logits')):
    with pytest.raises(SiteError, match='mlp_norm'):
      run(params('gpt2'), TOKENS)
  with pytest.raises(SiteError):
    build(paths=[('mlp_out.7', 'mlp_norm.1')])


@pytest.mark.parametrize(
  ('model', 'mask', 'message'),
  [
    ({'where': 'rows'}, MASK[:2], 'positions or values of 4 prompts, and 2 prompts'),
    ({}, MASK[:, :1] | np.zeros(T, bool), None),
    ({}, np.arange(T) < np.array([[6], [1], [5], [6]]), 'prompt 1 has 1 tokens, and position -2'),
    ({}, MASK[:, ::-1], 'padding before or between its tokens, and the model takes no mask'),
    ({}, MASK.astype(int), 'the mask is int64 of shape'),
    ({}, MASK & (np.arange(4) != 2)[:, None], 'prompt 2 has no token'),
  ],
)
def test_prompts_that_do_not_fit_are_refused_before_anything_runs(model, mask, message):
  tokens = TOKENS[: len(mask)]
  made = build(**model)
  if message is None:  # a whole mask
    assert made(params('gpt2'), tokens, mask=mask).shape == (4, T, decoders.V)
    return
  for run in (made, harvest.reap(made, sites='logits')):
    with pytest.raises(PatchingError, match=message):
      run(params('gpt2'), tokens, mask=mask)


def test_longer_prompts_than_those_of_the_means_are_refused():
  means = measure_means(forward('gpt2'), params('gpt2'), TOKENS[:, :4], parts('gpt2'))
  model = ablate(forward('gpt2'), Kept.of(parts('gpt2'), 'z.0'), means)
  with pytest.raises(PatchingError, match='prompt 0 has 6 tokens, and there are values for 4'):
    model(params('gpt2'), TOKENS, mask=MASK)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'tokens': TOKENS[:1]}, 'there is one prompt'),
    ({'mask': MASK, 'positions': [-5]}, 'prompt 1 has 4 tokens, and position -5 was requested'),
    ({'positions': ROWS[:2]}, 'positions of 2 prompts, and 4 prompts'),
    ({'mask': MASK[:, ::-1]}, 'the model takes no mask'),
    ({'batch': 0}, 'batch is 0'),
    ({'tokens': TOKENS[0]}, 'are not prompts'),
    ({'forward': decoders.language_model('gpt2')}, 'not a function'),
    ({'params': jax.tree.map(lambda x: x * np.nan, decoders.params('gpt2'))}, 'NaN or infinity'),
  ],
)
def test_a_data_set_that_has_no_mean_is_refused(options, message):
  given = {'forward': forward('gpt2'), 'params': params('gpt2'), 'tokens': TOKENS, **options}
  leading = [given.pop(name) for name in ('forward', 'params', 'tokens')]
  with pytest.raises(PatchingError, match=message):
    measure_means(*leading, parts('gpt2'), **given)


def test_prompts_of_different_lengths_are_not_resampled_at_every_position():
  with pytest.raises(PatchingError, match='prompt 1 has 4 tokens, others have 6'):
    measure('gpt2', make=resample_values)
  with pytest.raises(PatchingError, match='seed is -1'):
    measure('gpt2', 'rows', make=resample_values, seed=-1)


def test_traced_prompts_have_no_mean():
  with pytest.raises(PatchingError, match='the prompts are traced'):
    jax.jit(lambda t: measure_means(forward('gpt2'), params('gpt2'), t, parts('gpt2')))(TOKENS)


def test_a_model_without_the_sites_of_components_is_refused():
  def tagged(*names):
    def run(params, tokens):
      x = jnp.asarray(params)[tokens]
      for name in names:
        x = x + harvest.sow(jnp.tanh(x), name=name)
      return x

    return harvest.sites_of(run, EMBED, TOKENS)

  with pytest.raises(PatchingError, match=r"(?s)no site 'z'.*hint: heads=False"):
    components_of(tagged('attn_out', 'mlp_out'))
  assert len(components_of(tagged('attn_out', 'mlp_out'), heads=False)) == 2
  with pytest.raises(PatchingError, match='no components'):
    components_of(tagged('resid_post'))


@pytest.mark.parametrize(
  ('pattern', 'options', 'message'),
  [
    ('z.0', {'positions': [-1]}, 'is a node of one position'),
    ('attn_probs.0', {'positions': 'together'}, "'attn_probs' with axes 'BNTS' is not a component"),
    ('k.0', {'positions': 'together'}, "'k' with axes 'BSKH' is not a component"),
  ],
)
def test_nodes_that_are_not_whole_along_positions_are_refused(pattern, options, message):
  infos = harvest.sites_of(forward('gpt2'), params('gpt2'), TOKENS)
  with pytest.raises(PatchingError, match=message):
    Kept.of(nodes_of(infos, pattern, **options), [])


def test_a_kept_set_names_its_components():
  kept = Kept.of(parts('gpt2'), 'mlp_out.1') | keep_some('gpt2')
  assert kept.labels() == ['z.0 head 0', 'z.1 head 2', 'mlp_out.0', 'mlp_out.1']
  assert not kept.keeps_all
