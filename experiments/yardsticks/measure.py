"""All parts of the experiment, and their results as plain values.

    subject = prepare(settings, model)             everything that can be wrong with the settings is found here
    results = measure(settings, subject)           ready for JSON; `report` draws from these alone

A finished step, such as a dictionary of the part 'ioi', is read from the output directory, so that an interrupted run
continues with the same command, and a part can be added later.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments import ioi_factorial, outputs
from experiments.ioi_factorial import FactorialPrompts
from experiments.saved import Saved
from experiments.yardsticks import cities, compiled, toys, words
from experiments.yardsticks.cities import CityPrompts
from experiments.yardsticks.dictionaries import Loaded, load_all
from experiments.yardsticks.ioi import measure_ioi
from experiments.yardsticks.passes import Passes, PlacedPrompts
from experiments.yardsticks.settings import FREE, OF_MODEL, PARTS, Settings
from experiments.yardsticks.trial import make_trial
from experiments.yardsticks.words import LabelledWords
from mechjax import files, fingerprints
from mechjax.errors import YardstickError
from mechjax.models.language_model import LanguageModel

RESULTS, SUBJECT = 'yardsticks.json', 'model.json'


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
  """A model with dictionaries, and the prompts of the parts that are measured.

  Attributes:
    model: the model; None if no part needs it.
    loaded: its dictionaries.
    prompts, labelled, asked: prompts of the parts 'ioi', 'categories' and 'cities'; None for a part that is not
      measured.
  """

  model: LanguageModel | None
  loaded: Loaded | None
  prompts: FactorialPrompts | None = None
  labelled: LabelledWords | None = None
  asked: CityPrompts | None = None


def prepare(settings: Settings, load: Callable[[str], LanguageModel]) -> Subject:
  """Loads the model and the dictionaries, and makes all prompts.

  Args:
    settings: settings of the experiment.
    load: loads a model, such as `mechjax.load`; called only if a part needs one.

  Raises:
    YardstickError: dictionaries or prompts that do not fit the model.
    MissingExtraError, FetchError: tracr or WordNet is needed, and not available.
  """
  if 'tracr' in settings.parts:
    compiled.check_installed()
  if not {*OF_MODEL} & {*settings.parts}:
    return Subject(None, None)
  model = load(settings.model)
  subject = Subject(model, load_all(settings, model))
  if 'ioi' in settings.parts:
    prompts = ioi_factorial.build(model, settings.names, settings.prompts, seed=settings.seed)
    subject = dataclasses.replace(subject, prompts=prompts)
  if 'categories' in settings.parts:
    known = words.read_categories(words.find_wordnet())
    subject = dataclasses.replace(subject, labelled=words.choose_words(model, known, settings))
  if 'cities' in settings.parts:
    subject = dataclasses.replace(subject, asked=cities.make_prompts(model, cities.read_cities()))
  return subject


def measure(
  settings: Settings, subject: Subject, log: Callable[[str], Any] = print
) -> dict[str, Any]:
  """Runs the parts that the output directory does not have.

  Args:
    settings: settings of the experiment.
    subject: from `prepare`.
    log: called with the name of each step that is computed.

  Returns:
    Results of all parts that the directory has, those of earlier runs included.

  Raises:
    YardstickError: the directory holds results of other settings or weights; otherwise as the parts.
  """
  saved = claim(settings, subject, log)
  for name in settings.parts:
    saved.json(name, None, functools.partial(_measure_part, name, settings, subject, saved))
  done = [name for name in PARTS if (saved.out / f'{name}.json').exists()]
  found = {
    'versions': outputs.list_versions(),
    'settings': outputs.make_plain(dataclasses.asdict(settings)),
    'parts': {name: saved.json(name, None, dict) for name in done},
  }
  if {*OF_MODEL} & {*done}:
    found['model'] = files.read_json(saved.out / SUBJECT, YardstickError)
  return found


def claim(settings: Settings, subject: Subject, log: Callable[[str], Any] = print) -> Saved:
  """The results so far, which belong to one choice of settings, and to one model with dictionaries.

  A run of parts that need no model does not load it, so that the model has a file of its own.

  Raises:
    YardstickError: the directory holds results of other settings or weights.
  """
  out = outputs.claim(settings.out, settings, YardstickError, FREE)
  if subject.model is not None and subject.loaded is not None:
    mine = {
      **outputs.describe_model(settings.model),
      'site': subject.loaded.site,
      'fingerprint': subject.model.fingerprint(),
      'dictionaries': fingerprints.of_weights(subject.loaded.params),
    }
    path = out / SUBJECT
    if path.exists() and (there := files.read_json(path, YardstickError)) != mine:
      raise YardstickError(
        f'{out} holds results of other weights: {there!r:.200}',
        hint='give another --out, or remove that directory',
      )
    files.write_json(path, mine)
  return Saved(out, log, YardstickError)


def _measure_part(name: str, settings: Settings, subject: Subject, saved: Saved) -> Any:
  """Plain results of one part."""
  if name == 'toys':
    return outputs.make_plain(toys.measure_toys(settings))
  if name == 'tracr':
    return outputs.make_plain(compiled.measure_programs(settings))
  return outputs.make_plain(_measure_with_model(name, settings, subject, saved))


def _measure_with_model(
  name: str, settings: Settings, subject: Subject, saved: Saved
) -> dict[str, Any]:
  model, loaded = subject.model, subject.loaded
  assert model is not None, name
  assert loaded is not None, name

  def keep(step: str, compute: Callable[[], Any]) -> Any:
    return saved.json(f'{name}_{step}', None, lambda: outputs.make_plain(compute()))

  passes = Passes(model, loaded.site, settings.batch)
  if subject.prompts is not None and name == 'ioi':
    trial = make_trial(settings, model, passes, subject.prompts)
    return measure_ioi(trial, passes, loaded.every, keep)
  if subject.labelled is not None and name == 'categories':
    tokens = subject.labelled.tokens
    last = np.full(len(tokens), tokens.shape[1] - 1)
    acts = passes.read(PlacedPrompts(tokens, last, last))
    return words.measure_categories(settings, subject.labelled, acts, loaded.every)
  assert subject.asked is not None, name
  return cities.measure_cities(settings, passes, subject.asked, loaded.every, keep)
