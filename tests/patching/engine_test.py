"""Passes that begin in the middle and patches of whole subsets equal edits by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import timing
from mechjax import harvest
from mechjax.models import decoder
from mechjax.patching import (
  ActivationPatching,
  Pairs,
  PatchingError,
  SubsetPatching,
  budget,
  custom,
  log_probability,
  logit_difference,
  nodes_of,
)
from tests.models import decoders
from tests.patching import linear, plain

METRIC = logit_difference(plain.PAIRS, plain.ANSWERS, plain.OTHERS)
WORDS = np.array([[3, 9], [7, -1]])


# --- the truth --------------------------------------------------------------------------------------------


def logits_by_hand(name, nodes, subsets, row):
  """Logits of one pair with the nodes of each subset (bool [M, N]) replaced at once, and of the clean run last."""
  there = plain.values(name, plain.NOISE[row : row + 1])
  places = {}
  for n, node in enumerate(nodes):
    layout = nodes.layouts[node.site.name]
    axes = [(axis, size) for axis, size in zip(layout.axes, layout.shape) if axis != 'B']
    index = np.ix_(*(plain._picked(axis, node, row, size) for axis, size in axes))
    places.setdefault(str(node.site), []).append((n, index))

  def edit(site, value):
    value = value.copy()
    for n, index in places.get(site, ()):
      for m in np.flatnonzero(subsets[:, n]):
        value[m][index] = there[site][0][index]
    return value

  return plain.logits(name, np.repeat(plain.CLEAN[row : row + 1], len(subsets) + 1, 0), edit)


def word_log_probability(out, row):
  log_probs = out - np.log(np.exp(out).sum(-1, keepdims=True))
  tokens = WORDS[row][WORDS[row] >= 0]
  at = plain.REAL[row].sum() - len(tokens) + np.arange(len(tokens))
  return log_probs[:, at, tokens].sum(1)


def compare(values, name, nodes, subsets, metric=plain.logit_difference):
  """Effects [M, 2] with an edit by hand."""
  for row in range(2):
    out = metric(logits_by_hand(name, nodes, subsets, row), row)
    expected = out[:-1] - out[-1]
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(
      values[:, row], expected, rtol=0, atol=2e-4 * max(1.0, np.abs(expected).max())
    )


def forward_from_of(name, asked=None):
  """A decoder's function that begins in the middle; `asked` collects whether it received positions of logits."""

  def forward_from(params, tokens, residual, start, at):
    if asked is not None:
      asked.add(at is not None)
    return decoder.forward_from(params, tokens, residual, start, decoders.CONFIGS[name], at=at)

  return forward_from


# --- decoders ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  ('name', 'metric', 'truth'),
  [
    ('attn-only', METRIC, plain.logit_difference),
    ('mistral', log_probability(plain.PAIRS, WORDS), word_log_probability),
  ],
)
def test_passes_that_begin_in_the_middle_equal_an_edit_by_hand_at_every_site(name, metric, truth):
  nodes = plain.nodes(name, '*')
  few = metric is not METRIC  # only without nodes after all layers are some logits enough
  if few:
    nodes = nodes[[node.site.name not in ('final_norm', 'logits') for node in nodes]]
  asked = set()
  exact = ActivationPatching(
    plain.forward(name), nodes, max_batch=7, forward_from=forward_from_of(name, asked)
  )
  effects = exact(decoders.params(name), plain.PAIRS, metric)
  compare(effects.values, name, nodes, np.eye(len(nodes), dtype=bool), truth)
  assert asked == {few}
  first = [node.site.name == 'embed' or node.site.layer == 0 for node in nodes]
  assert (exact.starts == 0).tolist() == first


def test_subsets_are_patched_at_once():
  """Across sites and layers, with heads one by one and together, and a name with one layer."""
  some = functools.partial(plain.nodes, 'gpt2')
  nodes = (
    some('z, k.1', positions=[1, 2])
    + some('z', heads='together', positions='together')
    + some('mlp_post.1', neurons=[0, 5], positions='together')
    + some('embed, mlp_out, logits', positions=[2, -1])
  )
  joint = SubsetPatching(
    plain.forward('gpt2'), nodes, max_batch=9, forward_from=forward_from_of('gpt2')
  )
  patch = joint(decoders.params('gpt2'), plain.PAIRS, METRIC)
  random = np.random.default_rng(0)
  subsets = np.concatenate(
    [
      random.random((20, len(nodes))) < random.random((20, 1)),
      np.eye(len(nodes), dtype=bool),
      np.ones((1, len(nodes)), bool),
    ]
  )
  compare(patch(subsets), 'gpt2', nodes, subsets)
  np.testing.assert_allclose(patch(np.zeros((2, len(nodes)), bool)), 0, atol=1e-6)
  assert patch(np.zeros((0, len(nodes)), bool)).shape == (0, 2)


# --- a small model ----------------------------------------------------------------------------------------


def embed(params, tokens):
  return harvest.sow(jnp.asarray(params['embed'])[tokens], name='embed')


def layer(params, x, w):
  x = harvest.sow(x, name='resid_pre')
  mixed = jnp.tanh(jnp.einsum('ts,bsd->btd', params['mix'], x) @ w[0])
  return x + harvest.sow(mixed @ w[1], name='mlp_out')


def unembed(params, x):
  return harvest.sow(x @ params['unembed'], name='logits')


def forward(params, tokens):
  """The model of `linear`, made nonlinear."""
  body = lambda x, w: (layer(params, x, w), None)  # noqa: E731
  return unembed(
    params, jax.lax.scan(body, embed(params, tokens), (params['up'], params['down']))[0]
  )


def forward_from(params, tokens, x, start, at):
  def body(x, step):
    number, *w = step
    return jax.lax.cond(number >= start, lambda x: layer(params, x, w), lambda x: x, x), None

  x = jnp.where(start == 0, embed(params, tokens), x)
  numbers = jnp.arange(linear.L, dtype=jnp.int32)
  x, _ = jax.lax.scan(body, x, (numbers, params['up'], params['down']))
  return unembed(params, x if at is None else x[jnp.arange(len(x))[:, None], at])


def small(pattern, **options):
  return nodes_of(harvest.sites_of(forward, PARAMS, PAIRS.clean), pattern, **options)


PARAMS = linear.PARAMS
REAL = np.arange(linear.T) < np.array([[5], [4], [5], [2]])
PAIRS = Pairs(linear.PAIRS.clean, linear.PAIRS.noise, REAL)


@pytest.fixture
def wide():
  with jax.enable_x64(True):
    yield


PATTERN = 'embed, mlp_out'
WEIGHTS = np.random.default_rng(0).standard_normal((linear.B, linear.T, linear.V))
EVERYTHING = custom('everything', lambda out, weights: (out * weights).sum((1, 2)), WEIGHTS)


@functools.cache
def whole():
  """Effects of each node of the small model, without beginning in the middle; and the number of compilations."""
  with timing.compilations() as seen:
    exact = ActivationPatching(forward, small(PATTERN))
    effects = exact(PARAMS, PAIRS, EVERYTHING)
  (plan,) = exact._plans.values()
  return effects, plan, seen


@pytest.mark.usefixtures('wide')
def test_a_metric_that_reads_everything_gets_everything_and_one_executable_serves_all_layers():
  expected, _, plain_sweep = whole()
  assert np.abs(expected.values).max() > 1
  exact = ActivationPatching(forward, small(PATTERN), max_batch=7, forward_from=forward_from)
  with timing.compilations() as first:
    found = exact(PARAMS, PAIRS, EVERYTHING)
  np.testing.assert_allclose(found.values, expected.values, rtol=1e-9, atol=1e-9)
  assert 2 <= first.count <= plain_sweep.count
  with timing.compilations() as again:
    exact(PARAMS, PAIRS, EVERYTHING)
  assert again.count == 0


@pytest.mark.usefixtures('wide')
def test_subsets_are_patched_in_blocks_of_pairs_where_they_do_not_all_fit():
  expected, plan, _ = whole()
  room = budget.bytes_of(plan.prepare) - 1  # too little for the unpatched runs of all pairs
  joint = SubsetPatching(forward, small(PATTERN), max_batch=2, budget=room)
  patch = joint(PARAMS, PAIRS, EVERYTHING)
  (plan,) = joint._plans.values()
  assert plan.rows < len(PAIRS)
  one_hot = np.eye(len(joint.nodes), dtype=bool)
  np.testing.assert_allclose(patch(one_hot), expected.values, rtol=1e-9, atol=1e-9)
  for wrong in (one_hot[0], one_hot[:, 1:], one_hot.astype(int)):
    message = (
      rf'bool \[sets, {len(one_hot)}\], got {wrong.dtype} \[{", ".join(map(str, wrong.shape))}\]'
    )
    with pytest.raises(PatchingError, match=message):
      patch(wrong)
