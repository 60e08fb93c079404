"""The decoder: every site follows from its neighbours, and all ways to run it give equal results."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mechjax
from mechjax import errors, harvest
from mechjax.models import decoder, families
from tests.models import decoders
from tests.models.decoders import CONFIGS, TOKENS, T

FAMILIES = pytest.mark.parametrize('name', CONFIGS)


def close(a, b, atol=2e-5):
  np.testing.assert_allclose(
    np.asarray(a, np.float64), np.asarray(b, np.float64), rtol=0, atol=atol
  )


def all_close(a, b, atol=2e-5):
  jax.tree.map(lambda x, y: close(x, y, atol), a, b)


@functools.cache
def reaped(name, **options):
  f = functools.partial(decoder.forward, config=CONFIGS[name], **options)
  return harvest.call_and_reap(f, sites='*')(decoders.params(name), TOKENS)


@functools.partial(jax.jit, static_argnames=('name', 'unroll', 'checkpoint'))
@jax.grad
def gradient(params, name, **options):
  log_probs = jax.nn.log_softmax(decoders.logits(params, TOKENS, name, **options))
  return -jnp.take_along_axis(log_probs[:, :-1], TOKENS[:, 1:, None], -1).mean()


# --- values -----------------------------------------------------------------------------------------------


@FAMILIES
def test_every_site_follows_from_the_sites_before_it(name):
  _, acts = reaped(name)
  decoders.check(CONFIGS[name], decoders.params(name), acts, TOKENS)


@FAMILIES
def test_a_scan_and_its_unrolled_twin_have_the_same_sites_and_values(name):
  scanned, unrolled = reaped(name), reaped(name, unroll=True)
  assert set(scanned[1]) == set(unrolled[1])
  close(scanned[0], unrolled[0])
  for site in scanned[1]:
    close(scanned[1][site], unrolled[1][site])


@pytest.mark.parametrize('name', ['gpt2', 'neox', 'gemma'])
def test_gradients_are_the_same_scanned_unrolled_and_checkpointed(name):
  params = decoders.params(name)
  scanned = gradient(params, name)
  assert all(np.abs(layer).max() > 1e-6 for layer in np.asarray(scanned['layers']['attn']['q']))
  all_close(gradient(params, name, unroll=True), scanned)
  all_close(gradient(params, name, checkpoint=True), scanned)


@FAMILIES
def test_no_token_sees_its_future_or_beyond_its_windows(name):
  c, params = CONFIGS[name], decoders.params(name)
  wide = jnp.asarray(np.random.default_rng(2).integers(0, decoders.V, (1, 16)), jnp.int32)
  before = decoders.logits(params, wide, name)
  for t in (0, 5):
    changed = decoders.logits(params, wide.at[:, t].add(1) % decoders.V, name)
    moved = np.abs(np.asarray(changed - before)).max((0, 2)) > 1e-6
    assert not moved[:t].any()
    assert moved[t]
    reach = c.n_layers * (c.window - 1) if c.local and all(c.local) else 16
    assert not moved[t + reach + 1 :].any()
    assert moved[min(t + reach, 15)]


# --- padding, packing, positions --------------------------------------------------------------------------


@FAMILIES
@pytest.mark.parametrize('left', [0, 3])
def test_padding_changes_nothing_for_the_tokens_beside_it(name, left):
  alone = decoders.logits(decoders.params(name), TOKENS[:1], name)
  row = jnp.pad(TOKENS[:1], ((0, 0), (left, 4 - left)), constant_values=7)
  mask = (jnp.arange(T + 4) >= left) & (jnp.arange(T + 4) < left + T)
  padded = decoders.logits(decoders.params(name), row, name, segments=mask[None])
  close(padded[:, left : left + T], alone)


@FAMILIES
def test_texts_packed_into_one_row_are_as_if_alone(name):
  alone = decoders.logits(decoders.params(name), TOKENS, name)
  segments = jnp.repeat(jnp.array([[1, 2]]), T, axis=1)
  packed = decoders.logits(decoders.params(name), TOKENS.reshape(1, -1), name, segments=segments)
  close(packed.reshape(alone.shape), alone)


def test_positions_never_let_a_token_see_its_future():
  params, same = decoders.params('mistral'), jnp.zeros((2, T), jnp.int32)
  before = decoders.logits(params, TOKENS, 'mistral', positions=same)
  after = decoders.logits(params, TOKENS.at[:, -1].set(0), 'mistral', positions=same)
  close(before[:, :-1], after[:, :-1])


# --- the cache --------------------------------------------------------------------------------------------


@FAMILIES
def test_steps_with_a_cache_give_the_logits_of_one_pass_for_prompts_of_two_lengths(name):
  c, params = CONFIGS[name], decoders.params(name)
  step = jax.jit(functools.partial(decoder.step, config=c))
  mask = jnp.arange(4) >= jnp.array([[0], [2]])  # the second prompt is two tokens shorter
  prompt = jnp.where(mask, TOKENS[:, :4], 0)
  logits, cache = step(params, prompt, decoder.new_cache(c, 2, 12), segments=mask)
  found = [logits]
  for t in range(4, T):
    logits, cache = step(params, TOKENS[:, t : t + 1], cache)
    found.append(logits)
  first, second = jnp.concatenate(found, 1)
  close(first, decoders.logits(params, TOKENS, name)[0])
  close(second[2:], decoders.logits(params, TOKENS[:, 2:], name)[1])


@pytest.mark.parametrize('unroll', [False, True])
def test_a_cache_takes_any_number_of_tokens_at_a_time(unroll):
  c, params = CONFIGS['gemma'], decoders.params('gemma')
  step = jax.jit(functools.partial(decoder.step, config=c, unroll=unroll))
  cache, found = decoder.new_cache(c, 2, 12), []
  for at in (slice(0, 5), slice(5, 6), slice(6, 9)):
    logits, cache = step(params, TOKENS[:, at], cache)
    found.append(logits)
  close(jnp.concatenate(found, 1), decoders.logits(params, TOKENS, 'gemma'))


def test_an_intervention_on_keys_is_not_written_into_the_cache():
  c, params = CONFIGS['qwen'], decoders.params('qwen')
  edit = {'k.1': lambda k: 2 * k, 'resid_post.0': lambda x: x + 1}
  uncached = harvest.plant(lambda t: decoder.forward(params, t, c))(edit, TOKENS)
  step = harvest.plant(lambda t, cache: decoder.step(params, t, cache, c))
  cache, found = decoder.new_cache(c, 2, T), []
  for t in range(T):
    logits, cache = step(edit, TOKENS[:, t : t + 1], cache)
    found.append(logits)
  close(jnp.concatenate(found, 1), uncached)


def test_a_full_cache_is_refused():
  c, params = CONFIGS['qwen'], decoders.params('qwen')
  with pytest.raises(errors.MechjaxError, match='9 tokens do not fit after 0 in a cache of 8'):
    decoder.step(params, TOKENS, decoder.new_cache(c, 2, 8), c)


# --- stretches of layers ----------------------------------------------------------------------------------


@FAMILIES
def test_stretches_of_layers_compose_to_the_forward_pass(name):
  c, params = CONFIGS[name], decoders.params(name)

  @jax.jit
  def in_two(params, tokens):
    x = decoder.blocks(params, decoder.embed(params, tokens, c), c, stop=1)
    return decoder.unembed(params, decoder.blocks(params, x, c, start=1), c)

  close(in_two(params, TOKENS), decoders.logits(params, TOKENS, name))


def test_a_stretch_that_stops_early_has_the_sites_up_to_there():
  c, params = CONFIGS['gemma'], decoders.params('gemma')
  early = functools.partial(decoder.blocks, params, config=c, stop=1)
  _, acts = reaped('gemma')
  found = harvest.reap(early, sites='*')(acts['embed'])
  assert {s for s in acts if s.endswith('.0')} == set(found)
  close(found['mlp_post.0'], acts['mlp_post.0'])


def test_a_scan_that_starts_late_is_planted_by_number_and_refuses_to_be_read():
  c, params = CONFIGS['gemma'], decoders.params('gemma')
  _, acts = reaped('gemma')
  late = functools.partial(decoder.blocks, params, config=c, start=1)
  edit = {'mlp_post.1': lambda x: 2 * x}
  whole = harvest.harvest(functools.partial(decoder.blocks, params, config=c), sites='resid_post.1')
  _, expected = whole(edit, acts['embed'])
  close(harvest.plant(late)(edit, acts['resid_pre.1']), expected['resid_post.1'])
  listed = {info.site.layer for info in harvest.sites_of(late, acts['resid_pre.1'])}
  assert listed == {1}
  number = lambda x, start: decoder.forward_from(params, TOKENS, x, start, c)  # noqa: E731
  begun = functools.partial(number, start=1)
  for f in (late, begun):
    for site in ('mlp_post.0', 'mlp_post.{0,1}'):
      with pytest.raises(errors.SiteError, match='no site matches') as error:
        harvest.plant(f)({site: lambda x: 0 * x}, acts['resid_pre.1'])
      assert 'begins at layer 1' in error.value.cause
    with pytest.raises(errors.SiteError, match='mlp_post has layer 1 only'):
      harvest.plant(f)({'mlp_post': harvest.At(0, lambda x: 0 * x)}, acts['resid_pre.1'])
    with pytest.raises(errors.SiteError, match='begins at layer 1'):
      mechjax.iterate(f, 'mlp_post.0')(acts['resid_pre.1'])
    visited = {layer for layer, *_ in mechjax.iterate(f, 'mlp_post')(acts['resid_pre.1'])}
    assert visited == {1}
  with pytest.raises(errors.HarvestError, match='between branches'):
    harvest.reap(late, sites='mlp_post.1')(acts['resid_pre.1'])
  found = harvest.reap(functools.partial(late, unroll=True), sites='mlp_post.1')
  close(found(acts['resid_pre.1'])['mlp_post.1'], acts['mlp_post.1'])


@FAMILIES
def test_a_pass_resumed_at_any_layer_equals_the_whole_pass(name):
  c, params = CONFIGS[name], decoders.params(name)
  edit = {'attn_out.1': lambda x: 0.5 * x, 'embed': lambda x: 1.1 * x}
  whole = harvest.plant(lambda tokens: decoder.forward(params, tokens, c))
  resumed = harvest.plant(lambda *a: decoder.forward_from(params, *a[:3], c, at=a[3]))
  expected, (_, acts) = decoders.logits(params, TOKENS, name), reaped(name)
  at = jnp.array([[8, 0], [3, 3]])
  gathered = lambda x: x[jnp.arange(2)[:, None], at]  # noqa: E731
  for start in range(c.n_layers + 1):
    x = acts[f'resid_pre.{start}'] if start < c.n_layers else acts[f'resid_post.{start - 1}']
    close(resumed({}, TOKENS, x, jnp.int32(start), None), expected)
    close(resumed({}, TOKENS, x, jnp.int32(start), at), gathered(expected))
    if start < 2:
      some = {k: v for k, v in edit.items() if start == 0 or k != 'embed'}
      close(resumed(some, TOKENS, x, jnp.int32(start), None), whole(some, TOKENS))


def test_an_unrolled_pass_from_a_layer_can_be_read_and_written():
  c, params = CONFIGS['gemma'], decoders.params('gemma')
  expected, (_, acts) = decoders.logits(params, TOKENS, 'gemma'), reaped('gemma')
  begin = functools.partial(decoder.forward_from, params, TOKENS, config=c, unroll=True)
  edit = {'mlp_post.1': lambda x: 2 * x}
  whole = harvest.harvest(lambda tokens: decoder.forward(params, tokens, c), sites='resid_post.1')
  for start in (0, 1, 2):
    x = acts[f'resid_pre.{start}'] if start < 2 else acts['resid_post.1']
    close(begin(x, start), expected)
    if start < 2:
      run = harvest.harvest(functools.partial(begin, start=start), sites='resid_post.1')
      (logits, found), (wanted, values) = run(edit, x), whole(edit, TOKENS)
      close(logits, wanted)
      close(found['resid_post.1'], values['resid_post.1'])
  for start in (-1, 3, jnp.int32(1)):
    with pytest.raises(errors.MechjaxError, match='of a pass with unroll=True'):
      begin(x, start)


@pytest.mark.parametrize(('start', 'stop'), [(-1, 2), (2, 1), (0, 3)])
def test_a_stretch_that_is_not_there_is_refused(start, stop):
  x = jnp.ones((1, 2, 16))
  with pytest.raises(errors.MechjaxError, match='no span'):
    decoder.blocks(decoders.params('qwen'), x, CONFIGS['qwen'], start=start, stop=stop)


@pytest.mark.parametrize(('name', 'site'), [('neox', 'resid_mid.1'), ('attn-only', 'mlp_out.0')])
def test_asking_for_a_site_that_a_family_lacks_says_why(name, site):
  f = functools.partial(decoder.forward, config=CONFIGS[name])
  with pytest.raises(errors.SiteError, match=r'parallel|attention-only'):
    harvest.reap(f, sites=site)(decoders.params(name), TOKENS)


# --- dtypes, cost, mistakes -------------------------------------------------------------------------------


@FAMILIES
def test_bfloat16_is_close_to_float32_and_its_logits_are_float32(name):
  exact = decoders.logits(decoders.params(name), TOKENS, name)
  rough = decoders.logits(decoders.params(name, 'bfloat16'), TOKENS, name)
  assert rough.dtype == jnp.float32
  assert float(jnp.abs(rough - exact).mean() / jnp.abs(exact).mean()) < 0.05


def test_bfloat16_keeps_the_residual_stream_and_the_cache_in_bfloat16():
  c, params = CONFIGS['gemma'], decoders.params('gemma', 'bfloat16')
  cache = decoder.new_cache(c, 2, T, jnp.bfloat16)
  step = functools.partial(decoder.step, config=c)
  (_, cache), acts = harvest.call_and_reap(step, sites='*')(params, TOKENS, cache)
  assert cache.kv.k.dtype == jnp.bfloat16
  wide = {s for s in acts if acts[s].dtype != jnp.bfloat16}
  assert {s.split('.')[0] for s in wide} == {'attn_scores', 'logits'}


def test_tags_leave_no_trace_in_what_is_compiled(monkeypatch):
  def lowered():
    forward = functools.partial(decoder.forward, config=CONFIGS['gemma'])
    return jax.jit(forward).lower(decoders.params('gemma'), TOKENS).as_text()

  tagged = lowered()
  monkeypatch.setattr(harvest, 'sow', lambda x, name: x)
  monkeypatch.setattr(harvest, 'absent', lambda x, **_: x)
  assert lowered() == tagged


def test_the_program_does_not_grow_with_depth():
  def equations(n_layers):
    c = families.preset('qwen2-0.5b', n_layers=n_layers)
    f = jax.grad(lambda p, t: decoder.forward(p, t, c).sum())
    return str(jax.make_jaxpr(f)(decoder.shapes(c), TOKENS)).count('\n')

  assert equations(6) == equations(36)


def test_tokens_and_positions_beyond_their_tables_become_nan():
  params = decoders.params('gpt2')
  assert jnp.isnan(decoders.logits(params, TOKENS.at[0, 0].set(decoders.V), 'gpt2')[0]).all()
  far = jnp.full((2, T), 24)
  assert jnp.isnan(decoders.logits(params, TOKENS, 'gpt2', positions=far)).all()
  with pytest.raises(errors.MechjaxError, match='25 tokens for 24 learned positions'):
    decoders.logits(params, jnp.zeros((1, 25), jnp.int32), 'gpt2')


@pytest.mark.parametrize('argument', ['segments', 'positions'])
def test_arrays_that_do_not_fit_the_tokens_are_refused(argument):
  with pytest.raises(errors.MechjaxError, match=rf'{argument} have shape \(2, 3\)'):
    decoders.logits(
      decoders.params('qwen'), TOKENS, 'qwen', **{argument: jnp.zeros((2, 3), jnp.int32)}
    )


@FAMILIES
def test_parameters_have_the_shapes_that_are_promised(name):
  promised = decoder.shapes(CONFIGS[name], jnp.bfloat16)
  made = jax.eval_shape(lambda k: decoder.init(k, CONFIGS[name], jnp.bfloat16), jax.random.key(0))
  assert jax.tree.map(lambda x: (x.shape, x.dtype), made) == jax.tree.map(
    lambda x: (x.shape, x.dtype), promised
  )


def test_fresh_parameters_neither_blow_up_nor_vanish():
  c = CONFIGS['gemma']
  forward = functools.partial(decoder.forward, config=c)
  acts = harvest.reap(forward, sites='embed, resid_post')(
    decoder.init(jax.random.key(0), c), TOKENS
  )
  assert all(0.3 < float(acts[site].std()) < 3 for site in acts)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'n_layers': 0}, 'n_layers=0 should be at least 1'),
    ({'n_kv_heads': 3}, 'n_kv_heads=3 should be a divisor of 4'),
    ({'norm': 'batch'}, "norm='batch' should be one of"),
    ({'activation': 'tanh'}, "activation='tanh' should be one of"),
    ({'positions': 'learned'}, 'n_positions=0 should be over 0'),
    ({'n_positions': 8}, 'n_positions=8 should be 0 without'),
    ({'rope_fraction': 0.5}, 'rope_fraction=0.5'),
    ({'local': (True,)}, 'local=.*of length 3'),
    ({'local': (True,) * 3}, 'window=None should be given'),
    ({'window': 0}, 'window=0 should be positive'),
    ({'d_mlp': 0}, 'gated=True should be False without an MLP'),
    ({'norm': 'none'}, "final_norm=True should be False with norm='none'"),
    ({'tied': True, 'unembed_bias': True}, 'unembed_bias=True should be False'),
    ({'attn_softcap': -1.0}, 'attn_softcap=-1.0 should be positive'),
  ],
)
def test_a_description_of_no_decoder_is_refused(change, message):
  fields = decoders.SMALL | {'n_layers': 3}
  decoder.Config(**fields)
  with pytest.raises(errors.MechjaxError, match=message):
    decoder.Config(**{**fields, **change})


def test_a_scaling_that_bends_nothing_is_refused():
  with pytest.raises(errors.MechjaxError, match='does not describe a scaling'):
    decoder.Llama3Scaling(8.0, 4.0, 1.0, 8192)
