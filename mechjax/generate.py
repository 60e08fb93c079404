"""Generation: one token after the other, with all reads and interventions of a harvest.

Many questions are about the behaviour of a model over several steps: does steering change the text, when does a
feature fire, does a head that was ablated in one forward pass matter for the answer. So an intervention written for
one pass works in a generation unchanged:

    edit = {'resid_post.7': lambda x: x + direction}
    logits = harvest.plant(forward)(edit, params, tokens)                  one pass
    out = generate(model, params, prompts, 40, plants=edit, sites='mlp_post.7')

The guarantee, for greedy choices: token i of a row is `argmax(plant(forward)(edit, params, text)[:, -1])`, where `text`
is the row's prompt and its tokens before i, without padding; if all prompts have one length, all rows together.

A function that is proven to act on each position by itself (`positionwise`) is run with a cache: the prompts in one
pass and every further token in a step of width 1. With any other function, such as `x.at[:, 3].set(v)`, `x - x.mean(1)`
or a function at 'k', 'v', 'attn_scores' and 'attn_probs', every step is a pass over the whole text so far, and the
function sees exactly its columns (`columns`). For SmolLM2-135M on two cores such a step takes 1.9 times the processor
time of one with the cache for texts of up to 16 tokens, and grows with the text as a pass does.

Programs are compiled once for a bucket of lengths and a choice of plants and sites; arrays that a function closes over
are arguments. Prompts of different lengths are aligned on the right in `Generation.prompt_mask` and in what is read, so
that `value[:, -1]` is the last token of every row.

`Model` consists of functions, and params are arrays: generation does not depend on the library of the model.

Letters: B prompts, T columns of the longest prompt, V vocabulary, n tokens generated.

Sharp edges:
  - Where prompts differ in length, a function must be proven to keep rows apart, because they have no common columns.
  - A plant that is an array fits texts of one length, so only one token can be generated with it.
  - A function is staged for every length of text that occurs, about a millisecond each.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int32, PyTree

from mechjax import columns, errors, extras, harvest
from mechjax import sites as sites_lib
from mechjax.columns import Extent
from mechjax.programs.staging import join_static, split_static

SMALLEST_BUCKET = 16
"""Lengths are rounded up to this times a power of two, so that a few programs serve all lengths."""


@dataclasses.dataclass(frozen=True)
class Model:
  """A model that can generate.

  Attributes:
    step: pure function (params, tokens int [B, T], mask bool [B, T], cache) -> (logits [B, T, V], cache); a token
      whose mask is False is padding, which has no influence on other positions.
    new_cache: (number of rows, number of slots) -> an empty cache.
  """

  step: Callable[
    [PyTree, Int32[Array, 'B T'], Bool[Array, 'B T'], PyTree], tuple[Float[Array, 'B T V'], PyTree]
  ]
  new_cache: Callable[[int, int], PyTree]


def _is_integer(x: Any) -> bool:
  return np.ndim(x) == 0 and np.asarray(x).dtype.kind in 'iu'


def _is_number(x: Any) -> bool:
  return _is_integer(x) or (np.ndim(x) == 0 and jnp.issubdtype(np.asarray(x).dtype, jnp.floating))


@dataclasses.dataclass(frozen=True)
class Sampling:
  """Settings of the choice of a token from logits.

  Attributes:
    temperature: divisor of the logits; 0 takes the most likely token.
    top_k: only the k most likely tokens (more if some are equally likely); None for all.
    top_p: only the most likely tokens that together have this probability, at least one; None for all.

  Raises:
    MechjaxError: a value is out of range.
  """

  temperature: float = 0.0
  top_k: int | None = None
  top_p: float | None = None

  def __post_init__(self) -> None:
    checks = {
      'temperature': _is_number(self.temperature) and self.temperature >= 0,
      'top_k': self.top_k is None or (_is_integer(self.top_k) and self.top_k >= 1),
      'top_p': self.top_p is None or (_is_number(self.top_p) and 0 < self.top_p <= 1),
    }
    for name, good in checks.items():
      if not good:
        raise errors.MechjaxError(
          f'{name}={getattr(self, name)!r}', hint='temperature >= 0, top_k >= 1, 0 < top_p <= 1'
        )


@dataclasses.dataclass(frozen=True)
class Generation:
  """Result of a generation.

  Attributes:
    tokens: generated tokens, int32 [B, n]; `pad` after a stop token.
    lengths: number of generated tokens of each row, its stop token included, int [B].
    prompt_mask: which columns of the prompts, aligned on the right, are tokens and not padding, bool [B, T].
    reads: values of `sites`: of the prompts, [B, T, …], then of each token, [B, 1, …], n in all. The values of step i
      are those from which tokens[:, i] was chosen. Axes of keys have the tokens of the text so far. Where prompts
      differ in length, the columns before the shorter ones are NaN.
  """

  tokens: Int32[np.ndarray, 'B n']
  lengths: Int[np.ndarray, ' B']
  prompt_mask: Bool[np.ndarray, 'B T']
  reads: list[harvest.Activations]


def generate(
  model: Model,
  params: PyTree,
  prompts: Sequence[Sequence[int]] | np.ndarray,
  n_tokens: int,
  *,
  sampling: Sampling = Sampling(),
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
    stop: ids of tokens after which a row is finished; generation ends when all rows are.
    pad: token id in the result after a stop token.
    seed: seed of the sampling. A row's choices depend only on the seed, the row's number and the step.
    plants: interventions, as for `harvest.plant`, made at every step; functions see whole texts, as described above.
    sites: sites to read at every step, as for `harvest.reap`; none by default.
    progress: whether to show a progress bar (needs tqdm).

  Returns:
    The tokens and the reads.

  Raises:
    MechjaxError: an empty prompt, a prompt that is not made of ids, or NaN logits, for example after the last learned
      position.
    SiteError, HarvestError: a plant or a site that does not fit the model; prompts of different length with a function
      that may mix rows, or with an array; an array with more than one token.
    MissingExtraError: `progress` without tqdm.
  """
  rows = _check_prompts(prompts)
  if not _is_integer(n_tokens) or n_tokens < 1:
    raise errors.MechjaxError(f'n_tokens={n_tokens!r}; expected an integer of at least 1')
  if not _is_integer(pad) or not 0 <= pad < 2**31:
    raise errors.MechjaxError(f'pad={pad!r}; expected a token id')
  stop = _stop_ids(stop)
  plan = _plan(model, params, rows, n_tokens, plants or {}, sites)
  steps = (_run_passes if plan.whole else _run_steps)(model, params, rows, n_tokens, plan)
  B, token_B = len(rows), None
  keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(B))
  chosen, reads, running = [], [], np.ones(B, bool)
  with _bar(n_tokens, progress) as tick:
    for i in range(n_tokens):
      logits_BxV, acts = steps.send(token_B)  # None starts it
      token_B = _choose(logits_BxV, keys, i, sampling)
      chosen.append(token_B)
      reads.append(acts)
      tick()
      if stop:
        running &= ~np.isin(np.asarray(token_B), list(stop))
        if not running.any():
          break
  found = np.stack([np.asarray(t) for t in chosen], axis=1)
  _check_not_nan(found)
  _, mask_BxT = _align(rows, max(map(len, rows)))
  return Generation(*_pad_after_stop(found, stop, pad), mask_BxT, reads)


# --- prompts and results ------------------------------------------------------------------------------------


def _check_prompts(prompts: Sequence[Sequence[int]] | np.ndarray) -> list[np.ndarray]:
  rows = [np.asarray(prompt) for prompt in prompts]
  if not rows or any(row.ndim != 1 or not row.size or row.dtype.kind not in 'iu' for row in rows):
    raise errors.MechjaxError(
      f'prompts of shapes {[row.shape for row in rows]} and dtypes {sorted({str(r.dtype) for r in rows})}; '
      'each must be a sequence of at least one token id',
      hint='[[1, 2, 3]] is one prompt; a model without a start token cannot continue an empty text',
    )
  return rows


def _align(rows: Sequence[np.ndarray], T: int) -> tuple[np.ndarray, np.ndarray]:
  """Aligns prompts on the right in T columns; returns the tokens, and a mask of the columns that are tokens."""
  tokens, mask = np.zeros((len(rows), T), np.int32), np.zeros((len(rows), T), bool)
  for row, onto, where in zip(rows, tokens, mask):
    onto[T - row.size :], where[T - row.size :] = row, True
  return tokens, mask


def _stop_ids(stop: int | Collection[int]) -> tuple[int, ...]:
  ids = np.atleast_1d(np.asarray(list(stop) if isinstance(stop, set | frozenset) else stop))
  if ids.size and (ids.ndim != 1 or ids.dtype.kind not in 'iu' or ids.min() < 0):
    raise errors.MechjaxError(
      f'stop={stop!r:.100}; expected token ids',
      hint='tokenizer.token(text) is the id of a text of one token; model.generate takes such texts',
    )
  return tuple(ids.tolist())


def _bucket(n: int) -> int:
  size = SMALLEST_BUCKET
  while size < n:
    size *= 2
  return size


def _pad_after_stop(
  tokens: np.ndarray, stop: Collection[int], pad: int
) -> tuple[np.ndarray, np.ndarray]:
  """Pads after the first stop token of each row; returns the tokens and their number, the stop token included."""
  stops = np.isin(tokens, list(stop)).astype(int)
  kept: np.ndarray = np.cumsum(stops, axis=1) - stops == 0  # no stop token strictly before
  return np.where(kept, tokens, pad).astype(np.int32), kept.sum(axis=1)


def _check_not_nan(tokens: np.ndarray) -> None:
  """Checks for -1, which `_choose` returns where logits are NaN."""
  if (tokens < 0).any():
    row, at = np.argwhere(tokens < 0)[0]
    raise errors.MechjaxError(
      f'the logits of generated token {at} of row {row} are NaN',
      cause='the text is longer than the learned positions of the model, a prompt has a token outside of '
      'the vocabulary, or an intervention overflowed',
    )


@contextlib.contextmanager
def _bar(total: int, wanted: bool) -> Iterator[Callable[[], Any]]:
  if not wanted:
    yield lambda: None
    return
  with extras.require('tqdm', 'models').tqdm(total=total, unit='token') as bar:
    yield bar.update


# --- planning -----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Plan:
  """Execution plan of a generation.

  Attributes:
    plants: resolved plants (`columns.resolve`).
    sites: patterns of the sites that are read.
    whole: whether every step is a pass over whole texts.
    exact: whether passes are exactly as long as the text, as planted arrays require.
  """

  plants: dict[str, Any]
  sites: tuple[str, ...]
  whole: bool
  exact: bool


def _plan(
  model: Model,
  params: Any,
  rows: Sequence[np.ndarray],
  n_tokens: int,
  plants: Mapping[str, Any],
  sites: Any,
) -> _Plan:
  patterns = tuple(sites_lib.as_patterns(sites))
  if not plants and not patterns:
    return _Plan({}, (), whole=False, exact=False)
  sizes = [len(row) for row in rows]
  T = _bucket(max(sizes))
  tokens, mask = (jnp.asarray(x) for x in _align(rows, T))
  cache = jax.eval_shape(lambda: model.new_cache(len(rows), T))
  infos = harvest.sites_of(model.step, params, tokens, mask, cache)
  chosen = {*sites_lib.select([*patterns, *map(str, plants)], [i.site for i in infos])}
  columns.check((i for i in infos if i.site in chosen), len(rows), T)
  resolved = columns.resolve(plants, infos)
  functions = columns.functions(resolved)
  arrays = [pattern for pattern in resolved if pattern not in functions]
  lengths = range(min(sizes), max(sizes) + n_tokens)
  _check_lengths(functions, arrays, sizes, n_tokens, lengths)
  for function in functions.values():
    for width in lengths:
      function.stage(width)  # its own errors come before anything runs
  stepwise = all(f.acts_on_each_position([*lengths, T, 1]) for f in functions.values())
  return _Plan(resolved, patterns, whole=bool(arrays) or not stepwise, exact=bool(arrays))


def _check_lengths(
  functions: Mapping[str, columns.Function],
  arrays: Sequence[str],
  sizes: Sequence[int],
  n_tokens: int,
  lengths: Sequence[int],
) -> None:
  if arrays and n_tokens > 1:
    raise errors.HarvestError(
      f'an array is planted at {arrays[0]!r}, and n_tokens={n_tokens}',
      cause='an array fits texts of one length, and every token makes the text longer',
      hint='plant a function of the value, or generate one token',
    )
  if len({*sizes}) == 1:
    return
  mixing = [k for k, f in functions.items() if not f.keeps_rows_apart(lengths)]
  if arrays or mixing:
    raise errors.HarvestError(
      f'prompts of {min(sizes)} to {max(sizes)} tokens, and the plant at {[*arrays, *mixing][0]!r} may mix rows',
      cause='rows of different length have no common columns; a function must be proven to keep rows apart',
      hint='generate from prompts of one length at a time',
    )


# --- running ------------------------------------------------------------------------------------------------

_Steps = Generator[tuple[jax.Array, harvest.Activations], Any, None]
"""Yields logits [B, V] and reads of each step; receives the chosen tokens, int [B]."""


def _run_steps(
  model: Model, params: Any, rows: Sequence[np.ndarray], n_tokens: int, plan: _Plan
) -> _Steps:
  """Runs with a cache: the prompts, then token by token."""
  size_B = np.array([len(row) for row in rows])
  max_size, T = int(size_B.max()), _bucket(size_B.max())
  tokens, mask = (jnp.asarray(x) for x in _align(rows, T))
  cache = model.new_cache(len(rows), _bucket(T + n_tokens))
  data, static, structure = split_static(columns.stage(plan.plants, [T, 1]))
  queries, one = Extent(T - size_B, np.full_like(size_B, T), max_size), np.ones_like(size_B)
  for i in range(n_tokens):
    logits, cache, acts = _advance(
      data,
      params,
      tokens,
      mask,
      cache,
      step=model.step,
      static=static,
      structure=structure,
      sites=plan.sites,
    )
    keys = Extent(T - size_B, np.full_like(size_B, T + i), max_size + i)
    token_B = yield logits, columns.real_columns(acts, queries, keys)
    tokens, mask = token_B[:, None], jnp.ones((len(rows), 1), bool)
    queries = Extent(0 * one, one, 1)


def _run_passes(
  model: Model, params: Any, rows: Sequence[np.ndarray], n_tokens: int, plan: _Plan
) -> _Steps:
  """Runs without a cache: all texts so far, padded on the right, at every step."""
  B, size_B = len(rows), np.array([len(row) for row in rows])
  ids = np.zeros((B, _bucket(size_B.max() + n_tokens)), np.int32)
  for row, onto in zip(rows, ids):
    onto[: row.size] = row
  texts, staged = jnp.asarray(ids), functools.cache(functools.partial(_stage, plan))
  for i in range(n_tokens):
    n = int(size_B.max())
    W, min_length = (n, n) if plan.exact else (_bucket(n), _shortest_bucket(int(size_B.min())))
    data, static, structure = staged(min_length, W)
    logits, _, acts = _advance(
      data,
      params,
      texts[:, :W],
      jnp.asarray(np.arange(W) < size_B[:, None]),
      model.new_cache(B, W),
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


def _stage(plan: _Plan, min_length: int, max_length: int) -> tuple[list[Any], tuple, Any]:
  return split_static(columns.stage(plan.plants, range(min_length, max_length + 1)))


def _shortest_bucket(n: int) -> int:
  """The shortest length in the bucket of `n`."""
  return 1 if n <= SMALLEST_BUCKET else _bucket(n) // 2 + 1


@functools.partial(
  jax.jit,
  static_argnames=('step', 'static', 'structure', 'sites', 'min_length', 'alike'),
  donate_argnames=('cache',),
)
def _advance(
  data: list[Any],
  params: Any,
  tokens_BxT: jax.Array,
  mask_BxT: jax.Array,
  cache: Any,
  *,
  step: Callable,
  static: tuple,
  structure: Any,
  sites: tuple[str, ...],
  min_length: int | None = None,
  alike: bool = True,
) -> tuple[jax.Array, Any, Any]:
  """Runs one step; returns the logits at the last token of each row, [B, V], the cache, and the reads.

  Without `min_length` rows are aligned on the right, and functions act on each position by itself. Otherwise rows are
  aligned on the left and have at least `min_length` tokens, and functions see texts.
  """
  plants = join_static(data, static, structure)
  if min_length is None:
    make = functools.partial(columns.map_tokens, mask_BxT)
  else:
    length_B = mask_BxT.sum(1, dtype=jnp.int32)
    make = functools.partial(columns.map_texts, length_B, min_length, alike)
  # A new function object, so that its cache entries, which hold functions of this trace, are dropped with it.
  fresh = lambda *args: step(*args)  # noqa: E731
  harvested = harvest.harvest(fresh, sites=sites) if plants or sites else _without_harvest(step)
  args = (columns.with_functions(plants, make), params, tokens_BxT, mask_BxT, cache)
  (logits, cache), acts = harvested(*args)
  last = logits[:, -1] if min_length is None else logits[jnp.arange(len(logits)), length_B - 1]
  return last, cache, acts


def _without_harvest(step: Callable) -> Callable:
  return lambda plants, *args: (step(*args), harvest.Activations([], []))


@functools.partial(jax.jit, static_argnames=('sampling',))
def _choose(logits_BxV: jax.Array, keys: jax.Array, i: int, sampling: Sampling) -> jax.Array:
  """Chooses the next token of each row, int32 [B]; -1 where a logit is NaN."""
  if sampling.temperature == 0:
    token_B = logits_BxV.argmax(-1)
  else:
    kept_BxV = restrict(logits_BxV.astype(jnp.float32) / sampling.temperature, sampling)
    key_B = jax.vmap(jax.random.fold_in, (0, None))(keys, i)
    token_B = jax.vmap(jax.random.categorical)(key_B, kept_BxV)
  return jnp.where(jnp.isnan(logits_BxV).any(-1), -1, token_B.astype(jnp.int32))


def restrict(logits_BxV: Float[Array, 'B V'], sampling: Sampling) -> Float[Array, 'B V']:
  """Sets logits, float32 [B, V], to -inf at tokens that top_k and then top_p exclude."""
  if sampling.top_k is not None:
    k = min(sampling.top_k, logits_BxV.shape[-1])
    threshold_Bx1 = jax.lax.top_k(logits_BxV, k)[0][:, -1:]
    logits_BxV = jnp.where(logits_BxV < threshold_Bx1, -jnp.inf, logits_BxV)
  if sampling.top_p is not None:
    sorted_BxV = jnp.sort(logits_BxV, axis=-1, descending=True)
    probs_BxV = jax.nn.softmax(sorted_BxV)
    needed_BxV = jnp.cumsum(probs_BxV, axis=-1) - probs_BxV < sampling.top_p
    threshold_Bx1 = jnp.min(jnp.where(needed_BxV, sorted_BxV, jnp.inf), axis=-1, keepdims=True)
    logits_BxV = jnp.where(logits_BxV < threshold_Bx1, -jnp.inf, logits_BxV)
  return logits_BxV
