"""Tokens that do not count: those left out, those with too long an activation, and padding."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechjax import harvest, sites
from mechjax.sae import ReLU, SAEError, TopK
from mechjax.sae.evaluation.comparing import evaluate
from mechjax.sae.evaluation.passes import Evaluation
from mechjax.sae.evaluation.sums import next_tokens
from tests.sae.evaluation.definitions import flat
from tests.sae.evaluation.toy import (
  R0,
  D,
  M,
  T,
  V,
  dictionary,
  forward,
  judge,
  model,
  several,
  texts,
)

pytestmark = pytest.mark.slow


@pytest.mark.parametrize('reads', [R0, 'mlp_norm.1'])
def test_a_token_that_is_too_long_keeps_its_activation_and_does_not_count_at_its_site(reads):
  """Half of the tokens exceed the limit, and the truth is a splice of the others by hand."""
  r = np.random.default_rng(2)
  said = {R0: R0, 'mlp_norm.1': 'mlp_out.1'}[reads]
  sae = TopK(d_in=D, width=2 * D, k=2, d_out=None if said == reads else D)
  own = jax.tree.map(
    lambda x: x + 0.1 * r.standard_normal(x.shape).astype(x.dtype), sae.init(jax.random.key(0))
  )
  tokens, kept = texts()
  run = harvest.reap(forward, sites=[reads])
  x = np.asarray(run(model(), tokens)[sites.parse(reads)])
  limit = float(np.median(np.linalg.norm(x, axis=-1)))
  short = kept & (np.linalg.norm(x, axis=-1) <= limit)
  assert short.any()
  assert (kept & ~short).any()
  targets = {} if said == reads else {reads: said}
  batch = next_tokens(tokens, kept)
  found = evaluate(
    Evaluation(forward, {reads: sae}, targets, {reads: limit}), model(), {reads: own}, [batch]
  )
  fewer = dataclasses.replace(batch, kept=short)
  alone = evaluate(Evaluation(forward, {reads: sae}, targets), model(), {reads: own}, [fewer])
  assert found.predicted == alone.predicted
  assert found.sites[reads].tokens == short.sum()
  wanted, other = flat(alone)[0], flat(found)[0]
  for name, value in wanted.items():
    assert other[name] == pytest.approx(value, rel=1e-5, abs=1e-6), name


def test_a_limit_for_a_site_without_a_dictionary_is_an_error():
  with pytest.raises(SAEError, match='limits for'):
    Evaluation(forward, {R0: ReLU(d_in=D, width=4, sparsity=0.0)}, limits={'resid_post.9': 1.0})


@pytest.mark.parametrize('limit', [0.0, -1.0, float('nan'), '3'])
def test_a_limit_that_is_not_a_length_is_refused(limit):
  with pytest.raises(SAEError, match='is not a norm'):
    Evaluation(forward, {R0: ReLU(d_in=D, width=4, sparsity=0.0)}, limits={R0: limit})


def test_what_is_not_kept_counts_for_nothing():
  own = several()
  tokens, kept = texts()
  other = np.where(kept | (np.arange(T) == 0), tokens, (tokens + 5) % V)
  assert (other != tokens).any()
  results = [
    flat(evaluate(judge('several sites'), model(), own, [next_tokens(t, kept)]))[0]
    for t in (tokens, other)
  ]
  assert results[0] == pytest.approx(results[1], rel=1e-5, abs=1e-7)


def test_rows_padded_on_the_left_have_the_figures_of_the_rows_alone():
  def masked(params, tokens, positions=None, mask=None):
    """The model above, with means over real tokens only."""
    real = jnp.ones(tokens.shape, bool) if mask is None else mask
    x = jnp.where(real[..., None], params['embed'][tokens], 0)
    so_far = jnp.cumsum(x, 1) / jnp.maximum(jnp.cumsum(real, 1), 1).astype(x.dtype)[..., None]
    with sites.layer(0):
      x = harvest.sow(x + so_far @ params['mix'][0], name='resid_post')
    return x @ params['unembed']

  sae = ReLU(d_in=D, width=M, sparsity=0.0)
  judge, own, short = Evaluation(masked, {R0: sae}), dictionary(sae), texts()[0][:, 2:]

  def totals(tokens, *masks):
    batch = next_tokens(tokens, *masks)
    base = judge.measure_base(model(), batch, {R0: np.zeros(D, np.float32)})
    found = judge.measure_totals(model(), {R0: own}, batch, base)
    return {'loss': found.loss, 'kl': found.kl, 'n': found.predicted, **found.losses}

  real = np.pad(np.ones(short.shape, bool), ((0, 0), (2, 0)))
  padded = totals(np.pad(short, ((0, 0), (2, 0)), constant_values=3), real, real)
  alone = totals(short, np.ones(short.shape, bool))
  for name in alone:
    np.testing.assert_allclose(padded[name], alone[name], rtol=1e-5, err_msg=name)


def test_padding_that_is_kept_is_refused():
  kept = np.array([[True, True, False]])
  with pytest.raises(SAEError, match='padding mask'):
    next_tokens(np.zeros((1, 3), int), kept, np.array([[False, True, True]]))
