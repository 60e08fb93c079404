"""The stream at the last token of names, in the intact model and in effective ones.

    reader = StreamReader(subject.model, names.bare, layers=12, batch=32)
    x = reader.read()                                      [B, layers, D]: the stream after each layer
    means = reader.measure_means(half.train)
    x = reader.read(reader.ablate(['attn_out.{2..11}'], means))

One executable serves all sets of components, and one more all sets with paths.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from experiments.facts.passes import run_blocks
from experiments.facts.prompts import AlignedPrompts
from mechjax import harvest
from mechjax.models.language_model import LanguageModel
from mechjax.patching.ablation_values import AblationValues, measure_means
from mechjax.patching.components import Kept, components_of
from mechjax.patching.effective import EffectiveModel, ablate

SITE = 'resid_post'


class StreamReader:
  """Reads the stream at the last token of names after each of the first layers.

  Attributes:
    model: the model.
    prompts: aligned prompts.
    layers: number of layers that run.
    batch: number of prompts at a time.
    forward: the layers, a tagged function (params, tokens, mask=None).
    parts: the attention and the MLP of each layer that runs, as components.
  """

  def __init__(
    self, model: LanguageModel, prompts: AlignedPrompts, layers: int, batch: int
  ) -> None:
    self.model, self.prompts, self.layers, self.batch = model, prompts, layers, batch
    self.forward = model.truncate_at(f'{SITE}.{layers - 1}')
    infos = harvest.sites_of(self.forward, model.params, prompts.tokens[:1])
    self.parts = components_of(infos, heads=False)
    self._intact = ablate(
      self.forward, Kept.of(self.parts, '*'), AblationValues.zeros(self.parts, [prompts.from_end])
    )

  def measure_means(self, rows: Int[np.ndarray, ' _']) -> AblationValues:
    """Mean of every component at the last token of the name, over some of the prompts."""
    return measure_means(
      self.forward, self.model.params, self.prompts.tokens[rows], self.parts,
      positions=[self.prompts.from_end], batch=self.batch,
    )  # fmt: skip

  def ablate(
    self, sites: Sequence[str], means: AblationValues, paths: Sequence[tuple[str, str]] = ()
  ) -> EffectiveModel:
    """The effective model without some components, or without some paths, at the last token of the name."""
    kept = Kept.all_but(self.parts, list(sites)) if sites else Kept.of(self.parts, '*')
    return ablate(self.forward, kept, means, paths=paths)

  def read(self, effective: EffectiveModel | None = None) -> Float[np.ndarray, 'B L D']:
    """The stream after each layer, of the intact model or of an effective one."""
    one = self._intact if effective is None else effective
    return run_blocks(
      lambda x: self._read(one, self.model.params, x), self.prompts.tokens, self.batch
    )

  @functools.cached_property
  def _read(self) -> Any:
    @jax.jit
    def read(effective: EffectiveModel, params: Any, tokens: jax.Array) -> jax.Array:
      sites = f'{SITE}.{{0..{self.layers - 1}}}'
      acts = harvest.reap(effective, sites=sites)(params, tokens)
      return jnp.moveaxis(acts.stack(SITE)[:, :, self.prompts.at], 0, 1)

    return read


def sum_embeddings(model: LanguageModel, prompts: AlignedPrompts) -> Float[np.ndarray, 'B D']:
  """Sum of the embeddings of the name's tokens."""
  body = model.truncate_at('embed')
  x = harvest.reap(body, sites='embed')(model.params, jnp.asarray(prompts.tokens))['embed']
  return np.asarray(x, np.float64)[:, prompts.start : prompts.stop].sum(1)


def embed_last(model: LanguageModel, prompts: AlignedPrompts) -> Float[np.ndarray, 'B D']:
  """The stream before the first layer at the last token of the name."""
  body = model.truncate_at('embed')
  x = harvest.reap(body, sites='embed')(model.params, jnp.asarray(prompts.tokens))['embed']
  return np.asarray(x)[:, prompts.at]
