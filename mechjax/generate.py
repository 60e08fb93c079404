"""Generation: one token after the other, with a cache, and with everything that a harvest can read or change.

What a model does over many steps is what one asks about in the end: does steering change the text, when does a
feature fire, does a head that was knocked out in one forward pass matter for the answer. So an intervention written
for one pass works here unchanged:

    edit = {'resid_post.7': lambda x: x + direction}
    logits = harvest.plant(forward)(edit, params, tokens)                  one pass
    out = generate(model, params, prompts, 40, plants=edit, sites='mlp_post.7')

The prompts are read in one pass and every further token in one step of width 1; each of the two programs is compiled
once for a bucket of lengths and a choice of plants and sites. Prompts of different lengths are aligned on the right,
so that `value[:, -1]` is the last token of every row, and told apart from padding by `Generation.prompt_mask`.

It takes functions and arrays: whose model it is, `Model` does not say.

Letters: B prompts, T columns of the prompt pass, V vocabulary, n tokens generated.

Sharp edges:
  - A step sees one position. A plant that means the last position means each token in turn; a plant given as an array
    fits one shape, so give functions of the value.
  - At 'k', 'v' and the attention sites a step sees all slots of the cache; what is planted at 'k' and 'v' is not
    written back, so a function of the keys is applied to each key once per step and never twice.
  - Functions are compared by identity: one made anew for each call compiles anew.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mechjax import errors, extras, harvest
from mechjax import sites as sites_lib
from mechjax.harvest.staging import join_static, split_static

SMALLEST_BUCKET = 16
"""Lengths are rounded up to this times a power of two, so that a few programs serve all lengths."""


@dataclasses.dataclass(frozen=True)
class Model:
  """What can generate.

  Attributes:
    step: pure function (params, tokens int [B, T], mask bool [B, T], cache) -> (logits [B, T, V], cache); a token
      whose mask is False is padding, which nothing sees.
    new_cache: (number of rows, number of slots) -> an empty cache.
  """

  step: Callable[[Any, jax.Array, jax.Array, Any], tuple[jax.Array, Any]]
  new_cache: Callable[[int, int], Any]


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How a token is chosen from logits.

  Attributes:
    temperature: by which logits are divided; 0 takes the most likely token.
    top_k: only the k most likely tokens (more where some are equally likely); None for all.
    top_p: only the most likely tokens that together have this probability, at least one; None for all.

  Raises:
    MechjaxError: for a value that has no meaning.
  """

  temperature: float = 0.0
  top_k: int | None = None
  top_p: float | None = None

  def __post_init__(self) -> None:
    checks = {
      'temperature': self.temperature >= 0,
      'top_k': self.top_k is None or self.top_k >= 1,
      'top_p': self.top_p is None or 0 < self.top_p <= 1,
    }
    for name, good in checks.items():
      if not good:
        raise errors.MechjaxError(
          f'{name}={getattr(self, name)!r}', mend='temperature >= 0, top_k >= 1, 0 < top_p <= 1'
        )


@dataclasses.dataclass(frozen=True)
class Generation:
  """What was generated.

  Attributes:
    tokens: int32 [B, n]; `pad` behind a stop token.
    lengths: tokens of each row, its stop token included, int [B].
    prompt_mask: which columns of the prompt pass are tokens and not padding, bool [B, T].
    reads: what `sites` asked for: of the prompt pass, then of each step, n in all. The values of step i are those that
      chose tokens[:, i].
  """

  tokens: np.ndarray
  lengths: np.ndarray
  prompt_mask: np.ndarray
  reads: list[harvest.Activations]


def generate(
  model: Model,
  params: Any,
  prompts: Sequence[Sequence[int]] | np.ndarray,
  n_tokens: int,
  *,
  sampling: Sampling = Sampling(),
  stop: int | Collection[int] = (),
  pad: int = 0,
  seed: int = 0,
  plants: Mapping[str, Any] | None = None,
  sites: Any = (),
  progress: bool = False,
) -> Generation:
  """Continues prompts.

  Args:
    model: see `Model`; its functions are the keys under which compiled programs are kept.
    params: the first argument of `model.step`.
    prompts: token ids, one sequence for each row, of any lengths but 0.
    n_tokens: how many tokens to generate at most.
    sampling: how tokens are chosen.
    stop: ids of tokens after which a row is finished; generation ends when all rows are.
    pad: what stands in the result behind a stop token.
    seed: of the sampling. A row's choices depend on the seed, the row's number and the step alone.
    plants: interventions, as for `harvest.plant`, made at every step.
    sites: what to read at every step, as for `harvest.reap`; nothing by default.
    progress: whether to show a progress bar (needs tqdm).

  Returns:
    The tokens, and what was read.

  Raises:
    MechjaxError: an empty prompt, something else than ids, or logits that are not numbers, as behind the last learned
      position.
    SiteError, HarvestError: a plant or a site that does not fit the model.
    MissingExtraError: `progress` without tqdm.
  """
  tokens_BxT, mask_BxT = _aligned(prompts)
  B, T = tokens_BxT.shape
  if n_tokens < 1:
    raise errors.MechjaxError(f'n_tokens={n_tokens}; at least 1 is wanted')
  stop = _stop_ids(stop)
  advance = _advancing(model.step, plants or {}, sites)
  cache = model.new_cache(B, _bucket(T + n_tokens))
  keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(B))
  tokens, mask, one = jnp.asarray(tokens_BxT), jnp.asarray(mask_BxT), jnp.ones((B, 1), bool)
  chosen, reads, running = [], [], np.ones(B, bool)
  with _bar(n_tokens, progress) as tick:
    for i in range(n_tokens):
      logits_BxV, cache, acts = advance(params, tokens, mask, cache)
      token_B = _choose(logits_BxV, keys, i, sampling)
      chosen.append(token_B)
      reads.append(acts)
      tick()
      tokens, mask = token_B[:, None], one
      if stop:
        running &= ~np.isin(np.asarray(token_B), list(stop))
        if not running.any():
          break
  found = np.stack([np.asarray(t) for t in chosen], axis=1)
  _refuse_nan(found)
  return Generation(*_ended(found, stop, pad), mask_BxT, reads)


# --- prompts and results ------------------------------------------------------------------------------------


def _aligned(prompts: Sequence[Sequence[int]] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Prompts aligned on the right in a bucket of columns, and which columns are tokens."""
  rows = [np.asarray(prompt) for prompt in prompts]
  if not rows or any(row.ndim != 1 or not row.size or row.dtype.kind not in 'iu' for row in rows):
    raise errors.MechjaxError(
      f'prompts of shapes {[row.shape for row in rows]} and dtypes {sorted({str(r.dtype) for r in rows})}; '
      'each is a sequence of at least one token id',
      mend='[[1, 2, 3]] is one prompt; a model without a start token cannot begin with nothing',
    )
  T = _bucket(max(row.size for row in rows))
  tokens, mask = np.zeros((len(rows), T), np.int32), np.zeros((len(rows), T), bool)
  for row, onto, where in zip(rows, tokens, mask):
    onto[T - row.size :], where[T - row.size :] = row, True
  return tokens, mask


def _stop_ids(stop: int | Collection[int]) -> tuple[int, ...]:
  ids = np.atleast_1d(np.asarray(list(stop) if isinstance(stop, set | frozenset) else stop))
  if ids.size and (ids.ndim != 1 or ids.dtype.kind not in 'iu' or ids.min() < 0):
    raise errors.MechjaxError(
      f'stop={stop!r:.100}; token ids are wanted',
      mend='tokenizer.token(text) is the id of a text of one token; model.generate takes such texts',
    )
  return tuple(ids.tolist())


def _bucket(n: int) -> int:
  size = SMALLEST_BUCKET
  while size < n:
    size *= 2
  return size


def _ended(tokens: np.ndarray, stop: Collection[int], pad: int) -> tuple[np.ndarray, np.ndarray]:
  """Tokens with padding behind the first stop token of each row, and how many there are before."""
  stops = np.isin(tokens, list(stop)).astype(int)
  kept: np.ndarray = np.cumsum(stops, axis=1) - stops == 0  # no stop token strictly before
  return np.where(kept, tokens, pad).astype(np.int32), kept.sum(axis=1)


def _refuse_nan(tokens: np.ndarray) -> None:
  """`_choose` gives -1 where the logits were not numbers."""
  if (tokens < 0).any():
    row, at = np.argwhere(tokens < 0)[0]
    raise errors.MechjaxError(
      f'the logits of generated token {at} of row {row} are not numbers',
      cause='prompt and generated tokens are more than the learned positions of the model, a prompt '
      'has a token that the model has not, or an intervention overflowed',
    )


@contextlib.contextmanager
def _bar(total: int, wanted: bool) -> Iterator[Callable[[], Any]]:
  if not wanted:
    yield lambda: None
    return
  with extras.require('tqdm', 'models').tqdm(total=total, unit='token') as bar:
    yield bar.update


# --- one step -----------------------------------------------------------------------------------------------


def _advancing(step: Callable, plants: Mapping[str, Any], sites: Any) -> Callable:
  """A step with interventions: arrays among them are arguments, functions are part of the program."""
  data, static, structure = split_static(dict(plants))
  return functools.partial(
    _advance,
    data,
    step=step,
    static=static,
    structure=structure,
    sites=tuple(sites_lib.as_patterns(sites)),
  )


@functools.partial(
  jax.jit, static_argnames=('step', 'static', 'structure', 'sites'), donate_argnames=('cache',)
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
) -> tuple[jax.Array, Any, Any]:
  """The logits of the last column, [B, V], the cache, and what was read."""
  plants = join_static(data, static, structure)
  harvested = harvest.harvest(step, sites=sites) if plants or sites else _unharvested(step)
  (logits, cache), acts = harvested(plants, params, tokens_BxT, mask_BxT, cache)
  return logits[:, -1], cache, acts


def _unharvested(step: Callable) -> Callable:
  return lambda plants, *args: (step(*args), harvest.Activations([], []))


@functools.partial(jax.jit, static_argnames=('sampling',))
def _choose(logits_BxV: jax.Array, keys: jax.Array, i: int, sampling: Sampling) -> jax.Array:
  """The next token of each row, int32 [B]; -1 where a logit is not a number."""
  if sampling.temperature == 0:
    token_B = logits_BxV.argmax(-1)
  else:
    kept_BxV = restricted(logits_BxV.astype(jnp.float32) / sampling.temperature, sampling)
    key_B = jax.vmap(jax.random.fold_in, (0, None))(keys, i)
    token_B = jax.vmap(jax.random.categorical)(key_B, kept_BxV)
  return jnp.where(jnp.isnan(logits_BxV).any(-1), -1, token_B.astype(jnp.int32))


def restricted(logits_BxV: jax.Array, sampling: Sampling) -> jax.Array:
  """Logits, float32 [B, V], with -inf at tokens that top_k and then top_p exclude."""
  if sampling.top_k is not None:
    k = min(sampling.top_k, logits_BxV.shape[-1])
    least_Bx1 = jax.lax.top_k(logits_BxV, k)[0][:, -1:]
    logits_BxV = jnp.where(logits_BxV < least_Bx1, -jnp.inf, logits_BxV)
  if sampling.top_p is not None:
    sorted_BxV = jnp.sort(logits_BxV, axis=-1, descending=True)
    probs_BxV = jax.nn.softmax(sorted_BxV)
    needed_BxV = jnp.cumsum(probs_BxV, axis=-1) - probs_BxV < sampling.top_p
    least_Bx1 = jnp.min(jnp.where(needed_BxV, sorted_BxV, jnp.inf), axis=-1, keepdims=True)
    logits_BxV = jnp.where(logits_BxV < least_Bx1, -jnp.inf, logits_BxV)
  return logits_BxV
