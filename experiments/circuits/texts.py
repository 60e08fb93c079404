"""Texts of the features on the pages: contexts in which they are most active, and tokens that they promote.

Only features that are on a page are looked up. A mechanical label, the token on which a latent is most often strongest,
stands in for a description. Neurons have no contexts here; the tokens are those that a neuron promotes with the sign of
its activation on the prompt, through the gain of the norm after the MLP if there is one.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.circuits.dictionaries import Dictionary, slugify
from experiments.circuits.settings import Settings
from experiments.circuits.subject import Subject
from experiments.saved import Saved
from mechjax import fingerprints, harvest
from mechjax.circuits import CrossLayerReplacement, Replacement, neuronpedia_features
from mechjax.models.language_model import LanguageModel
from mechjax.sae import Architecture, Params, features

N_CONTEXTS, N_TOKENS, BLOCK = 3, 8, 64
"""Contexts and promoted tokens of a feature, and directions whose logits are computed at once."""

Graphs = dict[str, Any]
"""Plain data of graphs, keyed by name."""


def add_texts(
  settings: Settings, subject: Subject, one: Dictionary, saved: Saved, graphs: Graphs
) -> Graphs:
  """The graphs of one dictionary with the texts of their features."""
  if not settings.contexts:
    return graphs
  if not one.targets:
    return add_neurons(subject, one, saved, graphs)
  wanted = find_latents(graphs)
  rows = fingerprints.of_weights(subject.rows)
  key = [one.fingerprint, one.limits, rows, settings.contexts, [*map(list, wanted.items())]]
  found = saved.json(f'texts_{one.slug}', key, lambda: collect(settings, subject, one, wanted))
  return _fill(graphs, lambda node: found[str(node['layer'])].get(str(node['latent'])))


def find_latents(graphs: Graphs) -> dict[int, list[int]]:
  """Latents on the pages, keyed by layer."""
  found: dict[int, set[int]] = {}
  for graph in graphs.values():
    for node in graph['nodes']:
      if node['kind'] == 'feature':
        found.setdefault(node['layer'], set()).add(node['latent'])
  return {layer: sorted(latents) for layer, latents in sorted(found.items())}


def collect(
  settings: Settings, subject: Subject, one: Dictionary, wanted: dict[int, list[int]]
) -> dict[str, Any]:
  """Texts of latents, keyed by layer and latent; writes their JSON for Neuronpedia."""
  found, home = {}, Path(settings.out) / 'neuronpedia'
  pieces = [subject.piece(i) for i in range(subject.model.n_vocab)]
  for layer, latents in wanted.items():
    site = f'mlp_norm.{layer}'
    sae, params = _take_layer(one, site, layer)
    known = features.collect(
      make_reader(subject.model, site),
      sae,
      params,
      subject.iterate_batches(settings.contexts, 4 * settings.batch),
      latents=latents,
      unembed=make_unembed(subject.model),
      limit=one.limits.get(site, math.inf),
      seed=settings.seed,
    )
    neuronpedia_features.write_latents(
      known,
      home,
      scan=slugify(f'{settings.model}-{one.label}'),
      layer=layer,
      pieces=pieces,
      transcoder=one.place,
    )
    texts = (describe(known, latent, subject.piece) for latent in latents)
    found[str(layer)] = {str(latent): text for latent, text in zip(latents, texts)}
  return found


def make_reader(model: LanguageModel, site: str) -> Callable[[np.ndarray], jax.Array]:
  """Function from tokens to the values of a site."""
  read = jax.jit(harvest.reap(model.truncate_at(site), sites=[site]))
  return lambda tokens: read(model.params, tokens)[site]


def _take_layer(one: Dictionary, site: str, layer: int) -> tuple[Architecture, Params]:
  if isinstance(one.replaced, CrossLayerReplacement):
    return one.replaced.clt.layer_dictionary(one.replaced.params, layer)
  assert isinstance(one.replaced, Replacement)
  return one.replaced.dictionaries[site]


def make_unembed(model: LanguageModel) -> Callable[[jax.Array], jax.Array]:
  """Function from directions to their logits per unit, without the scale of the final norm."""

  def unembed(directions: jax.Array) -> jax.Array:
    lengths = jnp.linalg.norm(directions, axis=-1, keepdims=True) / math.sqrt(model.d_model)
    return lengths * model.unembed(directions)

  return unembed


def describe(known: features.Features, latent: int, piece: Callable[[int], str]) -> dict[str, Any]:
  """Contexts, promoted tokens and a mechanical label of a latent."""
  row, top = known.find_row(latent), known.top
  there = np.flatnonzero(top.found[row])
  contexts = []
  for n in there[:N_CONTEXTS]:
    pairs = zip(top.tokens[row, n], top.activations[row, n])
    contexts.append([[piece(int(i)), round(float(x), 4)] for i, x in pairs if i >= 0])
  strongest = collections.Counter(int(top.tokens[row, n, top.own]) for n in there)
  label = f'on {piece(strongest.most_common(1)[0][0])!r}' if strongest else None
  promoted = [piece(int(i)) for i in known.promoted.ids[row][:N_TOKENS]]
  return {'contexts': contexts, 'promoted': promoted, 'label': label}


def add_neurons(subject: Subject, one: Dictionary, saved: Saved, graphs: Graphs) -> Graphs:
  """The graphs of neurons with the tokens that they promote."""
  nodes = [x for g in graphs.values() for x in g['nodes'] if x['kind'] == 'feature']
  signed = sorted({(x['layer'], x['latent'], 1 if x['activation'] > 0 else -1) for x in nodes})

  def compute() -> dict[str, Any]:
    promoted = promote(subject, signed)
    return {
      f'{layer} {latent} {sign}': promoted[layer, latent, sign] for layer, latent, sign in signed
    }

  found = saved.json(f'texts_{one.slug}', [*map(list, signed)], compute)

  def text(node: Mapping[str, Any]) -> dict[str, Any]:
    sign = 1 if node['activation'] > 0 else -1
    return {'promoted': found[f'{node["layer"]} {node["latent"]} {sign}']}

  return _fill(graphs, text)


def promote(
  subject: Subject, signed: list[tuple[int, int, int]]
) -> dict[tuple[int, int, int], list[str]]:
  """Tokens whose logits rise most with a neuron of a layer and a sign."""
  maps, piece = subject.maps, subject.piece
  assert maps.neurons is not None
  down, unembed = np.asarray(maps.neurons.down.weight), jax.jit(make_unembed(subject.model))
  gains = None if maps.mlp_post is None else np.asarray(maps.mlp_post.gain)
  found: dict[tuple[int, int, int], list[str]] = {}
  for start in range(0, len(signed), BLOCK):
    part = signed[start : start + BLOCK]
    vectors = [s * down[l, i] * (1 if gains is None else gains[l]) for l, i, s in part]
    padded = np.stack(vectors + [vectors[0]] * (BLOCK - len(part)))
    scores = unembed(jnp.asarray(padded))
    ids = np.asarray(jax.lax.top_k(scores, min(N_TOKENS, scores.shape[-1]))[1])
    found |= {key: [piece(int(i)) for i in row] for key, row in zip(part, ids)}
  return found


def _fill(graphs: Graphs, text: Callable[[Mapping[str, Any]], dict[str, Any] | None]) -> Graphs:
  """The graphs with the texts of their features."""
  return {
    name: graph
    | {
      'nodes': [
        node | (text(node) or {}) if node['kind'] == 'feature' else node for node in graph['nodes']
      ]
    }
    for name, graph in graphs.items()
  }
