"""Metrics of many batches are those of the whole, in any order and for several dictionaries at once."""

import functools

import jax
import numpy as np
import pytest

from mechjax.sae import ReLU, SAEError, TopK
from mechjax.sae.evaluation import comparing
from mechjax.sae.evaluation.comparing import evaluate
from mechjax.sae.evaluation.metrics import Spread
from mechjax.sae.evaluation.passes import Evaluation
from mechjax.sae.evaluation.sums import next_tokens
from tests.sae.evaluation.definitions import flat
from tests.sae.evaluation.toy import O0, R0, D, M, T, dictionary, forward, model, speaker, texts

pytestmark = pytest.mark.slow


def cut(tokens, kept):
  """Batches of one shape, so that nothing is compiled again: each keeps one of the texts."""
  return [
    next_tokens(tokens, kept & (np.arange(len(tokens)) == i)[:, None]) for i in range(len(tokens))
  ]


def test_blocks_in_any_order_add_up_to_the_whole():
  r = np.random.default_rng(0)
  shapes = {'W_enc': (D, 2 * D), 'W_dec': (2 * D, D), 'b_enc': (2 * D,), 'b_dec': (D,)}
  own = {R0: {name: r.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}}
  many = speaker()
  tokens, kept = texts()
  whole = evaluate(many, model(), own, [next_tokens(tokens, kept)])
  blocks = cut(tokens, kept)
  wanted = flat(whole)[0]
  for batches in (blocks, blocks[::-1]):
    found = flat(evaluate(many, model(), own, batches))[0]
    for name, value in wanted.items():
      assert found[name] == pytest.approx(value, rel=2e-4, abs=1e-5), name
  means = many.measure_means(model(), blocks)
  parts = [
    many.measure_totals(model(), own, b, many.measure_base(model(), b, means)) for b in blocks
  ]
  left = parts[0].merge(parts[1]).merge(parts[2].merge(parts[3]))
  right = parts[3].merge(parts[1].merge(parts[0])).merge(parts[2])
  for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right)):
    np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)
  assert {leaf.dtype for leaf in jax.tree.leaves(left)} <= {np.dtype(float), np.dtype(np.int64)}


def test_dictionaries_compared_are_judged_as_each_alone():
  r = np.random.default_rng(1)
  saes = {'few': TopK(d_in=D, width=2 * D, k=2), 'many': ReLU(d_in=D, width=3 * D, sparsity=0.0)}
  candidates = {
    name: (
      Evaluation(forward, {R0: sae}),
      {
        R0: jax.tree.map(
          lambda x: x + 0.1 * r.standard_normal(x.shape).astype(x.dtype),
          sae.init(jax.random.key(0)),
        )
      },
    )
    for name, sae in saes.items()
  }
  batches, told = cut(*texts()), []
  found = comparing.compare(candidates, model(), batches, progress=told.append)
  assert told == [1, 2, 3, 4]
  for name, (one, own) in candidates.items():
    assert flat(found[name]) == flat(evaluate(one, model(), own, batches)), name
  elsewhere = Evaluation(forward, {O0: saes['few']}), {O0: candidates['few'][1][R0]}
  with pytest.raises(SAEError, match='different sites'):
    comparing.compare(candidates | {'else': elsewhere}, model(), batches)
  with pytest.raises(SAEError, match='no dictionaries'):
    comparing.compare({}, model(), batches)


def test_the_scatter_of_many_blocks_far_from_zero_is_exact():
  r = np.random.default_rng(0)
  y = 1e4 + r.standard_normal((64, 7, 3))
  total = Spread(np.int64(0), np.zeros(3), np.float64(0))
  for block in y:
    mean = block.mean(0)
    total = total.merge(Spread(np.int64(7), mean, ((block - mean) ** 2).sum()))
  every = y.reshape(-1, 3)
  assert total.count == len(every)
  np.testing.assert_allclose(total.mean, every.mean(0), rtol=1e-14)
  np.testing.assert_allclose(total.scatter, ((every - every.mean(0)) ** 2).sum(), rtol=1e-10)


def test_what_the_model_reads_is_seen_by_a_second_evaluation():
  scale = [1.0]

  def scaled(params, tokens):
    return forward(params, tokens) * scale[0]

  sae = ReLU(d_in=D, width=M, sparsity=0.0)
  own = {R0: dictionary(sae, 0)}
  batches = [next_tokens(*texts())]
  judge = Evaluation(scaled, {R0: sae})
  evaluate(judge, model(), own, batches)
  scale[0] = 2.0
  found = evaluate(judge, model(), own, batches).loss
  fresh = Evaluation(lambda p, t: forward(p, t) * 2.0, {R0: sae})
  assert found == pytest.approx(evaluate(fresh, model(), own, batches).loss, rel=1e-5)


@pytest.mark.parametrize(
  ('batches', 'says'),
  [
    (np.zeros((2, T), np.int32), r'got ndarray of shape \(2, 6\)'),
    ([np.zeros((2, T), np.int32)], r'got ndarray of shape \(2, 6\)'),
    (next_tokens(*texts()), 'one batch instead of several'),
    (3, 'got int'),
  ],
  ids=['tokens', 'list of tokens', 'one batch', 'number'],
)
def test_a_value_that_is_not_a_batch_is_refused_by_name(batches, says):
  for judge in (
    functools.partial(evaluate, speaker()),
    lambda params, _, found: speaker().measure_means(params, found),
  ):
    with pytest.raises(SAEError, match=says):
      judge(model(), {R0: {}}, batches)
