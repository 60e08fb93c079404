"""Completions and losses under each intervention, next to those of random directions of the same length.

On positive prompts the behaviour should disappear, on negative ones it should appear:

    plain                  the model as it is
    removed                the direction removed from every write to the stream
    weight twin            weights that cannot write it, which should give the same completions
    subtracted, added      the direction subtracted or added before its layer, at every position
    random 1 removed, ...  the same with a random direction of the same length

The loss of unrelated text, and of the model's own completions of negative prompts, is the cost. Both are measured under
the intervention, at every prediction.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from experiments.refusal.choosing import Chosen
from experiments.refusal.settings import Settings
from experiments.refusal.subject import Subject
from experiments.saved import Saved
from mechjax import errors, harvest, logits
from mechjax.models import ours, writers
from mechjax.models.language_model import LanguageModel
from mechjax.steering import (
  WRITES,
  Ablate,
  Add,
  PromptSet,
  draw_directions,
  everywhere,
  in_one_pass,
  orthogonalise,
)

PLAIN, TWIN = 'plain', 'weight twin'
REMOVED, SUBTRACTED, ADDED = 'removed', 'subtracted', 'added'


@dataclasses.dataclass(frozen=True, eq=False)
class Condition:
  """An intervention.

  Attributes:
    name: name in tables.
    kind: 'positive' or 'negative': the prompts that it is tried on.
    direction: the direction, at its length; None for the plain model.
    verb: 'removed', 'subtracted', 'added'; '' for the plain model and for the weight twin.
  """

  name: str
  kind: str
  direction: np.ndarray | None = None
  verb: str = ''

  def plants(self, layer: int) -> dict[str, Any] | None:
    """Plants of a generation; None for none."""
    if not self.verb:
      return None
    assert self.direction is not None, 'an intervention has a direction'
    if self.verb == REMOVED:
      return Ablate(WRITES, self.direction).plants()
    edit = Add('resid_pre', self.direction, layer=layer, where=everywhere)
    return edit.plants(1.0 if self.verb == ADDED else -1.0)


def list_conditions(settings: Settings, chosen: Chosen) -> list[Condition]:
  """All conditions, in the order of the tables."""
  r = chosen.direction.direction
  controls = [
    (f'random {n}', v)
    for n, v in enumerate(draw_directions(r, settings.controls, settings.seed), 1)
  ]
  found = []
  for kind, verbs in (('positive', (REMOVED, SUBTRACTED)), ('negative', (ADDED, REMOVED))):
    found.append(Condition(PLAIN, kind))
    for verb in verbs:
      found.append(Condition(verb, kind, r, verb))
      if (kind, verb) == ('positive', REMOVED):
        found.append(Condition(TWIN, kind, r))
      found += [Condition(f'{name} {verb}', kind, v, verb) for name, v in controls]
  return found


def complete(
  settings: Settings, subject: Subject, chosen: Chosen, saved: Saved
) -> dict[str, dict[str, Any]]:
  """Completions of the test prompts under every condition, keyed by kind and name.

  Returns:
    For each condition its token ids ('tokens') and its texts ('texts'), or the reason for their absence ('missing').
  """
  found = {}
  for one in list_conditions(settings, chosen):
    name = f'{one.kind} {one.name}'
    found[name] = saved.json(
      f'completions_{name.replace(" ", "_")}',
      chosen.key if one.direction is not None else None,
      functools.partial(_complete, settings, subject, chosen, one),
    )
  return found


def _complete(
  settings: Settings, subject: Subject, chosen: Chosen, one: Condition
) -> dict[str, Any]:
  model = subject.model
  if one.name == TWIN:
    try:
      model = make_twin(model, chosen.direction.direction)
    except errors.MechjaxError as e:
      return {'missing': e.what}
  rows = [row.tolist() for row in subject.prompts['test'][one.kind].rows]
  plants = one.plants(chosen.direction.layer)
  tokens: list[list[int]] = []
  for start in range(0, len(rows), settings.batch):
    out = model.generate(rows[start : start + settings.batch], settings.new_tokens, plants=plants)
    tokens += [row[:n].tolist() for row, n in zip(out.tokens, out.lengths)]
  return {'tokens': tokens, 'texts': [read_completion(model, row) for row in tokens]}


def read_completion(model: LanguageModel, ids: list[int]) -> str:
  """Text of a completion, without the token that ended it."""
  kept = ids[:-1] if ids and ids[-1] in model.tokenizer.stop_ids else ids
  return model.text(kept) if kept else ''


def make_twin(model: LanguageModel, direction: np.ndarray) -> LanguageModel:
  """The same model with weights that cannot write a direction.

  Raises:
    MechjaxError: the family has no twin.
  """
  assert model.config is not None, 'models are loaded into our decoder'
  params, config = writers.untie(model.params, model.config)
  twin = orthogonalise(params, direction, writers.stream_writers(config))
  return LanguageModel(f'{model.name}, twin', ours.forward(twin, config), model.tokenizer)


# --- losses -----------------------------------------------------------------------------------------------


def measure_losses(
  settings: Settings,
  subject: Subject,
  chosen: Chosen,
  completions: dict[str, dict[str, Any]],
  saved: Saved,
) -> dict[str, dict[str, float]]:
  """Mean losses in nats per token, by condition: of unrelated text ('text') and of own completions ('own')."""
  loss, places = make_loss(subject.model), _list_texts(subject, completions)
  found = {}
  for one in _list_lossy(settings, chosen):
    found[one.name] = saved.json(
      f'loss_{one.name.replace(" ", "_")}',
      chosen.key if one.verb else None,
      functools.partial(_mean_losses, loss, subject, chosen, one, places),
    )
  return found


def _list_lossy(settings: Settings, chosen: Chosen) -> Iterator[Condition]:
  """Conditions whose loss is measured, each once."""
  seen = {TWIN}
  for one in list_conditions(settings, chosen):
    if one.name not in seen:
      seen.add(one.name)
      yield one


Place = tuple[PromptSet, np.ndarray]
"""Texts, and which predictions count, bool [B, T], by the column at which each is made."""


def _list_texts(subject: Subject, completions: dict[str, dict[str, Any]]) -> dict[str, Place]:
  """Unrelated text, and the plain model's completions of negative prompts after these prompts."""
  text = PromptSet.of(subject.unrelated)
  prompts = subject.prompts['test']['negative'].rows
  answers = completions[f'negative {PLAIN}']['tokens']
  own = PromptSet.of([np.array([*row, *more]) for row, more in zip(prompts, answers)])
  begin = np.array([[len(row) - 1] for row in prompts])
  columns = np.arange(own.tokens.shape[1])
  return {
    'text': (text, _find_followed(text)),
    'own': (own, _find_followed(own) & (columns >= begin)),
  }


def _find_followed(texts: PromptSet) -> np.ndarray:
  """Columns at which a next token is predicted; texts are padded on the right."""
  followed = np.zeros_like(texts.mask)
  followed[:, :-1] = texts.mask[:, 1:]
  return followed


def _mean_losses(
  loss: Callable[..., Any],
  subject: Subject,
  chosen: Chosen,
  one: Condition,
  places: dict[str, Place],
) -> dict[str, float]:
  return {name: _mean_loss(loss, subject, chosen, one, *place) for name, place in places.items()}


def _mean_loss(
  loss: Callable[..., Any],
  subject: Subject,
  chosen: Chosen,
  one: Condition,
  texts: PromptSet,
  counted: np.ndarray,
) -> float:
  """Mean over the predictions that count, summed in float64."""
  r = chosen.direction.direction if one.direction is None else one.direction
  c = {REMOVED: (1.0, 0.0), SUBTRACTED: (0.0, -1.0), ADDED: (0.0, 1.0)}.get(one.verb, (0.0, 0.0))
  layer, total = np.int32(chosen.direction.layer), 0.0
  # Few texts at a time: their logits have the width of the vocabulary.
  for index, n in texts.blocks(4):
    block = texts.take(index)
    found = loss(subject.model.params, block.tokens, block.mask, jnp.asarray(r), layer, *c)
    total += np.asarray(found, np.float64)[:n][counted[index][:n]].sum()
  return float(total / counted.sum())


def make_loss(model: LanguageModel) -> Callable[..., Float[Array, 'B T']]:
  """Makes the function whose one executable serves all conditions.

  Returns:
    (params, tokens, mask, direction, layer, coefficients of the removal and of the addition) -> the loss of each next
    token, [B, T]. A coefficient of 0 changes nothing.
  """

  @jax.jit
  def loss(params, tokens, mask, direction, layer, removed, added):
    remove = Ablate(WRITES, direction).plants(removed)
    add = Add('resid_pre', direction, layer=layer, where=everywhere).plants(added)
    plants = in_one_pass({**remove, **add}, mask)
    log_probs = logits.log_probs(harvest.plant(model.apply)(plants, params, tokens, mask=mask))
    targets = jnp.pad(tokens[:, 1:], ((0, 0), (0, 1)))
    return logits.next_token_loss(log_probs, targets)

  return loss
