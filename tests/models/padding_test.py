"""A masked batch has the values of each row alone at real tokens, in every family and through every entry point."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechjax import errors, harvest, iterate
from mechjax.models import padding
from mechjax.models.forward_pass import Forward
from mechjax.models.language_model import LanguageModel
from tests.models import decoders
from tests.models.decoders import CONFIGS
from tests.patching import plain

FAMILIES = pytest.mark.parametrize('name', CONFIGS)
ROWS = [[5, 3, 8, 1, 9, 2, 2], [2, 7], [4, 4, 6, 1, 30]]
WIDTH = 8


@functools.cache
def model(name):
  return decoders.language_model(name)


def padded(side):
  """The rows as one batch, and its mask; padding is a token of the vocabulary that also occurs in the text."""
  tokens, mask = np.full((len(ROWS), WIDTH), 4, np.int32), np.zeros((len(ROWS), WIDTH), bool)
  for row, onto, real in zip(ROWS, tokens, mask):
    first = {'left': WIDTH - len(row), 'right': 0, 'both': (WIDTH - len(row)) // 2}[side]
    onto[first : first + len(row)], real[first : first + len(row)] = row, True
  return jnp.asarray(tokens), mask


@functools.cache
def alone(name):
  """(logits [T, V], log-probabilities [T, V]) of each row without padding, by the equations in NumPy."""
  logits = [plain.logits(name, np.array([row]))[0] for row in ROWS]
  return [(x, x - np.log(np.exp(x).sum(-1, keepdims=True))) for x in logits]


def close(found, wanted):
  np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-4)  # a mistake is of the order of 1


@FAMILIES
@pytest.mark.parametrize('side', ['left', 'right', 'both'])
def test_every_row_has_the_logits_that_it_has_alone(name, side):
  tokens, mask = padded(side)
  logits = model(name)(tokens, mask)
  log_probs = model(name).log_probs(tokens, mask=mask)
  assert np.isfinite(logits).all()
  for i, (expected, expected_log_probs) in enumerate(alone(name)):
    close(logits[i][mask[i]], expected)
    close(log_probs[i][mask[i]], expected_log_probs)


def test_a_mask_is_the_second_of_two_arguments_in_every_harvest():
  own, (tokens, mask) = model('gpt2'), padded('left')
  args, expected = (own.params, tokens, mask), own(tokens, mask)
  found = harvest.reap(own.apply, sites='logits')(*args)['logits']
  close(found, expected)
  close(harvest.plant(own.apply)({}, *args), expected)
  run = iterate(own.apply, 'resid_post.0')(*args)
  for _ in run:
    pass
  close(run.retval, expected)
  assert len(harvest.sites_of(own.apply, *args)) == len(own.sites())


@pytest.mark.parametrize('values', [[1.0], {'a': 1}, 1.5])
def test_only_reads_and_arrays_can_be_nan_at_padding(values):
  with pytest.raises(errors.MechjaxError, match='expected reads of a batch, or an array'):
    padding.nan_at_padding(values, padded('left')[1])
  with pytest.raises(errors.MechjaxError, match='mask=None'):
    padding.nan_at_padding(jnp.ones((3, 8)), None)


@FAMILIES
def test_the_loss_counts_the_predicted_tokens_of_every_row_and_no_padding(name):
  costs = [-p[t, row[t + 1]] for row, (_, p) in zip(ROWS, alone(name)) for t in range(len(row) - 1)]
  for side in ('left', 'right', 'both'):
    assert float(model(name).loss(*padded(side))) == pytest.approx(np.mean(costs), abs=2e-4)


def test_padding_between_the_tokens_of_a_row_changes_nothing_either():
  tokens, mask = jnp.asarray([[5, 9, 3, 8, 4, 4, 1]]), jnp.asarray([[1, 0, 1, 1, 0, 0, 1]], bool)
  whole = jnp.asarray([[5, 3, 8, 1]])
  close(model('mistral')(tokens, mask)[:, np.flatnonzero(mask[0])], model('mistral')(whole))
  assert float(model('mistral').loss(tokens, mask)) == pytest.approx(
    float(model('mistral').loss(whole)), abs=3e-5
  )


@FAMILIES
def test_a_resumed_pass_and_a_short_one_have_what_the_row_alone_has(name):
  tokens, mask = padded('left')
  own = model(name)
  short = harvest.reap(own.truncate_at('resid_post.0'), sites='resid_post.0')
  middle = short(own.params, tokens, mask)['resid_post.0']
  last = jnp.full((len(ROWS), 1), WIDTH - 1)
  whole = own.forward_from(own.params, tokens, middle, jnp.int32(1), None, mask)
  ends = own.forward_from(own.params, tokens, middle, jnp.int32(1), last, mask)
  for i, (row, (expected, _)) in enumerate(zip(ROWS, alone(name))):
    close(middle[i][mask[i]], plain.values(name, np.array([row]))['resid_post.0'][0])
    close(whole[i][mask[i]], expected)
    close(ends[i, 0], expected[-1])


def test_a_mask_reaches_the_pass_through_a_harvest_and_through_jit():
  tokens, mask = padded('left')
  own = model('gpt2')
  reaped = harvest.reap(own, sites='logits')(tokens, mask=mask)['logits']
  jitted = jax.jit(own.apply)(own.params, tokens, jnp.asarray(mask))
  close(reaped, own(tokens, mask))
  close(jitted, own(tokens, mask))


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda mask: mask.astype(int), 'dtype int'),
    (lambda mask: mask[:, 1:], r'shape \(3, 7\)'),
    (lambda mask: mask[:1], r'shape \(1, 8\)'),
    (lambda mask: mask & np.array([[True], [False], [True]]), 'row 1 of the mask is padding only'),
  ],
)
def test_what_is_no_mask_of_these_tokens_is_refused(change, message):
  tokens, mask = padded('left')
  own = model('qwen')
  wrong = change(mask)
  for call in (own, own.loss, own.log_probs, functools.partial(own.apply, own.params)):
    with pytest.raises(errors.MechjaxError, match=message):
      call(tokens, wrong)


def test_a_mask_may_be_given_as_a_list():
  own = model('qwen')
  tokens, mask = padded('left')
  for call in (own, own.loss, functools.partial(own.apply, own.params)):
    np.testing.assert_array_equal(call(tokens, mask.tolist()), call(tokens, mask))
    with pytest.raises(errors.MechjaxError, match='rows of different lengths do not form a mask'):
      call(tokens, [[True], [True, True]])


@pytest.mark.parametrize(
  ('tokens', 'mask'), [([[3], [4]], None), ([[3, 4], [5, 6]], [[True, False], [False, True]])]
)
def test_a_loss_of_nothing_is_an_error_and_not_nan(tokens, mask):
  with pytest.raises(errors.MechjaxError, match='nothing to predict'):
    model('qwen').loss(tokens, mask)


def test_a_mask_and_segments_together_are_refused():
  tokens, mask = padded('left')
  own = model('qwen')
  with pytest.raises(errors.MechjaxError, match='both mask= and segments='):
    own.apply(own.params, tokens, mask, segments=jnp.asarray(mask))


def test_code_that_counts_columns_takes_padding_on_either_side_and_none_between():
  def apply(params, tokens, mask=None):
    assert mask is not None or not taken.append('no mask')
    return jnp.zeros((*tokens.shape, 3))

  taken: list[str] = []
  upstream = LanguageModel('upstream', Forward({}, apply, apply, 2, 16, 31), None)
  upstream(*padded('right'))
  assert taken == ['no mask']
  upstream(*padded('left'))
  assert taken == ['no mask']
  tokens, mask = padded('left')
  mask[0, 3] = False
  with pytest.raises(errors.MechjaxError, match='row 0 of the mask has padding between'):
    upstream(tokens, mask)


def test_positions_count_real_tokens_and_padding_goes_last():
  mask = jnp.asarray([[0, 1, 1, 0, 1], [1, 1, 0, 0, 0]], bool)
  assert padding.positions(mask)[0][mask[0]].tolist() == [0, 1, 2]
  assert padding.tokens_first(mask).tolist() == [[1, 2, 4, 0, 3], [0, 1, 2, 3, 4]]


def test_values_at_padding_are_nan_on_request_and_the_others_are_as_they_were():
  own = model('mistral')
  tokens, mask = padded('both')
  acts = harvest.reap(own, sites='*')(tokens, mask)
  hidden = padding.nan_at_padding(acts, mask)
  queries, keys = mask[:, None, :, None], mask[:, None, None, :]
  real = {'attn_probs': queries & keys, 'attn_scores': queries & keys, 'logits': mask[..., None]}
  for site in acts:
    name = site.split('.')[0]
    where = real.get(name, mask.reshape(*mask.shape, *[1] * (acts[site].ndim - 2)))
    np.testing.assert_array_equal(hidden[site], np.where(where, acts[site], np.nan))
  np.testing.assert_array_equal(
    hidden.stack('resid_post'), np.where(mask[..., None], acts.stack('resid_post'), np.nan)
  )
  logits = own(tokens, mask)
  jitted = jax.jit(padding.nan_at_padding)(logits, jnp.asarray(mask))
  np.testing.assert_array_equal(jitted, np.where(mask[..., None], logits, np.nan))


@pytest.mark.parametrize(
  ('values', 'message'),
  [
    (jnp.ones((3, 8), jnp.int32), 'dtype int32 cannot be NaN'),
    (jnp.ones(3), r'shape \(3,\); expected \[B, T'),
    (jnp.ones((3, 7, 2)), r'expected booleans of shape \(3, 7\)'),
  ],
)
def test_values_that_do_not_fit_the_mask_are_not_hidden(values, message):
  with pytest.raises(errors.MechjaxError, match=message):
    padding.nan_at_padding(values, padded('left')[1])
