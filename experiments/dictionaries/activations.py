"""Activations of contexts, read once and shared by all studies.

    x = read_sites(model, rows, ['resid_post.15'], size=8)['resid_post.15']              float32 [n, T, D]
    g = read_gradients(model, rows, 'resid_post.15', size=8)                             the same for gradients

Contexts keep their order and all their tokens; a mask of the tokens that count is applied where activations are used.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mechjax import harvest
from mechjax.models.language_model import LanguageModel
from mechjax.sae.store.gradients import PREFIX, read_with_gradients


def read_sites(
  model: LanguageModel, rows: np.ndarray, wanted: Sequence[str], size: int, params: Any = None
) -> dict[str, np.ndarray]:
  """Activations of sites, float32 [n, T, D] each.

  Args:
    model: the model.
    rows: contexts, [n, T].
    wanted: sites.
    size: contexts in one pass.
    params: parameters in place of the model's.
  """
  read = jax.jit(harvest.reap(model.truncate_at(wanted), sites=[*wanted]))
  own = model.params if params is None else params

  def take(tokens: jax.Array) -> dict[str, jax.Array]:
    acts = read(own, tokens)
    return {site: acts[site] for site in wanted}

  return _collect(take, rows, size)


def read_gradients(model: LanguageModel, rows: np.ndarray, site: str, size: int) -> np.ndarray:
  """Gradients of the summed next-token loss with respect to a site, float32 [n, T, D]."""
  name = f'{PREFIX}{site}'
  read = jax.jit(functools.partial(read_with_gradients, model.apply, [name]))
  return _collect(lambda tokens: read(model.params, tokens), rows, size)[name]


def iterate_padded(rows: np.ndarray, size: int) -> Iterator[tuple[int, np.ndarray]]:
  """Batches of one size, the last with repeated contexts, and the number of contexts that are not repeated."""
  for start in range(0, len(rows), size):
    part = rows[start : start + size]
    yield len(part), np.resize(part, (size, rows.shape[1]))


def _collect(
  read: Callable[[jax.Array], Any], rows: np.ndarray, size: int
) -> dict[Any, np.ndarray]:
  parts: dict[Any, list[np.ndarray]] = {}
  for n, tokens in iterate_padded(rows, size):
    for key, x in read(jnp.asarray(tokens)).items():
      parts.setdefault(key, []).append(np.asarray(x, np.float32)[:n])
  return {key: np.concatenate(found) for key, found in parts.items()}
