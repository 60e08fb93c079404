"""The equations of docs/methods.md, section 4, in NumPy, one token and one latent at a time where that is clearest.

Everything is float64. `case` makes parameters in which every vector is random, so that nothing is hidden by a zero.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mechjax.sae import BatchTopK, Gated, JumpReLU, ReLU, TopK

B, D, E, M, K = 24, 6, 5, 16, 3
SHAPE: dict[str, Any] = {'d_in': D, 'width': M}
SAES = {
  'relu': ReLU(**SHAPE, sparsity=0.3),
  'gated': Gated(**SHAPE, sparsity=0.3),
  'jumprelu': JumpReLU(**SHAPE, sparsity=0.3, bandwidth=0.4),
  'topk': TopK(**SHAPE, k=K),
  'batch_topk': BatchTopK(**SHAPE, k=K),
}


def case(sae, seed=0):
  """Random parameters, inputs and targets, float64; targets are None for an autoencoder."""
  r = np.random.default_rng(seed)
  params = sae.init(jax.random.key(seed))
  params = {name: 0.5 * r.standard_normal(value.shape) for name, value in params.items()}
  params['W_dec'] /= np.linalg.norm(params['W_dec'], axis=1, keepdims=True)
  if 'log_threshold' in params:
    params['log_threshold'] = np.log(r.uniform(0.2, 0.6, M))
  if 'threshold' in params:
    params['threshold'] = np.array(0.7)
  x = r.standard_normal((B, sae.d_in))
  y = r.standard_normal((B, sae.d_out)) if sae.d_out else None
  return on_device(params), jnp.asarray(x), None if y is None else jnp.asarray(y)


def on_device(params):
  return {name: jnp.asarray(value) for name, value in params.items()}


def on_host(params):
  return {name: np.asarray(value) for name, value in params.items()}


def relu(x):
  return np.maximum(x, 0)


def encoder(sae, p, x):
  return (x if sae.d_out else x - p['b_dec']) @ p['W_enc']


def latents(sae, p, x, k=K):
  """Latents in training, [B, M], and the numbers that the penalty acts on."""
  a = encoder(sae, p, x)
  if isinstance(sae, Gated):
    pi = a + p['b_gate']
    return (pi > 0) * relu(np.exp(p['r_mag']) * a + p['b_mag']), relu(pi)
  z = a + p['b_enc']
  if isinstance(sae, ReLU):
    return relu(z), relu(z)
  if isinstance(sae, JumpReLU):
    active = z > np.exp(p['log_threshold'])
    return z * active, active.astype(float)
  f = np.zeros_like(z)
  if isinstance(sae, TopK):
    for b in range(len(z)):
      for i in np.argsort(-z[b], kind='stable')[:k]:
        f[b, i] = max(z[b, i], 0)
  else:
    for flat in np.argsort(-z, axis=None)[: len(z) * k]:
      b, i = np.unravel_index(flat, z.shape)
      f[b, i] = max(z[b, i], 0)
  return f, np.zeros_like(f)


def decode(sae, p, f, x):
  return f @ p['W_dec'] + p['b_dec'] + (x @ p['W_skip'] if sae.skip else 0)


def nested(sae, p, f, x, target):
  total = 0.0
  for m in sae.prefixes or (sae.width,):
    x_hat = f[:, :m] @ p['W_dec'][:m] + p['b_dec'] + (x @ p['W_skip'] if sae.skip else 0)
    total += np.mean(np.sum((target - x_hat) ** 2, 1))
  return total


def parts(sae, p, x, y, frozen=None, k=K):
  """The parts of the loss; `frozen` is the decoder of Gated's last term."""
  target = x if y is None else y
  f, penalised = latents(sae, p, x, k)
  result = {
    'reconstruction': nested(sae, p, f, x, target),
    'sparsity': getattr(sae, 'sparsity', 0.0) * np.mean(penalised.sum(1)),
    'aux': 0.0,
  }
  if isinstance(sae, Gated):
    fixed = {name: (frozen or p)[name] for name in ('W_dec', 'b_dec', 'W_skip') if name in p}
    result['gate'] = nested(sae, p | fixed, penalised, x, target)
  return result


def slope(function, params, direction, h=1e-6):
  """The derivative of a function of parameters along a direction, by central differences."""
  ahead = {name: value + h * direction[name] for name, value in params.items()}
  behind = {name: value - h * direction[name] for name, value in params.items()}
  return (function(ahead) - function(behind)) / (2 * h)


def scattered(sae, r):
  """Parameters that all differ from their initial values, float32, with thresholds where they matter."""
  D, M, E = sae.d_in, sae.width, sae.target_width
  shapes = {'W_enc': (D, M), 'W_dec': (M, E), 'b_dec': (E,)}
  shapes |= dict.fromkeys(sae.PER_LATENT, (M,)) | ({'W_skip': (D, E)} if sae.skip else {})
  params = {name: 0.5 * r.standard_normal(shape) for name, shape in shapes.items()}
  params['W_dec'] /= np.linalg.norm(params['W_dec'], axis=1, keepdims=True)
  if isinstance(sae, JumpReLU):
    params['log_threshold'] = np.log(r.uniform(0.2, 0.6, M))
  if isinstance(sae, BatchTopK):
    params['threshold'] = np.array(0.7)
  return {name: value.astype(np.float32) for name, value in params.items()}
