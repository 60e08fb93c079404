"""Accuracy of the sport by layer: read by the weights of one head, from names in prompts, alone, and with ablations.

The reading is the head's own (`mechjax.probing.mechanistic`): its value and output matrices, the final norm's gain and
the unembedding of the three sports. In every random half the head is chosen by the direct effects of pairs of that half
(`extract`), features are centred and means of ablations are taken there, and the other half is measured.

    curves      the name in the prompt, alone, with late attention ablated, with late MLPs ablated, with both; the sum
                of the token embeddings; control: shuffled sports
    groups      names that are known or rarer, kept or dropped, and of other lengths
    components  attention from layer k on, of layer k alone, MLPs one by one and from layer k on, read before the head
    heads       every head of the model as a reader, chosen on one half and measured on the other
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from experiments.facts import paths, relations, trained
from experiments.facts.extract import Extraction
from experiments.facts.knowledge import GROUPS
from experiments.facts.names import Names, correct_error
from experiments.facts.passes import run_blocks
from experiments.facts.prompts import make_bare
from experiments.facts.readers import make_reader, read_weights, score_half, score_names
from experiments.facts.settings import Settings
from experiments.facts.streams import SITE, StreamReader, embed_last, sum_embeddings
from experiments.facts.subject import WIDTH, Subject
from experiments.saved import Saved
from mechjax import harvest
from mechjax.models.language_model import LanguageModel
from mechjax.probing.mechanistic import search_heads
from mechjax.probing.splits import Split

Scores = Float[np.ndarray, 'halves ...']
LISTED_HEADS = 12
"""Heads in the table of readers."""


def measure_lookup(
  settings: Settings, subject: Subject, names: Names, found: Extraction, saved: Saved
) -> dict[str, Any]:
  """Measures everything of this part; see the head of this file, `trained` and `paths`.

  Raises:
    ProbingError: the best head is in the first layer, so that no layer can look anything up before it.
  """
  halves = names.draw_halves(settings)
  heads = [found.choose(half.train) for half in halves]
  study = Study(settings, subject, names, halves, heads, found.head[0], saved)
  return {
    'head': [*found.head],
    'heads_of_halves': [[*head] for head in heads],
    'names': len(names),
    'curves': study.measure_curves(),
    'groups': study.measure_groups(),
    'components': study.measure_components(),
    'heads': study.measure_heads(),
    'trained': trained.measure_trained(settings, subject, names, study.shown, saved),
    'paths': paths.measure_paths(settings, subject, names, halves, heads, found.head[0], saved),
  }


class Study:
  """The readings of one model.

  Attributes:
    settings, subject, names, saved: as everywhere.
    halves: halves of the names.
    heads: head that each half chose.
    top: layer of the best head; layers below it look up.
  """

  def __init__(
    self,
    settings: Settings,
    subject: Subject,
    names: Names,
    halves: list[Split],
    heads: list[tuple[int, int]],
    top: int,
    saved: Saved,
  ) -> None:
    self.settings, self.subject, self.names, self.saved = settings, subject, names, saved
    self.halves, self.heads, self.top = halves, heads, max(top, 1)
    self.key = [len(names), [[*head] for head in heads], self.top]
    self.weights = read_weights(subject.model)
    self.probes = [make_reader(self.weights, head, subject.sports) for head in heads]

  @property
  def late(self) -> dict[str, list[str]]:
    """Components that the effective models do without, below the head."""
    last = self.top - 1
    span = lambda name, first: [f'{name}.{{{first}..{last}}}'] if first <= last else []  # noqa: E731
    attention = span('attn_out', self.settings.late_attention)
    mlps = span('mlp_out', self.settings.late_mlps)
    return {'attention': attention, 'MLPs': mlps, 'both': attention + mlps}

  @property
  def shown(self) -> list[int]:
    """Layers in tables: the first one, the one where lookup ends, and the one before the head."""
    return sorted({0, min(self.settings.late_mlps, self.top) - 1, self.top - 1})

  def score(self, x: Float[np.ndarray, 'B ... D']) -> Scores:
    """Accuracy of each half's probe, from the same features."""
    return np.array(
      [score_half(x, self.names.labels, p, s) for p, s in zip(self.probes, self.halves)]
    )

  # --- curves -------------------------------------------------------------------------------------------------

  def measure_curves(self) -> dict[str, Any]:
    """Accuracy by layer of each condition: 'mean' and 'error' over halves, and 'shuffled' for the first ones."""
    model, names, settings = self.subject.model, self.names, self.settings

    def compute_intact() -> dict[str, np.ndarray]:
      found = {'embeddings': sum_embeddings(model, names.bare)[:, None]}
      for name, prompts in (('prompt', names.prompts), ('name alone', names.bare)):
        found[name] = StreamReader(model, prompts, model.n_layers, settings.batch).read()
      scores = {name: self.score(x) for name, x in found.items()}
      shuffled = {f'{name}_shuffled': self.shuffle(x) for name, x in found.items()}
      return scores | shuffled

    def compute_ablated() -> dict[str, np.ndarray]:
      reader = StreamReader(model, names.bare, self.top, settings.batch)
      rows: dict[str, list[np.ndarray]] = {f'without late {name}': [] for name in self.late}
      for probe, half in zip(self.probes, self.halves):
        means = reader.measure_means(half.train)
        for name, sites in self.late.items():
          x = reader.read(reader.ablate(sites, means))
          rows[f'without late {name}'].append(score_half(x, names.labels, probe, half))
      return {name: np.array(scores) for name, scores in rows.items()}

    intact = self.saved.arrays('curves', self.key, compute_intact)
    ablated = self.saved.arrays('curves_ablated', self.key, compute_ablated)
    plain = {name: x for name, x in intact.items() if not name.endswith('_shuffled')}
    curves = {name: summarise(x) for name, x in (plain | ablated).items()}
    for name in plain:
      draws = intact[f'{name}_shuffled']
      curves[name]['shuffled'] = {'mean': draws.mean(0).tolist(), 'sd': draws.std(0).tolist()}
    return curves

  def shuffle(self, x: Float[np.ndarray, 'B ... D']) -> Scores:
    """Accuracies with shuffled sports, one half after the other, [shuffles, ...]."""
    random = np.random.default_rng(self.settings.seed)
    draws = []
    for number in range(self.settings.shuffles):
      n = number % len(self.halves)
      labels = random.permutation(self.names.labels)
      draws.append(score_half(x, labels, self.probes[n], self.halves[n]))
    return np.array(draws)

  # --- groups -------------------------------------------------------------------------------------------------

  def measure_groups(self) -> dict[str, Any]:
    """Accuracy of groups of names from the name alone, at chosen layers; features are centred by the halves.

    Kept names of two tokens are measured in the half that does not choose; all others have no part in any choice.

    Returns:
      'shown': layers for a table. 'rows': for each group, 'n', 'mean' and 'error' by layer below the head; the error is
      that of a share of n names.
    """
    x = self.saved.arrays('all_names', self.key, lambda: {'x': self.read_all()})['x']
    rows = {}
    for name, members in self.list_groups().items():
      shares = []
      for probe, half in zip(self.probes, self.halves):
        chosen = self.names.index[half.train]
        mine = np.setdiff1d(members, chosen)
        if len(mine):
          shares.append(score_names(x[mine], self.subject.labels[mine], probe, x[chosen]))
      if shares:
        share = np.mean(shares, 0)
        error = np.sqrt(share * (1 - share) / len(members))
        rows[name] = {'n': len(members), 'mean': share.tolist(), 'error': error.tolist()}
    return {'shown': self.shown, 'rows': rows}

  def list_groups(self) -> dict[str, Int[np.ndarray, ' _']]:
    """Athletes by length of the name, fame, and whether they are kept."""
    p, _ = relations.read_sports(self.settings, self.subject, self.saved)
    kept = p > self.settings.known
    aligned = np.array([one.width == WIDTH for one in self.subject.prompts])
    fame = np.array([one.group for one in self.subject.athletes])
    groups = {}
    for verb, chosen in (('kept', kept), ('dropped', ~kept), ('all', np.ones_like(kept))):
      for group in GROUPS:
        groups[f'{verb}, {group}, {WIDTH} tokens'] = chosen & aligned & (fame == group)
      groups[f'{verb}, other lengths'] = chosen & ~aligned
    return {name: np.flatnonzero(mask) for name, mask in groups.items()}

  def read_all(self) -> Float[np.ndarray, 'B L D']:
    """The stream at the last token of every athlete's name alone, after each layer below the head."""
    prompts = make_bare(self.subject.model, self.subject.prompts)
    longest = max(len(one.ids) for one in prompts)
    # A causal model does not see the padding after the name.
    tokens = np.array([[*one.ids, *[0] * (longest - len(one.ids))] for one in prompts], np.int32)
    at = np.array([one.stop - 1 for one in prompts])
    sites = f'{SITE}.{{0..{self.top - 1}}}'
    body = self.subject.model.truncate_at(sites)

    @jax.jit
    def read(model: LanguageModel, rows: tuple[jax.Array, jax.Array]) -> jax.Array:
      x = harvest.reap(body, sites=sites)(model.params, rows[0]).stack(SITE)
      return jnp.moveaxis(x[:, jnp.arange(len(rows[1])), rows[1]], 0, 1)

    return run_blocks(lambda x: read(self.subject.model, x), (tokens, at), self.settings.batch)

  # --- single components ----------------------------------------------------------------------------------------

  def measure_components(self) -> dict[str, Any]:
    """Accuracy before the head without some components at the last token of the name alone.

    Returns:
      For each sweep of `list_sweeps`, 'at': its layers, with 'mean' and 'error' over halves; and 'intact'.
    """

    def compute() -> dict[str, np.ndarray]:
      reader = StreamReader(self.subject.model, self.names.bare, self.top, self.settings.batch)
      rows: dict[str, list] = {}
      for probe, half in [*zip(self.probes, self.halves)][: self.settings.path_splits]:
        means = reader.measure_means(half.train)
        score = lambda sites, m=means, p=probe, s=half: score_half(  # noqa: E731
          reader.read(reader.ablate(sites, m))[:, -1], self.names.labels, p, s
        )
        rows.setdefault('intact', []).append(score([]))
        for name, sweep in list_sweeps(self.top).items():
          rows.setdefault(name, []).append([score([site]) for site in sweep])
      return {name: np.array(x) for name, x in rows.items()}

    found = self.saved.arrays('components', self.key, compute)
    return {name: summarise(x) for name, x in found.items()}

  # --- all heads ------------------------------------------------------------------------------------------------

  def measure_heads(self) -> dict[str, Any]:
    """Every head as a reader of the name alone, at the layer where lookup ends and at the head's own input.

    Returns:
      'rows': for the best heads by the half that chooses: name, accuracy of both halves at both places with errors.
      'median': median over heads of the measured accuracy at both places. 'best': accuracy of the head that each half
      chooses by its own accuracy. 'shuffled': the largest accuracy of any head with shuffled sports, by draw.
    """
    model, names = self.subject.model, self.names

    def compute() -> dict[str, np.ndarray]:
      reader = StreamReader(model, names.bare, model.n_layers, self.settings.batch)
      before = np.concatenate([embed_last(model, names.bare)[:, None], reader.read()], axis=1)
      x = {
        'after lookup': before[:, min(self.settings.late_mlps, self.top)],
        'own input': before[:, :-1],
      }
      rows: dict[str, list[np.ndarray]] = {'chosen': [], 'measured': [], 'shuffled': []}
      for half in self.halves:
        for name, some in (('chosen', half.train), ('measured', half.test)):
          rows[name].append(self.score_heads(x, names.labels, half.train, some))
      random = np.random.default_rng(self.settings.seed)
      for number in range(self.settings.shuffles):
        half, labels = self.halves[number % len(self.halves)], random.permutation(names.labels)
        rows['shuffled'].append(self.score_heads(x, labels, half.train, half.test).max((1, 2)))
      return {name: np.array(r) for name, r in rows.items()}

    return describe_heads(self.saved.arrays('heads', self.key, compute))

  def score_heads(
    self,
    x: dict[str, Float[np.ndarray, 'B ... D']],
    labels: Int[np.ndarray, ' B'],
    chosen: Int[np.ndarray, ' _'],
    measured: Int[np.ndarray, ' _'],
  ) -> Float[np.ndarray, '2 L N']:
    """Accuracy of every head on some names, at the layer after lookup and at its own input."""
    parts = []
    for streams in x.values():
      pick = lambda rows, s=streams: np.moveaxis(s[rows], 0, -2)  # noqa: E731
      found = search_heads(
        self.weights, pick(measured), labels[measured], self.subject.sports, centre_on=pick(chosen)
      )
      parts.append(found.accuracy)
    return np.array(parts)


def list_sweeps(top: int) -> dict[str, list[str]]:
  """Components below a layer that are ablated together, in each sweep by layer."""
  layers, last = range(top), top - 1
  return {
    'attention from': [f'attn_out.{{{k}..{last}}}' for k in layers],
    'attention of': [f'attn_out.{k}' for k in layers],
    'MLP of': [f'mlp_out.{k}' for k in layers],
    'MLPs from': [f'mlp_out.{{{k}..{last}}}' for k in layers],
  }


def describe_heads(found: dict[str, np.ndarray]) -> dict[str, Any]:
  """The table of readers, from accuracies [halves, 2, L, N]."""
  chosen, measured = found['chosen'], found['measured']
  n_heads = chosen.shape[3]
  chosen, measured = (x.reshape(*x.shape[:2], -1) for x in (chosen, measured))
  order = np.argsort(-chosen.mean(0).max(0), kind='stable')[:LISTED_HEADS]
  error = correct_error(measured)
  best = np.take_along_axis(measured, chosen.argmax(2)[..., None], 2)[..., 0]
  rows: list[list[Any]] = []
  for i in map(int, order):
    layer, head = divmod(i, n_heads)
    row: list[Any] = [f'{layer}.{head}']
    for place in (0, 1):
      row += [float(x[place, i]) for x in (chosen.mean(0), measured.mean(0), error)]
    rows.append(row)
  return {
    'rows': rows,
    'median': np.median(measured.mean(0), axis=1).tolist(),
    'best': summarise(best),
    'shuffled': found['shuffled'].tolist(),
  }


def summarise(scores: Scores) -> dict[str, Any]:
  """Mean over halves, and its error."""
  return {'mean': np.mean(scores, 0).tolist(), 'error': correct_error(np.asarray(scores)).tolist()}
