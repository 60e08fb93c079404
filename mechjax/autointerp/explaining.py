"""Explanations of latents by a language model that sees excerpts with their activations.

    explanations = explain(examples, ask, ExplainSettings(style='highlights'))

All latents are asked about in one call, so that a provider can send many requests at a time. Two styles:

    highlights   the tokens with at least 0.3 of the largest activation of an excerpt stand between marks, and their
                 activations are listed after it (Paulo et al. 2024)
    levels       a line for each token: piece, tab, whole number from 0 to 10; the lines that are not 0 are repeated if
                 they are fewer than 20 % (Bills et al. 2023)

The question is for the pattern in the marked tokens; `wording='neuron'` asks what a neuron fires on, which suggests
single words. Three examples of different kinds (a single token, a topic, a position in a sentence) show the form of an
answer, and do not suggest that every feature is a word.

A reply is matched against a grammar: one line '[EXPLANATION]: text'. A reply without such a line, with an empty one, or
with two different ones is not an explanation, and neither is a request that failed: the text is None, with the reason.
The text is one line of visible characters with a maximum length. It is data: nothing but a text, wherever it is used.

References: Bills et al. (2023), https://openaipublic.blob.core.windows.net/neuron-explainer/paper; Paulo et al. (2024),
arXiv 2410.13928.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Literal

import numpy as np

from mechjax.autointerp import explainer_prompts
from mechjax.autointerp.prompts import cut, escape_invisible, is_visible
from mechjax.autointerp.record import Excerpt, Explanation, LatentExamples
from mechjax.errors import InterpretationError
from mechjax.providers.requests import Answer, Failed, Message, Provider, Reply, TextRequest
from mechjax.sae.checks import is_number

_MAX_REASON = 200
_LINE = re.compile(r'^[\s>*_#]*\[EXPLANATION\][*_]*:?[*_ \t]*(.*)$', re.IGNORECASE)
"""A line with an explanation, maybe emphasised as in Markdown."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExplainSettings:
  """Form of a request for an explanation.

  Attributes:
    style: 'highlights' or 'levels'.
    wording: 'pattern' or 'neuron'.
    few_shot: number of examples of explanations, from 0 to 3.
    n_shown: maximum number of active excerpts, evenly from the strongest to the weakest.
    n_inactive: maximum number of excerpts without activation.
    threshold: fraction of the largest activation of an excerpt from which on a token is marked.
    levels: the largest whole number.
    max_tokens: maximum number of tokens of a reply.
    max_length: maximum number of characters of an explanation; a longer one is cut and ends in '…'.
    temperature: 0 for the likeliest reply.
    begin_reply: whether the request ends with the beginning of the answer, which a model that is not trained for chats
      continues; for providers that continue a message of the assistant, such as `Local`.

  Raises:
    InterpretationError: a value is out of range.
  """

  style: Literal['highlights', 'levels'] = 'highlights'
  wording: Literal['pattern', 'neuron'] = 'pattern'
  few_shot: int = 3
  n_shown: int = 20
  n_inactive: int = 0
  threshold: float = 0.3
  levels: int = 10
  max_tokens: int = 160
  max_length: int = 300
  temperature: float = 0.0
  begin_reply: bool = False

  def __post_init__(self) -> None:
    choices = {'style': ('highlights', 'levels'), 'wording': ('pattern', 'neuron')}
    for name, known in choices.items():
      if getattr(self, name) not in known:
        raise InterpretationError(
          f'ExplainSettings.{name}={getattr(self, name)!r}', hint=' or '.join(map(repr, known))
        )
    shots = len(explainer_prompts.SHOTS)
    ranges = {'few_shot': (0, shots), 'n_shown': (1, 1000), 'n_inactive': (0, 1000)}
    ranges |= {'levels': (1, 100), 'max_tokens': (1, 10**6), 'max_length': (1, 10**6)}
    for name, (least, most) in ranges.items():
      value = getattr(self, name)
      if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise InterpretationError(
          f'ExplainSettings.{name}={value!r}; expected an integer from {least} to {most}'
        )
    if not (is_number(self.threshold) and 0 < self.threshold <= 1):
      raise InterpretationError(f'ExplainSettings.threshold={self.threshold!r}; expected (0, 1]')
    if not (is_number(self.temperature) and self.temperature >= 0):
      raise InterpretationError(
        f'ExplainSettings.temperature={self.temperature!r}; expected at least 0'
      )

  @property
  def method(self) -> str:
    """Name of the explainer: the style, and the wording if it is not 'pattern'."""
    return self.style if self.wording == 'pattern' else f'{self.style}_{self.wording}'


_DEFAULT = ExplainSettings()


def explain(
  examples: Sequence[LatentExamples], ask: Provider, settings: ExplainSettings = _DEFAULT
) -> list[Explanation]:
  """Asks a language model for an explanation of each latent.

  Args:
    examples: examples of the latents, of which only the shown ones are used.
    ask: the provider.
    settings: form of the requests.

  Returns:
    An explanation for each latent, in their order; its text is None if the request failed or the reply has none.

  Raises:
    InterpretationError: a latent twice or without shown excerpts, or a provider that loses replies or does not keep to
      its protocol.
  """
  examples = list(examples)
  _check_examples(examples)
  requests = [build_request(one, settings) for one in examples]
  replies = ask(requests) if requests else []
  if len(replies) != len(requests):
    raise InterpretationError(f'{len(replies)} replies to {len(requests)} requests')
  return [_read(one.latent, reply, settings) for one, reply in zip(examples, replies)]


def build_request(examples: LatentExamples, settings: ExplainSettings = _DEFAULT) -> TextRequest:
  """The request for the explanation of one latent; only excerpts that are shown enter it.

  Args:
    examples: examples of the latent.
    settings: form of the request.
  """
  excerpts = [*_spread(examples.shown, settings.n_shown)]
  excerpts += _spread(examples.shown_inactive, settings.n_inactive)
  form = explainer_prompts.Form(
    settings.style, settings.wording, settings.threshold, settings.levels
  )
  messages = explainer_prompts.write_messages(excerpts, examples.maximum, form, settings.few_shot)
  if settings.begin_reply:
    messages = (*messages, Message('assistant', explainer_prompts.MARKER))
  tag = (str(examples.latent), 'explanation')
  return TextRequest(messages, settings.max_tokens, settings.temperature, tag=tag)


def parse(text: str, settings: ExplainSettings = _DEFAULT) -> tuple[str | None, str]:
  """Reads the explanation from a reply.

  Args:
    text: text of the reply.
    settings: form of the request.

  Returns:
    The explanation and ''; or None and the reason why the reply has no explanation.
  """
  lines = text.strip().splitlines()
  if settings.begin_reply and lines and not any(map(_LINE.match, lines)):
    lines = [f'{explainer_prompts.MARKER} {lines[0]}']
  found = []
  for n, line in enumerate(lines):
    if match := _LINE.match(line):
      following = next((later for later in lines[n + 1 :] if later.strip()), '')
      found.append(match[1] if _clean(match[1], 1) or _LINE.match(following) else following)
  texts = {_clean(one, settings.max_length) for one in found}
  if not texts:
    return None, f'the reply has no line {explainer_prompts.MARKER}'
  if len(texts) > 1:
    return None, f'the reply has {len(texts)} different explanations'
  (only,) = texts
  return (only, '') if only else (None, 'the explanation is empty')


def _clean(text: str, max_length: int) -> str:
  """One line of visible characters; '' if the text has none."""
  text = text.strip().strip('*_').strip()
  return cut(escape_invisible(text), max_length) if any(map(is_visible, text)) else ''


def _read(latent: int, reply: Reply, settings: ExplainSettings) -> Explanation:
  if isinstance(reply, Answer) and isinstance(reply.text, str):
    text, reason = parse(reply.text, settings)
  elif not isinstance(reply, Failed):
    raise InterpretationError(
      f'a reply to TextRequest without a text: {reply!r:.100}', where=f'latent {latent}',
      cause='a provider that does not keep to mechjax.providers.requests',
    )  # fmt: skip
  else:
    reason = cut(escape_invisible(f'the request failed: {reply.reason}'), _MAX_REASON)
    text = None
  return Explanation(latent, settings.method, text, reason)


def _spread(excerpts: Sequence[Excerpt], n: int) -> list[Excerpt]:
  """Up to n excerpts, evenly from the first to the last."""
  if len(excerpts) <= n:
    return list(excerpts)
  return [excerpts[i] for i in np.round(np.linspace(0, len(excerpts) - 1, n)).astype(int)]


def _check_examples(examples: Sequence[LatentExamples]) -> None:
  seen: set[int] = set()
  for one in examples:
    if one.latent in seen:
      raise InterpretationError(f'latent {one.latent} is given twice')
    if not one.shown:
      raise InterpretationError(
        f'latent {one.latent} has no shown excerpts',
        hint='collect_examples leaves such latents out',
      )
    seen.add(one.latent)
