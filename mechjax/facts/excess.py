"""Non-linear excess: whether a value combines two tokens (AND), or adds what each of them gives alone.

A first name A and a surname B together mean an athlete; neither does alone. A value x that recognises the pair must be
larger than the sum of the effects of both (Nanda et al. 2023, Fact Finding, post 3). With means over the Cartesian
product of all first names and all surnames,

    NLE(x) = E[x|A, B] - E[x|not A, B] - E[x|A, not B] + E[x|not A, not B]

is 1 for x = A and B, -1 for A or B, -2 for A xor B (+2 for its negation), and 0 for every sum f(first) + g(last). It is
linear in x. In a table of A first names and B surnames it equals the twice-centred entry times A B / ((A-1)(B-1)).

    nonlinear_excess(table)                                  [A, B, ...] -> the same shape, every pair at once
    computed = excess_computed(nle['post'], nle['gate'], nle['up'])
    share = share_of_and(computed, weights, nle['probe'])    if neurons that write the fact also compute the AND: 1

A neuron COMPUTES an excess if its output has more of it than its input: the positive part of NLE(post) - max(NLE(pre),
0); in a gated MLP of NLE(act(gate) up) - max(NLE(gate), NLE(up), 0). Times the weight from the neuron to a probe,
summed over neurons, this is the part of the probe's excess that comes from ANDs of the neurons that write to it; the
rest was computed below them.

Sharp edges:
  - A product of two linear terms makes ANDs without any activation: gate = A and up = B have no excess, and their
    product is A and B. In a gated MLP an excess is therefore no evidence of a threshold.
  - Input and output of a neuron have different scales, and the gated case has three; the difference of their excesses
    is a definition and not a unit of anything.
  - A neuron with a negative weight to the probe counts against the share, and one that makes an OR counts nothing.
  - Few names have large excesses by chance: give the share with permuted weights too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Float64

from mechjax.errors import FactsError
from mechjax.facts.bootstrap import error_of_median
from mechjax.facts.finite import as_table, check_count
from mechjax.host_arrays import as_host, check_seed

BLOCK = 2**22
"""Numbers of a table that are converted to float64 at once."""


def nonlinear_excess(table: Float[ArrayLike, 'first last ...']) -> Float64[np.ndarray, ' ...']:
  """Non-linear excess of every pair of a complete table.

  Args:
    table: a value for each first name and each surname, [A, B, ...]; trailing axes are apart from each other.

  Returns:
    The excesses, in the shape of `table`.

  Raises:
    FactsError: fewer than two first names or surnames; NaN.
  """
  given = as_host('the table', table, FactsError)
  shape = given.shape
  if len(shape) < 2 or min(shape[:2]) < 2:
    raise FactsError(
      f'a table of shape {list(shape)} has no non-linear excess',
      hint='pass [first names, surnames, ...] with at least two of each',
    )
  flat = given.reshape(*shape[:2], -1)
  out = np.empty(flat.shape)
  step = max(1, BLOCK // (shape[0] * shape[1]))
  for start in range(0, flat.shape[2], step):
    some = slice(start, start + step)
    out[..., some] = _twice_centre(as_table('the table', flat[..., some], 'first last values'))
  return out.reshape(shape)


def _twice_centre(x: np.ndarray) -> np.ndarray:
  """The table without its row means and column means, scaled so that an AND has 1."""
  A, B = x.shape[:2]
  centred = x - x.mean(0)
  centred -= centred.mean(1, keepdims=True)
  return centred * (A * B / ((A - 1) * (B - 1)))


def excess_from_sums(
  x: Float64[np.ndarray, 'pairs ...'],
  sum_of_first: Float64[np.ndarray, 'pairs ...'],
  sum_of_last: Float64[np.ndarray, 'pairs ...'],
  total: Float64[np.ndarray, ' ...'],
  shape: tuple[int, int],
) -> Float64[np.ndarray, 'pairs ...']:
  """Non-linear excess of some pairs, from sums over the product.

  Args:
    x: values of the pairs.
    sum_of_first: for each pair, the sum over all surnames with its first name.
    sum_of_last: for each pair, the sum over all first names with its surname.
    total: sum over the product.
    shape: numbers of first names and of surnames.
  """
  A, B = shape
  with_last = (sum_of_last - x) / (A - 1)
  with_first = (sum_of_first - x) / (B - 1)
  with_neither = (total - sum_of_first - sum_of_last + x) / ((A - 1) * (B - 1))
  return x - with_last - with_first + with_neither


def excess_computed(
  post: Float[ArrayLike, '*shape'], *inputs: Float[ArrayLike, '*shape']
) -> Float64[np.ndarray, '*shape']:
  """Excess that a neuron computes: the positive part of NLE(post) - max(NLE of its inputs, 0).

  Args:
    post: excess of the output of each neuron.
    *inputs: excess of its pre-activation; of gate and up in a gated MLP.

  Raises:
    FactsError: no inputs, other shapes, or NaN.
  """
  if not inputs:
    raise FactsError('the excess of the inputs is missing', hint='pass pre, or gate and up')
  tables = [as_table('an excess', x, '...') for x in (post, *inputs)]
  shapes = [list(x.shape) for x in tables]
  if any(shape != shapes[0] for shape in shapes):
    raise FactsError(f'excesses of outputs and inputs have the shapes {shapes}')
  largest = np.maximum(np.max(tables[1:], axis=0), 0)
  return np.maximum(tables[0] - largest, 0)


def check_gate(
  post: Float[ArrayLike, '*shape'],
  gate: Float[ArrayLike, '*shape'],
  up: Float[ArrayLike, '*shape'],
  activation: Callable[[Float[ArrayLike, '*shape']], Float[ArrayLike, '*shape']],
  tolerance: float = 1e-3,
) -> None:
  """Checks that `up` is the other factor of a gated MLP: post = activation(gate) up.

  'mlp_pre' is the gate and 'mlp_post' the product; `up` is not a site. It is 'mlp_norm' times the weights of the up
  projection, and weights of another layer would give numbers that look right.

  Raises:
    FactsError: the product differs from `post` by more than `tolerance` of its largest entry.
  """
  post, gate, up = (
    as_table(name, x, '...') for name, x in (('post', post), ('gate', gate), ('up', up))
  )
  product = np.asarray(activation(gate.astype(np.float32)), np.float64) * up
  if product.shape != post.shape:
    raise FactsError(f'gate and up make {list(product.shape)}, post is {list(post.shape)}')
  largest = np.abs(product - post).max()
  if largest > tolerance * np.abs(post).max():
    raise FactsError(
      f'activation(gate) * up differs from post by {largest:.3g}, where post is at most {np.abs(post).max():.3g}',
      cause='the up projection of another layer, another activation, or values of other tokens',
    )


@dataclasses.dataclass(frozen=True)
class AndShare:
  """Share of a probe's excess that is computed by the neurons that write it.

  Attributes:
    shares: of each name, [P]; NaN where the probe's own excess is not positive.
    median: over the names that have a share.
    standard_error: of the median, by resampling names.
    shuffled: medians with the weights permuted over neurons, [draws]: the control.
    left_out: number of names without a share.
  """

  shares: Float64[np.ndarray, ' names']
  median: float
  standard_error: float
  shuffled: Float64[np.ndarray, ' draws']
  left_out: int


def share_of_and(
  computed: Float[ArrayLike, 'names neurons'],
  weights: Float[ArrayLike, '*names neurons'],
  probe: Float[ArrayLike, ' names'],
  n_shuffles: int = 100,
  seed: int = 0,
) -> AndShare:
  """Share of the AND that is computed by the neurons that write it to a probe.

  Args:
    computed: result of `excess_computed`, for the neurons of all layers that write to the probe.
    weights: product of each neuron's output weights with the probe's direction, [neurons]; or [names, neurons], if each
      name has the probe of its own class, or a norm after the MLP that scales each name differently.
    probe: non-linear excess of the probe's reading, for each name.
    n_shuffles: number of permutations of the weights.
    seed: seed of permutations and resampling.

  Raises:
    FactsError: shapes that do not fit, NaN, or no name with a positive excess of the probe.
  """
  check_count('n_shuffles', n_shuffles, 1)
  computed = as_table('computed', computed, 'names neurons')
  probe = as_table('probe', probe, 'names')
  weights = as_table('weights', weights, 'neurons' if np.ndim(weights) == 1 else 'names neurons')
  if weights.shape not in (computed.shape, computed.shape[1:]) or len(probe) != len(computed):
    raise FactsError(
      f'computed {list(computed.shape)}, weights {list(weights.shape)} and probe {list(probe.shape)} do not fit',
      hint='[names, neurons], [neurons] or [names, neurons], and [names]',
    )
  there = probe > 0
  if not there.any():
    raise FactsError(
      f'the excess of the probe is at most {probe.max():.3g}: there is no AND to explain',
      cause='a probe that does not read the facts of these names, or the wrong sign',
    )
  share = lambda w: (computed * w).sum(1)[there] / probe[there]  # noqa: E731
  shares = np.full(len(probe), np.nan)
  shares[there] = share(weights)
  random = np.random.default_rng(check_seed(seed, FactsError))
  orders = [random.permutation(computed.shape[1]) for _ in range(n_shuffles)]
  return AndShare(
    shares=shares,
    median=float(np.median(shares[there])),
    standard_error=float(error_of_median(shares[there], seed=seed)),
    shuffled=np.array([np.median(share(weights[..., order])) for order in orders]),
    left_out=int((~there).sum()),
  )
