"""Subjects of an evaluation: dictionaries with their names and settings, the model, and held-out contexts."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

import mechjax
from mechjax import sae
from mechjax.errors import SAEError
from mechjax.eval_sae.settings import EvalSettings
from mechjax.models.language_model import LanguageModel
from mechjax.sae import store
from mechjax.sae.architectures import Params
from mechjax.sae.store import Contexts, contexts
from mechjax.train_sae import corpora, layout


@dataclasses.dataclass(frozen=True)
class Subject:
  """Dictionary to evaluate.

  Attributes:
    name: such as 'topk/0'.
    kind: architecture that it was trained as, such as 'TopK'.
    setting: the hyperparameter that sets its sparsity, such as 'k 32'.
    sae: the dictionary.
    params: its parameters.
  """

  name: str
  kind: str
  setting: str
  sae: sae.Architecture
  params: Params


@dataclasses.dataclass(frozen=True)
class Subjects:
  """Dictionaries to evaluate, with their model and contexts.

  Attributes:
    model: the model.
    site: input site of all dictionaries.
    target: output site of all dictionaries, if it is another site.
    contexts: contexts of tokens.
    dictionaries: the dictionaries.
    about: source of the dictionaries.
    text: source of the tokens.
    limit: maximum norm of an activation that counts.
  """

  model: LanguageModel
  site: str
  target: str | None
  contexts: Contexts
  dictionaries: list[Subject]
  about: str
  text: str
  limit: float = math.inf

  def iter_batches(self, n_tokens: int, rows: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields about n_tokens tokens from all over the contexts: ids, int [rows, T], and a mask of those that count."""
    n = min(len(self.contexts), -(-n_tokens // self.contexts.length))
    n -= n % rows if n >= rows else 0
    chosen = np.linspace(0, len(self.contexts) - 1, n).astype(np.int64)
    for start in range(0, n, rows):
      tokens = self.contexts.tokens(chosen[start : start + rows])
      yield tokens, self.contexts.is_kept(tokens)


def find_subjects(settings: EvalSettings, out: Path) -> Subjects:
  """Loads the dictionaries and the model that the settings name.

  Args:
    settings: settings of the evaluation.
    out: output directory.

  Raises:
    SAEError: the run does not exist or is not finished; the files of a dictionary name another
      site or model.
    FlagsError: the run was started by a version that had other names of fields.
    WeightsError, FetchError: a dictionary or model cannot be read or fetched.
  """
  return _load_run(Path(settings.run)) if settings.run else _load_published(settings, out)


def _load_run(home: Path) -> Subjects:
  try:
    config = layout.read_settings(home, _advise(home))
  except OSError as e:
    raise SAEError(f'{home} is not a run of mechjax.train_sae: {e}') from e
  ensembles = sorted((home / layout.DICTIONARIES).glob(f'*/{layout.ABOUT}'))
  if not ensembles:
    raise SAEError(
      f'{home} has no dictionaries yet', hint='run the command of the training again to resume it'
    )
  rows = contexts.read(home / layout.TOKENS).split(config.data.held_out_every)[1]
  model = mechjax.load(config.model, code=config.code)
  dictionaries = [one for about in ensembles for one in _load_ensemble(about)]
  limit = min(json.loads(about.read_text()).get('limit', math.inf) for about in ensembles)
  text = f'{config.data.text}, held out'
  return Subjects(
    model, config.site, config.target, rows, dictionaries, f'run {home.name}', text, limit
  )


def _advise(home: Path) -> str:
  """Advice for a run whose settings cannot be read."""
  if places := sorted((home / layout.DICTIONARIES).glob('*/0')):
    return f'its dictionaries can be evaluated: --dictionaries={places[0]} --site=... --out=...'
  return 'a run of an earlier version has to be started anew'


def _load_ensemble(about: Path) -> Iterator[Subject]:
  """Loads the dictionaries of an ensemble."""
  metadata = json.loads(about.read_text())
  for n, member in enumerate(metadata['members']):
    one, params = sae.load(about.parent / str(n))
    setting = f'{member["hparam"]} {member["value"]:g}'
    if len({m['seed'] for m in metadata['members']}) > 1:
      setting += f', seed {member["seed"]}'
    yield Subject(f'{about.parent.name}/{n}', metadata['label'], setting, one, params)


def _load_published(settings: EvalSettings, out: Path) -> Subjects:
  dictionaries = []
  for place in settings.dictionaries:
    loaded = sae.load(place, transcoder=settings.target is not None)
    loaded.metadata.check(settings.site, settings.target, model=settings.model, where=place)
    one, params = loaded
    dictionaries.append(Subject(place, type(one).__name__, Path(place).name, one, params))
  model = mechjax.load(settings.model, code=settings.code)
  tokenizer = model.tokenizer
  rows = store.pack(
    corpora.texts(settings.text),
    tokenizer.split,
    length=settings.context,
    bos=layout.first_token(tokenizer),
    eos=tokenizer.eos,
    directory=out / layout.TOKENS,
    max_contexts=1 + max(settings.tokens, settings.feature_tokens) // settings.context,
  )
  about = ', '.join(settings.dictionaries)
  return Subjects(model, settings.site, settings.target, rows, dictionaries, about, settings.text)


def vocabulary(model: LanguageModel) -> list[str]:
  """Text of each token that the model can predict."""
  n = jax.eval_shape(model.unembed, jax.ShapeDtypeStruct((model.d_model,), np.float32)).shape[0]
  known = model.tokenizer.n_vocab
  return [model.tokenizer.join([i]) if i < known else f'<{i}>' for i in range(n)]
