"""The loop over the steps of a generation; see the package."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, PyTree

from mechjax import extras
from mechjax import sites as sites_lib
from mechjax.generate import passes, plans
from mechjax.generate import prompts as prompts_lib
from mechjax.generate.model import Model
from mechjax.generate.prompts import Prompts
from mechjax.generate.results import Chooser, Generation, check_not_nan
from mechjax.generate.sampling import GREEDY, Sampling


def generate(
  model: Model,
  params: PyTree,
  prompts: Prompts,
  n_tokens: int,
  *,
  sampling: Sampling = GREEDY,
  n_samples: int = 1,
  stop: int | Collection[int] = (),
  pad: int = 0,
  seed: int = 0,
  plants: Mapping[str, PyTree] | None = None,
  sites: str | sites_lib.Site | Iterable[str | sites_lib.Site] = (),
  progress: bool = False,
) -> Generation:
  """Continues prompts.

  Args:
    model: the model; its functions are the keys of the cache of compiled programs.
    params: the first argument of `model.step`.
    prompts: token ids, one sequence for each row, of any lengths but 0.
    n_tokens: maximum number of tokens to generate.
    sampling: settings of the choice of tokens.
    n_samples: number of continuations of each prompt, in adjacent rows.
    stop: ids of tokens after which a row is finished; generation ends when all rows are.
    pad: token id in the result after a stop token.
    seed: seed of the sampling, from 0 to 2**32 - 1. A row's choices depend only on the seed, the row's number and the
      step.
    plants: interventions, as for `harvest.plant`, made at every step; functions see whole texts, or are `Positioned`.
    sites: sites to read at every step, as for `harvest.reap`; none by default.
    progress: whether to show a progress bar (needs tqdm).

  Returns:
    The tokens and the reads.

  Raises:
    MechjaxError: an empty prompt, a prompt that is not made of ids, several samples of the likeliest token; a text that
      is longer than the model's learned positions with `n_tokens`, wherever a stop token may end it; a call while
      parameters, prompts or plants are traced; NaN logits.
    SiteError, HarvestError: a plant or a site that does not fit the model; prompts of different length with a function
      that may mix rows, or with an array; an array with more than one token; a `Positioned` function that indexes
      columns.
    MissingExtraError: `progress` without tqdm.
  """
  rows = prompts_lib.check_prompts(model, params, prompts, n_tokens, n_samples, sampling)
  chooser = Chooser(rows, n_tokens, sampling, stop, pad, seed)
  plan = plans.make(model, params, rows, n_tokens, plants or {}, sites)
  steps, reads, token_B = passes.run(model, params, rows, n_tokens, plan), [], None
  with _bar(n_tokens, progress) as tick:
    while not chooser.finished:
      logits_BxV, acts = steps.send(token_B)  # None starts it
      token_B = chooser.choose(logits_BxV)
      reads.append(acts)
      tick()
  return chooser.result(reads)


def stream(
  model: Model,
  params: PyTree,
  prompt: Sequence[int] | Int[np.ndarray, ' _'],
  n_tokens: int,
  *,
  sampling: Sampling = GREEDY,
  stop: int | Collection[int] = (),
  seed: int = 0,
  plants: Mapping[str, PyTree] | None = None,
) -> Iterator[int]:
  """Continues one prompt, and yields each token as soon as it is chosen.

  Args:
    model, params, n_tokens, sampling, stop, seed, plants: as for `generate`.
    prompt: one row of token ids.

  Returns:
    An iterator over the ids before a stop token: those of `generate`.

  Raises:
    MechjaxError, SiteError, HarvestError: as `generate`, before the first token; NaN logits, at their token.
  """
  rows = prompts_lib.check_prompts(model, params, [prompt], n_tokens, 1, sampling)
  chooser = Chooser(rows, n_tokens, sampling, stop, 0, seed)
  plan = plans.make(model, params, rows, n_tokens, plants or {}, ())
  steps = passes.run(model, params, rows, n_tokens, plan)

  def ids() -> Iterator[int]:
    token_B = None
    while not chooser.finished:
      token_B = chooser.choose(steps.send(token_B)[0])
      check_not_nan(np.asarray(token_B)[None])
      if not chooser.stopped.all():
        yield int(token_B[0])

  return ids()


@contextlib.contextmanager
def _bar(total: int, wanted: bool) -> Iterator[Callable[[], Any]]:
  if not wanted:
    yield lambda: None
    return
  with extras.require('tqdm', 'models').tqdm(total=total, unit='token') as bar:
    yield bar.update
