"""Candidates of the comparison: dictionaries, and ways of finding their latents.

A candidate is a dictionary (its rows and its bias) and a method of coding. Pursuits use only W_dec and b_dec, and their
number of steps is data, so one `Evaluation` of a method serves all dictionaries of one size at all L0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments.ito.settings import Settings
from mechjax import harvest, precision, sites
from mechjax.errors import SAEError, unknown
from mechjax.eval_sae.subjects import Subject, Subjects
from mechjax.sae import Architecture, Params, TopK
from mechjax.sae.evaluation import Evaluation
from mechjax.sae.pursuit import ActivationDictionary, Pursued, Pursuit, Truncated, itda
from mechjax.sae.store import contexts
from mechjax.train_sae import layout

NAMES = {
  'gradient': 'gradient pursuit',
  'matching': 'matching pursuit',
  'orthogonal': 'orthogonal pursuit',
}
ENCODER, CUT = 'encoder', 'encoder, largest contributions'
RANDOM, ACTIVATIONS = 'random directions', 'activations (ITDA)'


@dataclasses.dataclass(frozen=True)
class Candidate:
  """A dictionary and a way of finding its latents.

  Attributes:
    dictionary: name of the dictionary.
    method: how latents are found, one of `NAMES`, `ENCODER` or `CUT`.
    k: number of steps or latents; None for an encoder as it was trained.
    evaluation: evaluation with the architecture.
    params: parameters of the dictionary.
  """

  dictionary: str
  method: str
  k: int | None
  evaluation: Evaluation
  params: Params

  @property
  def name(self) -> str:
    """Name of the candidate, unique within a comparison."""
    return f'{self.dictionary}, {self.method}' + (f' {self.k}' if self.k else '')


def choose_subjects(settings: Settings, subjects: Subjects) -> list[Subject]:
  """Dictionaries of the run that the settings name.

  Raises:
    SAEError: a name is not in the run; a transcoder, which has no pursuit.
  """
  known = {s.name: s for s in subjects.dictionaries}
  for name in settings.dictionaries:
    if name not in known:
      raise unknown(SAEError, 'dictionary', name, known, where='--dictionaries')
  if subjects.target is not None:
    raise SAEError(
      f'a run of transcoders, from {subjects.site} to {subjects.target}',
      cause='a pursuit reconstructs its input, and directions of a transcoder are those of its output',
      hint='train autoencoders, without --target',
    )
  return [known[name] for name in settings.dictionaries or known]


def candidates(settings: Settings, subjects: Subjects) -> list[Candidate]:
  """All candidates, in the order of the table."""
  chosen = choose_subjects(settings, subjects)
  evaluate = _evaluations(subjects)
  first = chosen[0].sae
  sizes = TopK(d_in=first.d_in, width=first.width, k=1)
  pursuits = {
    method: evaluate(Pursued(sizes, Pursuit(k=max(settings.target_l0), method=method)))
    for method in settings.methods
  }

  def pursue(name: str, directions: Params) -> Iterator[Candidate]:
    for method, evaluation in pursuits.items():
      for k in settings.target_l0:
        yield Candidate(name, NAMES[method], k, evaluation, directions | {'k': jnp.int32(k)})

  found: list[Candidate] = []
  for subject in chosen:
    name = f'{subject.kind} {subject.setting}'
    found.append(Candidate(name, ENCODER, None, evaluate(subject.sae), subject.params))
    if settings.truncated:
      for k in cuts(settings, subject.sae):
        cut = evaluate(Truncated(subject.sae, k))
        found.append(Candidate(name, CUT, k, cut, subject.params))
    found += pursue(name, directions_of(subject.params))
  bias = jnp.asarray(chosen[0].params['b_dec'])
  if settings.random:
    found += pursue(RANDOM, random_directions(first, bias, settings.seed))
  if settings.itda_tokens:
    atoms = build_atoms(settings, subjects, first.width)
    name = f'{len(atoms.atoms):,} {ACTIVATIONS}'
    for method in settings.methods:
      ito, params = atoms.as_dictionary(Pursuit(k=max(settings.target_l0), method=method))
      evaluation = evaluate(ito)
      for k in settings.target_l0:
        own = params | {'k': jnp.int32(k)}
        found.append(Candidate(name, NAMES[method], k, evaluation, own))
  return found


def cuts(settings: Settings, sae: Architecture) -> list[int]:
  """Numbers of latents to cut an encoder to; more than a TopK has would change nothing."""
  return [k for k in settings.target_l0 if not isinstance(sae, TopK) or k < sae.k]


def _evaluations(subjects: Subjects) -> Callable[[Architecture], Evaluation]:
  limits = {subjects.site: subjects.limit} if np.isfinite(subjects.limit) else {}
  apply = subjects.model.apply
  return lambda sae: Evaluation(apply, {subjects.site: sae}, limits=limits)


def directions_of(params: Params) -> Params:
  """The parameters that a pursuit uses."""
  return {name: jnp.asarray(params[name]) for name in ('W_dec', 'b_dec')}


def random_directions(sae: Architecture, bias: jax.Array, seed: int) -> Params:
  """Directions drawn uniformly from the sphere, with the size and the bias of a trained dictionary."""
  W_dec = jax.random.normal(jax.random.key(seed), (sae.width, sae.d_in))
  return {'W_dec': W_dec / jnp.linalg.norm(W_dec, axis=1, keepdims=True), 'b_dec': bias}


def build_atoms(settings: Settings, subjects: Subjects, width: int) -> ActivationDictionary:
  """Builds a dictionary of activations of the text that the run was trained on."""
  home, model, site = Path(settings.run), subjects.model, sites.parse(subjects.site)
  every = layout.read_settings(home, 'start it anew').data.held_out_every
  rows = contexts.read(home / layout.TOKENS).split(every)[0]
  read = jax.jit(harvest.reap(model.truncate_at(site), sites=[site]))
  n = min(len(rows), -(-settings.itda_tokens // rows.length))

  def batches() -> Iterator[tuple[jax.Array, np.ndarray]]:
    for start in range(0, n - settings.batch + 1, settings.batch):
      tokens = rows.tokens(slice(start, start + settings.batch))
      x = precision.wide(read(model.params, tokens)[site])
      within = np.asarray(jnp.linalg.norm(x, axis=-1) <= subjects.limit)
      yield x, rows.is_kept(tokens) & within

  coding = Pursuit(k=settings.itda_k, method='orthogonal', nonnegative=False)
  return itda.build(batches(), threshold=settings.itda_threshold, max_atoms=width, pursuit=coding)
