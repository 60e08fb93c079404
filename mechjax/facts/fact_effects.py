"""Effects of single neurons on facts: the change of log p(answer) if a neuron has its mean at the name.

If a neuron looks up one fact (Michael Jordan: basketball), its removal at the last token of the name changes that
answer and no other one; if it recognises the name, it changes all of them. So a neuron is set to its mean over many
names, at the name's last token alone, and the log-probability of the answer is measured.

    ablation = NeuronMeanAblation(model.apply)
    means = ablation.measure_means(params, prompts_of_many_names)         [L, F], of one template
    first = ablation.attribute(params, facts, means)              all neurons: 1 forward and 1 backward pass
    exact = ablation.measure(params, facts, means, [(3, 17), (5, 4)])     a forward pass for each neuron
    first.values[:, layers, neurons], exact.values                compare before relying on the first

The first-order effect is (mean - value) d log p / d value (attribution patching, `mechjax.patching.Attribution`).
`mechjax.patching.ActivationPatching(mode='mean')` measures the same exact effects where all prompts have one length and
are themselves the data set of the mean, and keeps a file. Here the name may be at another column of each prompt, the
mean is given, and neurons are data: other neurons compile nothing.

Sharp edge: a mean is that of one context. At another template, or with an example before it, measure it again.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Float64, Int, PyTree

from mechjax import harvest, watching
from mechjax.errors import FactsError
from mechjax.facts.facts import Facts
from mechjax.facts.finite import as_indices, as_table, check_count
from mechjax.facts.needed_sites import check_layers
from mechjax.logits import log_probs
from mechjax.programs.callables import check_function

SITE = 'mlp_post'
"""The site of the neurons, [B, T, F] in each layer."""


@dataclasses.dataclass(frozen=True, eq=False)
class FactEffects:
  """Changes of log p(answer), in nats, when a neuron has its mean at the name.

  Attributes:
    values: [B, L, F] for all neurons; [B, neurons] for chosen ones.
    log_probs: log p(answer) of the unchanged model, [B].
  """

  values: Float64[np.ndarray, 'B ...']
  log_probs: Float64[np.ndarray, ' B']


@dataclasses.dataclass(frozen=True, eq=False)
class NeuronMeanAblation:
  """Mean ablation of neurons at the last token of a name; compiles once for facts of one shape.

  Attributes:
    forward: (params, tokens [B, T]) -> logits [B, T, V]; pure, with tagged sites, such as `model.apply`.
    batch: number of prompts that run at once.
    max_passes: number of rows that run at once in an exact measurement.

  Raises:
    FactsError: a model in place of a function, or numbers below 1.
  """

  forward: Callable
  batch: int = 16
  max_passes: int = 64

  def __post_init__(self) -> None:
    check_function(self.forward, FactsError, 'NeuronMeanAblation(model.apply)')
    check_count('batch', self.batch, 1)
    check_count('max_passes', self.max_passes, 1)

  def measure_means(self, params: PyTree, facts: Facts) -> Float64[np.ndarray, 'L F']:
    """Mean of every neuron at the last token of the name, over prompts.

    Args:
      params: first argument of `forward`.
      facts: the prompts; their answers are not used.

    Raises:
      FactsError: a model without neurons, or NaN.
    """
    self._describe(params, facts)
    total = np.zeros(())
    for parts, rows in facts.blocks(self.batch):
      values = self._read(params, *parts[:2])[: rows.stop - rows.start]
      total = total + as_table('the neurons', values, 'B L F').sum(0)
    return total / len(facts)

  def attribute(self, params: PyTree, facts: Facts, means: Float[ArrayLike, 'L F']) -> FactEffects:
    """First-order effects of all neurons: (mean - value) d log p(answer) / d value, at the name.

    Args:
      params: first argument of `forward`.
      facts: the prompts and their answers.
      means: mean of every neuron at the name.

    Returns:
      Effects [B, L, F].

    Raises:
      FactsError: means of another model, a model without neurons, an answer outside the vocabulary, NaN.
    """
    L, F, dtype = self._describe(params, facts)
    table = _check_means(means, (L, F), dtype)
    values, base = np.zeros((len(facts), L, F)), np.zeros(len(facts))
    for parts, rows in facts.blocks(self.batch):
      log_p, effects = self._differentiate(params, *parts, table)
      base[rows] = _check_log_probs(log_p)[: rows.stop - rows.start]
      values[rows] = as_table('the effects', effects, 'B L F')[: rows.stop - rows.start]
    return FactEffects(values, base)

  def measure(
    self,
    params: PyTree,
    facts: Facts,
    means: Float[ArrayLike, 'L F'],
    neurons: Sequence[tuple[int, int]] | Int[np.ndarray, 'neurons 2'],
  ) -> FactEffects:
    """Exact effects of chosen neurons, one at a time, by a forward pass for each neuron and prompt.

    Args:
      params, facts, means: as in `attribute`.
      neurons: layer and index of each.

    Returns:
      Effects [B, neurons].

    Raises:
      FactsError: as `attribute`; neurons that do not exist.
    """
    L, F, dtype = self._describe(params, facts)
    table, chosen = _check_means(means, (L, F), dtype), as_indices('neurons', neurons, 2)
    if chosen.shape[1] != 2 or (chosen >= (L, F)).any():
      raise FactsError(f'neurons= must be pairs below ({L}, {F}): layer and index of each neuron')
    values, base = np.zeros((len(facts), len(chosen))), np.zeros(len(facts))
    for parts, rows in facts.blocks(self.batch):
      count = rows.stop - rows.start
      base[rows] = _check_log_probs(self._run(params, *parts))[:count]
      for some, there in _fill(chosen, max(1, self.max_passes // len(parts[0]))):
        log_p = _check_log_probs(self._run_ablated(params, *parts, table, some))
        values[rows, there] = log_p[: there.stop - there.start, :count].T - base[rows][:, None]
    return FactEffects(values, base)

  def _describe(self, params: PyTree, facts: Facts) -> tuple[int, int, np.dtype]:
    """Number of layers and of neurons, and their dtype."""
    return check_layers(self.forward, params, facts.tokens[:1], SITE)

  @functools.cached_property
  def _read(self) -> watching.Jitted:
    def run(params, tokens, name):
      values = harvest.reap(self.forward, sites=SITE)(params, tokens).stack(SITE)
      return values[:, jnp.arange(len(tokens)), name].swapaxes(0, 1)

    return watching.jit(run, self.forward)

  @functools.cached_property
  def _differentiate(self) -> watching.Jitted:
    def run(params, tokens, name, last, answer, means_LxF):
      def loss(params, tokens):
        each = answer_log_probs(self.forward(params, tokens), last, answer)
        return each.sum(), each

      at_sites = harvest.value_and_grad_at(loss, sites=SITE, has_aux=True)
      (_, base), values, gradients = at_sites(params, tokens)
      at_name = lambda x: x.stack(SITE)[:, jnp.arange(len(tokens)), name]  # noqa: E731
      x_LxBxF = at_name(values)
      moved_LxBxF = means_LxF[:, None].astype(x_LxBxF.dtype) - x_LxBxF
      return base, (moved_LxBxF * at_name(gradients)).swapaxes(0, 1)

    return watching.jit(run, self.forward)

  @functools.cached_property
  def _run(self) -> watching.Jitted:
    def run(params, tokens, name, last, answer):
      del name
      return answer_log_probs(harvest.plant(self.forward)({}, params, tokens), last, answer)

    return watching.jit(run, self.forward)

  @functools.cached_property
  def _run_ablated(self) -> watching.Jitted:
    def run(params, tokens, name, last, answer, means_LxF, neurons):
      (B, T), F = tokens.shape, means_LxF.shape[1]
      at_name = jnp.arange(T) == name[:, None]
      (dtype,) = {
        x.dtype for x in harvest.sites_of(self.forward, params, tokens) if x.site.name == SITE
      }

      def one(neuron):
        here = at_name[:, :, None] & (jnp.arange(F) == neuron[1])
        value = jnp.broadcast_to(means_LxF[neuron[0]].astype(dtype), (B, T, F))
        plants = {SITE: harvest.At(neuron[0], harvest.Masked(value, here))}
        return answer_log_probs(harvest.plant(self.forward)(plants, params, tokens), last, answer)

      return jax.vmap(one)(neurons)

    return watching.jit(run, self.forward)


def answer_log_probs(
  logits: Float[Array, 'B T V'], last: Int[ArrayLike, ' B'], answer: Int[ArrayLike, ' B']
) -> Float[Array, ' B']:
  """Log-probability of the token `answer` after column `last` of each row; NaN for an id outside the vocabulary."""
  found = log_probs(logits[jnp.arange(len(logits)), last])
  return jnp.take_along_axis(found, jnp.asarray(answer)[:, None], 1, mode='fill')[:, 0]


def _fill(rows: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, slice]]:
  """Blocks of constant size, the last filled up with its last row."""
  size = min(size, len(rows))
  for start in range(0, len(rows), size):
    index = np.minimum(np.arange(start, start + size), len(rows) - 1)
    yield rows[index], slice(start, min(start + size, len(rows)))


def _check_means(means: ArrayLike, shape: tuple[int, int], dtype: np.dtype) -> np.ndarray:
  """Means in the dtype of the neurons, or in float32 if that is narrower."""
  found = as_table('means', means, 'layers neurons')
  if found.shape != shape:
    raise FactsError(
      f'means have shape {list(found.shape)}, and the model has {shape[0]} layers of {shape[1]} neurons'
    )
  return found.astype(np.float64 if np.dtype(dtype).itemsize > 4 else np.float32)


def _check_log_probs(values: Array) -> np.ndarray:
  """Log-probabilities in float64."""
  found = np.asarray(values, np.float64)
  if np.isnan(found).any():
    raise FactsError(
      'log p(answer) is NaN',
      cause='an answer or a token id beyond the vocabulary, an overflow, or damaged weights',
    )
  return found
