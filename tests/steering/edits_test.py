"""Edits in a pass and in generations, against edits by hand at positions that are written out."""

import functools
import itertools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from mechjax import errors, harvest, steering
from mechjax.errors import SteeringError
from mechjax.generate import passes
from mechjax.models import decoder
from mechjax.steering import (
  Ablate,
  Add,
  Project,
  Together,
  everywhere,
  first,
  generated,
  in_one_pass,
  last,
)
from tests.generate.small import assert_clear
from tests.generate.small import generated as generate
from tests.models import decoders
from tests.steering import plain
from tests.steering.plain import PROMPTS, WHERE, D, vector

N, SITE = 4, 'resid_pre.1'
T = max(map(len, PROMPTS)) + N
CASES = [*((kind, 'gemma', 0) for kind in WHERE), ('answer on', 'gpt2', 1), ('last', 'qwen', 1)]
"""Choices, families, and seeds of vectors with which no two tokens are nearly equal."""


def forward_of(name):
  def forward(params, tokens, mask=None):
    return decoder.forward(params, tokens, decoders.CONFIGS[name], segments=mask)

  return forward


# --- in generations ---------------------------------------------------------------------------------------


def check_generation(name, edit, c, added):
  """Asserts that a generation equals, token for token, passes over the texts so far with `added` added by hand.

  A pass over the final texts has the logits of all passes over the texts so far, because no token sees later ones.
  """
  out = generate(name, N, plants=edit.plants(c), sites='logits')
  texts = plain.texts(PROMPTS, out.tokens, T)
  by_hand = plain.adding(name, SITE)
  logits = np.asarray(by_hand(decoders.params(name), texts, added))
  assert_clear(out.reads)
  for row, ids in enumerate(PROMPTS):
    expected = logits[row, len(ids) - 1 :][:N]
    found = np.stack([np.asarray(acts['logits'])[row, -1] for acts in out.reads])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    np.testing.assert_array_equal(out.tokens[row], expected.argmax(-1))
  without = np.asarray(by_hand(decoders.params(name), texts, np.zeros_like(added)))
  assert np.abs(without - logits).max() > 1e-2


@pytest.mark.parametrize(('kind', 'name', 'seed'), CASES)
def test_a_generation_with_the_cache_equals_passes_with_the_edit_by_hand(kind, name, seed):
  v = vector(seed=seed)
  edit = Add(SITE, v, where=WHERE[kind][0])
  check_generation(name, edit, 1.5, 1.5 * plain.by_hand(kind, v, PROMPTS, T))


@pytest.mark.parametrize('kind', ['first', 'last', 'at'])
def test_another_vector_at_each_position_is_added_in_the_order_of_the_choice(kind):
  v = vector(2)
  edit = Add(SITE, v, where=WHERE[kind][0])
  check_generation('gpt2', edit, 1.0, plain.by_hand(kind, v, PROMPTS, T))


def test_a_row_that_lacks_positions_is_refused_before_anything_is_generated():
  before = passes._advance._cache_size()
  for where in (first(3), last(3) | generated, steering.at(0, 6)):
    with pytest.raises(SteeringError, match='row 1 has'):
      generate('gpt2', N, plants=Add(SITE, vector(), where=where).plants())
  with pytest.raises(SteeringError, match='a mask of 3 rows for a batch of 1'):
    generate('gpt2', N, PROMPTS[:1], plants=Add(SITE, vector(), where=WHERE['mask'][0]).plants())
  assert passes._advance._cache_size() == before


def test_another_width_is_refused_before_anything_is_generated():
  with pytest.raises(SteeringError, match='width 7 at a site of width 16'):
    generate('gpt2', N, plants=Add(SITE, np.ones(7, np.float32), where=everywhere).plants())
  with pytest.raises(SteeringError, match=r'edits change vectors \[B, T, D\]'):
    generate('gpt2', N, plants=Add('z.0', vector(), where=everywhere).plants())


def test_a_layer_that_does_not_exist_is_refused_before_anything_is_generated():
  for layer in (2, -1):
    with pytest.raises(errors.SiteError, match=f'resid_pre.{layer}'):
      generate('gpt2', N, plants=Add('resid_pre', vector(), where=everywhere, layer=layer).plants())


def test_a_sweep_over_coefficients_vectors_and_layers_compiles_once():
  before, found = passes._advance._cache_size(), []
  for c, seed, layer in ((1.0, 0, 0), (2.0, 0, 0), (2.0, 1, 0), (2.0, 1, 1)):
    edit = Add('resid_pre', vector(seed=seed), where=last(1), layer=layer)
    out = generate('mistral', 2, plants=edit.plants(c), sites='logits')
    found.append(np.asarray(out.reads[0]['logits'])[:, -1])
  assert passes._advance._cache_size() - before == 2  # the prompts' program and the step's
  for a, b in itertools.pairwise(found):
    assert np.abs(a - b).max() > 1e-3


# --- in one pass ------------------------------------------------------------------------------------------


@pytest.mark.parametrize('side', ['left', 'right'])
def test_one_pass_over_a_padded_batch_equals_the_edit_by_hand_of_each_text(side):
  v, name = vector(), 'gemma'
  lengths = [9, 6, 8]
  texts = [np.random.default_rng(i).integers(0, decoders.V, n) for i, n in enumerate(lengths)]
  tokens, mask = np.zeros((3, 11), np.int32), np.zeros((3, 11), bool)
  for row, real, text in zip(tokens, mask, texts):
    at = slice(11 - len(text), None) if side == 'left' else slice(len(text))
    row[at], real[at] = text, True
  edit = Add(SITE, v, where=WHERE['answer on'][0])
  prompt_length = np.array([len(p) for p in PROMPTS])
  plants = in_one_pass(edit.plants(1.5), mask, prompt_length)
  found = harvest.plant(forward_of(name))(plants, decoders.params(name), tokens, mask=mask)
  added = 1.5 * plain.by_hand('answer on', v, PROMPTS, 11)
  right = np.zeros((3, 11), np.int32)
  for row, text in zip(right, texts):
    row[: len(text)] = text
  expected = np.asarray(plain.adding(name, SITE)(decoders.params(name), right, added))
  for row, (real, n) in enumerate(zip(mask, lengths)):
    np.testing.assert_allclose(np.asarray(found)[row][real], expected[row, :n], rtol=0, atol=1e-4)


def test_a_pass_with_plants_that_are_not_bound_is_refused():
  run = harvest.plant(forward_of('gpt2'))
  with pytest.raises(errors.HarvestError, match='in_one_pass'):
    run(Add(SITE, vector(), where=first(1)).plants(), decoders.params('gpt2'), decoders.TOKENS)


def test_a_sweep_in_one_pass_compiles_nothing_after_its_first():
  run = harvest.plant(forward_of('qwen'))

  def logits(c, seed, layer, length):
    edit = Add('resid_pre', vector(seed=seed), where=last(1), layer=layer)
    plants = in_one_pass(edit.plants(c), decoders.TOKENS.shape, np.array([length, 5]))
    return np.asarray(run(plants, decoders.params('qwen'), decoders.TOKENS))

  found, seen = [logits(1.0, 0, 0, 4)], []
  jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: seen.append(name))
  for args in ((2.0, 0, 0, 4), (2.0, 1, 0, 4), (2.0, 1, 1, 4), (2.0, 1, 1, 7)):
    found.append(logits(*args))
  jax.monitoring.clear_event_listeners()
  assert '/jax/core/compile/backend_compile_duration' not in seen
  for a, b in itertools.pairwise(found):
    assert np.abs(a - b).max() > 1e-3


def test_the_edit_in_a_linear_model_changes_the_logits_in_closed_form():
  W = np.random.default_rng(3).standard_normal((D, 7)).astype(np.float32)

  def model(x):
    return harvest.sow(x, name='resid_pre') @ W

  x, v = np.random.default_rng(4).standard_normal((2, 5, D)).astype(np.float32), vector()
  for c in (-2.0, 0.5):
    plants = in_one_pass(Add('resid_pre', v, where=last(2)).plants(c), (2, 5))
    found = np.asarray(harvest.plant(model)(plants, x)) - x @ W
    np.testing.assert_allclose(found[:, 3:], np.broadcast_to(c * v @ W, (2, 2, 7)), atol=1e-4)
    np.testing.assert_allclose(found[:, :3], 0, atol=1e-5)


# --- the change itself ------------------------------------------------------------------------------------


def change(edit, c, x):
  """The value of a site [B, T, D] under an edit."""
  (planted,) = in_one_pass(edit.plants(c), x.shape[:2]).values()
  return np.asarray(jax.jit(planted)(x))


def nasty(dtype):
  """Numbers whose bits arithmetic would change: -0.0, NaN, infinity, and all others of a random array."""
  x = np.random.default_rng(5).standard_normal((2, 4, D)).astype(np.float32)
  x[0, :3, :3] = [[-0.0, np.nan, np.inf]] * 3
  return jnp.asarray(x.astype(dtype))


EDITS = {
  'add': Add('resid_pre.0', vector(), where=everywhere),
  'each': Add('resid_pre.0', vector(2), where=first(2)),
  'ablate': Ablate('resid_pre.0', vector()),
  'project': Project('resid_pre.0', steering.orthonormal_basis(vector(3))),
}
EMPTY = Project('resid_pre.0', np.zeros((0, D), np.float32))


@pytest.mark.parametrize('dtype', [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize('kind', EDITS)
def test_a_coefficient_of_zero_changes_no_bit(kind, dtype):
  x = nasty(dtype)
  for zero in (0, 0.0, -0.0):
    assert change(EDITS[kind], zero, x).tobytes() == np.asarray(x).tobytes()
  assert change(EDITS[kind], 1.0, x).tobytes() != np.asarray(x).tobytes()


@pytest.mark.parametrize('kind', EDITS)
def test_the_derivative_in_the_coefficient_is_that_of_the_formula_at_zero_as_well(kind):
  w = 10 * np.random.default_rng(9).standard_normal((2, 4, D)).astype(np.float32)
  x = np.random.default_rng(10).standard_normal((2, 4, D)).astype(np.float32)

  def product(c):
    (planted,) = in_one_pass(EDITS[kind].plants(c), (2, 4)).values()
    return jnp.sum(jnp.asarray(w) * planted(jnp.asarray(x)))

  slope = float(product(1.0)) - float(product(0.0))  # every formula is linear in c
  assert abs(slope) > 0.1
  for derivative in (jax.grad, jax.jacfwd):
    np.testing.assert_allclose(derivative(product)(0.0), slope, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize(
  ('mask', 'message'),
  [((1, 9), r'positions of shape \(1, 9\)'), ((2, 1), r'\(2, 1\)'), ((9, 2), r'\(9, 2\)')],
)
def test_a_mask_of_another_batch_is_refused(mask, message):
  plants = in_one_pass(Add(SITE, vector(), where=first(1)).plants(), mask)
  with pytest.raises(SteeringError, match=message):
    harvest.plant(forward_of('gpt2'))(plants, decoders.params('gpt2'), decoders.TOKENS)


def test_edits_given_by_a_generator_are_kept():
  both = Together(Add(f'resid_pre.{i}', vector(), where=first(1)) for i in range(2))
  assert {*both.plants()} == {*both.plants()} == {'resid_pre.0', 'resid_pre.1'}


@pytest.mark.parametrize('dtype', [np.float32, ml_dtypes.bfloat16])
def test_an_empty_basis_changes_no_bit(dtype):
  x = nasty(dtype)
  for c in (0.0, 1.0, 2.5):
    assert change(EMPTY, c, x).tobytes() == np.asarray(x).tobytes()


def test_tokens_that_are_not_chosen_keep_their_bits():
  x = nasty(np.float32)
  found = change(Add('resid_pre.0', vector(), where=last(1)), 3.0, x)
  assert found[:, :3].tobytes() == np.asarray(x)[:, :3].tobytes()
  assert (found[:, 3] != np.asarray(x)[:, 3]).all()


def test_ablation_and_projection_follow_their_equations_in_float64():
  with jax.enable_x64(True):
    random = np.random.default_rng(6)
    x, vs = random.standard_normal((2, 4, D)), random.standard_normal((3, D))
    r = vs[0] / np.linalg.norm(vs[0])
    inside = np.linalg.pinv(vs) @ vs
    for c in (1.0, 0.3, 2.0):
      found = change(Ablate('a', vs[0]), c, jnp.asarray(x))
      np.testing.assert_allclose(found, x - c * (x @ r)[..., None] * r, rtol=0, atol=1e-12)
      found = change(Project('a', steering.orthonormal_basis(vs)), c, jnp.asarray(x))
      np.testing.assert_allclose(found, x - c * x @ inside, rtol=0, atol=1e-12)
    once = change(Ablate('a', vs[0]), 1.0, jnp.asarray(x))
    np.testing.assert_allclose(change(Ablate('a', vs[0]), 1.0, jnp.asarray(once)), once, atol=1e-14)


def test_the_result_has_the_dtype_of_the_site_and_the_arithmetic_is_wider():
  x = jnp.asarray(np.random.default_rng(7).standard_normal((1, 2, D)), jnp.bfloat16)
  v = vector(scale=1e-3)
  found = change(Add('a', v, where=everywhere), 1000.0, x)
  assert found.dtype == ml_dtypes.bfloat16
  expected = (np.asarray(x, np.float32) + np.float32(1000.0) * v).astype(ml_dtypes.bfloat16)
  assert (found == expected).mean() > 0.97  # a fused multiply and add may round once less


def test_ablation_at_every_write_leaves_nothing_of_the_direction_in_the_stream():
  name, r = 'gpt2', vector()
  plants = in_one_pass(Ablate('embed, attn_out, mlp_out', r).plants(), decoders.TOKENS.shape)
  run = harvest.harvest(forward_of(name), sites='resid_pre.*, resid_post.*')
  _, acts = run(plants, decoders.params(name), decoders.TOKENS)
  _, plain_acts = run({}, decoders.params(name), decoders.TOKENS)
  for site in acts:
    assert np.abs(acts[site] @ (r / np.linalg.norm(r))).max() < 1e-4
    assert np.abs(plain_acts[site] @ (r / np.linalg.norm(r))).max() > 0.1


def test_edits_at_different_sites_are_made_together():
  v, w = vector(seed=1), vector(seed=2)
  both = Together([Add('resid_pre.0', v, where=first(1)), Add('mlp_out.1', w, where=last(1))])
  run = harvest.plant(forward_of('gpt2'))
  found = run(in_one_pass(both.plants(0.5), (2, 9)), decoders.params('gpt2'), decoders.TOKENS)
  by_hand = {
    'resid_pre.0': lambda x: x.at[:, 0].add(0.5 * v),
    'mlp_out.1': lambda x: x.at[:, 8].add(0.5 * w),
  }
  expected = run(by_hand, decoders.params('gpt2'), decoders.TOKENS)
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
  twice = Together([Add('resid_pre.0', v, where=first(1)), Add('resid_pre.0', w, where=last(1))])
  with pytest.raises(SteeringError, match=r"two edits at 'resid_pre\.0'"):
    twice.plants()


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: Add('a.0', np.full(4, np.nan), where=everywhere), 'NaN or infinity'),
    (lambda: Add('a.0', np.zeros(4), where=everywhere), 'is zero'),
    (lambda: Add('a.0', np.zeros((2, 4)), where=first(2)), 'is zero'),
    (lambda: Add('a.0', np.ones((2, 4)), where=everywhere), r'where=first\(2\)'),
    (lambda: Add('a.0', np.ones((2, 4)), where=first(3)), r'2 vectors.*where=first\(3\)'),
    (lambda: Add('a.0', np.ones((1, 2, 4)), where=first(1)), '1 or 2 axes'),
    (lambda: Add('a.0', np.ones(4, int), where=everywhere), 'int64'),
    (lambda: Add('a.0', [1.0, 2.0], where=everywhere), 'type list'),
    (lambda: Add('a.0', np.ones(4), where=lambda p, n: p), 'not a choice of positions'),
    (lambda: Add('a.0', np.ones(4), where=everywhere, layer=1), 'names a layer'),
    (lambda: Ablate('a', np.zeros(4)), 'is zero'),
    (lambda: Ablate('a', np.ones((1, 4))), 'shape'),
    (lambda: Project('a', np.ones((2, 4))), 'not orthonormal'),
    (lambda: Project('a', np.full((1, 4), np.inf)), 'NaN or infinity'),
    (lambda: Add('a', np.ones(4), where=everywhere).plants(np.nan), 'c contains NaN'),
    (lambda: Add('a', np.ones(4), where=everywhere).plants('2'), "c='2'"),
    (lambda: Add('a', np.ones(4), where=everywhere).plants([1.0, 2.0]), 'expected one number'),
    (lambda: Together([]), 'one edit or more'),
    (lambda: Add('a', np.ones(4), where=everywhere, layer=1.9), r'layer=1\.9'),
    (lambda: Add('a', np.ones(4), where=everywhere, layer=True), 'layer=True'),
    (lambda: Add('a', np.ones(4), where=everywhere, layer='1'), "layer='1'"),
    (lambda: Add('a', np.ones(4), where=everywhere, layer=np.arange(2)), 'the number of one layer'),
  ],
)
def test_edits_that_cannot_be_right_are_refused(make, message):
  with pytest.raises(SteeringError, match=message):
    make()


def test_a_coefficient_may_be_traced():
  x, v = np.ones((1, 2, D), np.float32), vector()
  edit = Add('a', v, where=everywhere)

  def total(c):
    return jnp.sum(in_one_pass(edit.plants(c), (1, 2))['a'](x))

  np.testing.assert_allclose(jax.grad(total)(0.7), 2 * v.sum(), rtol=1e-5)
  found = jax.vmap(functools.partial(total))(jnp.array([1.0, 2.0]))
  np.testing.assert_allclose(found[1] - found[0], 2 * v.sum(), rtol=1e-4)
