"""Effective models equal NumPy forwards in which the ablated outputs are replaced by hand."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mechjax
from experiments.benchmarks import timing
from mechjax import harvest
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
from tests.patching.ablated import (
  EMBED,
  LENGTHS,
  MASK,
  RANDOM,
  ROWS,
  TOKENS,
  WHERE,
  T,
  W,
  by_hand,
  by_mean,
  by_other,
  by_zero,
  check,
  columns,
  forward,
  keep_some,
  mean,
  measure,
  nothing,
  params,
  parts,
  some,
  values,
)

NAMES = ['gpt2', 'neox', 'gemma', 'mistral']


@pytest.fixture(autouse=True)
def wide():
  with jax.enable_x64(True):
    yield


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


def test_a_kept_set_names_its_components():
  kept = Kept.of(parts('gpt2'), 'mlp_out.1') | keep_some('gpt2')
  assert kept.labels() == ['z.0 head 0', 'z.1 head 2', 'mlp_out.0', 'mlp_out.1']
  assert not kept.keeps_all


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
