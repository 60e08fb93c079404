"""Accuracy of the sport by layer: read by the weights of one head, from names in prompts, alone, and with ablations.

The reading is the head's own (`mechjax.probing.mechanistic`): its value and output matrices, the final norm's gain and
the unembedding of the three sports. In every random half the head is chosen by the direct effects of pairs of that half
(`extract`), scores are centred and means of ablations are taken there, and the other half is measured.

    curves      the name in the prompt, alone, with late attention ablated, with late MLPs ablated, with both; the sum
                of the token embeddings; control: shuffled sports
    groups      names that are known or rarer, kept or dropped, and of other lengths
    components  attention from layer k on, of layer k alone, MLPs one by one and from layer k on, read before the head

`head_search` has all heads as readers, `trained` the trained probes, `paths` the paths between MLPs.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from experiments.facts import head_search, paths, relations, trained
from experiments.facts.knowledge import GROUPS
from experiments.facts.passes import run_blocks
from experiments.facts.prompts import make_bare
from experiments.facts.readers import score_half, score_names
from experiments.facts.streams import ALONE, PROMPT, SITE
from experiments.facts.study import Scores, Study, summarise
from experiments.facts.subject import WIDTH
from mechjax import harvest
from mechjax.models.language_model import LanguageModel


def measure_lookup(study: Study) -> dict[str, Any]:
  """Measures everything of this part; see the head of this file."""
  return {
    'head': [*study.head],
    'heads_of_halves': [[*head] for head in study.heads],
    'names': len(study.names),
    'curves': measure_curves(study),
    'groups': measure_groups(study),
    'components': measure_components(study),
    'heads': head_search.measure_heads(study),
    'trained': trained.measure_trained(study),
    'paths': paths.measure_paths(study),
  }


# --- curves -----------------------------------------------------------------------------------------------------


def measure_curves(study: Study) -> dict[str, Any]:
  """Accuracy by layer of each condition: 'mean' and 'error' over halves, and 'shuffled' for the intact ones."""
  intact = study.saved.arrays('curves', study.key, lambda: score_intact(study))
  ablated = study.saved.arrays('curves_ablated', study.key, lambda: score_ablated(study))
  plain = {name: x for name, x in intact.items() if not name.endswith('_shuffled')}
  curves = {name: summarise(x) for name, x in (plain | ablated).items()}
  for name in plain:
    draws = intact[f'{name}_shuffled']
    curves[name]['shuffled'] = {'mean': draws.mean(0).tolist(), 'sd': draws.std(0).tolist()}
  return curves


def score_intact(study: Study) -> dict[str, Scores]:
  """Accuracies of the intact model [halves, layers], and with shuffled sports [shuffles, layers]."""
  found = {'embeddings': study.streams.embeddings()[:, None]}
  found |= {place: study.streams.intact(place)[:, 1:] for place in (PROMPT, ALONE)}
  scores = {name: study.score(x) for name, x in found.items()}
  return scores | {f'{name}_shuffled': shuffle(study, x) for name, x in found.items()}


def shuffle(study: Study, x: Float[np.ndarray, 'B ... D']) -> Scores:
  """Accuracies with shuffled sports, one half after the other, [shuffles, ...]."""
  random = np.random.default_rng(study.settings.seed)
  draws = []
  for number in range(study.settings.shuffles):
    n = number % len(study.halves)
    labels = random.permutation(study.names.labels)
    draws.append(score_half(x, labels, study.probes[n], study.halves[n]))
  return np.array(draws)


def score_ablated(study: Study) -> dict[str, Scores]:
  """Accuracies of the effective models below the head, from the name alone, [halves, layers]."""
  reader = study.streams.reader(ALONE, study.top)
  rows: dict[str, list[np.ndarray]] = {f'without late {name}': [] for name in study.late}
  for probe, half in zip(study.probes, study.halves):
    means = reader.measure_means(half.train)
    for name, sites in study.late.items():
      x = reader.read(reader.ablate(sites, means))
      rows[f'without late {name}'].append(score_half(x, study.names.labels, probe, half))
  return {name: np.array(scores) for name, scores in rows.items()}


# --- groups -----------------------------------------------------------------------------------------------------


def measure_groups(study: Study) -> dict[str, Any]:
  """Accuracy of groups of names from the name alone, below the head.

  Kept names of two tokens are measured in the half that does not choose; all others have no part in any choice.

  Returns:
    'shown': layers for a table. 'rows': for each group, 'n', 'mean' and 'error' by layer; the error is that of a share
    of n names.
  """
  x = study.saved.arrays('all_names', study.key, lambda: {'x': read_all(study)})['x']
  labels, rows = study.subject.labels, {}
  for name, members in list_groups(study).items():
    shares = []
    for probe, half in zip(study.probes, study.halves):
      chosen = study.names.index[half.train]
      mine = np.setdiff1d(members, chosen)
      if len(mine):
        shares.append(score_names(x[mine], labels[mine], probe, x[chosen]))
    if shares:
      share = np.mean(shares, 0)
      error = np.sqrt(share * (1 - share) / len(members))
      rows[name] = {'n': len(members), 'mean': share.tolist(), 'error': error.tolist()}
  return {'shown': study.shown, 'rows': rows}


def list_groups(study: Study) -> dict[str, Int[np.ndarray, ' _']]:
  """Athletes by length of the name, fame, and whether they are kept."""
  p, _ = relations.read_sports(study.settings, study.subject, study.saved)
  kept = p > study.settings.known
  aligned = np.array([one.width == WIDTH for one in study.subject.prompts])
  fame = np.array([one.group for one in study.subject.athletes])
  groups = {}
  for verb, chosen in (('kept', kept), ('dropped', ~kept), ('all', np.ones_like(kept))):
    for group in GROUPS:
      groups[f'{verb}, {group}, {WIDTH} tokens'] = chosen & aligned & (fame == group)
    groups[f'{verb}, other lengths'] = chosen & ~aligned
  return {name: np.flatnonzero(mask) for name, mask in groups.items()}


def read_all(study: Study) -> Float[np.ndarray, 'B L D']:
  """The stream at the last token of every athlete's name alone, after each layer below the head."""
  model = study.subject.model
  prompts = make_bare(model, study.subject.prompts)
  longest = max(len(one.ids) for one in prompts)
  # A causal model does not see the padding after the name.
  tokens = np.array([[*one.ids, *[0] * (longest - len(one.ids))] for one in prompts], np.int32)
  at = np.array([one.stop - 1 for one in prompts])
  sites = f'{SITE}.{{0..{study.top - 1}}}'
  body = model.truncate_at(sites)

  @jax.jit
  def read(model: LanguageModel, rows: tuple[jax.Array, jax.Array]) -> jax.Array:
    x = harvest.reap(body, sites=sites)(model.params, rows[0]).stack(SITE)
    return jnp.moveaxis(x[:, jnp.arange(len(rows[1])), rows[1]], 0, 1)

  return run_blocks(lambda rows: read(model, rows), (tokens, at), study.settings.batch)


# --- single components --------------------------------------------------------------------------------------------


def measure_components(study: Study) -> dict[str, Any]:
  """Accuracy before the head without some components at the last token of the name alone.

  Returns:
    For each sweep of `list_sweeps`, 'mean' and 'error' over halves by layer; and 'intact'.
  """
  found = study.saved.arrays('components', study.key, lambda: score_components(study))
  return {name: summarise(x) for name, x in found.items()}


def score_components(study: Study) -> dict[str, Scores]:
  """Accuracies of each sweep, [halves, layers]."""
  reader = study.streams.reader(ALONE, study.top)
  rows: dict[str, list] = {}
  for probe, half in [*zip(study.probes, study.halves)][: study.settings.path_splits]:
    means = reader.measure_means(half.train)

    def score(sites: list[str], means: Any = means, probe: Any = probe, half: Any = half) -> Any:
      x = reader.read(reader.ablate(sites, means))[:, -1]
      return score_half(x, study.names.labels, probe, half)

    rows.setdefault('intact', []).append(score([]))
    for name, sweep in list_sweeps(study.top).items():
      rows.setdefault(name, []).append([score([site]) for site in sweep])
  return {name: np.array(x) for name, x in rows.items()}


def list_sweeps(top: int) -> dict[str, list[str]]:
  """Components below a layer that are ablated together, in each sweep by layer."""
  layers, last = range(top), top - 1
  return {
    'attention from': [f'attn_out.{{{k}..{last}}}' for k in layers],
    'attention of': [f'attn_out.{k}' for k in layers],
    'MLP of': [f'mlp_out.{k}' for k in layers],
    'MLPs from': [f'mlp_out.{{{k}..{last}}}' for k in layers],
  }
