"""Evaluations that cannot be made: each is refused with the fix."""

import jax.numpy as jnp
import numpy as np
import pytest

from mechjax.errors import SiteError
from mechjax.sae import ReLU, SAEError
from mechjax.sae.evaluation import splice
from mechjax.sae.evaluation.comparing import evaluate
from mechjax.sae.evaluation.metrics import KINDS, Totals, on_host, report
from mechjax.sae.evaluation.passes import Evaluation
from mechjax.sae.evaluation.sums import Batch, next_tokens, site_totals
from tests.sae.evaluation.definitions import losses
from tests.sae.evaluation.toy import (
  N0,
  O0,
  R0,
  R1,
  SHAPE,
  D,
  V,
  dictionary,
  double,
  forward,
  judge,
  model,
  several,
  texts,
)

pytestmark = pytest.mark.slow


def test_what_is_given_for_other_sites_or_in_another_shape_is_refused():
  sae = ReLU(**SHAPE, sparsity=0.0)
  own, batches = dictionary(sae), [next_tokens(*texts())]
  judging = Evaluation(forward, {R0: sae})
  for given in ({}, {R1: own}, {R0: own, R1: own}):
    with pytest.raises(SAEError, match='parameters for'):
      evaluate(judging, model(), given, batches)
  for means in ({}, {R1: np.zeros(D)}, {R0: np.zeros(1)}, {R0: np.zeros((2, D))}):
    with pytest.raises(SAEError, match='means of shapes'):
      evaluate(judging, model(), {R0: own}, batches, means)


def test_mistakes_are_errors_that_say_what_to_do():
  sae, transcoder = ReLU(**SHAPE, sparsity=0.0), ReLU(**SHAPE, d_out=D, sparsity=0.0)
  own, tokens, kept = dictionary(sae), *texts()
  batch = next_tokens(tokens, kept)
  with pytest.raises(SAEError, match='transcoders at'):
    Evaluation(forward, {N0: transcoder})
  with pytest.raises(SAEError, match='transcoders at'):
    Evaluation(forward, {R0: sae}, {R0: R1})
  with pytest.raises(SAEError, match='each with its own'):
    Evaluation(forward, {O0: sae, N0: transcoder}, {N0: O0})
  with pytest.raises(SAEError, match='one or more'):
    Evaluation(forward, {})
  with pytest.raises(SAEError, match=r'saes=\[.* should be dictionaries by site'):
    Evaluation(forward, [sae])
  with pytest.raises(SAEError, match='means='):
    evaluate(Evaluation(forward, {R0: sae}), model(), {R0: own}, iter([batch]))
  with pytest.raises(SAEError, match='no batches'):
    evaluate(Evaluation(forward, {R0: sae}), model(), {R0: own}, [])
  with pytest.raises(SiteError, match='resid_post'):
    evaluate(Evaluation(forward, {'resid_past.0': sae}), model(), {'resid_past.0': own}, [batch])
  with pytest.raises(SiteError):
    evaluate(Evaluation(forward, {'resid_post': sae}), model(), {'resid_post': own}, [batch])
  with pytest.raises(SAEError, match='tokens'):
    next_tokens(tokens, kept[:, 1:])
  for ids in (tokens + 0.5, tokens - 100, tokens.astype(np.int64) + 2**32):
    with pytest.raises(SAEError, match='token ids are integers from 0'):
      next_tokens(ids, kept)
  with pytest.raises(SAEError, match='does not reconstruct'):
    splice.reconstruct(transcoder, own, kept)
  with pytest.raises(SAEError, match='mask of shape'):
    Evaluation(forward, {R0: sae}).measure_means(
      model(), [Batch(tokens, batch.targets, kept[:, 1:])]
    )


def test_a_dictionary_that_cannot_be_put_back_is_found_before_anything_is_counted():
  own = several()
  own[O0]['b_dec'] = np.full(D, np.nan, np.float32)
  with pytest.raises(SAEError, match='moves the loss by nan'):
    evaluate(judge('several sites'), model(), own, [next_tokens(*texts())])


def test_a_model_without_a_loss_and_masks_without_a_prediction_are_errors():
  own, (tokens, kept) = several(), texts()
  one, means = judge('several sites'), dict.fromkeys(own, np.zeros(D))
  with pytest.raises(SAEError, match='no token was predicted'):
    evaluate(one, model(), own, [next_tokens(tokens, np.zeros_like(kept))])
  batch = next_tokens(tokens, kept)
  totals = one.measure_totals(model(), own, batch, one.measure_base(model(), batch, means))
  assert report(totals, 0.0).predicted == losses(double(model()), tokens, kept)[0].size
  broken = model() | {'unembed': np.full((D, V), np.inf, np.float32)}
  with pytest.raises(SAEError, match='the loss of the model itself is nan'):
    evaluate(one, broken, own, [next_tokens(tokens, kept)], means)


@pytest.mark.parametrize('unit', [1e-25, 1e-17, 1.0, 1e21])
def test_activations_whose_squares_leave_the_range_of_float32_are_refused(unit):
  sae = ReLU(d_in=D, width=9, sparsity=0.0)
  own, batch = dictionary(sae), next_tokens(*texts())
  x = np.random.default_rng(0).standard_normal((batch.kept.size, D)).astype(np.float32)
  scaled = own | {name: np.float32(own[name] * unit) for name in ('b_enc', 'b_dec')}
  values = [jnp.asarray(x * np.float32(unit))] * 2
  site = site_totals(sae, scaled, *values, jnp.ones_like(x), batch)
  totals = Totals(3, 1.0, dict.fromkeys(KINDS, 1.0), 0.0, {R0: on_host(site)})
  if unit == 1:
    assert report(totals, 0.0).sites[R0].fvu > 0
  elif unit == 1e-25:
    assert np.isnan(
      report(totals, 0.0).sites[R0].fvu
    )  # all squares are 0, as those of a silent site
  else:
    with pytest.raises(SAEError, match=f'squares of activations of {R0}, .* leave the range'):
      report(totals, 0.0)


def test_a_model_or_a_loaded_pair_in_the_wrong_place_is_refused_by_name():
  sae = ReLU(d_in=D, width=2 * D, sparsity=0.0)
  with pytest.raises(SAEError, match=r'model\.apply'):
    Evaluation(model(), {R0: sae})
  with pytest.raises(SAEError, match='the result of load'):
    Evaluation(forward, {R0: (sae, {})})
