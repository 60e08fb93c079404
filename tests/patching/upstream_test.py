"""Patching gives the same effects on our decoder and on patched upstream code."""

import dataclasses

import jax
import numpy as np
import pytest

import mechjax
from mechjax import harvest
from mechjax.models import ours, shipped, tunix
from mechjax.models.language_model import LanguageModel
from mechjax.patching import ActivationPatching, AtPStar, Pairs, logit_difference, nodes_of
from mechjax.weights import fetch, names
from mechjax.weights.gguf import GGUFFile

pytestmark = [pytest.mark.upstream, pytest.mark.optimised]

SITES = 'q, k, v, z, attn_out, mlp_out'
LAYERS = 4  # of 30: upstream writes out every one, and each way of patching compiles them again


@pytest.fixture(scope='module')
def ours_cut():
  whole = mechjax.load('smollm2-135m')
  layers = jax.tree.map(lambda x: x[:LAYERS], whole.params['layers'])
  config = dataclasses.replace(whole.config, n_layers=LAYERS)
  cut = ours.forward({**whole.params, 'layers': layers}, config)
  return LanguageModel('ours', cut, whole.tokenizer)


@pytest.fixture(scope='module')
def tunix_cut(smollm2):
  shape = names.llama_shape(GGUFFile(fetch.path_of('smollm2-135m')))
  shape = dataclasses.replace(shape, n_layers=LAYERS)
  params = {**smollm2.params, 'layers': {i: smollm2.params['layers'][i] for i in range(LAYERS)}}
  cut = shipped.forward(shape, params, tunix._apply, tunix._unembed, *tunix._qwen2(shape))
  return LanguageModel('tunix', cut, smollm2.tokenizer)


def asked(model):
  clean, noise = (model.tokens(f'The capital of {x} is') for x in ('France', 'Japan'))
  answer, other = (model.token(x) for x in (' Paris', ' Tokyo'))
  pairs = Pairs.of(clean, noise)
  nodes = nodes_of(harvest.sites_of(model.apply, model.params, clean), SITES)
  return nodes, (model.params, pairs, logit_difference(pairs, [answer], [other]))


def test_our_decoder_and_tunix_agree_on_every_node(ours_cut, tunix_cut):
  (nodes, question), (theirs, again) = asked(ours_cut), asked(tunix_cut)
  assert nodes.labels() == theirs.labels()
  for graddrop in (False, True):
    here = AtPStar(ours_cut.apply, nodes, graddrop=graddrop)(*question)
    there = AtPStar(tunix_cut.apply, theirs, graddrop=graddrop)(*again)
    assert np.abs(here.values).max() > 0.2
    np.testing.assert_allclose(here.values, there.values, rtol=0, atol=1e-5)
  some = np.arange(7, len(nodes), 53)
  here = ActivationPatching(ours_cut.apply, nodes[some], forward_from=ours_cut.forward_from)(
    *question
  )
  there = ActivationPatching(tunix_cut.apply, theirs[some], max_batch=4)(*again)
  np.testing.assert_allclose(here.values, there.values, rtol=0, atol=1e-5)
