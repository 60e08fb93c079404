"""Attention block by block is attention: equal to one softmax over all visible keys, for every kind of visibility."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechjax import harvest
from mechjax.errors import HarvestError
from mechjax.models import attention, blockwise, decoder, sharding
from tests.models import decoders

B, T, N, K, H = 2, 45, 4, 2, 8  # 45 positions fill neither the last block of 16 nor the last of 8


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
  """Blocks of a few positions, for texts of any length."""
  monkeypatch.setattr(blockwise, 'QUERIES', 8)
  monkeypatch.setattr(blockwise, 'KEYS', 16)
  monkeypatch.setattr(attention, 'LONG', 2)
  jax.clear_caches()  # the size of blocks is no part of a key
  yield
  jax.clear_caches()


def brute_force(q, k, v, segments, window, cap, sinks):
  """One query after the other, float64."""
  out = np.zeros(q.shape)
  for b, t, n in np.ndindex(*q.shape[:3]):
    same = [s for s in range(t + 1) if segments[b, s] == segments[b, t]]
    seen = same[-window:] if window else same
    scores = np.array([q[b, t, n] @ k[b, s, n // (N // K)] for s in seen]) * H**-0.5
    scores = cap * np.tanh(scores / cap) if cap else scores
    weights = np.exp(scores)
    total = weights.sum() + (np.exp(sinks[n]) if sinks is not None else 0)
    out[b, t, n] = sum(w * v[b, s, n // (N // K)] for w, s in zip(weights / total, seen))
  return out


SEGMENTS = {
  'one text': np.ones((B, T), int),
  'padding': np.array([[0] * 20 + [1] * 25, [1] * 30 + [0] * 15]),
  'packed': np.array([[1] * 20 + [2] * 25, [1] * 3 + [2] * 40 + [3] * 2]),
  'alternating': np.array([[1, 2] * 22 + [1], [1, 1, 0] * 15]),
}


@pytest.mark.parametrize(('has_sinks', 'cap'), [(False, None), (True, 1.5)])
@pytest.mark.parametrize('window', [None, 5])
@pytest.mark.parametrize('kind', SEGMENTS)
def test_a_head_mixes_what_a_softmax_over_all_visible_keys_mixes(kind, window, has_sinks, cap):
  random = np.random.default_rng(0)
  q, k, v = (random.standard_normal((B, T, n, H)) for n in (N, K, K))
  sinks = random.standard_normal(N) if has_sinks else None
  segments = SEGMENTS[kind]
  given = None if kind == 'one text' else jnp.asarray(segments)
  tokens = decoder.number(given, (B, T))
  arrays = [jnp.asarray(x, jnp.float32) for x in (3 * q, k, v)]
  sinks_N = None if sinks is None else jnp.asarray(sinks, jnp.float32)
  rule = blockwise.AttentionRule(H**-0.5, cap, window, sinks_N)
  expected = brute_force(3 * q, k, v, segments, window, cap, sinks)
  for attend in (blockwise.attend, attention._attend_at_once):
    z = jax.jit(lambda *xs, attend=attend: attend(*xs, tokens, tokens, rule))(*arrays)
    np.testing.assert_allclose(z, expected, rtol=2e-5, atol=2e-5)


# --- the decoder -------------------------------------------------------------------------------------------

TOKENS = jnp.asarray(np.random.default_rng(1).integers(0, decoders.V, (2, 37)), jnp.int32)
MASK = jnp.asarray(np.arange(37) >= np.array([[0], [9]]))
FAMILIES = ('qwen', 'gemma', 'neox')


def without_learned_positions(name):
  """The parameters and the description of a family, with a sink in each head."""
  config = dataclasses.replace(decoders.CONFIGS[name], attn_sinks=True)
  params = jax.tree.map(lambda x: x, decoders.params(name))
  params['layers']['attn'] = {
    **params['layers']['attn'],
    'sinks': jnp.linspace(-1, 1, config.n_layers * config.n_heads).reshape(config.n_layers, -1),
  }
  return params, config


@pytest.mark.parametrize('name', FAMILIES)
def test_a_pass_by_blocks_is_the_pass_with_all_scores(name):
  params, config = without_learned_positions(name)
  forward = functools.partial(decoder.forward, config=config)
  loss = lambda f: lambda p: (jax.nn.log_softmax(f(p)) ** 2)[MASK].mean()  # noqa: E731
  of_blocks = lambda p: forward(p, TOKENS, segments=MASK)  # noqa: E731
  # A read of the probabilities makes the pass compute all of them.
  at_once = lambda p: harvest.call_and_reap(of_blocks, sites='attn_probs.0')(p)[0]  # noqa: E731
  scores = 'f32[2,4,37,37]'
  assert scores not in str(jax.make_jaxpr(of_blocks)(params))
  assert scores in str(jax.make_jaxpr(at_once)(params))
  np.testing.assert_allclose(of_blocks(params)[MASK], at_once(params)[MASK], rtol=2e-5, atol=2e-5)
  grads, expected = (jax.jit(jax.grad(loss(f)))(params) for f in (of_blocks, at_once))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), grads, expected)
  tangents = jax.tree.map(jnp.ones_like, params)
  _, forwards = jax.jvp(jax.jit(loss(of_blocks)), (params,), (tangents,))
  products = jax.tree.map(lambda g: g.sum(), expected)
  np.testing.assert_allclose(forwards, sum(jax.tree.leaves(products)), rtol=1e-3)


def test_rows_mapped_one_by_one_are_the_batch():
  params, config = without_learned_positions('gemma')
  forward = lambda tokens, mask: decoder.forward(params, tokens, config, segments=mask)  # noqa: E731
  rows = jax.vmap(lambda t, m: forward(t[None], m[None])[0])(TOKENS, MASK)
  np.testing.assert_allclose(rows[MASK], forward(TOKENS, MASK)[MASK], rtol=2e-5, atol=2e-5)


def test_a_long_prompt_in_two_steps_with_a_cache_is_one_pass():
  params, config = without_learned_positions('gemma')
  whole = decoder.forward(params, TOKENS, config, segments=MASK)
  cache = decoder.new_cache(config, 2, 50)
  first, cache = decoder.step(params, TOKENS[:, :20], cache, config, segments=MASK[:, :20])
  second, _ = decoder.step(params, TOKENS[:, 20:], cache, config, segments=MASK[:, 20:])
  both = jnp.concatenate([first, second], axis=1)
  np.testing.assert_allclose(both[MASK], whole[MASK], rtol=2e-5, atol=2e-5)


def test_half_precision_differs_by_its_own_rounding():
  params, config = without_learned_positions('qwen')
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
  wide = jax.tree.map(lambda x: x.astype(jnp.float32), half)
  logits, expected = (decoder.forward(p, TOKENS, config) for p in (half, wide))
  assert logits.dtype == jnp.float32
  # bfloat16 keeps 8 bits; the activations of these layers are a few units in size.
  np.testing.assert_allclose(logits, expected, atol=0.05 * float(jnp.abs(expected).max()))


# --- wanted sites ------------------------------------------------------------------------------------------


def forward(params, tokens):
  return decoder.forward(params, tokens, decoders.CONFIGS['qwen'])


PARAMS = decoders.params('qwen')


def test_scores_and_probabilities_exist_wherever_they_are_requested():
  listed = {info.site.name for info in harvest.sites_of(forward, PARAMS, TOKENS)}
  assert {'attn_scores', 'attn_probs'} <= listed
  jitted = jax.jit(forward)
  plain = jitted(PARAMS, TOKENS)  # traced without scores before any harvest
  without = harvest.reap(jitted, sites='z.1')(PARAMS, TOKENS)
  layers = jnp.asarray([1])
  for pattern in ('attn_probs.1', '*', 'blocks.1.attn.hook_pattern', {'attn_probs': layers}):
    logits, acts = harvest.call_and_reap(jitted, sites=pattern)(PARAMS, TOKENS)
    np.testing.assert_allclose(acts.stack('attn_probs')[-1].sum(-1), 1, rtol=1e-5)
    np.testing.assert_allclose(logits, plain, rtol=2e-5, atol=2e-5)
  both = harvest.reap(jitted, sites=['z.1', 'attn_scores.1'])(PARAMS, TOKENS)
  np.testing.assert_allclose(both['z.1'], without['z.1'], rtol=2e-5, atol=2e-5)


def test_a_plant_at_the_probabilities_changes_the_logits_inside_of_a_read_of_others():
  uniform = lambda p: jnp.ones_like(p) / p.shape[-1]  # noqa: E731
  planted = lambda tokens: harvest.plant(forward)({'attn_probs.0': uniform}, PARAMS, tokens)  # noqa: E731
  outside = harvest.call_and_reap(planted, sites='z.0')(TOKENS)
  inside, acts = harvest.harvest(forward, sites='z.0')({'attn_probs.0': uniform}, PARAMS, TOKENS)
  np.testing.assert_allclose(outside[0], inside, rtol=1e-5, atol=1e-5)
  v = harvest.reap(forward, sites='v.0')(PARAMS, TOKENS)['v.0']
  np.testing.assert_allclose(acts['z.0'][:, 3, 0], v[:, :, 0].mean(1), rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(outside[1]['z.0'], acts['z.0'], rtol=1e-5, atol=1e-5)


def test_an_outer_harvest_of_the_probabilities_sees_those_of_an_inner_one_without_them():
  inner = lambda tokens: harvest.call_and_reap(forward, sites='resid_post.0')(PARAMS, tokens)  # noqa: E731
  inner(TOKENS)  # staged without them first
  acts = harvest.reap(inner, sites='attn_probs.1')(TOKENS)
  expected = harvest.reap(forward, sites='attn_probs.1')(PARAMS, TOKENS)
  np.testing.assert_allclose(acts['attn_probs.1'], expected['attn_probs.1'], rtol=1e-5, atol=1e-6)


def test_only_names_on_request_can_be_asked_for():
  with pytest.raises(HarvestError, match=r"\['mlp_out'\] cannot exist on request"):
    harvest.is_wanted('attn_probs', 'mlp_out')
  assert not harvest.is_wanted('attn_probs')


def test_a_loop_over_all_sites_meets_the_probabilities_and_a_loop_over_others_is_the_same_pass():
  from mechjax import forward as passes

  run = passes.iterate(forward)(PARAMS, TOKENS)
  assert (1, 'attn_probs') in [(layer, name) for layer, name, _ in run]
  others = passes.iterate(forward, sites='z')(PARAMS, TOKENS)
  assert [(layer, name) for layer, name, _ in others] == [(0, 'z'), (1, 'z')]
  np.testing.assert_allclose(others.retval, run.retval, rtol=2e-5, atol=2e-5)


def test_a_gradient_at_the_probabilities_is_that_of_planting():
  loss = lambda tokens: forward(PARAMS, tokens)[:, -1, 3].sum()  # noqa: E731
  _, acts, grads = harvest.value_and_grad_at(loss, sites='attn_probs.0')(TOKENS)
  probs = acts['attn_probs.0']
  direction = jnp.asarray(np.random.default_rng(2).standard_normal(probs.shape), probs.dtype)
  with_value = lambda step: harvest.plant(loss)({'attn_probs.0': probs + step * direction}, TOKENS)  # noqa: E731
  slope = (with_value(1e-3) - with_value(-1e-3)) / 2e-3
  np.testing.assert_allclose((grads['attn_probs.0'] * direction).sum(), slope, rtol=2e-2)


def test_rows_and_heads_on_devices_of_their_own_are_the_pass_on_one():
  config, params = decoders.CONFIGS['gemma'], decoders.params('gemma')
  tokens = jnp.concatenate([TOKENS, TOKENS[::-1]])
  expected = decoder.forward(params, tokens, config)
  mesh = jax.make_mesh((4, 2), ('data', 'tensor'), axis_types=(jax.sharding.AxisType.Auto,) * 2)
  shapes = sharding.shard_shapes(config, mesh)
  sharded = jax.tree.map(lambda x, s: jax.device_put(x, s.sharding), params, shapes)
  rows = sharding.shard_batch(tokens, mesh)
  forward = functools.partial(decoder.forward, config=config)
  logits = jax.jit(forward)(sharded, rows)
  np.testing.assert_allclose(logits, expected, rtol=2e-5, atol=2e-5)
  P = jax.sharding.PartitionSpec
  mapped = jax.shard_map(forward, mesh=mesh, in_specs=(P(), P('data')), out_specs=P('data'))
  np.testing.assert_allclose(jax.jit(mapped)(params, tokens), expected, rtol=2e-5, atol=2e-5)
