"""Activations of contexts: the forward pass, in batches of one shape, without special tokens.

    take = Harvester(forward, params, ['resid_post.15'], contexts, batch=32)
    take.rows(numbers, skip=3, n=1000)            {'resid_post.15': float32 [1000, 576]}

`forward(params, tokens)` is any function with sows. The compiler removes the computation after the deepest requested
site if layers are unrolled; for a model with scanned layers pass a function that stops there
(`LanguageModel.truncate_at`).

A name such as grad:resid_post.15 stands for the gradient of the loss at a site (`gradients`).

Axes of a site after those of rows and tokens are flattened: heads [B, T, N, H] become NH.

Sharp edge: the last batch is padded with copies of its contexts, whose activations are discarded, because another
shape would compile again.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mechjax import harvest, sites, watching
from mechjax.errors import SAEError
from mechjax.programs.callables import check_function
from mechjax.sae.checks import check_field
from mechjax.sae.store.contexts import Contexts
from mechjax.sae.store.gradients import is_gradient, read_with_gradients
from mechjax.sae.store.prefetch import give_up_if_closed

Rows = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Harvester:
  """Reads activations.

  Attributes:
    forward: (params, tokens int [B, T]) -> anything, with sows.
    params: parameters of the model.
    sites: sites to read, such as 'resid_post.15'; with 'grad:' before the name, the gradient there.
    contexts: input of the model.
    batch: contexts per forward pass.
    dtype: dtype of the activations.
    placement: sharding of the tokens, for a forward pass on several devices; None for the devices of the parameters.

  Raises:
    SAEError: no sites or an empty batch; when activations are read: a site without an axis of tokens, or activations
      that are not finite.
    SiteError: a site is not in the model.
  """

  forward: Callable
  params: Any
  sites: Sequence[str]
  contexts: Contexts
  batch: int = 32
  dtype: Any = np.float32
  placement: jax.sharding.Sharding | None = None

  def __post_init__(self) -> None:
    check_function(self.forward, SAEError, 'Harvester(model.apply, model.params, sites, contexts)')
    check_field(self, 'batch', self.batch >= 1, 'at least 1')
    check_field(self, 'sites', len({*self.sites}) == len(self.sites) > 0, 'one or more, each once')

  @functools.cached_property
  def widths(self) -> dict[str, int]:
    """D of each site, without running the model."""
    tokens = jax.ShapeDtypeStruct((self.batch, self.contexts.length), jnp.int32)
    found = jax.eval_shape(self._read, self.params, tokens)
    return {site: x.shape[-1] for site, x in found.items()}

  def rows(self, numbers: np.ndarray, skip: int, n: int) -> Rows:
    """Activations of contexts, in order.

    Args:
      numbers: numbers of the contexts.
      skip: number of first activations to omit.
      n: number of activations to return.

    Returns:
      Activations by site, [n, D]; fewer if the contexts have fewer.
    """
    stop = skip + n
    parts = {site: [np.empty((0, d), self.dtype)] for site, d in self.widths.items()}
    pending: list[tuple[dict[str, jax.Array], np.ndarray, int]] = []
    for start in range(0, len(numbers), self.batch):
      give_up_if_closed()
      pending.append(self._start(numbers[start : start + self.batch]))
      if len(pending) > 1:  # the next pass runs while this one is fetched
        self._fetch(pending.pop(0), parts)
    for last in pending:
      self._fetch(last, parts)
    # The pieces of a site are released before those of the next are joined: a bucket is not in memory twice.
    return {site: np.concatenate(parts.pop(site))[skip:stop] for site in [*parts]}

  def _start(self, numbers: np.ndarray) -> tuple[dict[str, jax.Array], np.ndarray, int]:
    tokens = self.contexts.tokens(numbers)
    filled = np.resize(tokens, (self.batch, self.contexts.length))
    placed = filled if self.placement is None else jax.device_put(filled, self.placement)
    return self._compiled(self.params, placed), self.contexts.is_kept(tokens), int(numbers[0])

  def _fetch(
    self, started: tuple[Mapping[str, jax.Array], np.ndarray, int], parts: dict[str, list]
  ) -> None:
    found, kept, number = started
    for site, x in found.items():
      rows = np.asarray(x)[: len(kept)][kept]
      if not np.isfinite(rows.sum(dtype=np.float64)):
        raise SAEError(
          f'activations of {site} are not finite',
          where=f'context {number} or one of the {self.batch} that follow it in the order',
          cause='parameters that are NaN, or activations beyond the range of the dtype',
        )
      parts[site].append(rows)

  @functools.cached_property
  def _compiled(self) -> Callable:
    return watching.jit(self._read, self.forward)

  def _read(self, params: Any, tokens: jax.Array) -> dict[str, jax.Array]:
    if any(map(is_gradient, self.sites)):
      read = read_with_gradients(self.forward, self.sites, params, tokens)
    else:
      reaped = harvest.reap(self.forward, sites=[*self.sites])(params, tokens)
      read = {site: reaped[sites.parse(site)] for site in self.sites}
    return {site: self._flat(site, x, tokens) for site, x in read.items()}

  def _flat(self, site: str, x: jax.Array, tokens: jax.Array) -> jax.Array:
    if x.shape[:2] != tokens.shape or x.ndim < 3:
      raise SAEError(
        f'{site} has shape {x.shape} for tokens of shape {tokens.shape}',
        cause='it has no vector for each token; attention scores are an example',
      )
    return x.reshape(*tokens.shape, -1).astype(self.dtype)
