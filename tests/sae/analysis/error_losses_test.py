"""Losses with parts of the error put back equal those of a forward pass by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from mechjax.errors import SAEError
from mechjax.sae import ReLU, next_tokens
from mechjax.sae.analysis import ErrorLosses, ErrorMap
from tests.sae.evaluation.definitions import losses, said
from tests.sae.evaluation.toy import (
  R0,
  SHAPE,
  D,
  by_hand,
  dictionary,
  double,
  forward,
  model,
  texts,
)

SAE = ReLU(**SHAPE, sparsity=0.0)
OWN = {key: jnp.asarray(value) for key, value in dictionary(SAE).items()}
RANDOM = np.random.default_rng(0)
LINEAR = ErrorMap(
  *(jnp.asarray(RANDOM.standard_normal(shape), jnp.float32) for shape in ((D, D), D))
)
MEASURE = ErrorLosses(forward, R0, SAE)


def by_definition(tokens, kept, limit=np.inf):
  """Losses of each prediction, by the name of the replacement."""
  p = double(model())
  B, b = (np.asarray(x, np.float64) for x in (LINEAR.weights, LINEAR.bias))
  x_hat = lambda x: said(SAE, double(OWN), x)[1]  # noqa: E731
  changes = {
    'spliced': x_hat,
    'linear': lambda x: x_hat(x) + x @ B + b,
    'nonlinear': lambda x: x_hat(x) + ((x - x_hat(x)) - (x @ B + b)),
  }
  clean = by_hand(p, tokens)[1][R0]
  at = kept & (np.linalg.norm(clean, axis=-1) <= limit)
  replaced = {
    name: losses(p, tokens, kept, {R0: lambda x, f=f: np.where(at[..., None], f(x), x)})[0]
    for name, f in changes.items()
  }
  return {'original': losses(p, tokens, kept)[0], **replaced}, clean


@pytest.mark.parametrize('limited', [False, True])
def test_every_loss_is_that_of_its_definition(limited):
  tokens, kept = texts()
  limit = np.inf
  if limited:
    limit = float(np.quantile(np.linalg.norm(by_definition(tokens, kept)[1], axis=-1), 0.6))
  expected, _ = by_definition(tokens, kept, limit)
  measure = ErrorLosses(forward, R0, SAE, limit)
  parts = [next_tokens(tokens[i : i + 2], kept[i : i + 2]) for i in (0, 2)]
  report = measure(model(), OWN, LINEAR, parts)
  base = expected.pop('original')
  assert report.original.value == pytest.approx(base.mean(), rel=1e-5)
  assert report.predicted == len(base)
  for name, found in expected.items():
    assert getattr(report, name).value == pytest.approx((found - base).mean(), rel=1e-4, abs=1e-5)
    assert getattr(report, name).standard_error > 0
  assert 'nonlinear part' in str(report)


def test_a_map_that_is_the_whole_error_restores_the_model():
  """x_hat = b_dec if all latents are dead, so that e = x - b_dec."""
  dead = OWN | {'b_enc': jnp.full_like(OWN['b_enc'], -1e9)}
  exact = ErrorMap(jnp.eye(D), -OWN['b_dec'])
  report = MEASURE(model(), dead, exact, [next_tokens(*texts())])
  assert report.linear.value == pytest.approx(0, abs=1e-5)
  assert report.nonlinear.value == pytest.approx(report.spliced.value, abs=1e-5)


def test_other_dictionaries_and_maps_do_not_compile_again():
  traced = []

  def counted(params, tokens):
    traced.append(1)
    return forward(params, tokens)

  measure, batch = ErrorLosses(counted, R0, SAE), next_tokens(*texts())
  measure(model(), OWN, LINEAR, [batch])
  n = len(traced)
  measure(model(1), dictionary(SAE, 1), ErrorMap(2 * LINEAR.weights, LINEAR.bias), [batch])
  assert len(traced) == n


def test_mistakes_are_refused():
  tokens, kept = texts()
  batch = next_tokens(tokens, kept)
  wide = ErrorMap(jnp.eye(D + 1), jnp.ones(D + 1))
  nan = {key: np.full_like(value, np.nan) for key, value in model().items()}
  for call, message in [
    (lambda: ErrorLosses(forward, R0, ReLU(**SHAPE, d_out=D, sparsity=0.0)), 'a transcoder'),
    (lambda: ErrorLosses(forward, R0, SAE, limit=0), 'limit=0'),
    (lambda: ErrorLosses(3, R0, SAE), 'int, not a function'),
    (lambda: MEASURE(model(), OWN, wide, [batch]), r'a map of shape \(7, 7\)'),
    (lambda: MEASURE(model(), OWN, LINEAR, []), '0 contexts with a predicted token'),
    (lambda: MEASURE(model(), OWN, LINEAR, batch), 'one batch instead of several'),
    (lambda: MEASURE(model(), OWN, LINEAR, [tokens]), 'expected batches'),
    (lambda: MEASURE(nan, OWN, LINEAR, [batch]), 'a loss is not finite'),
  ]:
    with pytest.raises(SAEError, match=message):
      call()
