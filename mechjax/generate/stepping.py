"""Generation with Python between the steps, and a loop over the sites within each.

    steps = Steps(model, params, prompts, 40, sites='resid_post.*')
    for step, run in steps:
      for layer, name, value in run:
        if layer == 7 and step.index > 0:
          run.modified_value = value + direction
    steps.result.tokens

`run` is a run as `mechjax.iterate` starts it, over the prompts in step 0 and over one token in each further step: its
values are concrete and have the columns of tokens and no others, as in the reads of `generate`. So the choice of what
to do next may depend on anything: the text so far, an earlier value, a plot, the answer of another model.

Each step has a cache, so that modified values change the step's logits and what the cache holds of later layers. Keys
and values are those of the whole text so far, as they are without modification, at every step; modified ones are used
in the step and not kept (`Model`).

Sharp edges:
  - A run that is not looped over runs without stops, in a compiled program of its own.
  - A loop that is left early has no result: the next step raises an error. Choose fewer sites instead.
  - Axes of keys grow with the text, and each new length compiles the cut. Choose the sites that you need.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, Int32, PyTree

from mechjax import code_version, errors, forward
from mechjax import sites as sites_lib
from mechjax.generate import columns, passes, plans
from mechjax.generate import prompts as prompts_lib
from mechjax.generate.model import Model
from mechjax.generate.prompts import Prompts
from mechjax.generate.results import Chooser, Generation, positions_of
from mechjax.generate.sampling import GREEDY, Sampling


@dataclasses.dataclass(frozen=True)
class GenerationStep:
  """One step of a generation.

  Attributes:
    index: number of the step; step 0 reads the prompts.
    tokens: tokens generated so far, int32 [B, index]; padding after a stop token.
    positions: positions of the values' columns in their texts, int [B, T]; -1 at padding.
    prompt_length: tokens of each prompt, int [B].
  """

  index: int
  tokens: Int32[np.ndarray, 'B n']
  positions: Int[np.ndarray, 'B T']
  prompt_length: Int[np.ndarray, ' B']


class Steps:
  """Steps of a generation: an iterable of (`GenerationStep`, run).

  Attributes:
    result: the generation so far, without reads; available after the first step.
  """

  def __init__(
    self,
    model: Model,
    params: PyTree,
    prompts: Prompts,
    n_tokens: int,
    sites: sites_lib.Patterns = '*',
    *,
    sampling: Sampling = GREEDY,
    n_samples: int = 1,
    stop: int | Collection[int] = (),
    pad: int = 0,
    seed: int = 0,
  ) -> None:
    """Prepares a generation; nothing runs before the iteration.

    Args:
      model, params, prompts, n_tokens, sampling, n_samples, stop, pad, seed: as for `generate`.
      sites: sites at which each run stops, as for `mechjax.iterate`.

    Raises:
      MechjaxError: an invalid argument, or a model without a cache.
      SiteError: a site does not exist.
    """
    if model.new_cache is None:
      raise errors.MechjaxError(
        'this code has no cache, so a step cannot be one token',
        hint='load the model without code=',
      )
    self._model, self._params, self._sites = model, params, tuple(sites_lib.as_patterns(sites))
    self._rows = prompts_lib.check_prompts(model, params, prompts, n_tokens, n_samples, sampling)
    self._chooser = Chooser(self._rows, n_tokens, sampling, stop, pad, seed)
    self._slots = prompts_lib.bucket(prompts_lib.bucket(max(map(len, self._rows))) + n_tokens)
    plans.check_sites(model, params, self._rows, self._sites)
    self._iterated = False

  @property
  def result(self) -> Generation:
    """The generation so far.

    Raises:
      MechjaxError: before the end of the first step, or if logits were NaN.
    """
    return self._chooser.result([])

  def __iter__(self) -> Iterator[tuple[GenerationStep, forward.Run]]:
    """Yields each step and its run.

    Raises:
      MechjaxError: the steps were iterated before, or logits were NaN.
      RunError: the loop over the run of the step before was left early.
    """
    if self._iterated:
      raise errors.MechjaxError('these steps were iterated before', hint='make new ones')
    self._iterated = True
    return self._steps()

  def _steps(self) -> Iterator[tuple[GenerationStep, forward.Run]]:
    rows, chooser = self._rows, self._chooser
    size_B = prompts_lib.sizes_of(rows)
    T = prompts_lib.bucket(int(size_B.max()))
    start = forward.iterate(self._model.step, self._sites)
    tokens, mask = (jnp.asarray(x) for x in prompts_lib.align(rows, T))
    real_BxT = prompts_lib.align(rows, int(size_B.max()))[1]
    cache, i = self._model.empty_cache(self._params, len(rows), self._slots), 0
    while not chooser.finished:
      args = (self._params, tokens, mask, cache)
      run = _cut(start(*args), *passes.extents(size_B, T, i))
      yield GenerationStep(i, chooser.tokens()[0], positions_of(real_BxT, i), size_B), run
      logits, cache = self._finish(run, i, args)
      token_B = chooser.choose(logits[:, -1])
      tokens, mask = token_B[:, None], jnp.ones((len(rows), 1), bool)
      i += 1

  def _finish(self, run: forward.Run, i: int, args: tuple) -> tuple[jax.Array, Any]:
    """Result of a step, which runs now if its run was not looped over."""
    if not run.started:
      run.close()
      return _run_whole(*args, step=self._model.step, version=code_version.now())
    try:
      return run.retval
    except errors.RunError as error:
      raise errors.RunError(
        f'step {i} has no logits: {run!r}',
        cause='the loop over its sites was left before its end',
        hint='loop to the end; the sites= of the steps may be fewer',
      ) from error


@functools.partial(jax.jit, static_argnames=('step', 'version'))
def _run_whole(*args: Any, step: Callable, version: int) -> tuple[jax.Array, Any]:
  """A step without stops, compiled again for another version of the code (a patch)."""
  del version
  return step(*args)


def _cut(run: forward.Run, queries: columns.Extent, keys: columns.Extent) -> forward.Run:
  """A run whose values have the columns of tokens."""

  def show(site: sites_lib.Site, value: Any) -> Any:
    return columns.cut(site.name, value, queries, keys)

  def restore(site: sites_lib.Site, value: Any, new: Any) -> Any:
    return columns.put_back(site.name, value, new, queries, keys)

  return run.view(show, restore)
