"""Activations at one token of each prompt, and answers after other activations there.

    passes = Passes(model, 'resid_post.15', batch=32)
    acts = passes.read(prompts)                               float32 [B, D]
    passes.answer(prompts, ids).top                           likeliest token after each prompt
    edited = passes.prepare(prompts)
    edited.answer(ids, values).wanted                         logits of some tokens after each, with other activations

Prompts are ids with padding at the end, the column of the token that is read, and that of the last token.

A study edits the same prompts hundreds of times, and an edit changes nothing before its token. So `prepare` computes
the keys and values of the tokens before it once, and an answer costs the tokens from there on alone: one of twenty, if
the edited token is the last.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int32, PyTree

from experiments.facts.passes import last_logits, run_blocks
from mechjax import harvest, precision
from mechjax.errors import YardstickError
from mechjax.models.language_model import LanguageModel
from mechjax.patching import budget


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
    batch: whole prompts in one pass.
  """

  model: LanguageModel
  site: str
  batch: int

  def read(self, prompts: PlacedPrompts) -> Float[np.ndarray, 'B D']:
    """Activations at the token of each prompt."""
    run = functools.partial(_read, self.site, self.model)
    return np.asarray(self._blocks(run, (prompts.tokens, prompts.columns)))

  def answer(self, prompts: PlacedPrompts, ids: Int[np.ndarray, 'B n']) -> Answers:
    """Predictions after each prompt as it is, with the logits of some tokens."""
    rows = prompts.tokens, prompts.ends, np.asarray(ids, np.int32)
    return Answers(*self._blocks(functools.partial(_answer, self.model), rows))

  def prepare(self, prompts: PlacedPrompts) -> Prepared:
    """Computes what no edit changes; the result holds keys and values of all prompts.

    Raises:
      YardstickError: the model has no cache of keys and values.
    """
    if self.model.generator.new_cache is None:
      raise YardstickError(
        f'{self.model.name} runs without a cache', hint='our own decoder has one'
      )
    tokens, columns = _align(prompts)
    size = tokens.shape[1]
    width = int((prompts.ends - prompts.columns).max()) + 1
    here = (columns == prompts.columns[:, None])[:, -width:, None]
    blocks = []
    for index, count in budget.blocks(len(tokens), min(self.batch * (size // width), len(tokens))):
      mask = columns[index] >= 0
      before = tokens[index, : size - width], mask[:, : size - width]
      cache = _start(size, self.model, *before)
      after = tokens[index, size - width :], mask[:, size - width :], here[index]
      blocks.append(_Block(index, count, cache, after))
    return Prepared(self, tuple(blocks))

  def _blocks(self, run: Any, rows: Any) -> Any:
    return run_blocks(lambda x: run(*x), rows, self.batch)


@dataclasses.dataclass(frozen=True, eq=False)
class _Block:
  """Prompts of one pass: their numbers, how many count, keys and values of the first tokens, and the other tokens with
  their mask and the place of the edit."""

  index: Int[np.ndarray, ' n']
  count: int
  cache: PyTree
  after: tuple[Int32[np.ndarray, 'n t'], Bool[np.ndarray, 'n t'], Bool[np.ndarray, 'n t 1']]


@dataclasses.dataclass(frozen=True, eq=False)
class Prepared:
  """Prompts that are edited at one token each.

  Attributes:
    passes: the passes.
    blocks: the prompts, in order.
  """

  passes: Passes
  blocks: tuple[_Block, ...]

  def answer(self, ids: Int[np.ndarray, 'B n'], values: Float[np.ndarray, 'B D']) -> Answers:
    """Predictions with other activations at the token of each prompt, and the logits of some tokens."""
    wanted, planted = np.asarray(ids, np.int32), np.asarray(values, np.float32)
    parts = []
    for block in self.blocks:
      own = wanted[block.index], planted[block.index]
      found = _continue(self.passes.site, self.passes.model, block.cache, *block.after, *own)
      parts.append([np.asarray(x)[: block.count] for x in found])
    return Answers(*map(np.concatenate, zip(*parts)))


def _align(
  prompts: PlacedPrompts,
) -> tuple[Int32[np.ndarray, 'B T'], Int[np.ndarray, 'B T']]:
  """The prompts with their padding in front, and the column that each token had; negative for padding."""
  size = prompts.tokens.shape[1]
  columns = np.arange(size) - (size - 1 - prompts.ends)[:, None]
  tokens = np.take_along_axis(prompts.tokens, np.maximum(columns, 0), 1)
  return tokens, columns


@functools.partial(jax.jit, static_argnums=0)
def _read(site: str, model: LanguageModel, tokens: Array, columns: Array) -> Array:
  acts = harvest.reap(model.truncate_at(site), sites=site)(model.params, tokens)[site]
  return precision.wide(acts[jnp.arange(len(tokens)), columns])


@jax.jit
def _answer(model: LanguageModel, tokens: Array, ends: Array, ids: Array) -> tuple[Array, Array]:
  return _pick(last_logits(model, tokens, ends), ids)


@functools.partial(jax.jit, static_argnums=0)
def _start(slots: int, model: LanguageModel, tokens: Array, mask: Array) -> PyTree:
  """Keys and values of the first tokens, with room for the others."""
  generator = model.generator
  cache = generator.empty_cache(model.params, len(tokens), slots)
  if tokens.shape[1]:
    _, cache = generator.step(model.params, tokens, mask, cache)
  return cache


@functools.partial(jax.jit, static_argnums=0)
def _continue(
  site: str, model: LanguageModel, cache: PyTree, tokens: Array, mask: Array, here: Array, ids: Array, values: Array
) -> tuple[Array, Array]:  # fmt: skip
  wide = jnp.repeat(values[:, None], tokens.shape[1], 1)
  step = harvest.plant(model.generator.step)
  logits, _ = step({site: harvest.Masked(wide, here)}, model.params, tokens, mask, cache)
  return _pick(logits[:, -1], ids)


def _pick(logits: Array, ids: Array) -> tuple[Array, Array]:
  found = precision.wide(logits)
  return found.argmax(-1), jnp.take_along_axis(found, ids, 1)
