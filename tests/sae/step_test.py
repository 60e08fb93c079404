"""The training step against a loop that trains each dictionary alone, on one device and on eight."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend.core import jaxprs_in_params

from mechjax.sae import (
  AuxK,
  BatchTopK,
  Gated,
  JumpReLU,
  ReLU,
  Resampling,
  SAEError,
  TopK,
  firings,
)
from mechjax.sae.dead_latents import counters
from mechjax.sae.ops import unit_rows
from mechjax.sae.ops.matmul import product
from mechjax.sae.training.ensembles import Ensemble
from mechjax.sae.training.optimisation import Optimisation
from mechjax.sae.training.state import NEVER
from mechjax.sae.training.step import Trainer

B, D, M, STEPS = 32, 8, 16, 4
SHAPE = {'d_in': D, 'width': M}
SETTINGS = Optimisation(
  steps=20,
  learning_rate=1e-2,
  warm_up_steps=3,
  sparsity_warm_up_steps=2,
  decay_steps=18,
  eps=1e-2,  # or the first steps of Adam are the signs of gradients that cancel to rounding errors
)
ENSEMBLES = {
  'relu': Ensemble(sae=ReLU(**SHAPE, sparsity=1.0), reads='x', seeds=(3, 4), hparams={'sparsity': (0.1, 0.3)}),
  'gated': Ensemble(sae=Gated(**SHAPE, sparsity=0.1, d_out=6, skip=True, prefixes=(4, M)), reads='x', writes='y'),
  'jumprelu': Ensemble(
    sae=JumpReLU(**SHAPE, sparsity=0.1, bandwidth=0.1), reads='x', seeds=(3, 3), hparams={'sparsity': (0, 1)}
  ),
  'batch_topk': Ensemble(sae=BatchTopK(**SHAPE, k=3), reads='x', seeds=(1, 2), hparams={'k': (2, 3)}),
  'topk': Ensemble(
    sae=TopK(**SHAPE, k=3, aux_loss=AuxK(alpha=1.0, k=2, after_tokens=2 * B)),
    reads='x', seeds=(1, 1), hparams={'k': (1, 3)},
  ),
}  # fmt: skip
MESHES = {(2, 4): [*ENSEMBLES], (4, 2): ['relu'], (8, 1): ['batch_topk']}


def batches(n=STEPS, seed=0):
  """Inputs away from the origin, so that some latents never fire, and a target."""
  r = np.random.default_rng(seed)
  for _ in range(n):
    x = (1 + r.standard_normal((B, D)).astype(np.float32)) / np.sqrt(D)
    yield {'x': jnp.asarray(x), 'y': jnp.asarray(np.tanh(x[:, :6]))}


def trained(trainer, state=None, data=None):
  """The state after some batches, and the figures of every step; on the host."""
  state, seen = trainer.init() if state is None else state, []
  for batch in data or batches():
    state, metrics = trainer.step(state, batch)
    seen.append(metrics.ensembles)
  return state, on_host(seen)


@functools.cache
def together():
  """All ensembles trained on one device: the state before and after, and the metrics."""
  trainer = Trainer(ENSEMBLES, SETTINGS)
  start = on_host(trainer.init())
  state, seen = trained(trainer)
  return start, on_host(state), seen


def on_host(tree):
  return jax.tree.map(np.array, tree)


def equal(one, other):
  jax.tree.map(np.testing.assert_array_equal, on_host(one), on_host(other))


def close(one, other, **tolerance):
  tolerance = {'rtol': 1e-5, 'atol': 1e-6} | tolerance
  jax.tree.map(functools.partial(np.testing.assert_allclose, **tolerance), one, other)


def alone(ensemble, data):
  """Every member by itself: a plain loop with optax's own Adam."""
  sae = ensemble.sae
  rate = lambda count: SETTINGS.learning_rate * SETTINGS.rate(count)  # noqa: E731
  optimiser = optax.chain(unit_rows.orthogonal_to_decoder(), optax.adam(rate, b1=0.0, eps=1e-2))

  @jax.jit
  def update(params, state, tokens_since_fired, step, hparams, x, y):
    if 'sparsity' in hparams:
      warm = jnp.minimum(step / SETTINGS.sparsity_warm_up_steps, 1)
      hparams = {'sparsity': hparams['sparsity'].astype(jnp.float32) * warm}
    gradient = jax.value_and_grad(sae.loss, has_aux=True)
    (loss, output), grads = gradient(
      params, x, y, hparams, tokens_since_fired >= ensemble.after_tokens
    )
    with jax.numpy_dtype_promotion('standard'):
      updates, state = optimiser.update(grads, state, params)
    params = unit_rows.normalise(optax.apply_updates(params, updates))
    params = sae.observe(params, output.latents)
    return (
      params,
      state,
      counters.update_counters(tokens_since_fired, firings(output.latents), B),
      loss,
    )

  for n, seed in enumerate(ensemble.seeds):
    params, tokens_since_fired, losses = (
      sae.init(jax.random.key(seed)),
      counters.init_counters(M),
      [],
    )
    state, hparams = optimiser.init(params), ensemble.member(n).hparams()
    for step, batch in enumerate(data):
      y = batch['y'] if ensemble.writes else None
      arrays = jnp.int32(step), hparams, batch['x'], y
      params, state, tokens_since_fired, loss = update(params, state, tokens_since_fired, *arrays)
      losses.append(loss)
    yield params, tokens_since_fired, losses


@pytest.mark.parametrize('name', ENSEMBLES)
def test_every_member_is_what_it_would_be_alone(name):
  _, state, seen = together()
  for n, (params, tokens_since_fired, losses) in enumerate(alone(ENSEMBLES[name], [*batches()])):
    close(jax.tree.map(lambda a: a[n], state.ensembles[name].params), params)
    np.testing.assert_array_equal(state.ensembles[name].tokens_since_fired[n], tokens_since_fired)
    np.testing.assert_allclose([s[name]['loss'][n] for s in seen], losses, rtol=1e-5)
  assert state.step == STEPS
  assert state.ok
  assert state.bad_step == -1


def test_the_loss_for_dead_latents_begins_with_the_first_of_them():
  *_, seen = together()
  some_dead = np.array([s['topk']['dead'] for s in seen])
  aux = np.array([s['topk']['aux'] for s in seen])
  np.testing.assert_array_equal(
    aux[1:] > 0, some_dead[:-1] > 0
  )  # counted after a step, for the next
  assert 0 < some_dead[-1].max() < 1


@pytest.mark.parametrize('shape', MESHES, ids=str)
def test_every_mesh_gives_what_one_device_gives(shape):
  start, expected, metrics = together()
  names = MESHES[shape]
  trainer = Trainer({name: ENSEMBLES[name] for name in names}, SETTINGS, mesh_of(*shape))
  start = dataclasses.replace(start, ensembles={name: start.ensembles[name] for name in names})
  state, seen = trained(trainer, jax.device_put(start, trainer.shardings))
  for name in names:
    close([s[name] for s in seen], [s[name] for s in metrics])
    close(state.ensembles[name], expected.ensembles[name])
  assert jax.tree.map(lambda a: a.sharding, state) == trainer.shardings
  W_dec = state.ensembles[names[0]].params['W_dec']
  assert W_dec.addressable_shards[0].data.shape == (2, M // shape[1], D)


def test_a_training_begins_alike_on_every_mesh():
  one, eight = (Trainer({'a': ENSEMBLES['relu']}, SETTINGS, mesh) for mesh in (None, mesh_of(2, 4)))
  state = eight.init({'x': np.arange(D, dtype=np.float32)})
  close(state, one.init({'x': np.arange(D, dtype=np.float32)}))
  np.testing.assert_array_equal(state.ensembles['a'].params['b_dec'][1], np.arange(D))
  assert jax.tree.map(lambda a: a.sharding, state) == eight.shardings


def mesh_of(n_data, n_model):
  kinds = (jax.sharding.AxisType.Auto,) * 2
  return jax.make_mesh((n_data, n_model), ('data', 'model'), kinds)


# --- one step after another -------------------------------------------------------------------------------


RESAMPLED = Ensemble(
  sae=TopK(**SHAPE, k=1, sparse=False),
  reads='x',
  seeds=(1, 2, 2),
  resampling=Resampling(after_tokens=2 * B, rewarm_steps=4),
  resample_every=3,
)


@functools.cache
def small():
  """A trainer for tests of what all trainings have."""
  other = Ensemble(sae=ReLU(**SHAPE, d_out=6, sparsity=0.0), reads='x', writes='y')
  return Trainer({'a': RESAMPLED, 'b': other}, SETTINGS)


def test_a_state_that_was_saved_continues_to_the_same_numbers():
  through, _ = trained(small(), data=batches(8))
  half, _ = trained(small(), data=[*batches(8)][:5])
  restored = jax.tree.map(jax.device_put, on_host(half), small().shardings)
  resumed, _ = trained(small(), restored, [*batches(8)][5:])
  equal(through, resumed)


def test_the_state_is_donated_and_nothing_crosses_to_the_host():
  state, data = small().init(), [*batches(3)]
  small().step(small().init(), data[0])
  with jax.transfer_guard('disallow'):
    for batch in data:
      before = state
      state, _ = small().step(state, batch)
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))


def test_a_number_that_is_none_changes_nothing_then_and_later():
  good = [*batches(5)]
  bad = good[1] | {'x': good[1]['x'].at[3, 2].set(jnp.nan)}
  before, _ = trained(small(), data=good[:2])
  before = on_host(before)
  state, seen = trained(small(), data=[*good[:2], bad])
  assert np.isnan(seen[-1]['a']['loss']).all()
  for n, batch in enumerate([None, *good[2:]]):
    if n:
      state, metrics = small().step(state, batch)
      assert np.isfinite(metrics.ensembles['a']['loss']).all()
      assert not metrics.ok
    assert not state.ok
    assert (state.bad_step, state.step) == (2, 2)
    equal(state.ensembles, before.ensembles)


def test_one_bad_ensemble_holds_all_of_them():
  trainer, (batch,) = small(), batches(1)
  start = on_host(trainer.init())
  state, metrics = trainer.step(trainer.init(), batch | {'y': batch['y'] * jnp.inf})
  assert np.isfinite(metrics.ensembles['a']['loss']).all()
  assert (state.ok, state.bad_step) == (False, 0)
  equal(state.ensembles, start.ensembles)


def test_figures_are_what_they_say():
  trainer, batch = small(), next(batches(1))
  start = on_host(trainer.init())
  x, sae = np.asarray(batch['x']), RESAMPLED.sae
  _, metrics = trainer.step(trainer.init(), batch)
  params = jax.tree.map(lambda a: jnp.asarray(a[1]), start.ensembles['a'].params)
  (loss, output), grads = jax.value_and_grad(sae.loss, has_aux=True)(params, batch['x'])
  f = sae.encode(params, batch['x'])
  error = np.sum(np.square(x - sae.decode(params, f)))
  length = np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(grads)))
  expected = {
    'loss': loss,
    **output.parts,
    'l0': np.mean(np.sum(f > 0, 1)),
    'fvu': error / np.sum(np.square(x - x.mean(0))),
    'dead': 0,
    'grad_norm': length,
  }
  close({name: values[1] for name, values in metrics.ensembles['a'].items()}, expected)
  np.testing.assert_allclose(
    metrics.rate, SETTINGS.learning_rate * SETTINGS.warm_up_from, rtol=1e-6
  )


# --- resampling -------------------------------------------------------------------------------------------


def test_dead_latents_are_resampled_when_it_is_time_and_the_rate_falls():
  data = [*batches(4)]
  before = on_host(trained(small(), data=data[:2])[0]).ensembles['a']
  state, _ = trained(small(), data=data[:3])
  after = on_host(state).ensembles['a']
  was_dead = before.tokens_since_fired >= B  # two batches without firing, and then a third
  still = np.array(
    [(np.asarray(RESAMPLED.sae.encode(p, data[2]['x'])) == 0).all(0) for p in members(before)]
  )
  dead_now = was_dead & still
  assert dead_now.any(1).any()
  np.testing.assert_array_equal(after.tokens_since_fired[dead_now], 0)
  np.testing.assert_array_equal(after.resampled_at, np.where(dead_now.any(1), 3, NEVER))
  nu = after.optimiser[1].nu
  np.testing.assert_array_equal((nu['W_dec'] == 0).all(-1)[dead_now], True)
  np.testing.assert_array_equal((nu['b_enc'] == 0)[dead_now], True)
  for params, which in zip(members(after), dead_now):
    lengths = np.linalg.norm(params['W_enc'], axis=0)
    np.testing.assert_allclose(lengths[which], 0.2 * lengths[~which].mean(), rtol=1e-4)
    rows, inputs = params['W_dec'][which], data[2]['x'] - params['b_dec']
    cosines = rows @ np.asarray(unit_rows.unit_rows(inputs)).T
    np.testing.assert_allclose(cosines.max(1, initial=1 if not which.any() else -1), 1, atol=1e-5)


def members(ensemble):
  """The parameters of each member."""
  return [
    {n: v[i] for n, v in ensemble.params.items()} for i in range(len(ensemble.tokens_since_fired))
  ]


def test_equal_seeds_draw_equal_inputs_and_others_do_not():
  after = on_host(trained(small(), data=batches(3))[0]).ensembles['a']
  one, two, three = members(after)
  equal(two, three)
  assert np.abs(one['W_dec'] - two['W_dec']).max() > 0.1


def test_a_member_that_was_resampled_learns_slowly_for_a_while():
  data = [*batches(4)]
  state, _ = trained(small(), data=data[:3])
  before = on_host(state)
  after = on_host(small().step(state, data[3])[0])
  bias = lambda s: s.ensembles['a'].params['b_dec']  # noqa: E731
  resampled = before.ensembles['a'].resampled_at == 3
  assert resampled.any()
  rate = SETTINGS.learning_rate * SETTINGS.rate(3) * np.where(resampled, 0.1, 1)
  # Adam's moments determine the gradient, and this determines the step at a rate of 1.
  old, new = (s.ensembles['a'].optimiser[1].nu['b_dec'].astype(float) for s in (before, after))
  gradient = np.sqrt((new - SETTINGS.b2 * old) / (1 - SETTINGS.b2))
  step = gradient / (np.sqrt(new / (1 - SETTINGS.b2**4)) + SETTINGS.eps)
  moved = np.abs(bias(after) - bias(before))
  np.testing.assert_allclose(moved, rate[:, None] * step, rtol=2e-2, atol=1e-7)


# --- the compiled program ---------------------------------------------------------------------------------


def test_a_training_compiles_one_step():
  trained(small())
  assert small()._jitted_step._cache_size() == 1


def test_losses_for_dead_latents_are_computed_for_members_with_dead_latents_only():
  ran = []

  @dataclasses.dataclass(frozen=True, kw_only=True)
  class Counted(AuxK):
    def loss(self, dead_M, *args):
      jax.debug.callback(lambda which: ran.append(which.sum()), dead_M)
      return super().loss(dead_M, *args)

  sae = dataclasses.replace(
    ENSEMBLES['topk'].sae, aux_loss=Counted(alpha=1.0, k=2, after_tokens=2 * B)
  )
  _, seen = trained(Trainer({'a': dataclasses.replace(ENSEMBLES['topk'], sae=sae)}, SETTINGS))
  jax.effects_barrier()
  fractions = np.array([s['a']['dead'] for s in seen[:-1]]).reshape(-1)  # they matter a step later
  assert (fractions == 0).any()
  np.testing.assert_allclose(sorted(ran), sorted(M * fractions[fractions > 0]))


# --- bfloat16 ---------------------------------------------------------------------------------------------


def products(jaxpr):
  """The operand and result types of all matrix products of a program."""
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == 'dot_general':
      yield tuple(str(v.aval.dtype) for v in (*eqn.invars, *eqn.outvars))
    for inner in jaxprs_in_params(eqn.params):
      yield from products(inner)


@pytest.mark.parametrize('name', ['gated', 'jumprelu', 'topk'])
def test_all_products_can_have_bfloat16_operands_and_float32_sums(name):
  sae = ENSEMBLES[name].sae
  rounded = dataclasses.replace(sae, matmuls='bfloat16')
  params, batch = sae.init(jax.random.key(0)), next(batches(1))
  x, y = batch['x'], batch['y'] if sae.d_out else None
  which = jnp.arange(M) % 4 == 0

  def gradient(sae):
    return jax.value_and_grad(lambda p: sae.loss(p, x, y, dead=which)[0])

  kinds = {*products(jax.make_jaxpr(gradient(rounded))(params).jaxpr)}
  assert kinds == {('bfloat16', 'bfloat16', 'float32')}
  (loss, grads), (expected, exact) = (jax.jit(gradient(s))(params) for s in (rounded, sae))
  np.testing.assert_allclose(loss, expected, rtol=0.02)
  for p in grads:
    assert grads[p].dtype == np.dtype('float32')
    if p != 'log_threshold':  # of which latents lie in the kernel rounding decides
      scale = np.abs(exact[p]).max() + 1e-6
      np.testing.assert_allclose(grads[p] / scale, exact[p] / scale, atol=0.1, err_msg=p)
    assert np.any(grads[p] != exact[p]) or not np.any(exact[p])


def test_products_are_exact_where_bfloat16_is():
  """Small integers: any product of float32 that was left, or a sum in bfloat16, would show."""
  r = np.random.default_rng(0)
  a, b, g = (r.integers(-9, 9, s).astype(np.float32) for s in ((2, 50, 40), (40, 30), (2, 50, 30)))
  c, back = jax.vjp(lambda a, b: product(a, b, 'bfloat16'), a, b)
  da, db = back(jnp.asarray(g) + 1e-3)  # a cotangent that is rounded
  np.testing.assert_array_equal(c, a @ b)
  g = np.asarray(jnp.asarray(g + 1e-3).astype(jnp.bfloat16).astype(jnp.float32))
  np.testing.assert_allclose(da, g @ b.T, rtol=1e-6, atol=1e-4)
  np.testing.assert_allclose(db, np.einsum('nbi,nbj->ij', a, g), rtol=1e-6, atol=1e-4)


# --- errors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'reads': ''}, "Ensemble.reads='' should be the name of a site"),
    ({'writes': 'y'}, "writes='y' should be None without d_out"),
    ({'seeds': 0}, 'seeds=0 should be one or more whole numbers'),
    ({'sae': 'topk'}, "sae='topk' should be a dictionary"),
    ({'seeds': ()}, r'seeds=\(\) should be one or more'),
    ({'seeds': (1, 2, -1)}, r'seeds=\(1, 2, -1\) should be .* from 0'),
    ({'hparams': {'k': (1, 2)}}, r'k=\(1, 2\) for an ensemble with 3 seeds'),
    ({'hparams': {'k': (1, 1, 2)}}, 'k=.* selects k=1'),
    ({'hparams': {'width': (1, 1, 2)}}, r"\['width'\] of TopK are not traced hyperparameters"),
    ({'dead_after_tokens': 0}, 'dead_after_tokens=0 should be from 1'),
    ({'resample_every': 0}, 'resample_every=0 should be positive'),
    ({'resampling': None}, 'resample_every=3 should be 0'),
    (
      {'sae': dataclasses.replace(RESAMPLED.sae, aux_loss=AuxK(after_tokens=5))},
      'after 5 tokens for AuxK and after 64 for resampling',
    ),
  ],
)
def test_ensembles_that_do_not_fit_together_are_refused(change, message):
  with pytest.raises(SAEError, match=message):
    dataclasses.replace(RESAMPLED, **change)


def test_ensembles_without_names_are_refused():
  for given in ([RESAMPLED], RESAMPLED, {'x': RESAMPLED.sae}):
    with pytest.raises(SAEError, match=r"should be ensembles by name(.|\n)*Trainer\(\{'topk'"):
      Trainer(given, SETTINGS)


def test_a_transcoder_without_a_target_is_refused():
  with pytest.raises(SAEError, match='writes=None should be the site of the target'):
    dataclasses.replace(ENSEMBLES['gated'], writes=None)


def test_an_ensemble_can_be_hashed_and_describes_its_members():
  ensemble = ENSEMBLES['relu']
  assert hash(ensemble) == hash(dataclasses.replace(ensemble, hparams={'sparsity': [0.1, 0.3]}))
  assert [ensemble.member(n).sparsity for n in range(2)] == [0.1, 0.3]
  assert ENSEMBLES['topk'].after_tokens == RESAMPLED.after_tokens == 2 * B
  assert ensemble.after_tokens == ensemble.dead_after_tokens


@pytest.mark.parametrize(
  ('shape', 'batch', 'message'),
  [
    ((1, 3), {}, r"width=16 of ReLU is not divisible by 3 devices\n.*'model': 3.*\n.*width of 18"),
    ((5, 1), {}, 'a batch of 32 tokens is not divisible by 5 devices'),
    ((1, 1), {'x': None}, r"a batch without \['x'\]"),
    ((1, 1), {'x': np.zeros((B, 7), np.float32)}, r'shape \(32, 7\) .* d_in=8'),
  ],
)
def test_meshes_and_batches_that_do_not_fit_are_refused(shape, batch, message):
  given = {n: v for n, v in (next(batches(1)) | batch).items() if v is not None}

  def attempt():
    trainer = Trainer({'a': ENSEMBLES['relu']}, SETTINGS, mesh_of(*shape))
    trainer.step(jax.eval_shape(lambda: trainer._begin({})), given)

  with pytest.raises(SAEError, match=message):
    attempt()


def test_sites_of_different_lengths_are_refused():
  trainer, batch = Trainer({'a': ENSEMBLES['gated']}, SETTINGS), next(batches(1))
  with pytest.raises(SAEError, match=r'different numbers of tokens, \[8, 32\]'):
    trainer.step(None, batch | {'y': batch['y'][:8]})


def test_other_axes_of_a_mesh_are_refused():
  for names, kind in ((('data', 'tensor'), 'Auto'), (('data', 'model'), 'Explicit')):
    mesh = jax.make_mesh((2, 4), names, (getattr(jax.sharding.AxisType, kind),) * 2)
    with pytest.raises(SAEError, match=r'a mesh with axes .*\n.*make_mesh'):
      Trainer({'a': ENSEMBLES['relu']}, SETTINGS, mesh)


def test_a_centre_of_another_width_is_refused():
  with pytest.raises(SAEError, match=r'a centre of shape \(3,\) for a reconstruction of width 8'):
    small().init({'x': np.zeros(3, np.float32)})
