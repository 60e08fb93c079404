"""Clamping in closed form, against the full decode, and a latent read alone, against the whole encoder."""

import dataclasses

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from mechjax.errors import SteeringError
from mechjax.sae import Pursued, Pursuit, ReLU, TopK
from mechjax.steering import Clamp, everywhere, in_one_pass, last
from mechjax.steering.clamping import latent_reader
from tests.generate.small import generated as generate
from tests.sae.plain import SAES, SHAPE, D, M, case


def full_decode(sae, params, x, latent, value, only_active):
  """decode(f with f_i = a) + (x - decode(f)), with the whole dictionary."""
  f = sae.encode(params, x)
  new = f.at[..., latent].set(value)
  if only_active:
    new = jnp.where(f[..., latent : latent + 1] > 0, new, f)
  return sae.decode(params, new) + (x - sae.decode(params, f))


def clamp(sae, params, x, latent, value, c=1.0, **options):
  edit = Clamp('a', sae, params, latent=latent, value=value, **options)
  return jax.jit(in_one_pass(edit.plants(c), x.shape[:2])['a'])(x)


def active(sae, params, x):
  """Latents that are active at some tokens and not at all."""
  f = np.asarray(sae.encode(params, x)) > 0
  found = np.flatnonzero(f.any((0, 1)) & ~f.all((0, 1)))
  assert len(found) >= 3
  return found[:3]


@pytest.mark.parametrize('name', SAES)
def test_clamping_equals_the_full_decode(name):
  with jax.enable_x64(True):
    sae = SAES[name]
    params, x, _ = case(sae)
    x = x.reshape(4, 6, D)
    for latent in active(sae, params, x):
      for value, only_active in ((5.0, False), (-2.0, True), (0.0, False)):
        found = clamp(sae, params, x, int(latent), value, only_active=only_active)
        expected = full_decode(sae, params, x, int(latent), value, only_active)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
        assert np.abs(found - x).max() > 0.1


@pytest.mark.parametrize('name', SAES)
def test_a_latent_alone_is_that_of_the_whole_encoder(name):
  with jax.enable_x64(True):
    params, x, _ = case(SAES[name], seed=3)
    f = np.asarray(SAES[name].encode(params, x))
    for i in range(M):
      found = latent_reader(SAES[name], params, i)(x)
      np.testing.assert_allclose(found, f[:, i], rtol=0, atol=1e-13)
    assert ((f > 0).sum(0) > 0).sum() > M // 2


def test_equal_pre_activations_are_ranked_as_the_encoder_ranks_them():
  sae = TopK(d_in=2, width=4, k=2)
  params = sae.init(jax.random.key(0)) | {'W_enc': jnp.array([[1.0, 1.0, 1.0, -1.0]] * 2)}
  x = jnp.array([[1.0, 1.0], [-1.0, -2.0]])
  f = np.asarray(sae.encode(params, x))
  assert (f > 0).sum(0).tolist() == [1, 1, 0, 1]
  for i in range(4):
    np.testing.assert_array_equal(latent_reader(sae, params, i)(x), f[:, i])


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Doubled(ReLU):
  """An architecture that is not one of ours: twice the latents of a ReLU."""

  def encode(self, params, x):
    return 2 * super().encode(params, x)


def test_an_architecture_of_the_user_is_asked_for_its_latents():
  sae = _Doubled(**SHAPE, sparsity=0.1)
  params, x, _ = case(SAES['relu'])
  x = x.astype(jnp.float32).reshape(4, 6, D)
  params = jax.tree.map(lambda p: p.astype(jnp.float32), params)
  found = clamp(sae, params, x, 2, 3.0)
  np.testing.assert_allclose(found, full_decode(sae, params, x, 2, 3.0, False), rtol=0, atol=1e-5)


def narrow(name):
  sae = dataclasses.replace(SAES[name], d_in=16)
  params, _, _ = case(sae)
  return sae, jax.tree.map(lambda p: p.astype(jnp.float32), params)


@pytest.mark.parametrize('name', SAES)
def test_a_coefficient_of_zero_changes_no_bit(name):
  sae, params = narrow(name)
  x = np.random.default_rng(0).standard_normal((2, 3, 16)).astype(ml_dtypes.bfloat16)
  x[0, 0, :2] = -0.0, np.inf
  x = jnp.asarray(x)
  assert np.asarray(clamp(sae, params, x, 1, 4.0, c=0.0)).tobytes() == np.asarray(x).tobytes()


@pytest.mark.parametrize('name', ['relu', 'gated', 'topk'])
def test_clamping_runs_under_the_cache_and_equals_the_passes_without_it(name):
  """`generate` refuses a function of positions that is not proven; the values are those of the closed form."""
  sae, params = narrow(name)
  edit = Clamp('resid_pre.1', sae, params, latent=3, value=6.0, where=last(1))
  out = generate('gpt2', 3, plants=edit.plants(), sites='resid_pre.1, embed')
  plain = generate('gpt2', 3, sites='resid_pre.1')
  x = plain.reads[0]['resid_pre.1']
  expected = full_decode(sae, params, x[:, -1], 3, 6.0, False)
  np.testing.assert_allclose(out.reads[0]['resid_pre.1'][:, -1], expected, rtol=0, atol=1e-4)


def test_latents_and_values_are_data():
  sae, params = narrow('jumprelu')
  x = np.random.default_rng(0).standard_normal((2, 3, 16)).astype(np.float32)
  traces = []

  @jax.jit
  def run(latent, value, x):
    traces.append(latent)
    return in_one_pass(Clamp('a', sae, params, latent=latent, value=value).plants(), x.shape[:2])[
      'a'
    ](x)

  for latent, value in ((0, 1.0), (5, 1.0), (5, 2.5)):
    found = run(jnp.int32(latent), jnp.float32(value), x)
    expected = full_decode(sae, params, jnp.asarray(x), latent, value, False)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
  assert len(traces) == 1


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'latent': M}, 'latent 16 of a dictionary with 16'),
    ({'latent': -1}, 'latent -1'),
    ({'latent': 1.5}, r'latent 1\.5'),
    ({'value': np.nan}, 'value contains NaN'),
    ({'sae': ReLU(d_in=D, width=M, d_out=4, sparsity=0.1)}, 'a transcoder'),
    ({'sae': 'relu'}, 'in place of a dictionary'),
  ],
)
def test_what_cannot_be_clamped_is_refused(options, message):
  params, _, _ = case(SAES['relu'])
  given = {'sae': SAES['relu'], 'latent': 1, 'value': 1.0, 'where': everywhere} | options
  with pytest.raises(SteeringError, match=message):
    Clamp('a', given.pop('sae'), params, **given)


def test_whole_numbers_among_the_parameters_stay():
  sae = Pursued(TopK(d_in=6, width=9, k=3), Pursuit(k=3))
  params = sae.init(jax.random.key(0))
  x = jax.random.normal(jax.random.key(1), (1, 4, 6))
  found = clamp(sae, params | {'k': jnp.int32(2)}, x, 4, 1.5)
  two = Pursued(TopK(d_in=6, width=9, k=2), Pursuit(k=2))
  np.testing.assert_allclose(found, clamp(two, params, x, 4, 1.5), atol=1e-5)
