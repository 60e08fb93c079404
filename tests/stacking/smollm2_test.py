"""SmolLM2 in google-tunix's unmodified loop over thirty layers, put under one scan."""

import jax
import numpy as np
import pytest

import mechjax
from mechjax import harvest, stacking

pytestmark = [pytest.mark.upstream, pytest.mark.optimised]


@pytest.fixture(scope='module')
def model():
  return mechjax.load('smollm2-135m', code='tunix')


def test_logits_sites_and_writes_are_those_of_the_loop(model):
  tokens = model.tokens('The capital of France is')
  flat = stacking.stack(model.apply, model.params, tokens)
  assert flat.n_layers == model.n_layers == 30
  logits = jax.jit(flat)(flat.params, tokens)
  np.testing.assert_allclose(logits, model(tokens), atol=1e-4)
  jitted = jax.make_jaxpr(flat)(flat.params, tokens)
  assert sum(e.primitive.name == 'scan' for e in jitted.eqns) == 1
  assert [i.site for i in harvest.sites_of(flat, flat.params, tokens)] == model.sites()
  wanted = 'resid_post.{0,17}, attn_probs.29, logits'
  read = harvest.reap(flat, sites=wanted)(flat.params, tokens)
  want = harvest.reap(model.apply, sites=wanted)(model.params, tokens)
  for site in want:
    np.testing.assert_allclose(read[site], want[site], rtol=1e-4, atol=1e-3)
  silence = {'mlp_out.8': lambda value: value.at[:, -1].set(0)}
  np.testing.assert_allclose(
    harvest.plant(flat)(silence, flat.params, tokens),
    harvest.plant(model.apply)(silence, model.params, tokens),
    atol=1e-3,
  )
