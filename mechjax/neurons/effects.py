"""Effects of ablating each neuron of the last layer: how much of them passes through the final norm.

A neuron that sets confidence changes the loss although hardly any token reads what it writes: it makes the stream
longer, the final norm divides by its length, and the distribution becomes flatter. Its total effect exceeds its direct
effect, which it has with the scale of the norm frozen (Stolfo et al. 2024, arXiv 2406.16254, section 3.2):

    share = 1 - direct / total              a ratio of means over tokens, not a mean of ratios

    ablate = NeuronAblation(readout, writes)
    effects = ablate(x, a, next_tokens, unigram=p, units=context_of_each_token)
    effects.total.value, effects.share.se

All neurons of the layer, exactly, from one pass over the text: the logits of a pair of a token and a neuron are a sum
of vectors that either has on its own (`views`), so that a pair costs O(V) in place of two products with the
unembedding. Tokens and neurons are taken in blocks, whose memory is bounded by `memory`.

Sharp edges: only in the last layer is the direct path the whole effect, so x and a must be of the last layer;
`activations` reads them and checks it. Effects below 1e-6 nats are rounding in float32. The mean of the activations is
over the given tokens, unless `replacement` states other values.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, Int, Int64

from mechjax.errors import NeuronError
from mechjax.neurons import pairs
from mechjax.neurons.checks import check_count, check_floats, check_ids
from mechjax.neurons.frequency import Frequency
from mechjax.neurons.readout import Readout
from mechjax.neurons.unit_totals import Estimates, UnitTotals
from mechjax.neurons.vocabulary import ROWS
from mechjax.neurons.writes import NeuronWrites

_NEURONS = 64
"""Neurons of a block."""
_TOKENS = 256
"""Maximum number of tokens of a block: with more, the products of neurons with the unembedding become no cheaper."""


@dataclasses.dataclass(frozen=True, eq=False)
class NeuronEffects:
  """Effects of the ablation of each neuron, as means over tokens.

  Attributes:
    neurons: the neurons, int64 [F].
    n_tokens: number of tokens.
    n_units: number of units over which the standard errors are.
    total: mean of the absolute change of the loss, in nats.
    direct: the same with the scale of the final norm frozen, and that of a norm after the MLP.
    mlp_frozen: the same with only the norm after the MLP frozen; None without such a norm.
    mediated: total - direct, in nats.
    share: 1 - direct / total.
    mlp_share: 1 - mlp_frozen / total, the part that passes through the norm after the MLP; None without such a norm.
    loss: mean change of the loss, in nats.
    entropy: mean of the absolute change of the entropy, in nats.
    entropy_change: mean change of the entropy, in nats; negative for a neuron that hedges.
    changed: share of the tokens after which another token becomes the likeliest.
    frequency_frozen: as `total` with the component of the logits along the direction of frequency put back.
    frequency_mediated: total - frequency_frozen, in nats.
    frequency_share: 1 - frequency_frozen / total.
    kl: mean of the absolute change of KL(p || P) from the distribution of tokens to the prediction, in nats.
    kl_change: mean change of it, in nats. The last five are None if no distribution was given.
  """

  neurons: Int64[np.ndarray, ' F']
  n_tokens: int
  n_units: int
  total: Estimates
  direct: Estimates
  mlp_frozen: Estimates | None
  mediated: Estimates
  share: Estimates
  mlp_share: Estimates | None
  loss: Estimates
  entropy: Estimates
  entropy_change: Estimates
  changed: Estimates
  frequency_frozen: Estimates | None
  frequency_mediated: Estimates | None
  frequency_share: Estimates | None
  kl: Estimates | None
  kl_change: Estimates | None

  @classmethod
  def join(cls, parts: Sequence[NeuronEffects]) -> NeuronEffects:
    """Joins effects of different neurons on the same tokens.

    Raises:
      NeuronError: there are no parts, or they are of other tokens or quantities.
    """
    kinds = {(p.n_tokens, p.n_units, *(v is None for v in vars(p).values())) for p in parts}
    if len(kinds) != 1:
      raise NeuronError(f'{len(parts)} parts of {len(kinds)} kinds cannot be joined')
    joined: dict[str, Any] = {}
    for name, first in vars(parts[0]).items():
      every = [getattr(p, name) for p in parts]
      if isinstance(first, Estimates):
        value, se = (np.concatenate([getattr(e, k) for e in every]) for k in ('value', 'se'))
        first = Estimates(value, se)
      joined[name] = first
    return cls(**joined | {'neurons': np.concatenate([p.neurons for p in parts])})


@dataclasses.dataclass(frozen=True, eq=False)
class NeuronAblation:
  """Ablation of single neurons of the last layer.

  Attributes:
    readout: the readout of the model.
    writes: output of the neurons of the last layer; or W_out [F, D].
    memory: bound on the memory of a block of tokens and neurons, in bytes.

  Raises:
    NeuronError: widths that do not fit, a bound that is not positive.
  """

  readout: Readout
  writes: NeuronWrites
  memory: int = 2**28

  def __post_init__(self) -> None:
    if not isinstance(self.writes, NeuronWrites):
      object.__setattr__(self, 'writes', NeuronWrites.of(self.writes))
    check_floats('W_out', self.writes.W_out, 'F D', {'D': self.readout.width})
    check_count('memory', self.memory)

  def __call__(
    self,
    x: Float[Array | np.ndarray, 'B D'],
    a: Float[Array | np.ndarray, 'B F'],
    next_tokens: Int[Array | np.ndarray, ' B'],
    *,
    unigram: Float[Array | np.ndarray, ' V'] | None = None,
    replacement: Float[Array | np.ndarray, ' F'] | Float[Array | np.ndarray, 'B F'] | None = None,
    neurons: Int[Array | np.ndarray, ' n'] | None = None,
    units: Int[Array | np.ndarray, ' B'] | None = None,
    progress: Callable[[int], object] | None = None,
  ) -> NeuronEffects:
    """Measures the effects of neurons, one at a time.

    Args:
      x: final residual streams, `resid_post` of the last layer.
      a: activations of all neurons of the last layer, `mlp_post`.
      next_tokens: ids of the tokens that follow.
      unigram: distribution of the tokens, for the effects through frequency; None to leave these out.
      replacement: activations of the ablated neurons, the same for all tokens or of each; None for the means of `a`.
      neurons: neurons that are ablated; None for all.
      units: unit of each token, such as its context, for the standard errors; None for tokens as units.
      progress: called with the number of pairs of a token and a neuron that have been finished since the last call.

    Raises:
      NeuronError: widths and lengths that do not fit, NaN, no tokens, ids or neurons that do not exist, a distribution
        that is not one, frequency effects with capped logits, less memory than one token and one neuron need.
    """
    inputs = self._check_inputs(x, a, next_tokens, replacement, neurons)
    n = len(inputs.x)
    units_B = np.arange(n) if units is None else _check_units(units, n)
    order = np.argsort(units_B, kind='stable')
    inputs, units_B = inputs.take_tokens(order), units_B[order]
    totals: dict[int, UnitTotals] = {}
    for tokens, chosen, values in self._iterate(inputs, self._prepare_frequency(unigram)):
      own = totals.setdefault(chosen.start, UnitTotals([*values]))
      own.add(values, units_B[tokens])
      if progress is not None:
        progress(next(iter(values.values())).size)
    parts = []
    for start, own in sorted(totals.items()):
      own.close()
      found = inputs.neurons[start : start + _NEURONS]
      parts.append(_summarise(found, n, own))
    return NeuronEffects.join(parts)

  def measure_tokens(
    self,
    x: Float[Array | np.ndarray, 'B D'],
    a: Float[Array | np.ndarray, 'B F'],
    next_tokens: Int[Array | np.ndarray, ' B'],
    *,
    unigram: Float[Array | np.ndarray, ' V'] | None = None,
    replacement: Float[Array | np.ndarray, ' F'] | Float[Array | np.ndarray, 'B F'] | None = None,
    neurons: Int[Array | np.ndarray, ' n'] | None = None,
  ) -> dict[str, Float64[np.ndarray, 'B F']]:
    """Measures the same without means: the changes at each token, [B, neurons], keyed by their names.

    Args, errors: as for a call. Names are those of `NeuronEffects` without the shares; 'total' and the frozen ones are
      absolute changes of the loss, 'loss' is the change itself.
    """
    inputs = self._check_inputs(x, a, next_tokens, replacement, neurons)
    out: dict[str, np.ndarray] = {}
    for tokens, chosen, values in self._iterate(inputs, self._prepare_frequency(unigram)):
      for name, value in values.items():
        shape = len(inputs.x), len(inputs.neurons)
        out.setdefault(name, np.empty(shape))[tokens, chosen] = value
    return out

  def _prepare_frequency(self, unigram: Any) -> Frequency | None:
    return None if unigram is None else Frequency.of(self.readout, unigram)

  def _check_inputs(
    self, x: Any, a: Any, next_tokens: Any, replacement: Any, neurons: Any
  ) -> _Inputs:
    F, D = self.writes.W_out.shape
    if not np.size(x):
      raise NeuronError('there are no tokens', hint='a mean over no tokens has no value')
    check_floats('x', x, 'B D', {'D': D})
    n = len(x)
    check_floats('a', a, 'B F', {'B': n, 'F': F})
    ids_B = check_ids('next_tokens', next_tokens, self.readout.n_vocab, (n,))
    chosen = np.arange(F) if neurons is None else check_ids('neurons', neurons, F)
    if chosen.ndim != 1 or len(np.unique(chosen)) < len(chosen):
      raise NeuronError('neurons should be a list in which each one occurs once')
    a_BxF = np.asarray(a)
    if replacement is None:
      to = a_BxF.mean(0, dtype=np.float64)
    else:
      axes = 'F' if np.ndim(replacement) == 1 else 'B F'
      to = np.asarray(check_floats('replacement', replacement, axes, {'B': n, 'F': F}))
    # In float64, because the difference of close numbers is small.
    d = np.asarray(to, np.float64)[..., chosen] - a_BxF[:, chosen].astype(np.float64)
    return _Inputs(np.asarray(x), a_BxF, ids_B, d, chosen)

  def _iterate(
    self, inputs: _Inputs, frequency: Frequency | None
  ) -> Iterator[tuple[slice, slice, dict[str, np.ndarray]]]:
    """Iterates over blocks: slices of tokens and of neurons, and the quantities of their pairs in float64."""
    n, m, dtype = len(inputs.x), len(inputs.neurons), self.readout.rows.dtype
    f = min(_NEURONS, m)
    b = self._count_tokens(n, f)
    for start in range(0, n, b):
      rows = np.minimum(np.arange(start, start + b), n - 1)
      given = (jnp.asarray(part[rows]) for part in (inputs.x, inputs.a, inputs.next))
      tokens, plain = pairs.prepare(self.readout, self.writes, frequency, *given)
      if not np.isfinite(tokens.scale).all():
        raise NeuronError('the squares of some streams overflow, so that their scale is infinite')
      for left in range(0, m, f):
        columns = np.minimum(np.arange(left, left + f), m - 1)
        writes = self.writes.take(inputs.neurons[columns])
        d = jnp.asarray(inputs.d[np.ix_(rows, columns)], dtype)
        found = _measure_finite(self.readout, writes, frequency, tokens, plain, d)
        stop, right = min(start + b, n), min(left + f, m)
        values = {k: v[: stop - start, : right - left] for k, v in found.items()}
        yield slice(start, stop), slice(left, right), values
      del tokens, plain  # before those of the next block are made

  def _count_tokens(self, n: int, n_neurons: int) -> int:
    """Number of tokens of a block.

    Raises:
      NeuronError: the bound leaves room for none.
    """
    size, V = self.readout.rows.dtype.itemsize, self.readout.n_vocab
    vectors = 1 if self.writes.gain is None else 2
    # Factors and results of each pair, tiles of a few rows, and what has the width of the model.
    other, fixed = self.readout.width * 3 + n_neurons * (32 + 2 * ROWS), V * 2
    # The logits of the tokens exist twice while they are made, and once together with those of the neurons.
    made, used = V * vectors * 2 + other, V * vectors + other
    neurons = (V + self.readout.width) * n_neurons
    room = self.memory // size - fixed
    found = min(room // made, (room - neurons) // used)
    if found < 1:
      raise NeuronError(
        f'memory={self.memory} bytes are not enough for one token and {n_neurons} neurons',
        hint=f'at least {size * (fixed + max(made, used + neurons)):,} bytes; some hundred tokens at once are faster',
      )  # fmt: skip
    return min(n, _TOKENS, found)


class _Inputs(NamedTuple):
  """Streams, activations, next tokens, and changes of the activations of some neurons."""

  x: np.ndarray
  a: np.ndarray
  next: np.ndarray
  d: np.ndarray
  neurons: np.ndarray

  def take_tokens(self, order: np.ndarray) -> _Inputs:
    if (np.diff(order) == 1).all():
      return self
    return self._replace(x=self.x[order], a=self.a[order], next=self.next[order], d=self.d[order])


def _measure_finite(*args: Any) -> dict[str, np.ndarray]:
  """Changes of the pairs of a block, by the quick way where it is possible."""
  for exact in (False, True):
    found = {k: np.asarray(v, np.float64) for k, v in pairs.measure(*args, exact=exact).items()}
    if all(np.isfinite(v).all() for v in found.values()):
      return found
  raise NeuronError(
    'the effects of some neurons are not finite', cause='streams or activations that overflow when they are squared'
  )  # fmt: skip


def _check_units(units: Any, n: int) -> Int64[np.ndarray, ' B']:
  array = np.asarray(units)
  if array.shape != (n,) or not np.issubdtype(array.dtype, np.integer):
    raise NeuronError(
      f'units of shape {list(array.shape)} and dtype {array.dtype} for {n} tokens',
      hint='one integer for each token: the number of its context',
    )
  return array.astype(np.int64)


_MEANS = (
  'total', 'direct', 'mlp_frozen', 'mediated', 'loss', 'entropy', 'entropy_change', 'changed',
  'frequency_frozen', 'frequency_mediated', 'kl', 'kl_change',
)  # fmt: skip
_SHARES = {'share': 'direct', 'mlp_share': 'mlp_frozen', 'frequency_share': 'frequency_frozen'}


def _summarise(neurons: np.ndarray, n_tokens: int, totals: UnitTotals) -> NeuronEffects:
  found: dict[str, Any] = dict.fromkeys((*_MEANS, *_SHARES))
  found |= {name: totals.divide(name) for name in _MEANS if name in totals.names}
  for name, frozen in _SHARES.items():
    if frozen in totals.names:
      ratio = totals.divide(frozen, 'total')
      found[name] = Estimates(1 - ratio.value, ratio.se)
  return NeuronEffects(neurons=neurons, n_tokens=n_tokens, n_units=totals.n_units, **found)
