"""Dictionaries with a known truth: every architecture has to find the features that the data were made of.

Activations are sparse features times directions, x = f @ truth; 48 features in 32 dimensions, each active with
probability 0.04 and then uniform in [0, 1]. Two truths are learned side by side, under vmap:

    superposition   the embedding of a Toy Model of Superposition (Elhage et al. 2022): W of ReLU(f W W^T + b), trained
                    here to reconstruct f through the 32 dimensions, for which it puts features into antipodal pairs
    planted         random directions, which overlap in all ways

The measure is the mean over true features of the largest cosine similarity with a row of the decoder (MMCS, Sharkey
et al. 2022), at least 0.95. A transcoder reads x = f @ truth and has to find the other truth in y = f @ other. With a
skip, rows of the decoder are the effect of a feature beyond the linear map, and many maps are equally good; the
truth is the effect of the whole on a single feature, which no linear map can reproduce for 48 features in 32
dimensions.

Settings for all: 64 latents, 1,200 steps of 256 tokens, Adam(b1=0) at 1e-2 with a cosine decay, sparsity coefficient
from 0 in the first fifth, E|x|^2 = 1, seed 0.
"""

from functools import partial

import jax
import jax.numpy as jnp
import optax
import pytest

from mechjax.sae import (
  AuxK,
  BatchTopK,
  FeatureChoice,
  Gated,
  JumpReLU,
  PAnnealing,
  ReLU,
  TargetedJumpReLU,
  TopK,
  firings,
)
from mechjax.sae.dead_latents import counters
from mechjax.sae.ops import unit_rows

pytestmark = [pytest.mark.optimised, pytest.mark.slow]

N, D, B, M, STEPS = 48, 32, 256, 64, 1200
SHAPE = {'d_in': D, 'width': M}
ANNEALING = PAnnealing(start=300, stop=1000, p_end=0.5, epsilon=1e-2)
OTHER = {**SHAPE, 'd_out': D}
SAES = {
  'relu': ReLU(**SHAPE, sparsity=0.4),
  'gated': Gated(**SHAPE, sparsity=0.8),
  'jumprelu': JumpReLU(**SHAPE, sparsity=0.06, bandwidth=0.05),
  'topk': TopK(**SHAPE, k=2),
  'batch topk': BatchTopK(**SHAPE, k=2, aux_loss=AuxK(alpha=1 / 4, k=2, after_tokens=4 * B)),
  'annealed relu': ReLU(**SHAPE, sparsity=0.4, annealing=ANNEALING),
  'annealed gated': Gated(**SHAPE, sparsity=0.8, annealing=ANNEALING),
  'feature choice': FeatureChoice(**SHAPE, k=2),
  'jumprelu with a target': TargetedJumpReLU(**SHAPE, l0=1.8, sparsity=0.1, bandwidth=0.2),
  'matryoshka': TopK(**SHAPE, k=2, prefixes=(N, M)),
  'transcoder': ReLU(**OTHER, sparsity=0.4),
  'skip transcoder': TopK(**OTHER, k=2, skip=True),
}


def features(key, n):
  of_activity, of_size = jax.random.split(key)
  active = jax.random.bernoulli(of_activity, 0.04, (n, N))
  return jnp.where(active, jax.random.uniform(of_size, (n, N)), 0)


@jax.jit
def superposition(key):
  """W of a Toy Model of Superposition, [N, D]."""
  optimiser = optax.adam(1e-2)

  def loss(params, f):
    f_hat = jax.nn.relu(f @ params['W'] @ params['W'].T + params['b'])
    return jnp.mean(jnp.sum(jnp.square(f - f_hat), -1))

  def step(carry, key):
    params, state = carry
    updates, state = optimiser.update(jax.grad(loss)(params, features(key, B)), state)
    return (optax.apply_updates(params, updates), state), None

  params = {'W': 0.3 * jax.random.normal(key, (N, D)), 'b': jnp.zeros(N)}
  carry, _ = jax.lax.scan(step, (params, optimiser.init(params)), jax.random.split(key, 2000))
  return carry[0]['W']


@pytest.fixture(scope='module')
def truths():
  """Both truths, [2, N, D], with E|x|^2 = 1."""
  with jax.numpy_dtype_promotion('standard'):  # optax's Adam raises a float to an integer power
    W = superposition(jax.random.key(0))
    cosines = unit_rows.unit_rows(W) @ unit_rows.unit_rows(W).T
    assert (jnp.sum(cosines < -0.9, 1) == 1).mean() > 0.3, 'antipodal pairs'
    both = jnp.stack([W, unit_rows.unit_rows(jax.random.normal(jax.random.key(1), (N, D)))])
    x = features(jax.random.key(2), 4096) @ both
    return both / jnp.sqrt(jnp.mean(jnp.sum(x**2, -1), -1))[:, None, None]


def learned(sae, truth, other):
  """The parameters of a dictionary of x = f @ truth, or of y = f @ other, and its L0 at the end."""
  rate = optax.cosine_decay_schedule(1e-2, STEPS)
  optimiser = optax.chain(unit_rows.orthogonal_to_decoder(), optax.adam(rate, b1=0.0, b2=0.999))
  after_tokens = sae.aux_loss.after_tokens if sae.aux_loss else 1
  full = sae.hparams()

  def step(carry, key_and_step):
    params, state, tokens_since_fired = carry
    key, n = key_and_step
    f = features(key, B)
    x, y = f @ truth, f @ other if sae.d_out else None
    warm_up = jnp.minimum(1, n / (0.2 * STEPS))
    hparams = {name: v * warm_up if name == 'sparsity' else v for name, v in full.items()}
    gradient = jax.grad(sae.loss, has_aux=True)
    grads, output = gradient(params, x, y, hparams, tokens_since_fired >= after_tokens)
    updates, state = optimiser.update(grads, state, params)
    params = unit_rows.normalise(optax.apply_updates(params, updates))
    fired = firings(output.latents)
    tokens_since_fired = counters.update_counters(tokens_since_fired, fired, B)
    params = sae.observe(params, output.latents) | output.observed
    return (params, state, tokens_since_fired), fired.sum() / B

  params = sae.init(jax.random.key(3))
  start = params, optimiser.init(params), counters.init_counters(M)
  numbered = jax.random.split(jax.random.key(4), STEPS), jnp.arange(STEPS)
  (params, *_), l0 = jax.lax.scan(step, start, numbered)
  return params, l0[-1]


def pairs(found, truth):
  """Cosines of found directions with true ones, [2, N, ...]."""
  return jnp.einsum('tnd,tmd->tnm', unit_rows.unit_rows(truth), unit_rows.unit_rows(found))


@pytest.mark.parametrize('name', SAES)
def test_the_true_features_are_found(name, truths):
  sae, others = SAES[name], truths[::-1]
  with jax.numpy_dtype_promotion('standard'):
    params, l0 = jax.jit(jax.vmap(partial(learned, sae)))(truths, others)
  if sae.skip:
    respond = jax.vmap(lambda p, x: sae.decode(p, sae.encode(p, x), x))
    effect = respond(params, truths) - respond(params, jnp.zeros_like(truths))
    best = jnp.diagonal(pairs(effect, others), axis1=1, axis2=2)
  else:
    best = pairs(params['W_dec'], others if sae.d_out else truths).max(-1)
  assert (best.mean(-1) >= 0.95).all(), (best.mean(-1), l0)
  assert (l0 < 3).all(), (best.mean(-1), l0)


def test_no_linear_map_responds_to_single_features_like_that(truths):
  f = features(jax.random.key(5), 8192)
  linear = jnp.stack([jnp.linalg.lstsq(f @ a, f @ b)[0] for a, b in (truths, truths[::-1])])
  assert (jnp.diagonal(pairs(truths @ linear, truths[::-1]), axis1=1, axis2=2).mean(-1) < 0.9).all()
