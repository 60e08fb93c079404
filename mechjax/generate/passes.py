"""Steps of a generation: with a cache, or as passes over whole texts.

Each is a generator that yields the logits and the reads of a step and receives the chosen tokens. Nothing waits for the
device between two steps.

Letters: B rows, T columns, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, PyTree

from mechjax import code_version, harvest
from mechjax.generate import columns, functions, prompts
from mechjax.generate.columns import Extent
from mechjax.generate.functions import Staged
from mechjax.generate.model import Model
from mechjax.generate.plans import GenerationPlan
from mechjax.programs.staging import join_static, split_static

Steps = Generator[tuple[jax.Array, harvest.Activations], Any, None]
"""Yields logits [B, V] and reads of each step; receives the chosen tokens, int [B]."""


def run(
  model: Model,
  params: PyTree,
  rows: Sequence[Int[np.ndarray, ' _']],
  n_tokens: int,
  plan: GenerationPlan,
) -> Steps:
  """Runs the steps of a generation as planned."""
  steps = _run_passes if plan.whole else _run_steps
  return steps(model, params, rows, n_tokens, plan)


def extents(size_B: Int[np.ndarray, ' B'], T: int, i: int) -> tuple[Extent, Extent]:
  """The tokens among the columns of queries and of keys, in step `i` with a cache, after prompts in T columns."""
  keys = Extent(T - size_B, np.full_like(size_B, T + i), int(size_B.max()) + i)
  one = np.ones_like(size_B)
  return (Extent(0 * one, one, 1) if i else keys), keys


def _run_steps(
  model: Model, params: Any, rows: Sequence[np.ndarray], n_tokens: int, plan: GenerationPlan
) -> Steps:
  """Runs with a cache: the prompts, then token by token."""
  size_B = prompts.sizes_of(rows)
  T = prompts.bucket(int(size_B.max()))
  tokens, mask = (jnp.asarray(x) for x in prompts.align(rows, T))
  cache = model.empty_cache(params, len(rows), prompts.bucket(T + n_tokens))
  data, static, structure = split_static(functions.stage(plan.plants, [T, 1], [T, 2]))
  length_B, done_B = jnp.asarray(size_B, jnp.int32), jnp.zeros(len(rows), jnp.int32)
  one_Bx1 = jnp.ones((len(rows), 1), bool)
  if model.columns is not None and not plan.plants and not plan.sites:
    while tokens.shape[1] > model.columns:
      first, tokens = jnp.split(tokens, [model.columns], axis=1)
      first_mask, mask = jnp.split(mask, [model.columns], axis=1)
      cache, done_B = _fill(
        params, first, first_mask, cache, done_B, version=code_version.now(), step=model.step
      )
  options = {
    'version': code_version.now(),
    'step': model.step,
    'static': static,
    'structure': structure,
    'sites': plan.sites,
  }
  for i in range(n_tokens):
    logits, cache, done_B, acts = _advance(
      data, params, tokens, mask, cache, done_B, length_B, **options
    )
    token_B = yield logits, columns.real_columns(acts, *extents(size_B, T, i)) if acts else acts
    tokens, mask = token_B, one_Bx1


def _run_passes(
  model: Model, params: Any, rows: Sequence[np.ndarray], n_tokens: int, plan: GenerationPlan
) -> Steps:
  """Runs without a cache: all texts so far, padded on the right, at every step."""
  B, size_B = len(rows), prompts.sizes_of(rows)
  ids = np.zeros((B, prompts.bucket(int(size_B.max()) + n_tokens)), np.int32)
  for row, onto in zip(rows, ids):
    onto[: row.size] = row
  texts, staged = jnp.asarray(ids), functools.cache(functools.partial(_stage, plan))
  length_B, done_B = jnp.asarray(size_B, jnp.int32), jnp.zeros(B, jnp.int32)
  for i in range(n_tokens):
    n = int(size_B.max())
    W = n if plan.exact else prompts.bucket(n)
    min_length = n if plan.exact else prompts.shortest_in_bucket(int(size_B.min()))
    data, static, structure = staged(min_length, W)
    logits, _, _, acts = _advance(
      data,
      params,
      texts[:, :W],
      jnp.asarray(np.arange(W) < size_B[:, None]),
      model.empty_cache(params, B, W),
      done_B,
      length_B,
      version=code_version.now(),
      step=model.step,
      static=static,
      structure=structure,
      sites=plan.sites,
      min_length=min_length,
      alike=bool((size_B == size_B[0]).all()),
    )
    queries = Extent(0 * size_B, size_B, 1 if i else n)
    token_B = yield logits, columns.real_columns(acts, queries, Extent(0 * size_B, size_B, n))
    texts = texts.at[np.arange(B), size_B].set(token_B)
    size_B = size_B + 1


def _stage(plan: GenerationPlan, min_length: int, max_length: int) -> tuple[list[Any], tuple, Any]:
  widths = range(min_length, max_length + 1)
  return split_static(functions.stage(plan.plants, widths, [max(2, max_length)]))


@functools.partial(
  jax.jit,
  static_argnames=('version', 'step', 'static', 'structure', 'sites', 'min_length', 'alike'),
  donate_argnames=('cache',),
)
def _advance(
  data: list[Any],
  params: Any,
  tokens: jax.Array,
  mask_BxT: jax.Array,
  cache: Any,
  done_B: jax.Array,
  prompt_length_B: jax.Array,
  *,
  version: int,
  step: Callable,
  static: tuple,
  structure: Any,
  sites: tuple[str, ...],
  min_length: int | None = None,
  alike: bool = True,
) -> tuple[jax.Array, Any, jax.Array, Any]:
  """Runs one step, after `done_B` tokens of each row; compiled again for another version of the code (a patch).

  Without `min_length` rows are aligned on the right, and functions act on each position by itself. Otherwise rows are
  aligned on the left and have at least `min_length` tokens, and functions see texts.

  Returns:
    The logits at the last token of each row, [B, V], the cache, the number of tokens that are done, and the reads.
  """
  tokens_BxT = tokens.reshape(mask_BxT.shape)  # one token of each row comes as [B]
  plants = join_static(data, static, structure)
  count_BxT = done_B[:, None] + jnp.cumsum(mask_BxT, axis=1, dtype=jnp.int32)
  positions_BxT = jnp.where(mask_BxT, count_BxT - 1, -1)
  end_B = count_BxT[:, -1]

  def make(planted: Staged) -> Callable:
    if min_length is None or planted.programs.maps:
      return functions.map_tokens(positions_BxT, prompt_length_B, planted)
    return functions.map_texts(end_B, min_length, alike, prompt_length_B, planted)

  # A new function object, so that its cache entries, which hold functions of this trace, are dropped with it.
  fresh = lambda *args: step(*args)  # noqa: E731
  harvested = harvest.harvest(fresh, sites=sites) if plants or sites else _without_harvest(step)
  args = (functions.with_functions(plants, make), params, tokens_BxT, mask_BxT, cache)
  (logits, cache), acts = harvested(*args)
  last = logits[:, -1] if min_length is None else logits[jnp.arange(len(logits)), end_B - 1]
  return last, cache, end_B, acts


@functools.partial(jax.jit, static_argnames=('version', 'step'), donate_argnames=('cache',))
def _fill(
  params: Any,
  tokens_BxT: jax.Array,
  mask_BxT: jax.Array,
  cache: Any,
  done_B: jax.Array,
  *,
  version: int,
  step: Callable,
) -> tuple[Any, jax.Array]:
  """The cache after columns of prompts that are not the last ones, and the tokens done; no logits are computed."""
  del version
  _, cache = _without_harvest(step)(None, params, tokens_BxT, mask_BxT, cache)[0]
  return cache, done_B + mask_BxT.sum(1, dtype=jnp.int32)


def _without_harvest(step: Callable) -> Callable:
  return lambda plants, *args: (step(*args), harvest.Activations([], []))
