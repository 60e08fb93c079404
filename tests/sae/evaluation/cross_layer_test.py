"""Cross-layer transcoders spliced into a model, against loops in NumPy."""

import jax
import numpy as np
import pytest

from mechjax.sae import CrossLayerJumpReLU, CrossLayerTopK, Evaluation, SAEError, TopK, evaluate
from mechjax.sae.evaluation import CrossLayerPart, layers_of, next_tokens
from tests.sae.evaluation.definitions import gradient, losses
from tests.sae.evaluation.toy import N0, N1, O0, O1, D, M, by_hand, double, forward, model, texts

pytestmark = pytest.mark.slow
READ, WRITTEN = (N0, N1), (O0, O1)
TARGETS = dict(zip(READ, WRITTEN))
SHAPE = {'n_layers': 2, 'd_in': D, 'd_out': D, 'width': M}
SAES = {
  'topk': CrossLayerTopK(**SHAPE, k=3),
  'skip jumprelu': CrossLayerJumpReLU(**SHAPE, sparsity=0.0, skip=True),
}


def parameters(sae):
  r = np.random.default_rng(3)
  shapes = {
    name: value.shape for name, value in jax.eval_shape(sae.init, jax.random.key(0)).items()
  }
  params = {name: 0.5 * r.standard_normal(shape) for name, shape in shapes.items()}
  if 'log_threshold' in params:
    params['log_threshold'] = np.log(r.uniform(0.1, 0.4, params['log_threshold'].shape))
  return {name: value.astype(np.float32) for name, value in params.items()}


def latents(sae, p, layer, x):
  """Latents of one layer, by the loops of the tests of the architecture, which know its width."""
  z = x @ p['W_enc'][layer] + p['b_enc'][layer]
  if isinstance(sae, CrossLayerJumpReLU):
    return np.where(z > np.exp(p['log_threshold'][layer]), z, 0)
  f = np.zeros_like(z)
  for at in np.ndindex(z.shape[:-1]):
    chosen = np.argsort(-z[at])[: sae.k]
    f[at][chosen] = np.maximum(z[at][chosen], 0)
  return f


def output(sae, p, layer, found, x):
  y = p['b_dec'][layer] + (x @ p['W_skip'][layer] if sae.skip else 0)
  for source in range(layer + 1):
    y = y + found[source] @ p[f'W_dec_{source}'][:, layer - source]
  return y


def spliced(sae, p, kept):
  """Functions of values by site: each layer reads what the layers before it have changed."""
  found, inputs = {}, {}

  def read(layer):
    def note(x):
      inputs[layer], found[layer] = x, latents(sae, p, layer, x)
      return x

    return note

  def write(layer):
    return lambda y: np.where(kept[..., None], output(sae, p, layer, found, inputs[layer]), y)

  return {site: read(n) for n, site in enumerate(READ)} | {
    site: write(n) for n, site in enumerate(WRITTEN)
  }


@pytest.mark.parametrize('name', SAES)
def test_all_layers_are_spliced_in_and_every_metric_is_that_of_loops(name):
  sae, (tokens, kept), params = SAES[name], texts(), model()
  own, p = parameters(sae), double(params)
  evaluation = Evaluation(forward, layers_of(sae, READ), TARGETS)
  found = evaluate(evaluation, params, dict.fromkeys(READ, own), [next_tokens(tokens, kept)])
  clean = losses(p, tokens, kept)[0].mean()
  changed = losses(p, tokens, kept, spliced(sae, double(own), kept))[0].mean()
  np.testing.assert_allclose(found.delta_loss, changed - clean, rtol=1e-3)
  _, seen = by_hand(p, tokens)
  f = [latents(sae, double(own), n, seen[site]) for n, site in enumerate(READ)]
  for layer, site in enumerate(READ):
    y = seen[WRITTEN[layer]]
    error = (y - output(sae, double(own), layer, f, seen[site]))[kept]
    report = found.sites[site]
    scatter = np.square(y[kept] - y[kept].mean(0)).sum()
    np.testing.assert_allclose(report.fvu, np.square(error).sum() / scatter, rtol=1e-4)
    np.testing.assert_allclose(report.l0, (f[layer][kept] > 0).sum(-1).mean(), rtol=1e-6)
    attribution = 0
    for target in range(layer, 2):
      g = gradient(p, tokens, kept, WRITTEN[target])[kept]
      attribution += f[layer][kept] * (g @ double(own)[f'W_dec_{layer}'][:, target - layer].T)
    size = np.abs(attribution[np.abs(attribution).sum(1) > 0])
    share = size / size.sum(1, keepdims=True)
    entropy = -np.sum(share * np.log(np.where(share > 0, share, 1)), 1)
    np.testing.assert_allclose(
      report.uniformity, np.mean(np.exp(entropy) / (share > 0).sum(1)), rtol=1e-3
    )


def test_a_token_that_is_too_long_at_one_layer_counts_at_none():
  sae, (tokens, kept) = SAES['topk'], texts()
  _, seen = by_hand(double(model()), tokens)
  limit = float(np.median(np.linalg.norm(seen[N1][kept], axis=1)))
  evaluation = Evaluation(forward, layers_of(sae, READ), TARGETS, {N1: limit})
  own = dict.fromkeys(READ, parameters(sae))
  found = evaluate(evaluation, model(), own, [next_tokens(tokens, kept)])
  within = (np.linalg.norm(seen[N1][kept], axis=1) <= limit).sum()
  assert [site.tokens for site in found.sites.values()] == [within, within]


def test_wrong_sites_of_a_cross_layer_transcoder_are_errors():
  sae, (tokens, kept) = SAES['topk'], texts()
  with pytest.raises(SAEError, match='1 sites for a cross-layer transcoder with 2 layers'):
    layers_of(sae, [N0])
  with pytest.raises(SAEError, match=r'layers \[1\] of a cross-layer transcoder with 2 layers'):
    Evaluation(forward, {N1: CrossLayerPart(sae, 1)}, {N1: O1})
  with pytest.raises(SAEError, match='layer 0 of one cross-layer transcoder at two sites'):
    Evaluation(forward, {N0: CrossLayerPart(sae, 0), N1: CrossLayerPart(sae, 0)}, TARGETS)
  with pytest.raises(SAEError, match='layer 2 of a cross-layer transcoder'):
    CrossLayerPart(sae, 2)
  with pytest.raises(SAEError, match='not a dictionary') as raised:
    Evaluation(forward, {N0: sae}, {N0: O0})
  assert 'layers_of' in str(raised.value)
  backwards = Evaluation(forward, layers_of(sae, READ[::-1]), dict(zip(READ[::-1], WRITTEN[::-1])))
  own = dict.fromkeys(READ, parameters(sae))
  with pytest.raises(SAEError, match=r'layer 1 .* reads mlp_norm\.0, which .* as number 0'):
    evaluate(backwards, model(), own, [next_tokens(tokens, kept)])


def test_the_dictionary_of_one_layer_has_its_latents_and_its_own_directions():
  x = np.random.default_rng(0).standard_normal((4, D)).astype(np.float32)
  for sae in SAES.values():
    own = parameters(sae)
    for layer in range(2):
      one, params = sae.layer_dictionary(own, layer)
      np.testing.assert_allclose(one.encode(params, x), latents(sae, own, layer, x), atol=1e-5)
      np.testing.assert_array_equal(params['W_dec'], own[f'W_dec_{layer}'][:, 0])
  assert isinstance(SAES['topk'].layer_dictionary(parameters(SAES['topk']), 0)[0], TopK)
