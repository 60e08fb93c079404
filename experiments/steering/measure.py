"""Frontiers of all methods, one after the other; each is saved when it is done, and a later run continues."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from experiments import outputs
from experiments.steering import materials, methods
from experiments.steering.concepts import CONCEPTS, PROMPTS, Concept
from experiments.steering.materials import Materials
from experiments.steering.settings import METHODS, Settings
from mechjax import extras, files, fingerprints
from mechjax.errors import SteeringError
from mechjax.models.language_model import LanguageModel
from mechjax.steering import FrontierPoint, Proportion, frontier
from mechjax.steering.rollouts import count_successes
from mechjax.train_sae import corpora


@dataclasses.dataclass(frozen=True)
class Measured:
  """Results of one concept.

  Attributes:
    concept: name of the concept.
    frontiers: points of each method, keyed by its name in `METHODS`.
    plain: share of rollouts with a word of the concept without an edit.
    asked: the same if the first prompt of the pair precedes the prompt.
    lengths: length of the vector at each position, before and after padding latents are projected out; or one of them.
    tokens: tokens of the longer prompt, for the axis of positions.
  """

  concept: str
  frontiers: dict[str, list[FrontierPoint]]
  plain: Proportion
  asked: Proportion
  lengths: dict[str, np.ndarray]
  tokens: list[str]


def prepare(settings: Settings) -> tuple[Callable[[Concept], Materials], Path]:
  """Loads the model and the dictionary, and makes the output directory, which belongs to them and to the settings.

  Raises:
    SteeringError: it holds results of other settings, weights or texts; otherwise as `materials.load`.
  """
  materials_of = materials.load(settings)
  m = materials_of(CONCEPTS[settings.concepts[0]])
  _, directions = m.dictionary or (None, {})
  out = outputs.claim(
    settings.out,
    settings,
    SteeringError,
    free=('methods', 'concepts'),
    weights=fingerprints.of_weights((m.model.params, directions)),
    texts=hashlib.sha256(repr((PROMPTS, CONCEPTS)).encode()).hexdigest()[:16],
  )
  return materials_of, out


def measure(
  settings: Settings, materials_of: Callable[[Concept], Materials], out: Path
) -> list[Measured]:
  """Measures every method for every concept."""
  found = []
  tqdm = extras.require('tqdm', 'models').tqdm
  with tqdm(total=len(settings.concepts) * len(settings.chosen), desc='frontiers') as bar:
    for name in settings.concepts:
      m = materials_of(CONCEPTS[name])
      frontiers = {}
      for method in settings.chosen:
        frontiers[METHODS[method]] = _frontier(settings, m, method, out / f'{name}_{method}.json')
        bar.update()
      without = _unsteered(settings, m, out / f'{name}.json')
      found.append(Measured(name, frontiers, *without, _lengths(m), _tokens(m)))
  return found


def _unsteered(settings: Settings, m: Materials, path: Path) -> tuple[Proportion, Proportion]:
  """Success without an edit: with the prompts alone, and after a sentence that names the concept."""
  if not path.exists():
    counts = []
    for before in ('', f'{m.concept.plus}. '):
      texts = rollouts(settings, m.model, before)(None)
      counts.append([count_successes(texts, m.concept.words), len(texts)])
    files.write_json(path, counts)
  plain, asked = json.loads(path.read_text())
  return Proportion(*plain), Proportion(*asked)


def _frontier(settings: Settings, m: Materials, method: str, path: Path) -> list[FrontierPoint]:
  """Points of one method, from a file if they are there."""
  if not path.exists():
    first = method in methods.AT_FIRST
    points = frontier(
      methods.make_edit(method, m),
      settings.coefficients if first else settings.everywhere,
      rollouts(settings, m.model),
      m.concept.words,
      unrelated_texts(settings, m.model),
      m.model.apply,
      m.model.params,
      loss_at='after' if first else 'under',
    )
    files.write_json(path, [dataclasses.asdict(p) for p in points])
  rows = json.loads(path.read_text())
  return [FrontierPoint(**row | {'interval': tuple(row['interval'])}) for row in rows]


def rollouts(
  settings: Settings, model: LanguageModel, before: str = ''
) -> Callable[[Any], list[str]]:
  """Function from plants to sampled texts, with the same random numbers for all plants; `before` begins the prompts."""
  begin = materials.first_token(model)
  rows = [[begin, *model.tokenizer.split(before + prompt)] for prompt in PROMPTS]

  def sample(plants: Any) -> list[str]:
    out = model.generate(
      rows, settings.new_tokens, plants=plants, n_samples=-(-settings.rollouts // len(rows)),
      temperature=1.0, top_p=0.3, frequency_penalty=1.0, seed=settings.seed, stop=(),
    )  # fmt: skip
    return [model.text(row) for row in out.tokens]

  return sample


def unrelated_texts(settings: Settings, model: LanguageModel) -> np.ndarray:
  """Token ids of the first long passages of a text, int32 [texts, text_length]."""
  begin, n, T = materials.first_token(model), settings.texts, settings.text_length
  ids: list[int] = []
  for text in corpora.texts(settings.text):
    ids += model.tokenizer.split(text)
    if len(ids) >= n * (T - 1):
      break
  if len(ids) < n * (T - 1):
    raise SteeringError(f'{settings.text!r} has {len(ids)} tokens, {n * (T - 1)} are needed')
  rows = np.reshape(ids[: n * (T - 1)], (n, T - 1))
  return np.concatenate([np.full((n, 1), begin), rows], 1).astype(np.int32)


def _lengths(m: Materials) -> dict[str, np.ndarray]:
  found = {'difference': np.linalg.norm(methods.pair_vector(m), axis=1)}
  if m.dictionary is not None:
    found['without padding latents'] = np.linalg.norm(methods.projected_vector(m), axis=1)
  return found


def _tokens(m: Materials) -> list[str]:
  return [m.model.tokenizer.piece(int(i)) for i in m.pair.minus[0]]
