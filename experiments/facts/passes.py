"""Forward passes that read little: the stream at one position, and the logits of the last position.

A vocabulary of a quarter of a million costs more than all layers of a small model, so that logits are computed at the
last position alone. `last_logits` is tagged at every site of the layers, so that it can be patched like a whole model;
its sites 'final_norm' and 'logits' are [B, D] and [B, V].

    effects = PathPatching(last_logits, senders, receivers)(model, pairs, metric)      the model is its own `params`
    last = run(settings, jax.jit(last_logits), model, tokens)                          [n, V], block by block
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mechjax.models.language_model import LanguageModel
from mechjax.patching import budget

AXES = {'final_norm': 'BD', 'logits': 'BV'}
"""Axes of the sites after the layers, which `last_logits` has for one position."""


def last_logits(
  model: LanguageModel, tokens: jax.Array, ends: jax.Array | None = None
) -> jax.Array:
  """Logits of the token after the last one, [B, V].

  Args:
    model: the model; the pytree of its parameters.
    tokens: int [B, T].
    ends: column of the last token of each row, int [B], followed by padding; None for rows without padding.
  """
  body = model.truncate_at(f'resid_post.{model.n_layers - 1}')
  found = body(model.params, tokens)
  found = found[:, -1] if ends is None else found[jnp.arange(len(tokens)), ends]
  # A code without a pass that ends before the head has returned logits.
  return found if body is model.apply else model.unembed(found)


def run_blocks(f: Callable[..., Any], rows: Any, batch: int) -> Any:
  """Applies `f` to rows, `batch` of them at a time, and joins the results on the host.

  Args:
    f: maps a pytree of arrays [batch, ...] to one.
    rows: pytree of arrays [n, ...].
    batch: number of rows in one call; the last call repeats rows to have as many.
  """
  n = len(jax.tree.leaves(rows)[0])
  parts = []
  for index, count in budget.blocks(n, min(batch, n)):
    found = f(jax.tree.map(lambda x, i=index: x[i], rows))
    parts.append(jax.tree.map(lambda x, c=count: np.asarray(x)[:c], found))
  return jax.tree.map(lambda *xs: np.concatenate(xs), *parts)
