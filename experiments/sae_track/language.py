"""A decoder that is trained on bytes, and its checkpoints.

The model is `mechjax.models`' decoder with rotary positions, an RMS norm and a gated MLP, as Llama has. A token is a
byte; id 256 begins each context. The loss is the mean over all predicted tokens, the optimiser AdamW.

    rows = read_rows(settings)                       contexts, int32 [n, T]
    params = train(settings, rows)                   parameters at each checkpoint, stacked
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.sae_track.settings import Settings
from mechjax import harvest, logits, sites
from mechjax.errors import SAEError
from mechjax.models import decoder
from mechjax.train_sae import corpora

BOS, N_VOCAB = 256, 257


def read_rows(settings: Settings) -> np.ndarray:
  """Contexts of a text as bytes, int32 [n, T], each with a first token that begins it.

  Raises:
    SAEError: the text is too short for the held-out contexts and one batch.
  """
  pieces, length = [], 0
  for text in corpora.texts(settings.text):
    pieces.append(np.frombuffer(text.encode(), np.uint8))
    length += len(pieces[-1])
    if length >= settings.n_bytes:
      break
  own = settings.context - 1
  n = min(length, settings.n_bytes) // own
  if n < settings.held_out + settings.batch:
    raise SAEError(
      f'{length} bytes are {n} contexts; held_out={settings.held_out} and batch={settings.batch} need more'
    )
  ids = np.concatenate(pieces)[: n * own].reshape(n, own).astype(np.int32)
  return np.concatenate([np.full((n, 1), BOS, np.int32), ids], 1)


def split_rows(settings: Settings, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Training contexts and held-out contexts, which are spread over the text."""
  out = np.linspace(0, len(rows) - 1, settings.held_out).round().astype(int)
  return np.delete(rows, out, 0), rows[out]


def describe(settings: Settings) -> decoder.Config:
  """The description of the model."""
  D = settings.width
  return decoder.Config(
    n_layers=settings.layers, d_model=D, n_heads=D // 32, n_kv_heads=D // 32, d_head=32, d_mlp=4 * D, n_vocab=N_VOCAB,
  )  # fmt: skip


def measure_losses(config: decoder.Config, params: Any, rows: jax.Array) -> jax.Array:
  """Mean loss of each context, [n], in nats per predicted token."""
  scores = logits.log_probs(decoder.forward(params, rows[:, :-1], config))
  return jnp.mean(logits.next_token_loss(scores, rows[:, 1:]), 1)


def train(settings: Settings, rows: np.ndarray) -> Any:
  """Trains the model; returns its parameters with a leading axis of checkpoints.

  Raises:
    SAEError: the training diverged.
  """
  config = describe(settings)
  rate = optax.cosine_decay_schedule(settings.rate, settings.steps, 0.1)
  optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=0.01))
  params = decoder.init(jax.random.key(settings.seed), config)
  state = optimiser.init(params)

  @jax.jit
  def advance(params: Any, state: Any, batch: jax.Array) -> tuple[Any, Any, jax.Array]:
    mean_loss = lambda p: jnp.mean(measure_losses(config, p, batch))  # noqa: E731
    loss, grads = jax.value_and_grad(mean_loss)(params)
    with jax.numpy_dtype_promotion('standard'):  # optax raises floats to integer powers
      updates, state = optimiser.update(grads, state, params)
      return optax.apply_updates(params, updates), state, loss

  random, kept, losses = np.random.default_rng(settings.seed), [], []
  wanted = set(settings.saved_steps)
  for step in range(settings.steps + 1):
    batch = jnp.asarray(rows[random.integers(0, len(rows), settings.batch)])
    before = params
    params, state, loss = advance(params, state, batch)
    if step in wanted:
      kept.append(jax.tree.map(np.asarray, before))
      losses.append(float(loss))
  if not np.isfinite(losses).all():
    raise SAEError(f'losses of {losses}: the training diverged', hint='a smaller --rate')
  return jax.tree.map(lambda *x: np.stack(x), *kept)


def make_reader(settings: Settings) -> Callable[[Any, np.ndarray], np.ndarray]:
  """(params, contexts [n, T]) -> activations of all tokens but the first of each context, [n, T - 1, D].

  A pass takes as many contexts as a training step of a dictionary.
  """
  config = describe(settings)
  forward = functools.partial(decoder.forward, config=config)
  read = jax.jit(harvest.reap(forward, sites=[settings.site]))

  def take(params: Any, rows: np.ndarray) -> np.ndarray:
    parts, size = [], settings.n_rows
    for low in range(0, len(rows), size):
      batch = np.resize(rows[low : low + size], (size, rows.shape[1]))
      found = np.asarray(read(params, jnp.asarray(batch))[sites.parse(settings.site)])
      parts.append(found[: len(rows) - low, 1:])
    return np.concatenate(parts)

  return take
