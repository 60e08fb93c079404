"""Passes of a model over prompts in blocks of one size, each compiled once for a whole study.

passes = Passes(model, batch=16, pairs=64)
acts = passes.read(tokens, ['z.17'])                          activations, [P, T, N, H]
passes.differ(prompts, tokens)                                logit differences at the last column, [P]
passes.differ(prompts, tokens, {'z.17': z[:, 9]}, 9)          the same with values planted at one column
passes.resume('z.17', 17, prompts, rows, z, stream)           the same from a layer on, with whole values
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float64, Int

from experiments.attention_sae.ioi_prompts import NamePrompts
from mechjax import harvest, precision, watching
from mechjax.models.language_model import LanguageModel


@dataclasses.dataclass(frozen=True, eq=False)
class Passes:
  """Compiled passes of a model.

  Attributes:
    model: the model.
    batch: prompts in one whole pass.
    pairs: prompts in one pass from a layer on.
    compiled: the passes so far.
  """

  model: LanguageModel
  batch: int
  pairs: int
  compiled: dict[Any, Callable] = dataclasses.field(default_factory=dict)

  def read(
    self, tokens: Int[np.ndarray, 'P T'], sites: Collection[str]
  ) -> dict[str, Float[np.ndarray, 'P T ...']]:
    """Activations of prompts at some sites."""
    wanted = tuple(sorted(sites))

    def make() -> Callable:
      read = harvest.reap(self.model.truncate_at(wanted), sites=[*wanted])
      return watching.jit(read, self.model.apply)

    run = self._find(('read', wanted), make)
    parts = []
    for rows in iterate_rows(len(tokens), self.batch):
      acts = run(self.model.params, tokens[rows])
      parts.append({site: np.asarray(acts[site]) for site in wanted})
    return {site: np.concatenate([p[site] for p in parts])[: len(tokens)] for site in wanted}

  def differ(
    self,
    prompts: NamePrompts,
    tokens: Int[np.ndarray, 'P T'],
    planted: Mapping[str, Float[np.ndarray, 'P N H']] | None = None,
    column: int = -1,
  ) -> Float64[np.ndarray, ' P']:
    """Logit of the answer minus that of the other at the last column.

    Args:
      prompts: the prompts whose answers are compared.
      tokens: the prompts that run.
      planted: values at one column of some sites.
      column: that column.
    """
    planted = planted or {}
    wanted = tuple(sorted(planted))

    def make() -> Callable:
      apply = self.model.apply

      def run(
        params: Any, tokens: Any, values: Any, here: Any, answers: Any, others: Any
      ) -> Any:  # fmt: skip
        size = here.shape[0]
        plants = {
          site: harvest.Masked(jnp.repeat(value[:, None], size, 1), here[None, :, None, None])
          for site, value in values.items()
        }
        return subtract(harvest.plant(apply)(plants, params, tokens)[:, -1], answers, others)

      return watching.jit(run, apply)

    run, found = self._find(('differ', wanted), make), []
    here = np.arange(tokens.shape[1]) == column
    for rows in iterate_rows(len(tokens), self.batch):
      values = {site: planted[site][rows] for site in wanted}
      ends = prompts.answers[rows], prompts.others[rows]
      found.append(np.asarray(run(self.model.params, tokens[rows], values, here, *ends)))
    return np.concatenate(found)[: len(tokens)].astype(np.float64)

  def resume(
    self,
    site: str,
    layer: int,
    prompts: NamePrompts,
    rows: Int[np.ndarray, ' n'],
    z: Float[np.ndarray, 'n T N H'],
    stream: Float[np.ndarray, 'P T D'] | None,
  ) -> Float64[np.ndarray, ' n']:
    """Logit differences of prompts with other values at a site, from its layer on.

    Args:
      site: the site.
      layer: its layer.
      prompts: the prompts.
      rows: numbers of the prompts that run.
      z: values at the site, of each of these.
      stream: residual stream before the layer, of all prompts; None for code that cannot begin there.
    """
    begin = self.model.forward_from

    def make() -> Callable:
      apply = self.model.apply

      def run(
        params: Any, tokens: Any, z: Any, answers: Any, others: Any, stream: Any, start: Any
      ) -> Any:
        if begin is None:
          return subtract(harvest.plant(apply)({site: z}, params, tokens)[:, -1], answers, others)
        last = jnp.full((len(tokens), 1), tokens.shape[1] - 1, jnp.int32)
        logits = harvest.plant(begin)({site: z}, params, tokens, stream, start, last)
        return subtract(logits[:, 0], answers, others)

      return watching.jit(run, apply if begin is None else begin)

    run, found = self._find(('resume', site), make), []
    for block in iterate_rows(len(rows), self.pairs):
      at = rows[block]
      own = None if stream is None else stream[at]
      ends = prompts.answers[at], prompts.others[at]
      tokens = prompts.tokens[at]
      found.append(
        np.asarray(run(self.model.params, tokens, z[block], *ends, own, jnp.int32(layer)))
      )
    return np.concatenate(found)[: len(rows)].astype(np.float64)

  def _find(self, key: Any, make: Callable[[], Callable]) -> Callable:
    if key not in self.compiled:
      self.compiled[key] = make()
    return self.compiled[key]


def iterate_rows(n: int, size: int) -> list[np.ndarray]:
  """Blocks of `size` rows; the last one begins again with the first rows, so that one executable serves all."""
  return [np.arange(start, start + size) % n for start in range(0, n, size)]


def subtract(logits: Any, answers: Any, others: Any) -> Any:
  """Logit of the answer minus that of the other, [B]."""
  rows, wide = jnp.arange(len(logits)), precision.wide(logits)
  return wide[rows, answers] - wide[rows, others]
