"""The dictionaries that stand in for the MLPs, from directories, checked against the model.

    found = open_dictionaries(settings, model)
    found[0].label, found[0].kind, found[0].replaced         'skip transcoders', the same, a Replacement

Transcoders read 'mlp_norm' and reconstruct 'mlp_out' (or 'mlp_raw', if their files state it). Limits of the norm of an
activation, above which a token did not count in training, are read from the file next to a trained dictionary.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from experiments.circuits.settings import Settings
from mechjax import fingerprints, sae
from mechjax.circuits import CrossLayerReplacement, Neurons, Replacement, Replacer
from mechjax.errors import CircuitError, WeightsError
from mechjax.models.language_model import LanguageModel
from mechjax.sae import CrossLayer, Metadata
from mechjax.sae.formats.sets import find_layers
from mechjax.train_sae import layout
from mechjax.weights.json_files import read_json

NEURONS = 'neurons'


@dataclasses.dataclass(frozen=True, eq=False)
class Dictionary:
  """Something that stands in for the MLPs.

  Attributes:
    label: its name in tables and, with dashes, in files.
    kind: 'transcoders', 'skip transcoders', 'cross-layer transcoder' or 'neurons'.
    place: its directory, or 'neurons'.
    replaced: the replacement.
    fingerprint: differs from that of any other dictionary.
    targets: output site of each input site; empty for neurons.
    limits: maximum norm of an activation that counts, keyed by input site.
  """

  label: str
  kind: str
  place: str
  replaced: Replacer
  fingerprint: str
  targets: dict[str, str] = dataclasses.field(default_factory=dict)
  limits: dict[str, float] = dataclasses.field(default_factory=dict)

  @property
  def slug(self) -> str:
    """The label in names of files."""
    return slugify(self.label)


def slugify(text: str) -> str:
  """A text as a name of files: letters, digits and dashes."""
  return re.sub(r'[^A-Za-z0-9]+', '-', text).strip('-')


def open_dictionaries(settings: Settings, model: LanguageModel) -> list[Dictionary]:
  """Reads all dictionaries of the settings.

  Raises:
    CircuitError: two with one name; a dictionary of another width, of other sites, or without layers of the model.
    SAEError: its files name another model or site.
    WeightsError, FetchError: it cannot be read.
  """
  found = [open_dictionary(settings, model, given) for given in settings.dictionaries]
  slugs = [one.slug for one in found]
  if twice := sorted({s for s in slugs if slugs.count(s) > 1 or not s}):
    raise CircuitError(
      f'{slugs.count(twice[0])} dictionaries have the name {twice[0]!r}',
      hint='--dictionaries=first=out/a,second=out/b names them',
    )
  return found


def open_dictionary(settings: Settings, model: LanguageModel, given: str) -> Dictionary:
  """Reads one dictionary: 'neurons', a directory, or either after 'label='; errors as `open_dictionaries`."""
  label, _, place = given.rpartition('=')
  if place == NEURONS:
    made = Dictionary('', NEURONS, place, Neurons(top=settings.top), f'neurons {settings.top}')
  else:
    made = _open_files(settings, model, place)
  made.replaced.check(model.n_layers, model.d_model)
  return dataclasses.replace(made, label=label or made.kind)


def _open_files(settings: Settings, model: LanguageModel, place: str) -> Dictionary:
  directory = Path(place)
  if not directory.is_dir():
    raise CircuitError(
      f'{place!r} is not a directory of dictionaries',
      hint="'neurons', or a directory such as out/run/dictionaries/topk/0",
    )
  if find_layers(directory):
    return _open_set(settings, model, place)
  try:
    loaded = sae.load(place)
  except WeightsError as e:
    if (directory / layout.DICTIONARIES).is_dir():
      e.add_note(
        f'{place} is a training run: give one of its dictionaries, {place}/dictionaries/*/0'
      )
    raise
  one, params = loaded
  if not isinstance(one, CrossLayer):
    raise CircuitError(
      f'{place} holds a {type(one).__name__} of one layer',
      hint='a set of transcoders (mlp_norm.0, mlp_norm.1, ...), or a cross-layer transcoder',
    )
  about = loaded.metadata
  if _writes_raw(about):
    raise CircuitError(
      f'{place} reconstructs {about.hook_name_out!r:.60}',
      hint="cross-layer transcoders of circuits reconstruct 'mlp_out'",
    )
  first = [hook and hook.partition(',')[0] for hook in (about.hook_name, about.hook_name_out)]
  about = dataclasses.replace(about, hook_name=first[0], hook_name_out=first[1])
  about.check('mlp_norm.0', 'mlp_out.0', model=settings.model, where=place)
  targets = {f'mlp_norm.{n}': f'mlp_out.{n}' for n in range(one.n_layers)}
  return Dictionary(
    '', 'cross-layer transcoder', place, CrossLayerReplacement(one, params),
    fingerprints.of_weights(params), targets, _read_limits(directory, targets),
  )  # fmt: skip


def _open_set(settings: Settings, model: LanguageModel, place: str) -> Dictionary:
  layers = sae.load_set(place)
  missing = sorted({*range(model.n_layers)} - {*layers})
  if missing or len(layers) > model.n_layers:
    raise CircuitError(
      f'{place} has dictionaries of the layers {[*layers]}, and the model has {model.n_layers} layers',
      cause='a part of a set, or the set of another model',
    )
  pairs, targets = {}, {}
  for n, loaded in layers.items():
    read, target = f'mlp_norm.{n}', f'mlp_{"raw" if _writes_raw(loaded.metadata) else "out"}.{n}'
    loaded.metadata.check(read, target, model=settings.model, where=place)
    pairs[read], targets[read] = (loaded[0], loaded[1]), target
  skips = {one.skip for one, _ in pairs.values()}
  if len(skips) > 1:
    raise CircuitError(f'{place} has transcoders with and without a skip')
  replaced = Replacement(pairs, targets)
  weights = {read: params for read, (_, params) in pairs.items()}
  return Dictionary(
    '', 'skip transcoders' if skips == {True} else 'transcoders', place, replaced,
    fingerprints.of_weights(weights), targets, _read_limits(Path(place), targets),
  )  # fmt: skip


def _writes_raw(about: Metadata) -> bool:
  """Whether the files state that the output before the post-norm is reconstructed."""
  return 'mlp_raw' in (about.hook_name_out or '')


def _read_limits(directory: Path, targets: dict[str, str]) -> dict[str, float]:
  """Limits of the norms of activations, from the file that training writes; none without it."""
  path = directory.parent / layout.ABOUT
  if not path.exists():
    return {}
  limits = read_json(path).get('limits', {})
  return {site: float(x) for site, x in limits.items() if site in targets}
