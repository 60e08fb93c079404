"""Effects of neurons against brute force: the whole model with each activation planted, scales frozen in NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import timing
from mechjax.errors import NeuronError
from mechjax.neurons import NeuronAblation, NeuronEffects, NeuronWrites, Readout
from mechjax.neurons.frequency import find_direction
from tests.neurons import small

EXACT = {'rtol': 1e-9, 'atol': 1e-11}


def brute_force(case, unigram=None, replacement=None):
  """Changes at each token, [B, F], keyed by name, from one run of the model for each neuron."""
  a = case.layer.a
  to = np.broadcast_to(a.mean(0) if replacement is None else replacement, a.shape)
  plain, live = case.plain_logits, case.live(to)
  every = {'total': live, 'direct': case.direct(to), 'mlp_frozen': case.mlp_frozen(to)}
  if unigram is not None:
    v = find_direction(unigram, small.V)
    every['frequency_frozen'] = live + ((plain - live) @ v)[..., None] * v
  out = {name: np.abs(case.loss(l) - case.loss(plain)) for name, l in every.items()}
  out |= {
    'loss': case.loss(live) - case.loss(plain),
    'entropy_change': small.entropy(live) - small.entropy(plain),
    'changed': live.argmax(-1) != plain.argmax(-1),
  }
  if unigram is not None:
    out['kl_change'] = small.kl(unigram, live) - small.kl(unigram, plain)
  return {name: x.T for name, x in out.items()}


@pytest.mark.parametrize('name', small.CONFIGS)
def test_effects_are_those_of_the_whole_model_with_the_neuron_planted(name):
  with jax.enable_x64(True):
    case = small.Case.of(name)
    capped = case.readout.softcap is not None
    p = None if capped else small.draw_unigram()
    ablate = NeuronAblation(case.readout, case.writes)
    found, truth = ablate.measure_tokens(*case.inputs, unigram=p), brute_force(case, p)
  if not small.CONFIGS[name].post_norms:
    np.testing.assert_allclose(truth.pop('mlp_frozen'), truth['total'], **EXACT)
  assert {*truth} <= {*found}
  for key, expected in truth.items():
    np.testing.assert_allclose(found[key], expected, **EXACT, err_msg=key)
  np.testing.assert_allclose(found['entropy'], np.abs(truth['entropy_change']), **EXACT)
  assert truth['changed'].any()
  if small.CONFIGS[name].final_norm:
    assert np.abs(found['mediated']).max() > 0.01


@pytest.mark.parametrize('name', ['llama', 'gemma 3'])
def test_means_and_shares_are_ratios_of_sums(name):
  with jax.enable_x64(True):
    case = small.Case.of(name)
    ablate = NeuronAblation(case.readout, case.writes)
    p = small.draw_unigram()
    found = ablate(*case.inputs, unigram=p, units=case.layer.rows)
    each = ablate.measure_tokens(*case.inputs, unigram=p)
  assert (found.n_tokens, found.n_units) == (len(case.layer.x), 3)
  for key in ('total', 'direct', 'mediated', 'loss', 'entropy', 'changed', 'kl', 'kl_change'):
    np.testing.assert_allclose(getattr(found, key).value, each[key].mean(0), **EXACT)
  shares = {'share': 'direct', 'frequency_share': 'frequency_frozen', 'mlp_share': 'mlp_frozen'}
  for share, frozen in shares.items():
    if frozen in each:
      truth = 1 - each[frozen].sum(0) / each['total'].sum(0)
      np.testing.assert_allclose(getattr(found, share).value, truth, **EXACT)
    else:
      assert getattr(found, share) is None


def test_without_a_final_norm_the_share_is_exactly_zero():
  with jax.enable_x64(True):
    case = small.Case.of('no norm')
    found = NeuronAblation(case.readout, case.writes)(*case.inputs)
  assert (found.share.value == 0).all()
  assert (found.total.value > 1e-3).all()


def planted_null_space(dtype):
  """A readout whose tokens do not read the last three dimensions, and neurons that write there, or elsewhere."""
  random = np.random.default_rng(2)
  W_U = random.standard_normal((12, 40)).astype(dtype)
  W_U[-3:] = 0
  W_out = random.standard_normal((4, 12)).astype(dtype)
  W_out[:2, :-3] = 0
  x = random.standard_normal((30, 12)).astype(dtype)
  a, ids = random.standard_normal((30, 4)).astype(dtype), random.integers(0, 40, 30)
  # Centred over the vocabulary, the mean of W_U is another direction that is not read; here it is zero.
  readout = Readout.of(np.ones(12, dtype), W_U - W_U.mean(1, keepdims=True), 1e-5)
  return readout, W_out, (x, a, ids)


def test_a_neuron_in_the_null_space_has_no_direct_effect_and_a_share_of_one():
  with jax.enable_x64(True):
    readout, W_out, inputs = planted_null_space(np.float64)
    found = NeuronAblation(readout, W_out)(*inputs)
  assert (found.direct.value[:2] < 1e-13).all()
  assert (found.direct.value[2:] > 1e-3).all()
  assert (found.total.value > 1e-3).all()
  np.testing.assert_allclose(found.share.value[:2], 1, atol=1e-10)
  assert (np.abs(found.share.value[2:] - 1) > 0.1).all()


def test_a_neuron_whose_logits_lie_along_v_has_no_effect_when_the_frequency_is_frozen():
  """Without a norm, which would move the other components: neuron 0 writes the preimage of v, neuron 1 another row."""
  with jax.enable_x64(True):
    random = np.random.default_rng(3)
    p = small.draw_unigram()
    v = find_direction(p, small.V)
    readout = Readout.of(None, np.stack([v, *random.standard_normal((7, small.V))]), 0.0, 'none')
    W_out = 3 * np.eye(8)[:2]
    x, a = random.standard_normal((20, 8)), random.standard_normal((20, 2))
    ids = random.integers(0, small.V, 20)
    found = NeuronAblation(readout, W_out)(x, a, ids, unigram=p)
  assert found.frequency_frozen.value[0] < 1e-12 < 0.01 < found.total.value[0]
  np.testing.assert_allclose(found.frequency_share.value[0], 1, atol=1e-10)
  assert found.frequency_frozen.value[1] > 0.01


def test_a_neuron_that_does_not_move_has_no_effect_and_no_share():
  readout, W_out, (x, a, ids) = planted_null_space(np.float32)
  a[:, 1] = 0.25
  found = NeuronAblation(readout, W_out)(x, a, ids)
  for name in ('total', 'direct', 'entropy', 'changed'):
    assert getattr(found, name).value[1] == 0
  assert np.isnan(found.share.value[1])
  assert np.isfinite(found.share.value[[0, 2, 3]]).all()


@pytest.mark.parametrize('kind', ['of all tokens', 'of each token'])
def test_activations_can_be_replaced_by_given_ones(kind):
  with jax.enable_x64(True):
    case = small.Case.of('gpt2')
    random = np.random.default_rng(8)
    shape = case.layer.a.shape[kind == 'of all tokens' :]
    to = random.standard_normal(shape)
    ablate = NeuronAblation(case.readout, case.writes)
    found = ablate.measure_tokens(*case.inputs, replacement=to, neurons=[4, 2])
    truth = brute_force(case, replacement=to)
  for name in ('total', 'direct', 'entropy_change'):
    np.testing.assert_allclose(found[name], truth[name][:, [4, 2]], **EXACT)


def smallest_memory(ablate):
  tiny = dataclasses.replace(ablate, memory=8)
  with pytest.raises(NeuronError, match='memory=8') as error:
    tiny(*planted_null_space(np.float32)[2])
  return int(error.value.hint.split()[2].replace(',', ''))


def test_blocks_do_not_change_the_result(monkeypatch):
  """Blocks of tokens and neurons that do not divide their numbers, and units that lie across blocks."""
  readout, W_out, inputs = planted_null_space(np.float32)
  ablate = NeuronAblation(readout, W_out)
  units = np.arange(30) // 7
  whole = ablate(*inputs, units=units)
  monkeypatch.setattr('mechjax.neurons.effects._NEURONS', 3)
  monkeypatch.setattr('mechjax.neurons.effects._TOKENS', 8)
  done = []
  parts = ablate(*inputs, units=units, progress=done.append)
  assert sum(done) == 30 * 4
  assert len(done) == 4 * 2
  for name in ('total', 'direct', 'share', 'entropy', 'changed'):
    for kind in ('value', 'se'):
      left, right = (getattr(getattr(e, name), kind) for e in (whole, parts))
      np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-6)


def test_less_memory_gives_the_same_effects_until_there_is_too_little():
  readout, W_out, inputs = planted_null_space(np.float32)
  ablate = NeuronAblation(readout, W_out)
  least = smallest_memory(ablate)
  tight = dataclasses.replace(ablate, memory=least)
  np.testing.assert_allclose(tight(*inputs).total.value, ablate(*inputs).total.value, rtol=1e-4)
  with pytest.raises(NeuronError, match='not enough for one token'):
    dataclasses.replace(ablate, memory=least - 4)(*inputs)


def test_units_need_not_be_in_order():
  readout, W_out, (x, a, ids) = planted_null_space(np.float32)
  ablate = NeuronAblation(readout, W_out)
  units = np.arange(30) % 4
  order = np.argsort(units, kind='stable')
  mixed = ablate(x, a, ids, units=units)
  sorted_ = ablate(x[order], a[order], ids[order], units=units[order])
  assert mixed.n_units == 4
  np.testing.assert_allclose(mixed.total.se, sorted_.total.se, rtol=1e-5)


def test_some_neurons_are_those_of_all():
  readout, W_out, inputs = planted_null_space(np.float32)
  ablate = NeuronAblation(readout, W_out)
  whole, some = ablate(*inputs), ablate(*inputs, neurons=[3, 1])
  assert some.neurons.tolist() == [3, 1]
  np.testing.assert_allclose(some.total.value, whole.total.value[[3, 1]], rtol=1e-5)
  joined = NeuronEffects.join([ablate(*inputs, neurons=n) for n in ([0, 1], [2, 3])])
  np.testing.assert_array_equal(joined.neurons, whole.neurons)
  np.testing.assert_allclose(joined.share.se, whole.share.se, rtol=1e-4)
  with pytest.raises(NeuronError, match='cannot be joined'):
    NeuronEffects.join([])
  with pytest.raises(NeuronError, match='2 kinds'):
    NeuronEffects.join([whole, ablate(*(v[:9] for v in inputs))])


def test_other_neurons_tokens_and_replacements_compile_nothing():
  readout, W_out, (x, a, ids) = planted_null_space(np.float32)
  ablate = NeuronAblation(readout, W_out)
  ablate(x, a, ids, neurons=[0, 1])
  with timing.compilations() as seen:
    ablate(x + 1, 2 * a, ids[::-1], neurons=[3, 2], replacement=a[0])
  assert seen.count == 0


def test_an_ablation_that_makes_another_token_certain_has_its_exact_effect():
  """The logit of the token that was the likeliest falls by hundreds, which the quick sums cannot hold."""
  readout, W_out, (x, a, ids) = planted_null_space(np.float32)
  W_out[3, :-3] *= 300
  found = NeuronAblation(readout, W_out).measure_tokens(x, a, ids)
  with jax.enable_x64(True):
    wide = [v.astype(np.float64) for v in (readout.rows.T, W_out, x, a)]
    exact = Readout.of(None, wide[0], 1e-5)
    truth = NeuronAblation(exact, wide[1]).measure_tokens(*wide[2:], ids)
  assert truth['direct'].max() > 200
  for name in ('total', 'direct', 'entropy_change'):
    np.testing.assert_allclose(found[name], truth[name], rtol=1e-3, atol=1e-3)


def test_effects_that_overflow_are_refused():
  readout, W_out, (x, a, ids) = planted_null_space(np.float32)
  ablate = NeuronAblation(readout, W_out)
  with pytest.raises(NeuronError, match='their scale is infinite'):
    ablate(x * np.float32(1e25), a, ids)
  with pytest.raises(NeuronError, match='not finite'):
    ablate(x, a * np.float32(1e38), ids)


def test_weights_in_bfloat16_are_computed_with_in_float32():
  readout, W_out, (x, a, ids) = planted_null_space(np.float32)
  half = jnp.asarray(W_out, jnp.bfloat16)
  found = NeuronAblation(readout, half)(x, a, ids)
  exact = NeuronAblation(readout, np.asarray(half, np.float32))(x, a, ids)
  np.testing.assert_allclose(found.total.value, exact.total.value, rtol=1e-5)


# --- bad input ----------------------------------------------------------------------------------------------

BAD = {
  'a stream of another width': ({'x': np.ones((30, 11), np.float32)}, r'x has shape \[30, 11\]'),
  'activations of another layer': ({'a': np.ones((30, 5), np.float32)}, r'a has shape \[30, 5\]'),
  'activations of other tokens': ({'a': np.ones((29, 4), np.float32)}, r'a has shape \[29, 4\]'),
  'NaN in the stream': ({'x': np.full((30, 12), np.nan, np.float32)}, 'x contains NaN'),
  'NaN in activations': ({'a': np.full((30, 4), np.inf, np.float32)}, 'a contains NaN or inf'),
  'no tokens': ({'x': np.ones((0, 12), np.float32)}, 'there are no tokens'),
  'other next tokens': ({'next_tokens': np.zeros(29, int)}, r'next_tokens has shape \[29\]'),
  'next tokens that are not ids': ({'next_tokens': np.zeros(30)}, 'float64'),
  'a next token outside': ({'next_tokens': np.full(30, 40)}, 'contains 40; expected .* 0 to 39'),
  'a neuron that does not exist': ({'neurons': [4]}, 'neurons contains 4'),
  'a neuron twice': ({'neurons': [1, 1]}, 'each one occurs once'),
  'a replacement of other neurons': (
    {'replacement': np.zeros(3, np.float32)}, r'replacement has shape \[3\]'
  ),
  'units of other tokens': ({'units': np.zeros(3, int)}, r'units of shape \[3\]'),
  'a distribution of another length': ({'unigram': np.ones(3) / 3}, r'unigram has shape \[3\]'),
  'a distribution that sums to 2': ({'unigram': np.ones(40) / 20}, 'sums to 2, not to 1'),
}  # fmt: skip


@pytest.mark.parametrize('kind', BAD)
def test_inputs_that_do_not_fit_are_refused(kind):
  readout, W_out, (x, a, ids) = planted_null_space(np.float32)
  changes, message = BAD[kind]
  given = {'x': x, 'a': a, 'next_tokens': ids} | changes
  with pytest.raises(NeuronError, match=message):
    NeuronAblation(readout, W_out)(**given)


def test_weights_that_do_not_fit_are_refused():
  readout, W_out, _ = planted_null_space(np.float32)
  with pytest.raises(NeuronError, match=r'W_out has shape \[12, 4\]'):
    NeuronAblation(readout, W_out.T)
  with pytest.raises(NeuronError, match='memory=0'):
    NeuronAblation(readout, W_out, memory=0)
  with pytest.raises(NeuronError, match='gain='):
    NeuronWrites.of(W_out, gain=np.ones(12, np.float32))
  with pytest.raises(NeuronError, match='the gain has shape'):
    NeuronWrites.of(W_out, gain=np.ones(4, np.float32), eps=1e-6)


def test_frequency_effects_of_capped_logits_are_refused():
  with jax.enable_x64(True):
    case = small.Case.of('gemma 2')
    with pytest.raises(NeuronError, match='a cap of 2'):
      NeuronAblation(case.readout, case.writes)(*case.inputs, unigram=small.draw_unigram())
