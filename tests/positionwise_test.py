"""Functions that are proven to act on each position separately do so, and others are never proven."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechjax import positionwise

B, T, D = 2, 9, 16
X = jnp.asarray(np.random.default_rng(0).standard_normal((B, T, D)), jnp.float32)
V = jnp.arange(1.0, D + 1)
ENC, DEC = (
  jnp.asarray(np.random.default_rng(i).standard_normal(s), jnp.float32)
  for i, s in ((1, (D, 24)), (2, (24, D)))
)
ROWS = jnp.arange(1.0, B + 1)[:, None, None]


def dictionary(x):
  """TopK without its scatter, with a skip."""
  latents = jax.nn.relu((x - V) @ ENC)
  least = jax.lax.top_k(latents, 3)[0][..., -1:]
  return jnp.einsum('btm,md->btd', jnp.where(latents >= least, latents, 0), DEC) + V


APART = {
  'a direction is added': lambda x: x + 2.0 * V,
  'an array of NumPy is added': lambda x: x + np.arange(D, dtype=np.float32),
  'zeros': jnp.zeros_like,
  'a constant vector': lambda x: jnp.broadcast_to(V, x.shape),
  'some neurons are scaled': lambda x: x.at[..., :3].multiply(-2),
  'a neuron is set': lambda x: x.at[:, :, 3].set(0),
  'neurons are set': lambda x: x.at[..., jnp.array([1, 2])].set(0.0),
  'a neuron is copied': lambda x: x.at[..., 5].set(x[..., 4]),
  'a head is set': lambda x: x.reshape(*x.shape[:2], 4, 4).at[:, :, 1].set(0).reshape(x.shape),
  'a direction is projected out': lambda x: x - (x @ V)[..., None] * V / (V @ V),
  'unit length': lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True),
  'normalisation': lambda x: (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True),
  'a softmax of neurons': lambda x: jax.nn.softmax(x, -1),
  'sorted neurons': lambda x: jnp.sort(x, -1),
  'reversed neurons': lambda x: x[..., ::-1],
  'neurons below the median are silenced': lambda x: jnp.where(
    x > jnp.median(x, -1, keepdims=True), x, 0
  ),
  'clipped': lambda x: jnp.clip(x, -1, 1),
  'where positive': lambda x: jnp.where(x > 0.5, x, 0),
  'activations': lambda x: jax.nn.relu(x) * jax.nn.gelu(x) + jax.nn.silu(x),
  'under jit': jax.jit(lambda x: x * 2),
  'axes swapped there and back': lambda x: jnp.swapaxes(jnp.swapaxes(x, 1, 2) * 2, 1, 2),
  'a dictionary': dictionary,
  'rows in different ways': lambda x: x * ROWS,
}
TOGETHER = {
  'the third position is set': lambda x: x.at[:, 3].set(V),
  'the last position is set': lambda x: x.at[:, -1].set(0),
  'the mean is taken away': lambda x: x - x.mean(1, keepdims=True),
  'the largest of all is taken away': lambda x: x - x.max(),
  'the last position is added': lambda x: x + x[:, -1:],
  'one position on': lambda x: jnp.roll(x, 1, 1),
  'one position on, by slices': lambda x: x.at[:, 1:].set(x[:, :-1]),
  'reversed': lambda x: x[:, ::-1],
  'sums so far': lambda x: jnp.cumsum(x, 1),
  'a softmax of positions': lambda x: jax.nn.softmax(x, 1),
  'sorted positions': lambda x: jnp.sort(x, 1),
  'attention': lambda x: jnp.einsum('btd,bsd->bts', x, x) @ x,
  'divided by the width': lambda x: x / x.shape[1],
  'single positions stay': lambda x: x if x.shape[1] == 1 else x + 1,
  'width 7 stays': lambda x: x if x.shape[1] == 7 else x + 1,
  'as many neurons as positions': lambda x: x.at[..., : x.shape[1]].set(0),
  'numbered': lambda x: x + jnp.arange(x.shape[1], dtype=x.dtype)[:, None],
  'as many as there are': lambda x: x + jnp.ones(x.shape[1]).sum(),
  'as many ones as there are': lambda x: (
    x * jnp.concatenate([jnp.ones(x.shape[1]), jnp.zeros(D - x.shape[1])])
  ),
  'noise': lambda x: x + jax.random.normal(jax.random.key(0), x.shape),
  'read in another order': lambda x: x.reshape(B, -1)[:, ::-1].reshape(x.shape),
}
WIDTHS = (T, 7, 1)


def proven(f):
  return positionwise.maps([positionwise.stage(f, [X], [(1,)], w) for w in WIDTHS], [1])


@pytest.mark.parametrize('name', APART)
def test_a_function_of_each_position_is_proven_and_is_one(name):
  f = APART[name]
  assert proven(f)
  whole = np.asarray(f(X))
  for t in (0, 4, T - 1):
    np.testing.assert_allclose(f(X[:, t : t + 1]), whole[:, t : t + 1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('name', TOGETHER)
def test_a_function_of_several_positions_is_not_proven_and_is_not_one(name):
  f = TOGETHER[name]
  assert not proven(f)
  alone = np.concatenate([f(X[:, t : t + 1]) for t in range(T)], 1)
  part = f(X[:, :7])
  assert np.abs(alone - f(X)).max() > 1e-3 or np.abs(part - f(X)[:, :7]).max() > 1e-3


def test_what_has_no_rule_or_an_effect_is_not_proven():
  loop = lambda x: jax.lax.fori_loop(0, 3, lambda _, y: y + 1, x)  # noqa: E731

  def printed(x):
    jax.debug.print('{}', x[0, 0, 0])
    return x

  assert not proven(loop)
  assert not proven(printed)


@pytest.mark.parametrize(
  ('f', 'apart'),
  [
    (APART['rows in different ways'], True),
    (APART['a dictionary'], True),
    (TOGETHER['the mean is taken away'], True),
    (TOGETHER['the third position is set'], True),
    (TOGETHER['numbered'], True),
    (lambda x: x.at[1].set(0), True),
    (lambda x: x.at[1].set(x[0]), False),
    (lambda x: x - x.mean(0), False),
    (lambda x: x[::-1], False),
    (TOGETHER['the largest of all is taken away'], False),
  ],
)
def test_rows_are_kept_apart_though_each_may_be_treated_in_its_own_way(f, apart):
  assert positionwise.maps([positionwise.stage(f, [X], [(1,)], T)], [0], alike=False) == apart
  changed = X.at[0].add(5)
  moved = np.abs(np.asarray(f(X))[1] - np.asarray(f(changed))[1]).max() > 1e-6
  assert moved != apart
