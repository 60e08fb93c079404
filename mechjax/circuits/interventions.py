"""What happens when features change: as the graph predicts, and as the model does.

A graph is computed with everything frozen. Whether it describes the model is an experiment: change features and compare
(Ameisen et al. 2025, section 5). Three models answer, each with less that is frozen than the one before:

    constrain(frozen, {5: 0.0}, targets)                 features, patterns and norms frozen: the edges themselves
    do = Intervention(model.apply, model.params, frozen)
    do.semi_free({5: 0.0}, targets)                        patterns frozen; norms and MLPs of the model
    do.iterative({5: 0.0}, targets, replaced)              patterns frozen; MLPs are recomputed features and errors
    agreement(predicted, measured)                         share of equal signs, rank correlation

A change is a factor on the activation: 0 removes a feature, 2 doubles it. The change of a feature's write is added
where it writes, and everything else of the run stays. Nothing compiles again for other features and factors.

Sharp edges: `semi_free` and `iterative` measure the model's logits, after a soft-cap if there is one, while targets are
logits before it. In `iterative` other features react, so a factor is applied to what they would be in the new run.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import scipy.stats
from jaxtyping import Array, Float, Float64, PyTree

from mechjax import harvest, watching
from mechjax.circuits.checks import check_concrete
from mechjax.circuits.frozen import Frozen, keep
from mechjax.circuits.norms import deviation
from mechjax.circuits.pushing import Source, feature_write, push, read
from mechjax.circuits.target_checks import check_targets
from mechjax.circuits.targets import Targets
from mechjax.errors import CircuitError

SAME = 1e-3
"""Largest deviation of a run without a change from the frozen run, relative to the largest logit."""

Factors = Mapping[int, float]
"""Factor of each feature that changes, by its index in `frozen.features`."""


def constrain(frozen: Frozen, factors: Factors, targets: Targets) -> Float64[np.ndarray, ' rows']:
  """Changes of targets if nothing reacts: the features' edges times their relative changes.

  Args:
    frozen: the run.
    factors: the features that change.
    targets: what is measured.

  Raises:
    CircuitError: no such feature, a factor that is not finite; targets of another run.
  """
  pushed = push(frozen, Source(jnp.zeros_like(frozen.embed), changes(frozen, factors)))
  return np.asarray(read(frozen, pushed, targets), np.float64)


def changes(frozen: Frozen, factors: Factors) -> Float[Array, 'L T D']:
  """Values that changes of features add where they write.

  Raises:
    CircuitError: no features, no such feature, a factor that is not finite.
  """
  if isinstance(factors, Mapping):
    check_concrete('a factor', [*factors.values()])
  if not isinstance(factors, Mapping) or not factors or not all(map(_is_finite, factors.values())):
    raise CircuitError(f'factors {factors!r:.200}', hint='{feature: finite factor}, at least one')
  total = jnp.zeros_like(frozen.errors)
  for index, factor in factors.items():
    total = total + feature_write(frozen, index) * (factor - 1)
  return total


def _is_finite(factor: Any) -> bool:
  is_real = np.ndim(factor) == 0 and np.asarray(factor).dtype.kind in 'iufV'  # bfloat16 is 'V'
  return is_real and bool(np.isfinite(float(factor)))


@dataclasses.dataclass(frozen=True, eq=False)
class Intervention:
  """A model in which features of a frozen run change.

  Attributes:
    forward: the model of the run.
    params: its parameters.
    frozen: the run; a whole prompt without padding.
  """

  forward: Callable
  params: PyTree
  frozen: Frozen
  _clean: dict[str, tuple[watching.Watch, Any, Mapping[str, Array]]] = dataclasses.field(
    default_factory=dict, init=False, repr=False
  )

  @property
  def _site(self) -> str:
    return 'mlp_raw' if self.frozen.writes_raw else 'mlp_out'

  def semi_free(self, factors: Factors, targets: Targets) -> Float64[np.ndarray, ' rows']:
    """Changes of targets if patterns are frozen, and norms and MLPs of the model react.

    Args:
      factors: the features that change.
      targets: logits or differences of logits; their values are read from the new run.

    Raises:
      CircuitError: as `changes`; a model that is not that of the run, targets of another run or without a logit.
    """
    run = keep(_semi_free, self.forward, self._site, self.frozen.layout.n_layers)
    return self._difference(run, changes(self.frozen, factors), targets)

  def _difference(self, run: Callable, delta: Array, targets: Targets) -> np.ndarray:
    frozen = self.frozen
    tokens, probs = frozen.tokens[None], frozen.probs[:, None]
    nothing = jnp.zeros_like(delta)[:, None]
    clean = self._run_clean('semi-free', None, lambda: run(self.params, tokens, probs, nothing))
    after = run(self.params, tokens, probs, delta[:, None])
    return measure(frozen, targets, after) - measure(frozen, targets, clean)

  def _run_clean(
    self, kind: str, replaced: Any, run: Callable[[], Mapping[str, Array]]
  ) -> Mapping[str, Array]:
    """The run without a change, made again if the model, its parameters or the replacement have changed.

    Raises:
      CircuitError: its logits are not those of the frozen run.
    """
    known = self._clean.get(kind)
    if known is None or known[1] is not replaced or known[0].has_changed():
      watch, acts = watching.Watch(self.forward, self.params, replaced), run()
      error = float(deviation(acts['logits'][0], self.frozen.logits))
      if not error <= SAME:
        raise CircuitError(
          f'the model without a change differs from the frozen run by {error:.2g} of its largest logit',
          cause='another model, other parameters or another replacement than those of the run',
          hint='Frozen.of(...) again, and a new Intervention',
        )
      known = self._clean[kind] = watch, replaced, acts
    return known[2]

  def iterative(
    self, factors: Factors, targets: Targets, replaced: object
  ) -> Float64[np.ndarray, ' rows']:
    """Changes of targets if the features of all layers are computed again, and errors stay.

    Args:
      factors: the features that change.
      targets: as in `semi_free`.
      replaced: the replacement with which the run was frozen.

    Raises:
      CircuitError: as `semi_free`; a replacement whose features cannot be computed again.
    """
    reconstruct = getattr(replaced, 'reconstruct', None)
    if reconstruct is None:
      raise CircuitError(
        f'{type(replaced).__name__} cannot be computed again',
        hint='a Replacement or a CrossLayerReplacement',
      )
    changes(self.frozen, factors)
    clean = self._run_clean('iterative', replaced, lambda: self._run_iterative(reconstruct, {}))
    after = self._run_iterative(reconstruct, factors)
    return measure(self.frozen, targets, after) - measure(self.frozen, targets, clean)

  def _run_iterative(self, reconstruct: Callable, factors: Factors) -> Mapping[str, Array]:
    """Logits of a run in which the MLPs are recomputed layer by layer, with some features multiplied."""
    frozen, L, chosen = self.frozen, self.frozen.layout.n_layers, self._latents(factors)
    run = keep(_iterative, self.forward, self._site)
    tokens, probs = frozen.tokens[None], frozen.probs[:, None]
    values = jnp.zeros_like(frozen.errors)
    for layer in range(L):
      acts = run(self.params, tokens, probs, values[:, None], jnp.arange(L) < layer)
      out = reconstruct(layer, acts['mlp_norm'][:, 0], chosen) + frozen.errors[layer]
      values = values.at[layer].set(out)
    return run(self.params, tokens, probs, values[:, None], jnp.ones(L, bool))

  def _latents(self, factors: Factors) -> list[tuple[int, int, int, float]]:
    """(layer, position, latent, factor) of the features that change."""
    f = self.frozen.features
    return [(int(f.layer[i]), int(f.position[i]), int(f.latent[i]), x) for i, x in factors.items()]


def measure(
  frozen: Frozen, targets: Targets, acts: Mapping[str, Array]
) -> Float64[np.ndarray, ' rows']:
  """Values of logits, and of their differences, in another run.

  Raises:
    CircuitError: another target; targets of another run.
  """
  check_targets(frozen, targets)
  logits, n = np.asarray(acts['logits'], np.float64)[0], len(targets)
  tokens, pairs = targets.tokens or (-1,) * n, targets.pairs or (None,) * n
  out = np.zeros(n)
  for i, (token, pair, t) in enumerate(zip(tokens, pairs, targets.position, strict=True)):
    if pair is not None:
      out[i] = logits[t, pair[0]] - logits[t, pair[1]]
    elif token >= 0:
      out[i] = logits[t, token] - logits[t].mean()
    else:
      name = targets.names[i] if targets.names else f'target {i}'
      raise CircuitError(
        f'{name!r} is not measured in another run',
        hint='logits, or a difference of two: logits(frozen), difference(frozen, 42, 17)',
      )
  return out


@functools.lru_cache(maxsize=2)  # an entry keeps its model
def _semi_free(forward: Callable, site: str, n_layers: int) -> Callable:
  def run(params: PyTree, tokens: Array, probs: Array, delta: Array) -> dict[str, Array]:
    add = {f'{site}.{i}': (lambda x, d=delta[i]: x + d) for i in range(n_layers)}
    plants = {'attn_probs': probs, **add}
    acts = harvest.harvest(forward, sites='logits')(plants, params, tokens)[1]
    return {'logits': acts['logits']}

  return watching.jit(run, forward)


@functools.lru_cache(maxsize=2)  # an entry keeps its model
def _iterative(forward: Callable, site: str) -> Callable:
  def run(
    params: PyTree, tokens: Array, probs: Array, values: Array, known: Array
  ) -> dict[str, Array]:
    mask = jnp.broadcast_to(known[:, None, None, None], values.shape)
    plants = {'attn_probs': probs, site: harvest.Masked(values, mask)}
    acts = harvest.harvest(forward, sites='mlp_norm, logits')(plants, params, tokens)[1]
    return {'mlp_norm': acts.stack('mlp_norm'), 'logits': acts['logits']}

  return watching.jit(run, forward)


@dataclasses.dataclass(frozen=True)
class Agreement:
  """Quality of predicted changes as a description of measured ones.

  Attributes:
    signs: share of changes with the predicted sign.
    spearman: rank correlation; NaN with fewer than two different values.
  """

  signs: float
  spearman: float


def agreement(predicted: Float[np.ndarray, ' _'], measured: Float[np.ndarray, ' _']) -> Agreement:
  """Compares predicted with measured changes.

  Raises:
    CircuitError: arrays of different lengths, empty, or not of finite numbers.
  """
  a, b = np.asarray(predicted), np.asarray(measured)
  numeric = a.dtype.kind in 'iufV' and b.dtype.kind in 'iufV'  # bfloat16 is 'V'
  a, b = (x.astype(np.float64) if numeric else x for x in (a, b))
  if (
    not numeric or a.shape != b.shape or a.ndim != 1 or not a.size or not np.isfinite([a, b]).all()
  ):
    raise CircuitError(
      f'changes of shapes {a.shape} and {b.shape} and types {a.dtype} and {b.dtype}',
      hint='finite numbers, of one length',
    )
  flat = len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0
  rank = float('nan') if flat else float(scipy.stats.spearmanr(a, b).statistic)
  return Agreement(float(np.mean(np.sign(a) == np.sign(b))), rank)
