"""Sweeps: one executable, any budget, no lost results, and every mode of patching."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import timing
from mechjax import harvest
from mechjax.patching import (
  ActivationPatching,
  AtPStar,
  Attribution,
  EdgeAttributionPatching,
  Effects,
  Pairs,
  PatchingError,
  PathPatching,
  SubsetPatching,
  budget,
  custom,
  effects,
  log_probability,
  logit_difference,
)
from tests.patching import linear
from tests.patching.linear import METRIC, PAIRS, PARAMS

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def wide():
  with jax.enable_x64(True):
    yield


# --- first order ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  ('mode', 'steps'),
  [('noising', 0), ('denoising', 0), ('zero', 0), ('resample', 0), ('noising', 3)],
)
def test_on_a_linear_model_atp_and_integrated_gradients_are_exact(mode, steps):
  nodes = linear.nodes() + linear.nodes('mlp_post.1', neurons='each', positions='together')
  atp = Attribution(linear.forward, nodes, mode=mode, steps=steps)(PARAMS, PAIRS, METRIC)
  exact = linear.patch(nodes, mode=mode)
  assert np.abs(exact.values).max() > 1
  np.testing.assert_allclose(atp.values, exact.values, rtol=1e-9, atol=1e-9)


def test_integrated_gradients_add_up_to_the_difference_of_the_runs():
  metric = log_probability(PAIRS, np.arange(4))
  nodes = linear.nodes('embed')
  few, many = (
    Attribution(linear.forward, nodes, steps=n)(PARAMS, PAIRS, metric) for n in (1, 2000)
  )
  total = many.other - many.base
  np.testing.assert_allclose(many.values.sum(0), total, atol=1e-3 * np.abs(total).max())
  assert np.abs(few.values.sum(0) - total).max() > 1e-2 * np.abs(total).max()


def test_integrated_gradients_of_nodes_behind_a_layer_may_start_there():
  nodes = linear.nodes('mlp_out.{1,2}, logits')
  atp = Attribution(linear.forward, nodes, steps=2, along='resid_post.0')(PARAMS, PAIRS, METRIC)
  np.testing.assert_allclose(atp.values, linear.patch(nodes).values, rtol=1e-9, atol=1e-9)


def test_many_steps_in_16_bits_give_the_gradient_of_few():
  params = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), PARAMS)
  nodes = linear.nodes('embed, mlp_out.1')
  few, many = (Attribution(linear.forward, nodes, steps=n)(params, PAIRS, METRIC) for n in (1, 900))
  scale = np.abs(few.values).max()
  np.testing.assert_allclose(many.values, few.values, rtol=0, atol=0.02 * scale)


def tagged_tokens(params, tokens):
  return linear.forward(params, harvest.sow(tokens, name='tokens'))


@pytest.mark.parametrize(
  ('along', 'pattern', 'message'),
  [
    ('resid_post', 'mlp_out', 'one site is needed, and this selects 3'),
    ('resid_post.1', 'mlp_out', r'does not give the nodes.*\n  where: mlp_out.0, mlp_out.1\n'),
    ('logits', 'mlp_out.2', r'does not give the nodes.*\n  where: mlp_out.2\n'),
    ('mlp_out.0', 'resid_post.1', 'does not give the nodes(.|\n)*another route'),
    ('tokens', 'mlp_out', 'no line between values of int32'),
  ],
)
def test_integrated_gradients_that_would_be_zero_are_refused(along, pattern, message):
  nodes = linear.nodes(pattern)
  with pytest.raises(PatchingError, match=message):
    Attribution(tagged_tokens, nodes, steps=2, along=along)(PARAMS, PAIRS, METRIC)


def test_the_absolute_value_is_taken_per_pair():
  atp = Attribution(linear.forward, linear.nodes('mlp_out'))(PARAMS, PAIRS, METRIC)
  np.testing.assert_array_equal(atp.contribution(), np.abs(atp.values).mean(1))
  assert (atp.contribution() > np.abs(atp.mean()) + 1e-3).any()


# --- modes of patching ------------------------------------------------------------------------------------


def by_hand(mode, layer, position):
  """The effect of patching mlp_out by hand."""
  tokens = PAIRS.clean
  acts = harvest.reap(linear.forward, sites='mlp_out')(PARAMS, tokens)['mlp_out'][layer]
  new = {'zero': jnp.zeros_like(acts), 'mean': jnp.broadcast_to(acts.mean(0), acts.shape)}[mode]
  value = acts.at[:, position].set(new[:, position])
  out = harvest.plant(linear.forward)({f'mlp_out.{layer}': value}, PARAMS, tokens)
  return METRIC(out) - METRIC(linear.forward(PARAMS, tokens))


@pytest.mark.parametrize('mode', ['zero', 'mean'])
def test_zero_and_mean_ablation_equal_the_edit_by_hand(mode):
  nodes = linear.nodes('mlp_out', positions=[0, 3])
  for measured in (linear.patch(nodes, mode=mode), linear.patch(nodes, mode=mode, budget=60_000)):
    assert measured.title == f'exact {mode}: logit difference'
    for node, values in zip(nodes, measured.values):
      expected = by_hand(mode, node.site.layer, node.position)
      np.testing.assert_allclose(values, expected, rtol=1e-9, atol=1e-9)


def test_resampling_draws_another_pair_and_the_seed_says_which():
  nodes = linear.nodes('embed', positions='together')
  first, again = (
    linear.patch(nodes, mode='resample', seed=3),
    linear.patch(nodes, mode='resample', seed=3),
  )
  np.testing.assert_array_equal(first.values, again.values)
  # All of the embedding is replaced: this is the other prompt's own metric.
  ends = first.base + first.values[0]
  clean = np.asarray(linear.forward(PARAMS, PAIRS.clean))[:, -1]
  picked = [
    [
      np.isclose(clean[j, METRIC.data[0][i]] - clean[j, METRIC.data[1][i]], ends[i])
      for j in range(4)
    ]
    for i in range(4)
  ]
  assert (np.sum(picked, 1) == 1).all()
  assert not np.diag(picked).any()


def test_gaussian_noise_has_the_spread_of_the_values():
  many = np.tile(np.arange(4), 100)
  nodes = linear.nodes('embed', positions=[2])
  drawn = (
    linear.patch(nodes, PAIRS.rows(many), METRIC.rows(many), mode='gaussian')
    .values[0]
    .reshape(100, 4)
  )
  embedded = PARAMS['embed'][PAIRS.clean]
  slope = jax.grad(
    lambda e: METRIC(harvest.plant(linear.forward)({'embed': e}, PARAMS, PAIRS.clean)).sum()
  )(embedded)[:, 2]
  expected = np.sqrt((np.asarray(slope) ** 2 * embedded[:, 2].var(0)).sum(-1))
  np.testing.assert_allclose(drawn.std(0), expected, rtol=0.3)
  np.testing.assert_allclose(drawn.mean(0) / expected, 0, atol=0.4)


def test_gaussian_noise_is_one_draw_in_any_chunks_and_when_resumed(tmp_path):
  nodes, save = linear.nodes('embed, mlp_out.{0,1}', positions=[0, 2]), tmp_path / 'sweep.npz'
  sweep = ActivationPatching(linear.forward, nodes, mode='gaussian')
  whole = sweep(PARAMS, PAIRS, METRIC)
  two = ActivationPatching(linear.forward, nodes, mode='gaussian', max_batch=1)
  two(PARAMS, PAIRS.rows(np.arange(2)), METRIC.rows(np.arange(2)))
  (plan,) = two._plans.values()
  small = ActivationPatching(linear.forward, nodes, mode='gaussian', budget=plan.bytes)
  cut = small(PARAMS, PAIRS, METRIC, save=save)
  (plan,) = small._plans.values()
  assert plan.rows < 4
  assert np.abs(whole.values).min() > 1e-6
  np.testing.assert_allclose(cut.values, whole.values, rtol=1e-7, atol=1e-9)
  with np.load(save) as file:
    half = {**file, 'done': file['done'] & (np.arange(4) < 2), 'values': file['values']}
  half['values'][:, 2:] = 0
  np.savez(save, **half)
  np.testing.assert_allclose(
    sweep(PARAMS, PAIRS, METRIC, save=save).values, whole.values, rtol=1e-7, atol=1e-9
  )
  alone = linear.patch(nodes[5:6], mode='gaussian').values
  np.testing.assert_allclose(alone, whole.values[5:6], rtol=1e-7, atol=1e-9)
  assert np.abs(linear.patch(nodes[5:6], mode='gaussian', seed=1).values - alone).min() > 1e-6


# --- positions counted from the end -----------------------------------------------------------------------

LENGTHS = np.array([5, 4, 5, 2])
RAGGED = Pairs(PAIRS.clean, PAIRS.noise, np.arange(5) < LENGTHS[:, None])
LAST = logit_difference(RAGGED, np.arange(4), np.arange(4) + 4)


def joint(forward, nodes):
  def call(params, pairs, metric):
    values = SubsetPatching(forward, nodes)(params, pairs, metric)(np.eye(len(nodes), dtype=bool))
    return Effects('joint', nodes, values, None, None, nodes.there(pairs.real))

  return call


@pytest.mark.parametrize('method', [ActivationPatching, joint, Attribution])
def test_positions_from_the_end_are_those_of_each_pair(method):
  nodes = linear.nodes('embed, mlp_out.1', positions=[-1, -3])
  found = method(linear.forward, nodes)(PARAMS, RAGGED, LAST)
  clean, noise = (
    harvest.reap(linear.forward, sites='*')(PARAMS, x) for x in (RAGGED.clean, RAGGED.noise)
  )
  for node, values in zip(nodes, found.values):
    site, at = str(node.site), LENGTHS + node.position
    rows = np.flatnonzero(at >= 0)  # the last pair has no third token from the end
    value = clean[site].at[rows, at[rows]].set(noise[site][rows, at[rows]])
    out = harvest.plant(linear.forward)({site: value}, PARAMS, RAGGED.clean)
    expected = LAST(out) - LAST(linear.forward(PARAMS, RAGGED.clean))
    np.testing.assert_allclose(values, expected, rtol=1e-9, atol=1e-9)
    mean = np.abs(values[rows]).mean()
    np.testing.assert_allclose(found.contribution()[nodes.labels().index(str(node))], mean)
  assert [node.position for node in nodes] == [-1, -3, -1, -3]
  assert nodes[0].label([' a', ' b']) == 'embed position -1'  # of each pair another token


def test_every_method_has_them_where_it_has_the_columns():
  every, last = linear.nodes('mlp_out.0'), linear.nodes('mlp_out.0', positions=[-1])
  args, pairs = (PARAMS, RAGGED, LAST), np.arange(4)
  columns, found = (AtPStar(linear.forward, n).by_layer(*args)[1] for n in (every, last))
  np.testing.assert_allclose(found[0], columns[LENGTHS - 1, pairs], rtol=1e-9, atol=1e-9)
  to = linear.nodes('resid_post.2')
  for routes in (PathPatching, EdgeAttributionPatching):
    columns = routes(linear.forward, every, to)(*args).values
    found = routes(linear.forward, last, linear.nodes('resid_post.2', positions=[-1]))(*args)
    expected = columns[LENGTHS - 1, LENGTHS - 1, pairs]
    assert np.abs(expected).min() > 1e-3
    np.testing.assert_allclose(found.values[0, 0], expected, rtol=1e-9, atol=1e-9)


def test_a_position_that_only_some_pairs_have_is_averaged_over_those():
  nodes = linear.nodes('embed', positions=[4, 1])
  found = linear.patch(nodes, RAGGED, LAST)
  there = np.array([[True, False, True, False], [True] * 4])
  np.testing.assert_array_equal(found.there, there)
  assert not found.values[~there].any()
  np.testing.assert_allclose(found.mean(), [found.values[0, [0, 2]].mean(), found.values[1].mean()])
  paths = PathPatching(linear.forward, nodes, linear.nodes('resid_post.2', positions=[4]))
  np.testing.assert_array_equal(paths(PARAMS, RAGGED, LAST).there[:, 0], [there[0]] * 2)


def test_columns_of_pairs_are_not_compared_from_the_end():
  last = linear.nodes('embed', positions=[-1])
  for mode in ('mean', 'resample', 'gaussian'):
    with pytest.raises(PatchingError, match=f'{mode!r} compares columns'):
      linear.patch(last, RAGGED, LAST, mode=mode)
  whole = linear.patch(linear.nodes('embed', positions=[4]), mode='mean')
  np.testing.assert_allclose(linear.patch(last, mode='mean').values, whole.values)


# --- one executable, any budget ---------------------------------------------------------------------------


def test_a_sweep_compiles_once_whatever_is_patched():
  nodes = linear.nodes('embed, mlp_out, resid_post, mlp_post')
  sweep = ActivationPatching(linear.forward, nodes, max_batch=7)
  with timing.compilations() as one:
    ActivationPatching(linear.forward, nodes[:7], max_batch=7)(PARAMS, PAIRS, METRIC)
  with timing.compilations() as all_of_them:
    sweep(PARAMS, PAIRS, METRIC)
  assert all_of_them.count <= one.count
  swapped = Pairs(PAIRS.noise, PAIRS.clean, PAIRS.real)
  with timing.compilations() as again:
    sweep(PARAMS, swapped, METRIC)
  assert again.count == 0


def test_a_small_budget_gives_smaller_chunks_and_the_same_effects():
  nodes = linear.nodes()
  whole = ActivationPatching(linear.forward, nodes)
  expected = whole(PARAMS, PAIRS, METRIC).values
  (plan,) = whole._plans.values()
  assert (plan.rows, plan.chunk) == (4, min(64, len(nodes)))
  seen = set()
  for room in (plan.bytes // 2, plan.bytes // 8, plan.bytes // 16):
    small = ActivationPatching(linear.forward, nodes, budget=room)
    np.testing.assert_allclose(small(PARAMS, PAIRS, METRIC).values, expected, rtol=1e-9, atol=1e-9)
    (fitted,) = small._plans.values()
    assert fitted.bytes <= room
    seen.add((fitted.rows, fitted.chunk))
  assert len(seen) > 1


def test_a_node_that_does_not_fit_is_an_error_with_both_numbers():
  with pytest.raises(PatchingError, match=r'needs [\d,]+ bytes, the budget is 100'):
    linear.patch(linear.nodes('embed', positions=[0]), budget=100)


def test_attribution_in_blocks_and_parts_gives_the_same():
  nodes = linear.nodes('mlp_post, mlp_out', neurons='each')
  whole = Attribution(linear.forward, nodes)
  expected = whole(PARAMS, PAIRS, METRIC).values
  (compiled,) = [c for plan in whole._plans.values() for _, c in plan.parts]
  small = Attribution(linear.forward, nodes, budget=budget.bytes_of(compiled) // 5)
  np.testing.assert_allclose(small(PARAMS, PAIRS, METRIC).values, expected, rtol=1e-9, atol=1e-9)
  (plan,) = small._plans.values()
  assert plan.rows < 4
  assert len(plan.parts) == 1 or plan.rows == 1
  with pytest.raises(PatchingError, match='does not fit'):
    Attribution(linear.forward, nodes, budget=100)(PARAMS, PAIRS, METRIC)


# --- files ------------------------------------------------------------------------------------------------


class Interrupted(Exception):
  pass


def interrupt_after(monkeypatch, n, kind):
  put = effects.SweepLedger.put
  calls = []

  def counted(self, nodes, rows, values):
    if len(calls) == n:
      raise kind
    calls.append(nodes)
    put(self, nodes, rows, values)

  monkeypatch.setattr(effects.SweepLedger, 'put', counted)
  return calls


@pytest.mark.parametrize('kind', [KeyboardInterrupt, Interrupted])
def test_an_interrupted_sweep_goes_on_where_it_was(tmp_path, monkeypatch, kind):
  sweep = ActivationPatching(linear.forward, linear.nodes(), max_batch=5)
  whole, save = sweep(PARAMS, PAIRS, METRIC), tmp_path / 'deep' / 'sweep.npz'
  with monkeypatch.context() as patch:
    interrupt_after(patch, 4, kind)
    with pytest.raises(kind):
      sweep(PARAMS, PAIRS, METRIC, save=save)
  with np.load(save) as kept:
    assert kept['done'].sum() == 4 * 5 * 4
  calls = interrupt_after(monkeypatch, 10**6, kind)
  resumed = sweep(PARAMS, PAIRS, METRIC, save=save, progress=True)
  assert sum(map(len, calls)) == len(sweep.nodes) - 20
  np.testing.assert_allclose(resumed.values, whole.values, rtol=1e-12, atol=1e-12)
  finished = len(calls)
  sweep(PARAMS, PAIRS, METRIC, save=save)
  assert len(calls) == finished
  assert [p.name for p in save.parent.iterdir()] == ['sweep.npz']


def test_the_file_of_another_sweep_is_refused(tmp_path):
  save = tmp_path / 'sweep.npz'
  sweep = ActivationPatching(linear.forward, linear.nodes('embed'))
  sweep(PARAMS, PAIRS, METRIC, save=save)
  with pytest.raises(PatchingError, match='another sweep'):
    ActivationPatching(linear.forward, linear.nodes('mlp_out'))(PARAMS, PAIRS, METRIC, save=save)
  kept = save.read_bytes()
  for name in ('embed', 'unembed'):
    with pytest.raises(PatchingError, match='other weights'):
      sweep({**PARAMS, name: np.roll(PARAMS[name], 1)}, PAIRS, METRIC, save=save)
  louder = ActivationPatching(lambda p, x: 2 * linear.forward(p, x), linear.nodes('embed'))
  with pytest.raises(PatchingError, match='unpatched metric'):
    louder(PARAMS, PAIRS, METRIC, save=save)
  save.write_bytes(kept[:100])
  with pytest.raises(PatchingError, match='not the file of a sweep'):
    sweep(PARAMS, PAIRS, METRIC, save=save)


def test_pairs_that_are_known_are_compared_although_others_of_their_block_are_not(tmp_path):
  ledger = effects.SweepLedger(tmp_path / 'sweep.npz', 'a question', PARAMS, (3, 4), 60)
  ledger.record_unpatched(np.array([0]), np.ones(1), np.ones(1))
  with pytest.raises(PatchingError, match='unpatched metric'):
    ledger.record_unpatched(np.array([0, 1]), np.array([2.0, 3.0]), np.ones(2))


def test_the_file_of_another_metric_is_refused_although_it_is_finished(tmp_path):
  save = tmp_path / 'sweep.npz'
  sweep = ActivationPatching(linear.forward, linear.nodes('embed'))
  read = lambda scale, token=2: custom('mine', lambda out, _: scale * out[:, -1, token])  # noqa: E731
  whole = sweep(PARAMS, PAIRS, read(1.0), save=save)
  np.testing.assert_array_equal(sweep(PARAMS, PAIRS, read(1.0), save=save).values, whole.values)
  same_unpatched = custom('mine', lambda out, _: out[:, -1, 2] + 0 * out.sum((1, 2)))
  for other in (read(2.0), read(1.0, 3), same_unpatched):
    with pytest.raises(PatchingError, match='another sweep'):
      sweep(PARAMS, PAIRS, other, save=save)
