"""Subjects of an evaluation: dictionaries with their names and settings, the model, and held-out contexts."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

import mechjax
from mechjax import sae, sites
from mechjax.errors import SAEError, WeightsError
from mechjax.eval_sae.settings import EvalSettings
from mechjax.models.language_model import LanguageModel
from mechjax.models.tokenizers import Tokenizer
from mechjax.sae import store
from mechjax.sae.architectures import Architecture, CrossLayer, Params
from mechjax.sae.evaluation import CrossLayerPart
from mechjax.sae.provenance import check_provenance, find_provenance
from mechjax.sae.store import Contexts, contexts
from mechjax.train_sae import corpora, layout
from mechjax.train_sae.settings import TrainSettings
from mechjax.train_sae.site_pairs import SitePair, is_pattern, pair_sites

Dictionaries = dict[str, tuple[Architecture | CrossLayerPart, Params]]
"""Dictionaries with their parameters, keyed by the site that each reads."""


@dataclasses.dataclass(frozen=True)
class Subject:
  """Dictionary to evaluate, or dictionaries of several sites that are spliced together.

  Attributes:
    name: such as 'topk/0'.
    kind: architecture that it was trained as, such as 'TopK'.
    setting: the hyperparameter that sets its sparsity, such as 'k 32'.
    dictionaries: the dictionary of each site, or the layer of a cross-layer transcoder, with its parameters.
    notes: differences to what its files state that are not errors, such as longer contexts.
  """

  name: str
  kind: str
  setting: str
  dictionaries: Dictionaries
  notes: tuple[str, ...] = ()

  @property
  def sae(self) -> Architecture:
    """The dictionary, if there is one site.

    Raises:
      SAEError: there are several.
    """
    return self._only()[0]

  @property
  def params(self) -> Params:
    """Its parameters, if there is one site; errors as `sae`."""
    return self._only()[1]

  def _only(self) -> tuple[Architecture, Params]:
    if len(self.dictionaries) != 1:
      raise SAEError(
        f'{self.name} has dictionaries of {len(self.dictionaries)} sites where one is expected',
        where=f'{[*self.dictionaries][:4]}',
        cause='a run with a pattern as its site',
        hint='give a run with one site',
      )
    ((only, params),) = self.dictionaries.values()
    if not isinstance(only, Architecture):
      raise SAEError(f'{self.name} is a cross-layer transcoder of one layer')
    return only, params


@dataclasses.dataclass(frozen=True)
class Subjects:
  """Dictionaries to evaluate, with their model and contexts.

  Attributes:
    model: the model.
    site: input site of all dictionaries, or the pattern that selects their sites.
    target: output site of all dictionaries, or their pattern, if it is another site.
    targets: output site of each input site; None for autoencoders.
    contexts: contexts of tokens.
    dictionaries: the dictionaries.
    about: source of the dictionaries.
    text: source of the tokens.
    limits: maximum norm of an activation that counts, keyed by input site; without sites that have no maximum.
  """

  model: LanguageModel
  site: str
  target: str | None
  targets: dict[str, str | None]
  contexts: Contexts
  dictionaries: list[Subject]
  about: str
  text: str
  limits: dict[str, float] = dataclasses.field(default_factory=dict)

  @property
  def limit(self) -> float:
    """Maximum norm of an activation that counts, for dictionaries of one site."""
    return self.limits.get(self.site, math.inf)

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
  dictionaries = [one for about in ensembles for one in _load_ensemble(about, config)]
  described = [json.loads(about.read_text()) for about in ensembles]
  targets = described[0].get('targets', {config.site: config.target})
  return Subjects(
    model,
    config.site,
    config.target,
    targets,
    rows,
    dictionaries,
    about=f'run {home.name}',
    text=f'{config.data.text}, held out',
    limits=_read_limits(described, config.site),
  )


def _read_limits(described: list[dict[str, Any]], site: str) -> dict[str, float]:
  """Smallest limit of each site over all ensembles; files of a run with one site have only the number."""
  found: dict[str, float] = {}
  for metadata in described:
    limits = {site: metadata['limit']} if 'limit' in metadata else metadata.get('limits', {})
    for one, limit in limits.items():
      found[one] = min(limit, found.get(one, math.inf))
  return found


def _advise(home: Path) -> str:
  """Advice for a run whose settings cannot be read."""
  if places := sorted((home / layout.DICTIONARIES).glob('*/0')):
    return f'its dictionaries can be evaluated: --dictionaries={places[0]} --site=... --out=...'
  return 'a run of an earlier version has to be started anew'


def _load_ensemble(about: Path, config: TrainSettings) -> Iterator[Subject]:
  """Loads the dictionaries of an ensemble, or of the ensembles of all sites that a pattern selects."""
  metadata = json.loads(about.read_text())
  for n, member in enumerate(metadata['members']):
    home = about.parent / str(n)
    loaded = _load_member(home, metadata, config)
    setting = f'{member["hparam"]} {member["value"]:g}'
    if len({m['seed'] for m in metadata['members']}) > 1:
      setting += f', seed {member["seed"]}'
    yield Subject(
      f'{about.parent.name}/{n}',
      metadata['label'],
      setting,
      loaded,
    )


def _load_member(home: Path, metadata: Mapping[str, Any], config: TrainSettings) -> Dictionaries:
  """Loads the dictionary of each site of a member of an ensemble.

  Raises:
    SAEError: a crosscoder, or the files of a dictionary name another site or model than the run.
  """
  if metadata.get('crosscoder'):
    raise SAEError(
      f'{home} is a crosscoder of {[*metadata["parts"]]}, and one site at a time is evaluated',
      hint='mechjax.sae.diffing compares its parts; metrics.jsonl of the run has fvu_by_part',
    )
  targets = metadata.get('targets', {config.site: config.target})
  read = [*targets]
  if metadata.get('cross_layer'):
    one, params = sae.load(home)
    if not isinstance(one, CrossLayer):
      raise SAEError(f'{home} is a {type(one).__name__}, not a cross-layer transcoder')
    check_provenance(one, read, [*targets.values()], config.model)
    return {place: (part, params) for place, part in sae.layers_of(one, read).items()}
  places = {place: home / place if 'targets' in metadata else home for place in read}
  loaded = {place: sae.load(path) for place, path in places.items()}
  for place, found in loaded.items():
    found.metadata.check(place, targets[place], model=config.model, where=f'{places[place]}')
  return {place: (found.sae, found.params) for place, found in loaded.items()}


def _load_published(settings: EvalSettings, out: Path) -> Subjects:
  several = is_pattern(settings.site) or is_pattern(settings.target)
  dictionaries = [] if several else [_load_one(place, settings) for place in settings.dictionaries]
  model = mechjax.load(settings.model, code=settings.code)
  pairs = pair_sites(settings.site, settings.target, model.sites)
  if several:
    dictionaries = [_load_layers(place, settings, pairs) for place in settings.dictionaries]
  dictionaries = [_add_notes(one, settings, model.tokenizer) for one in dictionaries]
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
  return Subjects(
    model,
    settings.site,
    settings.target,
    {pair.reads: pair.writes for pair in pairs},
    rows,
    dictionaries,
    about=', '.join(settings.dictionaries),
    text=settings.text,
  )


def _load_one(place: str, settings: EvalSettings) -> Subject:
  """Loads a dictionary of one site."""
  loaded = sae.load(place, transcoder=settings.target is not None)
  loaded.metadata.check(settings.site, settings.target, model=settings.model, where=place)
  one, params = loaded
  return Subject(place, type(one).__name__, Path(place).name, {settings.site: (one, params)})


def _load_layers(place: str, settings: EvalSettings, pairs: list[SitePair]) -> Subject:
  """Loads a cross-layer transcoder, or a set of dictionaries, for the sites that patterns select.

  Raises:
    SAEError: it has other layers than the sites; its files name another site or model.
  """
  try:
    layers = sae.load_set(place)
  except WeightsError as no_set:
    one, params = sae.load(place)
    if not isinstance(one, CrossLayer):
      raise no_set
    read, written = [pair.reads for pair in pairs], [pair.writes or pair.reads for pair in pairs]
    check_provenance(one, read, written, settings.model)
    parts = sae.layers_of(one, read)
    found: Dictionaries = {site: (part, params) for site, part in parts.items()}
    return Subject(place, type(one).__name__, Path(place).name, found)
  found = {}
  for pair in pairs:
    layer = sites.parse(pair.reads).layer
    if layer not in layers:
      raise SAEError(
        f'{place} has no dictionary of {pair.reads}',
        where=f'it has those of the layers {[*layers]}',
        hint='give the layers in the pattern, as in --site=mlp_norm.{3..7} --target=mlp_out.{3..7}',
      )
    loaded = layers[layer]
    loaded.metadata.check(pair.reads, pair.writes, model=settings.model, where=place)
    found[pair.reads] = (loaded.sae, loaded.params)
  kinds = {type(one).__name__ for one, _ in found.values()}
  return Subject(place, ', '.join(sorted(kinds)), Path(place).name, found)


def _add_notes(subject: Subject, settings: EvalSettings, tokenizer: Tokenizer) -> Subject:
  """The same subject, with the differences between its files and this evaluation."""
  bos = layout.first_token(tokenizer) is not None
  found: dict[str, None] = {}
  for one, _ in subject.dictionaries.values():
    provenance = find_provenance(one)
    if provenance is not None:
      stated = dataclasses.replace(
        provenance, hook_name=None, hook_name_out=None
      )  # compared before
      notes = stated.check(
        settings.site, model=settings.model, prepend_bos=bos, context_size=settings.context
      )
      found |= dict.fromkeys(notes)
  return dataclasses.replace(subject, notes=tuple(found))


def vocabulary(model: LanguageModel) -> list[str]:
  """Text of each token that the model can predict."""
  n = jax.eval_shape(model.unembed, jax.ShapeDtypeStruct((model.d_model,), np.float32)).shape[0]
  known = model.tokenizer.n_vocab
  return [model.tokenizer.join([i]) if i < known else f'<{i}>' for i in range(n)]
