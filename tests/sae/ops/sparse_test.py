"""The sparse path of TopK: its kernels against NumPy, and its values and gradients against the dense path."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mechjax.sae import AuxK, Sparse, TopK, firings
from mechjax.sae.ops import sparse
from mechjax.sae.training import Ensemble, Optimisation, Trainer
from tests.sae import plain

pytestmark = pytest.mark.usefixtures('float64')
N, K, M, D = 12, 3, 10, 7


def entries(seed=0, n=N, k=K, m=M, d=D):
  r = np.random.default_rng(seed)
  indices = np.stack([r.permutation(m)[:k] for _ in range(n)]).astype(np.int32)
  return r.standard_normal((n, k)), indices, r.standard_normal((n, d)), r.standard_normal((m, d))


def test_sparse_latents_know_their_dense_form_and_how_often_they_fire():
  values, indices, _, _ = entries()
  latents = Sparse(jnp.maximum(values, 0), jnp.asarray(indices), M)
  f = np.zeros((N, M))
  for b in range(N):
    f[b, indices[b]] = np.maximum(values[b], 0)
  np.testing.assert_array_equal(latents.to_dense(), f)
  np.testing.assert_array_equal(firings(latents), (f > 0).sum(0))
  np.testing.assert_array_equal(firings(jnp.asarray(f)), (f > 0).sum(0))
  inside = (np.arange(M) >= 2) & (np.arange(M) < 6)
  np.testing.assert_array_equal(latents.restrict(2, 6).to_dense(), f * inside)


@pytest.mark.parametrize('block_bytes', [1, 4 * K * D * 8, 1 << 30])
def test_the_kernels_are_their_definitions(block_bytes, monkeypatch):
  monkeypatch.setattr(sparse, 'BLOCK_BYTES', {'cpu': block_bytes, 'default': block_bytes})
  values, indices, g, W = entries()
  np.testing.assert_allclose(
    jax.jit(sparse.gather)(values, indices, W), np.einsum('bk,bkd->bd', values, W[indices])
  )
  np.testing.assert_allclose(
    jax.jit(sparse.dots)(g, indices, W), np.einsum('bd,bkd->bk', g, W[indices])
  )


@pytest.mark.parametrize('rows', [1, 2, 256])
def test_the_largest_pre_activations_do_not_depend_on_blocks(rows, monkeypatch):
  monkeypatch.setattr(sparse, 'BLOCK_BYTES', {'cpu': 1, 'default': 1})
  monkeypatch.setattr(sparse, 'ROWS_OF_PRODUCT', rows)
  _, _, x, W = entries()
  centre, b_enc = x[0] / 2, np.linspace(-1, 1, M)
  z = (x - centre) @ W.T + b_enc
  values, indices = jax.jit(sparse.top_pre_activations, static_argnums=4)(x, centre, W.T, b_enc, K)
  np.testing.assert_allclose(values, -np.sort(-z)[:, :K])
  np.testing.assert_array_equal(indices, np.argsort(-z)[:, :K])


@pytest.mark.parametrize('kernel', [sparse.scatter_at_once, sparse.scatter_one_by_one])
def test_both_ways_of_scattering_add_up(kernel):
  values, indices, g, _ = entries()
  expected = np.zeros((M, D))
  for b in range(N):
    for j in range(K):
      expected[indices[b, j]] += values[b, j] * g[b]
  scatter = partial(kernel, width=M)
  np.testing.assert_allclose(jax.jit(scatter)(values, indices, g), expected, atol=1e-12)
  twice = jax.vmap(scatter, (0, None, None))(np.stack([values, 2 * values]), indices, g)
  np.testing.assert_allclose(twice[1], 2 * expected, atol=1e-12)


@settings(max_examples=6, deadline=None)
@given(
  seed=st.integers(0, 99),
  n=st.sampled_from([1, 5]),
  k=st.sampled_from([1, 4]),
  m=st.sampled_from([4, 9]),
)
def test_derivatives_are_those_of_the_dense_products(seed, n, k, m):
  with jax.enable_x64(True):
    _, _, x, W = entries(seed, n, k, m)
    b_dec, b_enc = x[0] / 2, np.linspace(-1, 1, m)
    direction = jnp.asarray(np.cos(np.arange(D)))

    def by_kernels(x, b_dec, W_enc, b_enc, W):
      values, indices = sparse.top_pre_activations(x, b_dec, W_enc, b_enc, k)
      return jnp.sum(sparse.decode(values, indices, W) @ direction)

    def by_products(x, b_dec, W_enc, b_enc, W):
      values, indices = jax.lax.top_k((x - b_dec) @ W_enc + b_enc, k)
      return jnp.sum(sparse.densify(values, indices, m) @ W @ direction)

    arguments = tuple(jnp.asarray(a) for a in (x, b_dec, W.T, b_enc, W))
    ours = jax.jit(jax.grad(by_kernels, argnums=range(5)))(*arguments)
    expected = jax.jit(jax.grad(by_products, argnums=range(5)))(*arguments)
    for one, other in zip(ours, expected):
      np.testing.assert_allclose(one, other, atol=1e-12)


@pytest.mark.parametrize(
  'setting',
  [
    {},
    {'prefixes': (2, 7, plain.M), 'aux_loss': AuxK(k=2)},
    {'d_out': plain.E, 'skip': True},
  ],
  ids=['autoencoder', 'matryoshka with auxk', 'skip transcoder'],
)
def test_the_sparse_path_equals_the_dense_one(setting):
  sae = dataclasses.replace(plain.SAES['topk'], **setting)
  params, x, y = plain.case(sae)
  dead = jnp.arange(plain.M) % 3 == 0
  hparams = sae.hparams(k=2)

  def results(sae):
    loss = jax.value_and_grad(lambda p, x: sae.loss(p, x, y, hparams, dead)[0], argnums=(0, 1))
    return jax.jit(loss)(params, x)

  jax.tree.map(
    partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-11),
    results(sae),
    results(dataclasses.replace(sae, sparse=False)),
  )


def test_a_sparse_step_holds_no_dense_gradient_and_sorts_no_row():
  """It is fast because of one product of the size of B * D * M, XLA's own TopK, and pre-activations in blocks."""
  n, d, m, k = 64, 32, 512, 4
  compiled = compiled_gradient(n, d, m, k)
  assert 'custom_call_target="TopK"' in compiled.as_text()
  assert compiled.cost_analysis()['flops'] < 1.5 * 2 * n * d * m
  n, m = 4096, 2048
  assert compiled_gradient(n, d, m, k).memory_analysis().temp_size_in_bytes < 0.5 * 4 * n * m


def test_a_training_step_holds_both_gradients_and_one_of_them_transposed():
  """XLA could add zeros that two scatters share, and a second transposed gradient for the norm."""
  d, m = 256, 2048
  trainer = Trainer(
    {'a': Ensemble(sae=TopK(d_in=d, width=m, k=2), reads='x')},
    Optimisation(steps=9, warm_up_steps=0),
  )
  x = jnp.zeros((16, d), jnp.float32)
  step = jax.jit(trainer.step).lower(trainer.init(), {'x': x}).compile()
  assert step.memory_analysis().temp_size_in_bytes < 3.5 * 4 * d * m
  assert f'= f32[{m},{d}]{{1,0}} copy(' not in step.as_text()


def compiled_gradient(n, d, m, k):
  sae = TopK(d_in=d, width=m, k=k)
  params = jax.tree.map(lambda a: a.astype(jnp.float32), sae.init(jax.random.key(0)))
  step = jax.jit(jax.grad(lambda p, x: sae.loss(p, x)[0]))
  return step.lower(params, jnp.zeros((n, d), jnp.float32)).compile()
