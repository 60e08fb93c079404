"""Rows of attributions are complete, and equal derivatives of a frozen decoder that is written out."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechjax.circuits import Targets, attribute_rows, difference, features, logits, probe
from mechjax.errors import CircuitError
from tests.circuits import small
from tests.models import decoders

FAMILIES = [n for n in decoders.CONFIGS if n != 'attn-only']
CASES = [
  *((name, 'skip transcoders') for name in FAMILIES),
  *((name, 'neurons') for name in ('gpt2', 'neox', 'gemma')),
  ('gemma', 'some neurons'),
  ('gemma', 'one transcoder'),
  ('attn-only', 'nothing'),
]


def every_target(frozen):
  D = frozen.layout.width
  direction = np.linspace(-1, 1, D) ** 3
  sites = ['resid_pre.1', 'attn_norm.0', 'resid_post.0', 'final_norm']
  sites += ['mlp_norm.1'] if frozen.layout.has_mlp else []
  parts = [logits(frozen, 0.9), difference(frozen, 3, 5, -2)]
  parts += [probe(frozen, site, 4, direction) for site in sites]
  if len(frozen.features):
    parts.append(features(frozen, np.arange(0, len(frozen.features), 3)))
  return Targets.join(parts)


def misses(rows, targets):
  table = rows.table()
  return np.abs(rows.total() - targets.value) / np.abs(table).max(1)


@pytest.mark.parametrize(('name', 'replaced'), CASES)
def test_every_row_sums_to_its_target(name, replaced):
  with jax.enable_x64(True):
    frozen = small.frozen(name, replaced)
    targets = every_target(frozen)
    assert misses(attribute_rows(frozen, targets), targets).max() < 1e-10
    assert np.abs(targets.value).min() > 0


@pytest.mark.parametrize('name', ['gpt2', 'gemma'])
def test_rows_of_float32_sum_to_their_targets_as_well(name):
  frozen = small.frozen(name, dtype='float32')
  targets = every_target(frozen)
  rows = attribute_rows(frozen, targets, batch=16)
  assert rows.table().dtype == np.float32
  assert misses(rows, targets).max() < 1e-5


@pytest.mark.parametrize('name', ['gpt2', 'gemma', 'mistral'])
def test_a_row_is_the_derivative_of_a_decoder_whose_patterns_and_norms_are_constants(name):
  with jax.enable_x64(True):
    frozen = small.frozen(name, 'one transcoder')
    targets = every_target(frozen)
    rows = attribute_rows(frozen, targets)
    embed = small.acts(name)['embed'][0]
    writes = jnp.stack([small.acts(name)[f'mlp_out.{l}'][0] for l in range(2)])
    f = frozen.features
    assert len(f)
    decoder = np.asarray(small.transcoder(1, False)[1]['W_dec'], np.float64)
    d = decoder[f.latent] * np.asarray(f.activation)[:, None]
    for i, level in enumerate(targets.level):
      pull = jax.vjp(lambda e, w, level=int(level): small.plain(name, e, w, level), embed, writes)[
        1
      ]
      at = jnp.zeros(embed.shape).at[targets.position[i]].set(targets.vector[i])
      by_embed, by_writes = pull(at)
      np.testing.assert_allclose(rows.embed[i], (by_embed * embed).sum(-1), atol=1e-12)
      errors = (np.asarray(by_writes) * frozen.errors).sum(-1)
      np.testing.assert_allclose(rows.errors[i], errors, atol=1e-12)
      reached = np.asarray(by_writes)[f.layer, f.position]
      np.testing.assert_allclose(rows.features[i], (reached * d).sum(-1), atol=1e-12)


def test_values_of_targets_are_those_of_the_model():
  with jax.enable_x64(True):
    frozen, values = small.frozen('gpt2'), small.acts('gpt2')
    last = values['logits'][0, -1]
    found = logits(frozen, 0.9, at_most=31)
    np.testing.assert_allclose(found.value, last[np.array(found.tokens)] - last.mean(), rtol=1e-10)
    probs = jax.nn.softmax(last)
    np.testing.assert_allclose(found.weight, probs[np.array(found.tokens)], rtol=1e-10)
    assert found.weight.sum() >= 0.9 > found.weight[:-1].sum()
    second = values['logits'][0, -2]
    np.testing.assert_allclose(difference(frozen, 3, 5, -2).value, second[3] - second[5])
    w = np.arange(16.0)
    for site in ('resid_mid.1', 'mlp_norm.1', 'final_norm'):
      np.testing.assert_allclose(probe(frozen, site, 2, w).value, values[site][0, 2] @ w, rtol=1e-9)


def test_logits_under_a_soft_cap_are_targets_before_the_cap():
  with jax.enable_x64(True):
    frozen, values = small.frozen('gemma'), small.acts('gemma')
    capped, cap = values['logits'][0, -1], decoders.CONFIGS['gemma'].logit_softcap
    raw = cap * np.arctanh(capped / cap)
    found = logits(frozen, 0.9)
    np.testing.assert_allclose(found.value, raw[np.array(found.tokens)] - raw.mean(), rtol=1e-8)


def test_no_row_reaches_beyond_its_layer_and_position():
  with jax.enable_x64(True):
    frozen = small.frozen('gpt2')
    w = np.ones(16)
    rows = attribute_rows(frozen, probe(frozen, 'resid_mid.1', 4, w))
    assert np.abs(rows.errors[0, 0, :5]).min() > 0
    assert not rows.errors[0, 1].any()
    assert not rows.errors[0, 0, 5:].any()
    assert not rows.embed[0, 5:].any()


def test_other_targets_do_not_compile_again():
  from mechjax.circuits import rows as rows_lib

  frozen = small.frozen('gpt2', dtype='float32')
  attribute_rows(frozen, logits(frozen, 0.9), 8)
  before = rows_lib._rows._cache_size()
  attribute_rows(frozen, features(frozen, [1, 20, 50]), 8)
  attribute_rows(frozen, probe(frozen, 'resid_pre.0', 0, np.ones(16)), 8)
  assert rows_lib._rows._cache_size() == before


def test_windows_limit_what_reaches_a_target():
  with jax.enable_x64(True):
    frozen = small.frozen('mistral')  # windows of 3 in both layers: 4 positions back at most
    row = attribute_rows(frozen, probe(frozen, 'final_norm', 8, np.ones(16)))
    assert not row.embed[0, :4].any()
    assert np.abs(row.embed[0, 4:]).min() > 0


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda f: logits(f, 0.0), 'mass=0'),
    (lambda f: logits(f, position=9), 'position 9'),
    (lambda f: difference(f, 3, 3), 'tokens 3 and 3'),
    (lambda f: difference(f, 3, 99), '99'),
    (lambda f: features(f, [10**6]), 'active features'),
    (lambda f: probe(f, 'z.1', 0, np.ones(16)), 'z.1'),
    (lambda f: probe(f, 'resid_mid.7', 0, np.ones(16)), 'resid_mid.7'),
    (lambda f: probe(f, 'resid_mid.1', 0, np.ones(5)), 'shape'),
    (lambda f: probe(f, 'resid_mid.1', 0, np.full(16, np.nan)), 'finite'),
    (lambda f: Targets.join([]), 'no targets'),
    (lambda f: attribute_rows(f, logits(f), 0), 'batch=0'),
  ],
)
def test_targets_that_do_not_exist_are_refused(make, message):
  frozen = small.frozen('gpt2', dtype='float32')
  with pytest.raises(CircuitError, match=message):
    make(frozen)


def test_a_parallel_model_has_no_middle_to_read_at():
  with jax.enable_x64(True):
    frozen = small.frozen('neox')
    with pytest.raises(CircuitError, match=r'resid_mid\.1'):
      probe(frozen, 'resid_mid.1', 0, np.ones(16))


def test_logits_that_are_not_linear_are_refused():
  frozen = small.frozen('gpt2', dtype='float32')
  with pytest.raises(CircuitError, match='not linear in the final norm'):
    logits(dataclasses.replace(frozen, logits=frozen.logits**3))


def test_batches_are_divided_where_memory_ends_and_a_row_that_is_too_large_is_refused(monkeypatch):
  from mechjax.circuits import rows as rows_lib

  frozen = small.frozen('gpt2', dtype='float32')
  targets = features(frozen, np.arange(20))
  whole = attribute_rows(frozen, targets)
  L, T, D = frozen.errors.shape
  one = (2 * L * T + rows_lib.WRITES) * D * 4
  monkeypatch.setattr(rows_lib, 'BUDGET', 3 * one)
  assert rows_lib.fit_batch(frozen, 64) == 3
  np.testing.assert_allclose(attribute_rows(frozen, targets).table(), whole.table(), atol=1e-6)
  monkeypatch.setattr(rows_lib, 'BUDGET', one - 1)
  with pytest.raises(CircuitError, match='needs 0 MiB'):
    attribute_rows(frozen, targets)
