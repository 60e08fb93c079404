"""ReFT-r1: a direction trained through the model to detect a concept and to steer with it.

A direction w of length 1 reads the prompt and writes to it. In training the edit at the tokens of a prompt is

    x + s w,    s = mean of the k largest relu(x . w) over the tokens of the prompt

so that the direction can only steer as far as it finds the concept in the prompt itself. The loss is the language
model's loss of the answers plus a penalty on what the direction reads outside of the k largest,

    L + ramp(t) l1 mean of relu(x . w) over the other tokens of the prompt,    ramp from 0 to 1 over the steps

(Wu et al. 2025, AxBench, arXiv 2501.17148, "ReFT-r1"). w stays on the unit sphere: the part of the gradient along w is
removed before the optimiser sees it, and w is normalised after each step. Afterwards the edit is x + alpha m w, with m
the largest w.x of positive texts (`vectors.scale_on`).

    trained = ReFTr1().fit(forward, 'resid_pre.12', params, examples, jax.random.key(0))
    edit = Add('resid_pre.12', trained.vector, where=everywhere);  edit.plants(alpha * m)

Defaults are those of AxBench's code: k 8, AdamW with a learning rate of 0.01 that falls linearly to 0, gradients
clipped to a norm of 1, 3 epochs of batches of 6, l1 0.005; and the first token of a prompt is left out.

A direction whose products with all tokens are negative reads nothing and has no gradient. The stream has a large mean,
so that this happens to half of all random directions. Hence training begins with w or -w, whichever reads more, and a
direction that reads nothing in the end is an error.

Sharp edges: every prompt has at least k tokens after those that are skipped, or "the k largest" would mean another
number in each. The weight decay is 0, because w is normalised anyway. Losses go to the host at the end only, so that
steps do not wait.

Letters: B examples of a batch, T positions, D model width.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Int32, PyTree

from mechjax import harvest, logits, precision, sites
from mechjax.errors import SteeringError
from mechjax.steering.bases import normalise
from mechjax.steering.one_pass import as_mask


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ReftExamples:
  """Prompts with answers.

  Attributes:
    tokens: ids, int [B, T].
    mask: True at tokens, False at padding on the right, bool [B, T].
    prompt_length: tokens of each prompt, int [B]; the loss is that of the tokens after them.
    weight: weight of each example in the loss, [B]; None for 1.
  """

  tokens: Int[Array | np.ndarray, 'B T']
  mask: Bool[Array | np.ndarray, 'B T']
  prompt_length: Int[Array | np.ndarray, ' B']
  weight: Float[Array | np.ndarray, ' B'] | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedDirection:
  """Result of a training.

  Attributes:
    vector: w [D], of length 1, in float64.
    losses: loss of each step, float64 [steps]: that of the answers, in nats per token, and the penalty.
  """

  vector: Float[np.ndarray, ' D']
  losses: Float[np.ndarray, ' n']


@dataclasses.dataclass(frozen=True)
class ReFTr1:
  """Settings of the training.

  Attributes:
    k: number of largest activations whose mean is the strength of the edit.
    epochs: passes over the examples.
    batch: examples of a step.
    skip: tokens at the beginning of each prompt that are neither read nor edited. The first token of a text is an
      attention sink in most models: its norm is many times that of the others and would decide what is read.
    learning_rate: initial learning rate; it falls linearly to 0.
    l1: coefficient of the penalty on the other activations.
    clip: largest norm of the gradient.

  Raises:
    SteeringError: a value out of range.
  """

  k: int = 8
  epochs: int = 3
  batch: int = 6
  skip: int = 1
  learning_rate: float = 0.01
  l1: float = 0.005
  clip: float = 1.0

  def __post_init__(self) -> None:
    for name, least in (('k', 1), ('epochs', 1), ('batch', 1), ('skip', 0)):
      value = getattr(self, name)
      if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise SteeringError(f'{name}={value!r}; expected a whole number of at least {least}')
    for name, least in (('learning_rate', True), ('clip', True), ('l1', False)):
      value = getattr(self, name)
      real = isinstance(value, numbers.Real) and not isinstance(value, bool)
      if not real or not math.isfinite(value) or not (value > 0 if least else value >= 0):
        raise SteeringError(
          f'{name}={value!r}; expected a finite number, {"above" if least else "at least"} 0'
        )

  def fit(
    self,
    forward: Callable[..., Float[Array, 'B T V']],
    site: str | sites.Site,
    params: PyTree,
    examples: ReftExamples,
    key: Array,
  ) -> TrainedDirection:
    """Trains a direction.

    Args:
      forward: (params, tokens, mask=mask) -> logits, with sows.
      site: the site that is edited, such as 'resid_pre.12'.
      params: parameters of the model, which stay as they are.
      examples: prompts with answers, positive and negative.
      key: random key of the initial direction and of the order of the examples.

    Raises:
      SteeringError: prompts with fewer than `k` tokens after those that are skipped, examples without an answer, a loss
        that is not finite, or a direction that reads nothing.
    """
    check_examples(examples, self.k, self.skip)
    name, n = str(site), len(examples.tokens)
    steps = self.epochs * -(-n // min(self.batch, n))
    of_start, of_order = jax.random.split(key)
    w_D = normalise(jax.random.normal(of_start, (_width(forward, name, params, examples),)))
    strength = _make_strength(forward, name, self.k, self.skip)
    batches = [*_batches(examples, 1, self.batch, of_order)]
    reads = lambda w_D: sum(float(strength(w_D, params, batch)) for batch in batches)  # noqa: E731
    w_D = w_D if reads(w_D) >= reads(-w_D) else -w_D
    optimiser = self._optimiser(steps)
    state = optimiser.init(w_D)
    step = _make_step(make_loss(forward, name, self.k, self.skip), optimiser)
    found = []
    for i, batch in enumerate(_batches(examples, self.epochs, self.batch, of_order)):
      penalty = jnp.asarray(self.l1 * i / steps, w_D.dtype)
      w_D, state, loss = step(w_D, state, params, batch, penalty)
      found.append(loss)
    losses = np.asarray(jax.device_get(found), np.float64)
    if not np.isfinite(losses).all():
      raise SteeringError(
        f'the loss of step {int(np.flatnonzero(~np.isfinite(losses))[0])} of {steps} is not finite',
        cause='tokens outside the vocabulary, or activations that overflow',
      )
    if not reads(w_D):
      raise SteeringError(
        f'after {steps} steps the direction reads nothing: its product with every token of the prompts is 0 or less',
        cause='an edit that only makes the answers less likely: examples without the concept, or few of them',
        hint='more examples, another key, or a smaller learning_rate',
      )
    unit = np.asarray(w_D, np.float64)
    return TrainedDirection(unit / np.linalg.norm(unit), losses)

  def _optimiser(self, steps: int) -> optax.GradientTransformation:
    schedule = optax.linear_schedule(self.learning_rate, 0.0, steps)
    return optax.chain(
      optax.clip_by_global_norm(self.clip), optax.adamw(schedule, weight_decay=0.0)
    )


def check_examples(examples: ReftExamples, k: int, skip: int) -> None:
  """Raises SteeringError unless each example has a prompt of `k` tokens after those that are skipped, and an answer."""
  mask = np.asarray(as_mask(examples.mask))
  tokens, length_B = np.asarray(examples.tokens), np.asarray(examples.prompt_length)
  if tokens.shape != mask.shape or length_B.shape != mask.shape[:1] or not len(tokens):
    raise SteeringError(
      f'examples with tokens {tokens.shape}, mask {mask.shape} and prompt_length {length_B.shape}'
    )
  if (mask[:, 1:] & ~mask[:, :-1]).any():
    raise SteeringError(
      'examples with padding on the left', hint="model.tokens(texts, padding='right')"
    )
  for row, (prompt, text) in enumerate(zip(length_B, mask.sum(1))):
    if not k + skip <= prompt < text:
      raise SteeringError(
        f'example {row} has a prompt of {prompt} tokens and a text of {text}',
        cause=f'a prompt needs {k} tokens, of which the {k} largest activations are taken, after the {skip} that are '
        'skipped, and an answer after it',
        hint='k= may be smaller, and skip=0 reads the first token, too',
      )


def read_concept(
  x_BxTxD: Float[Array, 'B T D'], w_D: Float[Array, ' D'], prompt_BxT: Bool[Array, 'B T'], k: int
) -> tuple[Float[Array, ' B'], Float[Array, ' B'], Int32[Array, ' B']]:
  """Strength of the edit of each prompt, and what the direction reads at the other tokens of the prompt.

  Args:
    x_BxTxD: activations.
    w_D: the direction.
    prompt_BxT: tokens of the prompts, at least `k` in each row.
    k: number of largest activations.

  Returns:
    Of each row: the mean of the `k` largest relu(x . w), the sum of the others, and their number.
  """
  a_BxT = jax.nn.relu(precision.einsum('btd,d->bt', x_BxTxD, w_D))
  # Below every activation, so that tokens outside of the prompt are never among the largest.
  top_Bxk = jax.lax.top_k(jnp.where(prompt_BxT, a_BxT, -1), k)[0]
  rest_B = jnp.sum(jnp.where(prompt_BxT, a_BxT, 0), -1) - jnp.sum(top_Bxk, -1)
  return top_Bxk.mean(-1), rest_B, jnp.sum(prompt_BxT, -1, dtype=jnp.int32) - k


Loss = Callable[[Array, PyTree, ReftExamples, Array], Array]
"""(w, params, examples, coefficient of the penalty) -> the training loss."""


def make_loss(
  forward: Callable[..., Float[Array, 'B T V']], site: str, k: int, skip: int = 0
) -> Loss:
  """Makes the training loss of a direction; arguments as for `ReFTr1` and its `fit`."""
  read = _make_read(forward, site, skip)
  run = harvest.plant(forward)

  def loss(w_D: Array, params: PyTree, examples: ReftExamples, penalty: Array) -> Array:
    tokens_BxT, mask_BxT = jnp.asarray(examples.tokens, jnp.int32), jnp.asarray(examples.mask)
    length_Bx1 = jnp.asarray(examples.prompt_length, jnp.int32)[:, None]
    answer_BxT = mask_BxT & (harvest.mask_to_positions(mask_BxT) >= length_Bx1)
    # Nothing before the site depends on w, so that its value is read without the edit and without a gradient.
    x_BxTxD, prompt_BxT = read(params, examples)
    strength_B, rest_B, n_B = read_concept(x_BxTxD, w_D.astype(x_BxTxD.dtype), prompt_BxT, k)

    def edit(x: Array) -> Array:
      wide = precision.wide(x)
      added = strength_B[:, None, None].astype(wide.dtype) * w_D.astype(wide.dtype)
      return jnp.where(prompt_BxT[..., None], (wide + added).astype(x.dtype), x)

    out = run({site: edit}, params, tokens_BxT, mask=mask_BxT)
    weight_B = (
      jnp.ones(len(tokens_BxT)) if examples.weight is None else jnp.asarray(examples.weight)
    )
    answer = _answer_loss(out, weight_B, tokens_BxT, answer_BxT)
    counts_B = weight_B > 0
    n = jnp.maximum(jnp.sum(jnp.where(counts_B, n_B, 0)), 1).astype(rest_B.dtype)
    others = jnp.sum(jnp.where(counts_B, rest_B, 0)) / n
    return answer + penalty.astype(answer.dtype) * others.astype(answer.dtype)

  return loss


def _make_read(
  forward: Callable[..., Float[Array, 'B T V']], site: str, skip: int
) -> Callable[[PyTree, ReftExamples], tuple[Float[Array, 'B T D'], Bool[Array, 'B T']]]:
  """Function of (params, examples) to the activations, and the tokens of prompts that a direction reads and edits."""
  reap = harvest.reap(forward, sites=site)

  def read(params: PyTree, examples: ReftExamples) -> tuple[Array, Array]:
    tokens_BxT, mask_BxT = jnp.asarray(examples.tokens, jnp.int32), jnp.asarray(examples.mask)
    length_Bx1 = jnp.asarray(examples.prompt_length, jnp.int32)[:, None]
    at_BxT = harvest.mask_to_positions(mask_BxT)
    x_BxTxD = precision.wide(_take(reap(params, tokens_BxT, mask=mask_BxT), site))
    return x_BxTxD, mask_BxT & (at_BxT >= skip) & (at_BxT < length_Bx1)

  return read


def _make_strength(
  forward: Callable[..., Float[Array, 'B T V']], site: str, k: int, skip: int
) -> Callable[[Array, PyTree, ReftExamples], Float[Array, '']]:
  """The compiled sum of the strengths of the edit over the prompts of a batch; 0 if a direction reads nothing."""
  read = _make_read(forward, site, skip)

  @jax.jit
  def strength(w_D: Array, params: PyTree, examples: ReftExamples) -> Array:
    x_BxTxD, prompt_BxT = read(params, examples)
    return jnp.sum(read_concept(x_BxTxD, w_D.astype(x_BxTxD.dtype), prompt_BxT, k)[0])

  return strength


def _answer_loss(
  out_BxTxV: Float[Array, 'B T V'],
  weight_B: Float[Array, ' B'],
  tokens_BxT: Int32[Array, 'B T'],
  answer_BxT: Bool[Array, 'B T'],
) -> Float[Array, '']:
  """Mean loss of the tokens of answers, in nats, each weighted as its example."""
  targets = jnp.where(answer_BxT[:, 1:], tokens_BxT[:, 1:], -1)
  each = logits.next_token_loss(logits.log_probs(out_BxTxV[:, :-1]), targets)
  weight_BxT = jnp.where(targets >= 0, weight_B[:, None].astype(each.dtype), 0)
  total = jnp.sum(weight_BxT)
  return jnp.sum(weight_BxT * each) / jnp.where(
    total > 0, total, 1
  )  # a batch may have weights of 0 alone


def _take(acts: harvest.Activations, site: str) -> Float[Array, 'B T D']:
  """The value of the only site that was read."""
  names = list(acts)
  if len(names) != 1:
    raise SteeringError(f'site={site!r} selects {names}; a direction is trained at one site')
  return acts[names[0]]


def _make_step(loss: Loss, optimiser: optax.GradientTransformation) -> Callable[..., tuple]:
  """The compiled step: the gradient without its part along w, the update, and w at length 1 again."""

  @jax.jit
  def step(w_D: Array, state: Any, params: PyTree, batch: ReftExamples, penalty: Array) -> tuple:
    value, g_D = jax.value_and_grad(loss)(w_D, params, batch, penalty)
    g_D = g_D - jnp.sum(g_D * w_D) * w_D
    with jax.numpy_dtype_promotion('standard'):  # the sums of optax mix dtypes
      update, state = optimiser.update(g_D, state, w_D)
    new = optax.apply_updates(w_D, update)
    return new / jnp.linalg.norm(new), state, value

  return step


def _batches(examples: ReftExamples, epochs: int, batch: int, key: Array) -> Iterator[ReftExamples]:
  """Batches in a new order in each epoch; the last is filled with examples of weight 0, so that all have one shape."""
  n = len(examples.tokens)
  size = min(batch, n)
  weight_B = np.ones(n, np.float32) if examples.weight is None else np.asarray(examples.weight)
  for epoch in range(epochs):
    order = np.asarray(jax.random.permutation(jax.random.fold_in(key, epoch), n))
    for low in range(0, n, size):
      rows = order[low : low + size]
      filled = np.concatenate([rows, order[: size - len(rows)]])
      real = np.arange(size) < len(rows)
      yield ReftExamples(
        np.asarray(examples.tokens)[filled],
        np.asarray(examples.mask)[filled],
        np.asarray(examples.prompt_length)[filled],
        np.where(real, weight_B[filled], 0).astype(weight_B.dtype),
      )


def _width(
  forward: Callable[..., Float[Array, 'B T V']], site: str, params: PyTree, examples: ReftExamples
) -> int:
  """D of the site that is edited; nothing runs."""
  tokens, mask = np.asarray(examples.tokens[:1], np.int32), np.asarray(examples.mask[:1])
  read = harvest.reap(forward, sites=site)
  shape = jax.eval_shape(lambda p: _take(read(p, tokens, mask=mask), site), params).shape
  if len(shape) != 3:
    raise SteeringError(f'{site!r} has shape {shape}; a direction is trained at a site [B, T, D]')
  return shape[-1]
