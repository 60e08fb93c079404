"""Gradients in a store against finite differences of a loss in NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from mechjax.errors import HarvestError, SAEError, SiteError
from mechjax.sae.store import Harvester, measure
from tests.sae.store import toys

PARAMS, CONTEXTS = toys.params(), toys.contexts()
SITES = ['resid_post.2', 'grad:resid_post.1', 'grad:resid_post.2', 'z.0']


def logits(params, tokens):
  return toys.scanned(params, tokens) @ jnp.asarray(params['embed']).T


def loss_from(x, tokens, layer):
  """Sum of next-token losses of a row, from resid_post of a layer on, float64."""
  for w in PARAMS['w'][layer + 1 :]:
    x = np.tanh(x @ w.astype(float))
  scores = x @ PARAMS['embed'].T.astype(float)
  scores = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
  return -sum(scores[t, token] for t, token in enumerate(tokens[1:]))


def gradient(x, tokens, layer, h=1e-6):
  found = np.zeros_like(x)
  for at in np.ndindex(x.shape):
    step = np.zeros_like(x)
    step[at] = h
    found[at] = (loss_from(x + step, tokens, layer) - loss_from(x - step, tokens, layer)) / (2 * h)
  return found


@pytest.fixture(scope='module')
def rows():
  harvester = Harvester(logits, PARAMS, SITES, CONTEXTS, batch=3)
  assert harvester.widths == {SITES[0]: toys.D, SITES[1]: toys.D, SITES[2]: toys.D, 'z.0': toys.D}
  return harvester.rows(np.array([4, 2]), 0, 100)


def test_gradients_are_those_of_the_sum_of_the_losses_of_a_context(rows):
  tokens = CONTEXTS.file[[4, 2]]
  kept = ~np.isin(tokens, CONTEXTS.special)
  for name, layer in ((SITES[1], 1), (SITES[2], 2)):
    x = toys.by_hand(PARAMS, tokens, layer).astype(float)
    expected = np.stack([gradient(x[n], tokens[n], layer) for n in range(2)])
    assert (np.abs(expected[:, :-1]) > 1e-4).any()
    np.testing.assert_allclose(expected[:, -1], 0, atol=1e-12)
    np.testing.assert_allclose(rows[name], expected[kept], atol=1e-4)


def test_activations_beside_gradients_are_those_of_a_plain_pass(rows):
  plain = Harvester(toys.scanned, PARAMS, [SITES[0], 'z.0'], CONTEXTS, batch=3)
  for site, expected in plain.rows(np.array([4, 2]), 0, 100).items():
    np.testing.assert_allclose(rows[site], expected, atol=1e-6)


def test_gradients_have_no_maximum():
  x = np.ones((50, 2), np.float32)
  x[7] = 1000
  found = measure({'grad:a': x, 'b': np.ones((50, 2), np.float32)}, max_norm_ratio=10.0)
  assert found['grad:a'].limit == np.inf
  assert found['b'].limit < np.inf
  assert found['grad:a'].scale > 100  # with the long one


def test_functions_without_logits_and_other_sites_are_refused():
  flat = Harvester(lambda p, t: logits(p, t)[:, -1], PARAMS, SITES, CONTEXTS, batch=3)
  with pytest.raises(SAEError, match=r'shape \(3, 11\) where logits are expected'):
    flat.rows(np.array([1]), 0, 5)
  with pytest.raises(SiteError, match='resid_post'):
    Harvester(logits, PARAMS, ['grad:resid_post.9'], CONTEXTS, batch=3).rows(np.array([1]), 0, 5)
  unread = Harvester(logits, PARAMS, ['grad:z.0'], CONTEXTS, batch=3)
  with pytest.raises(HarvestError, match='nothing that the function returns depends on'):
    unread.rows(np.array([1]), 0, 5)
