"""Pursuits and cut encoders as architectures: evaluated, spliced and looked at like any dictionary."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechjax import harvest
from mechjax.sae import Evaluation, ReLU, TopK, compare, features, next_tokens
from mechjax.sae.evaluation import splice
from mechjax.sae.ops import sparse
from mechjax.sae.pursuit import Pursued, Pursuit, Truncated
from tests.sae import plain
from tests.sae.evaluation import toy
from tests.sae.evaluation.definitions import losses, where
from tests.sae.pursuit import dense

R0, D, M = toy.R0, toy.D, toy.M
RELU = ReLU(d_in=D, width=M, sparsity=0.0)


def recode(own, x, k, method='gradient'):
  """Latents and reconstruction of activations [..., D], by the textbook form."""
  flat = np.asarray(x, np.float64).reshape(-1, D)
  f = dense.code(method, own['W_dec'], flat - own['b_dec'], k)
  x_hat = f @ own['W_dec'] + own['b_dec']
  return f.reshape(*x.shape[:-1], -1), x_hat.reshape(x.shape)


def test_latents_are_the_pursuit_of_the_activation_without_the_bias(float64):
  own, x = toy.double(toy.dictionary(RELU)), np.random.default_rng(0).standard_normal((3, 4, D))
  x[1, 2] = own['b_dec'] + 2 * own['W_dec'][4]
  ito = Pursued(RELU, Pursuit(3))
  f, x_hat = recode(own, x, 3)
  np.testing.assert_allclose(ito.encode(own, x), f, rtol=0, atol=1e-10)
  np.testing.assert_allclose(ito.decode(own, ito.encode(own, x)), x_hat, rtol=0, atol=1e-10)
  found = ito.reconstruct(own, x)
  np.testing.assert_allclose(found, x_hat, rtol=0, atol=1e-10)
  np.testing.assert_allclose(found[1, 2], x[1, 2], rtol=0, atol=1e-12)


@pytest.mark.slow
def test_one_evaluation_measures_the_reconstructions_of_several_numbers_of_steps():
  own, params, (tokens, kept) = toy.dictionary(RELU), toy.model(), toy.texts()
  exact, p = toy.double(own), toy.double(params)
  shared = Evaluation(toy.forward, {R0: Pursued(RELU, Pursuit(5))})
  candidates = {k: (shared, {R0: own | {'k': jnp.int32(k)}}) for k in (1, 3)}
  reports = compare(candidates, params, [next_tokens(tokens, kept)])
  assert shared._splice._jitted._cache_size() == 1
  x = toy.by_hand(p, tokens)[1][R0][kept]
  for k, report in reports.items():
    f, x_hat = recode(exact, x, k)
    fvu = np.sum((x - x_hat) ** 2) / np.sum((x - x.mean(0)) ** 2)
    change = {R0: where(kept, lambda v, k=k: recode(exact, v, k)[1])}
    site = report.sites[R0]
    np.testing.assert_allclose(site.l0, (f > 0).sum(1).mean(), rtol=1e-6)
    np.testing.assert_allclose(site.density, (f > 0).mean(0), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(site.fvu, fvu, rtol=1e-4)
    spliced = losses(p, tokens, kept, change)[0].mean()
    np.testing.assert_allclose(report.loss_spliced, spliced, rtol=1e-4)


def test_sparse_latents_of_topk_are_its_latents():
  own = toy.dictionary(TopK(d_in=D, width=M, k=3))
  sae, plain_sae = (TopK(d_in=D, width=M, k=3, sparse=sparse) for sparse in (True, False))
  x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 4, D)), jnp.float32)
  f = sae.encode(own, x)
  np.testing.assert_allclose(
    sae.encode_sparse(own, x.reshape(-1, D)).to_dense().reshape(f.shape), f, rtol=1e-6
  )
  assert plain_sae.encode_sparse(own, x.reshape(-1, D)) is None
  for one in (sae, plain_sae):
    np.testing.assert_allclose(one.reconstruct(own, x), sae.decode(own, f), rtol=0, atol=1e-5)


@pytest.mark.parametrize('kind', ['pursuit', 'truncated', 'topk'])
def test_a_splice_has_no_array_of_all_latents_of_all_tokens(kind, monkeypatch):
  monkeypatch.setattr(sparse, 'BLOCK_BYTES', {'cpu': 1, 'default': 1})
  B, T, width = 20, 30, 50
  sae = TopK(d_in=D, width=width, k=3)
  wrapper = {'pursuit': Pursued(sae, Pursuit(3)), 'truncated': Truncated(sae, 2), 'topk': sae}[kind]
  params, value = sae.init(jax.random.key(0)), jnp.ones((B, T, D))
  plant = lambda sae: splice.reconstruct(sae, params, jnp.ones((B, T), bool))  # noqa: E731
  shapes = lambda sae: {  # noqa: E731
    np.prod([int(n) for n in found.split(',')])
    for found in re.findall(r'f32\[([\d,]+)\]', str(jax.make_jaxpr(plant(sae))(value)))
  }
  assert max(shapes(wrapper)) < B * T * width
  assert max(shapes(TopK(d_in=D, width=width, k=3, sparse=False))) == B * T * width


@pytest.mark.slow
def test_a_pursuit_can_be_planted_and_features_are_collected_from_it():
  own, params, (tokens, kept) = toy.dictionary(RELU), toy.model(), toy.texts()
  ito = Pursued(RELU, Pursuit(3))
  logits = harvest.plant(toy.forward)({R0: splice.reconstruct(ito, own, kept)}, params, tokens)
  exact = toy.double(own)
  change = {R0: where(kept, lambda v: recode(exact, v, 3)[1])}
  expected = toy.by_hand(toy.double(params), tokens, change)[0]
  np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-3)
  read = lambda tokens: harvest.reap(toy.forward, sites=[R0])(params, tokens)[R0]  # noqa: E731
  found = features.collect(read, ito, own, [(tokens, kept)])
  f, _ = recode(exact, toy.by_hand(toy.double(params), tokens)[1][R0][kept], 3)
  np.testing.assert_array_equal(found.firings, (f > 0).sum(0))
  np.testing.assert_allclose(found.top.strength[:, 0], f.max(0), rtol=0, atol=1e-4)


@pytest.mark.parametrize('name', ['relu', 'topk', 'jumprelu'])
def test_a_cut_encoder_keeps_the_largest_contributions(name, float64):
  sae, k = plain.SAES[name], 2
  params, x, _ = plain.case(sae)
  own = plain.on_host(params)
  own['W_dec'] = own['W_dec'] * np.random.default_rng(0).uniform(0.05, 20, (sae.width, 1))
  f = plain.latents(sae, own, np.asarray(x))[0]
  contribution = f * np.linalg.norm(own['W_dec'], axis=1)
  expected = np.zeros_like(f)
  for b, order in enumerate(np.argsort(-contribution, axis=1)[:, :k]):
    expected[b, order] = f[b, order]
  cut = Truncated(sae, k)
  np.testing.assert_allclose(cut.encode(plain.on_device(own), x), expected, rtol=0, atol=1e-12)
  by_activation = np.argsort(-f, axis=1)[:, :k]
  assert (np.sort(by_activation) != np.sort(np.argsort(-contribution, axis=1)[:, :k])).any()


def test_a_cut_transcoder_is_decoded_with_its_input(float64):
  sae = plain.SAES['topk'].__class__(d_in=plain.D, width=plain.M, k=4, d_out=plain.E, skip=True)
  params, x, _ = plain.case(sae)
  cut = Truncated(sae, 4)
  f = sae.encode(params, x)
  np.testing.assert_allclose(cut.encode(params, x), f, rtol=0, atol=1e-12)
  expected = sae.decode(params, f, x)
  np.testing.assert_allclose(cut.reconstruct(params, x), expected, rtol=0, atol=1e-12)


def test_random_rows_are_the_initial_parameters():
  ito = Pursued(RELU, Pursuit(2))
  for name, value in RELU.init(jax.random.key(1)).items():
    np.testing.assert_array_equal(ito.init(jax.random.key(1))[name], value)
