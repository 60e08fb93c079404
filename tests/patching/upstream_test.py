"""The same question put to our decoder and to patched upstream code has the same answer."""

import numpy as np
import pytest

import mechjax
from mechjax import harvest
from mechjax.patching import AtPStar, Exact, Pairs, logit_difference, nodes_of

pytestmark = [pytest.mark.upstream, pytest.mark.optimised]

SITES = 'q, k, v, z, attn_out, mlp_out'


def asked(model):
  clean, noise = (model.tokens(f'The capital of {x} is') for x in ('France', 'Japan'))
  answer, other = (model.token(x) for x in (' Paris', ' Tokyo'))
  pairs = Pairs.of(clean, noise)
  nodes = nodes_of(harvest.sites_of(model.apply, model.params, clean), SITES)
  return nodes, (model.params, pairs, logit_difference(pairs, [answer], [other]))


def test_our_decoder_and_tunix_agree_on_every_node(smollm2):
  ours = mechjax.load('smollm2-135m')
  (nodes, question), (theirs, again) = asked(ours), asked(smollm2)
  assert nodes.labels() == theirs.labels()
  for graddrop in (False, True):
    here = AtPStar(ours.apply, nodes, graddrop=graddrop)(*question)
    there = AtPStar(smollm2.apply, theirs, graddrop=graddrop)(*again)
    assert np.abs(here.values).max() > 5
    np.testing.assert_allclose(here.values, there.values, rtol=0, atol=1e-4)
  some = np.arange(7, len(nodes), 401)
  here = Exact(ours.apply, nodes[some], resume=ours.resume)(*question)
  there = Exact(smollm2.apply, theirs[some], at_most=4)(*again)
  np.testing.assert_allclose(here.values, there.values, rtol=0, atol=1e-4)
