"""The stream at the last token of names, in the intact model and in effective ones.

    streams = Streams(subject.model, names, batch=32)
    x = streams.intact(PROMPT)                             [B, 1 + layers, D]: before the first layer, after each
    reader = streams.reader(ALONE, layers=12)
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

from experiments.facts.names import Names
from experiments.facts.passes import run_blocks
from experiments.facts.prompts import AlignedPrompts
from mechjax import harvest
from mechjax.models.language_model import LanguageModel
from mechjax.patching.ablation_values import AblationValues, measure_means
from mechjax.patching.components import Kept, components_of
from mechjax.patching.effective import EffectiveModel, ablate

SITE = 'resid_post'
PROMPT, ALONE = 'prompt', 'name alone'
"""Places of a name."""


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


class Streams:
  """Streams of the kept names of one model, each of which is read once, and the readers of the effective models.

  Attributes:
    model: the model.
    places: the aligned prompts, by `PROMPT` and `ALONE`.
    batch: number of prompts at a time.
  """

  def __init__(self, model: LanguageModel, names: Names, batch: int) -> None:
    self.model, self.batch = model, batch
    self.places = {PROMPT: names.prompts, ALONE: names.bare}
    self._readers: dict[tuple[str, int], StreamReader] = {}
    self._intact: dict[str, Float[np.ndarray, 'B L D']] = {}

  def reader(self, place: str, layers: int) -> StreamReader:
    """The reader of the first layers, made once."""
    key = place, layers
    if key not in self._readers:
      self._readers[key] = StreamReader(self.model, self.places[place], layers, self.batch)
    return self._readers[key]

  def intact(self, place: str) -> Float[np.ndarray, 'B L D']:
    """The stream before the first layer and after each, at the last token of the name: [B, 1 + layers, D]."""
    if place not in self._intact:
      first = self._embed(place)[:, -1:]
      layers = self.reader(place, self.model.n_layers).read()
      self._intact[place] = np.concatenate([first, layers], axis=1)
    return self._intact[place]

  def embeddings(self) -> Float[np.ndarray, 'B D']:
    """Sum of the embeddings of the name's tokens."""
    return self._embed(ALONE).sum(1)

  def _embed(self, place: str) -> Float[np.ndarray, 'B tokens D']:
    """Embeddings of the name's tokens."""
    prompts = self.places[place]
    read = harvest.reap(self.model.truncate_at('embed'), sites='embed')
    x = read(self.model.params, jnp.asarray(prompts.tokens))['embed']
    return np.asarray(x)[:, prompts.start : prompts.stop]
