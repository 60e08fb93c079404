"""Activations at one token of each prompt, and answers after other activations there.

    passes = Passes(model, 'resid_post.15', batch=32)
    acts = passes.read(prompts)                               float32 [B, D]
    passes.answer(prompts, ids, edited).top                   likeliest token after each prompt
    passes.answer(prompts, ids).wanted                        logits of some tokens after each

Prompts are ids with padding at the end, the column of the token that is read, and that of the last token.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int32

from experiments.facts.passes import last_logits, run_blocks
from mechjax import harvest, precision
from mechjax.models.language_model import LanguageModel


@dataclasses.dataclass(frozen=True, eq=False)
class PlacedPrompts:
  """Prompts in which one token is read or replaced.

  Attributes:
    tokens: ids, with padding at the end.
    columns: column of that token.
    ends: column of the last token.
  """

  tokens: Int32[np.ndarray, 'B T']
  columns: Int[np.ndarray, ' B']
  ends: Int[np.ndarray, ' B']

  def __len__(self) -> int:
    return len(self.tokens)

  def rows(self, index: Any) -> PlacedPrompts:
    """Some of the prompts."""
    return PlacedPrompts(self.tokens[index], self.columns[index], self.ends[index])


@dataclasses.dataclass(frozen=True, eq=False)
class Answers:
  """Predictions after prompts.

  Attributes:
    top: likeliest token.
    wanted: logits of the requested tokens.
  """

  top: Int[np.ndarray, ' B']
  wanted: Float[np.ndarray, 'B n']


@dataclasses.dataclass(frozen=True, eq=False)
class Passes:
  """Passes of a model with one site.

  Attributes:
    model: the model.
    site: site [B, T, D].
    batch: prompts in one pass.
  """

  model: LanguageModel
  site: str
  batch: int

  def read(self, prompts: PlacedPrompts) -> Float[np.ndarray, 'B D']:
    """Activations at the token of each prompt."""
    run = functools.partial(_read, self.site, self.model)
    return np.asarray(self._blocks(run, (prompts.tokens, prompts.columns)))

  def answer(
    self,
    prompts: PlacedPrompts,
    ids: Int[np.ndarray, 'B n'],
    values: Float[np.ndarray, 'B D'] | None = None,
  ) -> Answers:
    """Predictions after each prompt, with other activations at its token if they are given.

    Args:
      prompts: the prompts.
      ids: tokens whose logits are wanted.
      values: activations; None for those of the prompt itself.
    """
    rows: tuple[Any, ...] = (prompts.tokens, prompts.ends, np.asarray(ids, np.int32))
    if values is None:
      found = self._blocks(functools.partial(_answer, self.model), rows)
    else:
      run = functools.partial(_planted, self.site, self.model)
      found = self._blocks(run, (*rows, prompts.columns, np.asarray(values, np.float32)))
    return Answers(*found)

  def _blocks(self, run: Any, rows: Any) -> Any:
    return run_blocks(lambda x: run(*x), rows, self.batch)


@functools.partial(jax.jit, static_argnums=0)
def _read(site: str, model: LanguageModel, tokens: Array, columns: Array) -> Array:
  acts = harvest.reap(model.truncate_at(site), sites=site)(model.params, tokens)[site]
  return precision.wide(acts[jnp.arange(len(tokens)), columns])


@jax.jit
def _answer(model: LanguageModel, tokens: Array, ends: Array, ids: Array) -> tuple[Array, Array]:
  return _pick(last_logits(model, tokens, ends), ids)


@functools.partial(jax.jit, static_argnums=0)
def _planted(
  site: str, model: LanguageModel, tokens: Array, ends: Array, ids: Array, columns: Array, values: Array
) -> tuple[Array, Array]:  # fmt: skip
  size = tokens.shape[1]
  here = (jnp.arange(size) == columns[:, None])[..., None]
  wide = jnp.repeat(values[:, None], size, 1)

  plants = {site: harvest.Masked(wide, here)}
  return _pick(harvest.plant(last_logits)(plants, model, tokens, ends), ids)


def _pick(logits: Array, ids: Array) -> tuple[Array, Array]:
  found = precision.wide(logits)
  return found.argmax(-1), jnp.take_along_axis(found, ids, 1)
