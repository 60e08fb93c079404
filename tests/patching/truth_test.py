"""Exact patching is a hand-written edit, and AtP its derivative: every node of every site of every family."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechjax.patching import ActivationPatching, Attribution, logit_difference
from tests.models import decoders
from tests.patching import plain

pytestmark = pytest.mark.slow
FAMILIES = pytest.mark.parametrize('name', decoders.CONFIGS)
METRIC = logit_difference(plain.PAIRS, plain.ANSWERS, plain.OTHERS)


@functools.cache
def every(name):
  return plain.nodes(name, '*')


def by_site(nodes):
  """Indices of the nodes of each site."""
  names = np.array([str(node.site) for node in nodes])
  return {site: np.flatnonzero(names == site) for site in dict.fromkeys(names)}


def truths(name, nodes, truth):
  """The truth for the nodes of each site and each pair: [(indices, pair, effects)]."""
  sites = by_site(nodes).values()
  return [(index, row, truth(name, nodes[index], row)) for index in sites for row in range(2)]


def ways(name):
  """Whether to unroll the layers: both ways in two families, of which one has every switch."""
  return (False, True) if name in ('gpt2', 'gemma') else (False,)


def compare(effects, expectations, tolerance):
  for index, row, expected in expectations:
    np.testing.assert_allclose(
      effects.values[index, row],
      expected,
      rtol=0,
      atol=tolerance * max(1.0, np.abs(expected).max()),
      err_msg=str(effects.nodes[index][0]),
    )


@FAMILIES
def test_exact_patching_equals_a_hand_written_edit_at_every_site(name):
  expected = truths(name, every(name), plain.effects)
  for unroll in ways(name):
    exact = ActivationPatching(plain.forward(name, unroll=unroll), every(name))
    effects = exact(decoders.params(name), plain.PAIRS, METRIC)
    assert np.abs(effects.values).max() > 0.1
    compare(effects, expected, 2e-4)


@pytest.mark.parametrize('name', ['gpt2', 'gemma'])
def test_denoising_is_the_same_edit_the_other_way_round(name):
  nodes = plain.nodes(name, 'z, resid_post, k.0', heads='together', positions=[0, -1])
  effects = ActivationPatching(plain.forward(name), nodes, mode='denoising')(
    decoders.params(name), plain.PAIRS, METRIC
  )
  truth = functools.partial(plain.effects, base=plain.NOISE, other=plain.CLEAN)
  compare(effects, truths(name, nodes, truth), 2e-4)


def slope(name, nodes, row, h=1e-5):
  """The derivative at 0 of exact patching along the line from clean to noise, in float64."""
  return (plain.effects(name, nodes, row, h) - plain.effects(name, nodes, row, -h)) / (2 * h)


@FAMILIES
def test_atp_is_the_derivative_of_exact_patching_at_every_node(name):
  expected = truths(name, every(name), slope)
  for unroll in ways(name):
    atp = Attribution(plain.forward(name, unroll=unroll), every(name))
    effects = atp(decoders.params(name), plain.PAIRS, METRIC)
    assert np.abs(effects.values).max() > 0.1
    compare(effects, expected, 5e-4)


@pytest.mark.parametrize('name', ['gpt2', 'gemma'])
def test_nodes_that_span_positions_are_patched_and_attributed_as_one(name):
  nodes = plain.nodes(name, 'q, v, mlp_post.1', positions='together', neurons='each')
  args = (decoders.params(name), plain.PAIRS, METRIC)
  exact, atp = (
    ActivationPatching(plain.forward(name), nodes),
    Attribution(plain.forward(name), nodes),
  )
  compare(exact(*args), truths(name, nodes, plain.effects), 2e-4)
  compare(atp(*args), truths(name, nodes, slope), 5e-4)


def test_the_same_holds_in_float64():
  """Parameters in float64; the decoder's own norms, softmax and logits stay float32."""
  with jax.enable_x64(True):
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), decoders.params('gpt2'))
    nodes = plain.nodes('gpt2', 'z.0, mlp_post.1', neurons=[0, 7])
    effects = ActivationPatching(plain.forward('gpt2'), nodes)(params, plain.PAIRS, METRIC)
  compare(effects, truths('gpt2', nodes, plain.effects), 1e-5)
