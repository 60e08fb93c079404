"""Quality of each dictionary on held-out text: FVU by layer, and the loss with all layers spliced.

Dictionaries are evaluated by `mechjax.sae.evaluate`. For neurons the same is measured here: of each layer and position
the largest neurons stay (as in a graph) and the others are zero, one layer at a time for the FVU, all layers at once
for the loss.

    evaluate(subject, dictionary, settings)      {'loss': ..., 'loss_spliced': ..., 'fvu': [...], 'l0': [...]}
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.circuits.dictionaries import NEURONS, Dictionary
from experiments.circuits.settings import Settings
from experiments.circuits.subject import Subject
from mechjax import harvest, precision, sae
from mechjax.circuits import CrossLayerReplacement, Neurons, Replacement
from mechjax.errors import CircuitError
from mechjax.sae.evaluation import sums


def evaluate(subject: Subject, dictionary: Dictionary, settings: Settings) -> dict[str, Any]:
  """Metrics of one dictionary.

  Returns:
    'loss', 'loss_spliced' and for dictionaries 'loss_zero' and 'loss_mean', in nats per token; by layer 'fvu' and 'l0'.

  Raises:
    CircuitError: the loss is not finite.
    SAEError: as `mechjax.sae.evaluate`.
  """
  batches = [sums_batch(*b) for b in subject.iterate_batches(settings.tokens, settings.batch)]
  if dictionary.kind == NEURONS:
    assert isinstance(dictionary.replaced, Neurons)
    return evaluate_neurons(subject, dictionary.replaced.top or 0, batches)
  saes, params = _parts(dictionary)
  evaluation = sae.Evaluation(subject.model.apply, saes, dictionary.targets, dictionary.limits)
  report = sae.evaluate(evaluation, subject.model.params, params, batches)
  sites = [report.sites[site] for site in dictionary.targets]
  names = ('predicted', 'loss', 'loss_spliced', 'loss_zero', 'loss_mean', 'kl')
  return {
    **{name: getattr(report, name) for name in names},
    'fvu': [site.fvu for site in sites],
    'l0': [site.l0 for site in sites],
  }


def sums_batch(tokens: np.ndarray, kept: np.ndarray) -> sums.Batch:
  """A batch in which each token that counts after one that counts is predicted."""
  return sae.next_tokens(tokens, kept)


def _parts(dictionary: Dictionary) -> tuple[dict[str, Any], dict[str, Any]]:
  """Dictionaries and parameters, keyed by the site that is read."""
  one = dictionary.replaced
  if isinstance(one, CrossLayerReplacement):
    return dict(sae.layers_of(one.clt, [*dictionary.targets])), dict.fromkeys(
      dictionary.targets, one.params
    )
  assert isinstance(one, Replacement)
  found = one.dictionaries.items()
  return {site: d for site, (d, _) in found}, {site: params for site, (_, params) in found}


def keep_largest(x: jax.Array, lengths: jax.Array, top: int) -> jax.Array:
  """Activations of neurons with all but the `top` largest writes of each position as zero, [..., F]."""
  size = jnp.abs(x) * lengths
  if top >= x.shape[-1]:
    return x
  return jnp.where(size >= jax.lax.top_k(size, top)[0][..., -1:], x, 0)


def evaluate_neurons(subject: Subject, top: int, batches: list[sums.Batch]) -> dict[str, Any]:
  """The metrics of `evaluate` for the largest neurons of each layer and position.

  Raises:
    CircuitError: a loss that is not finite.
  """
  assert subject.maps.neurons is not None
  down, model = subject.maps.neurons.down.weight, subject.model
  lengths = jnp.linalg.norm(down, axis=-1)
  L, output = len(down), subject.maps.layout.mlp_output

  @jax.jit
  def measure(params: Any, down: jax.Array, lengths: jax.Array, batch: sums.Batch) -> dict:
    kept = jnp.asarray(batch.kept)[..., None]

    def cut(layer: int, x: jax.Array) -> jax.Array:
      return jnp.where(kept, keep_largest(x, lengths[layer], top), x)

    logits, acts = harvest.call_and_reap(model.apply, sites=f'mlp_post, {output}')(
      params, batch.inputs
    )
    plants = {f'mlp_post.{n}': (lambda x, n=n: cut(n, x)) for n in range(L)}
    spliced = harvest.plant(model.apply)(plants, params, batch.inputs)
    found: dict[str, Any] = {
      name: sums.loss(sums.log_probs(x, batch), batch)
      for name, x in (('loss', logits), ('loss_spliced', spliced))
    }
    parts = []
    for n in range(L):
      post, y = acts[f'mlp_post.{n}'], jnp.where(kept, acts[f'{output}.{n}'], 0)
      rest = post - cut(n, post)
      error = precision.einsum('btf,fd->btd', rest, down[n])
      l0 = jnp.sum(jnp.where(kept, post - rest != 0, False))
      parts.append((y.sum((0, 1)), jnp.sum(y**2), jnp.sum(error**2), l0))
    names = ('y', 'y2', 'error', 'l0')
    return found | {name: jnp.stack(x) for name, x in zip(names, zip(*parts))}

  total: dict[str, np.ndarray] = {}
  for batch in batches:
    part = measure(model.params, down, lengths, batch)
    total = {k: total.get(k, 0) + np.asarray(v, np.float64) for k, v in part.items()}
  n = sum(int(np.asarray(b.kept).sum()) for b in batches)
  predicted = sum(int((np.asarray(b.targets) >= 0).sum()) for b in batches)
  losses = {name: float(total[name]) / predicted for name in ('loss', 'loss_spliced')}
  if not all(map(np.isfinite, losses.values())):
    raise CircuitError(f'the losses of the model are {losses}')
  scatter = total['y2'] - (total['y'] ** 2).sum(-1) / n
  fvu = total['error'] / scatter
  return {'predicted': predicted, **losses, 'fvu': fvu.tolist(), 'l0': (total['l0'] / n).tolist()}
