"""Arguments that NumPy would change or fail on are refused by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechjax import neurons
from mechjax.errors import FactsError, NeuronError, ProbingError
from mechjax.facts import (
  compare_groups,
  correlate_effects,
  draw_swaps,
  measure_alignment,
  nonlinear_excess,
  share_of_and,
  shuffle_weights,
)
from mechjax.facts.names import NameProduct
from mechjax.host_arrays import as_host, check_seed
from mechjax.probing import (
  SubspacePatching,
  auc,
  draw_subspaces,
  fit_logistic,
  make_folds,
  random_directions,
  shuffle_maximum,
  split,
)
from mechjax.probing.heads import HeadWeights
from mechjax.probing.mechanistic import search_heads

X, Y = np.random.default_rng(0).standard_normal((12, 4)), np.arange(12) % 2
TABLE = np.random.default_rng(1).standard_normal((3, 12))
MASKED = np.ma.masked_array(X, mask=X > 1)
HEADS = HeadWeights.of(
  W_V=np.ones((1, 4, 1, 2)), W_O=np.ones((1, 1, 2, 4)), W_U=np.ones((4, 9)), attn_gain=None,
  final_gain=None, norm='none',
)  # fmt: skip
MLP = {'mlp': np.ones((2, 3, 4))}
NAMES = NameProduct.of({f'{i}': [i, 10 + i] for i in range(8)}, prefix=[1])


def test_an_array_and_a_list_are_the_same_numbers_in_their_dtype():
  assert as_host('x', X, FactsError) is X
  assert as_host('x', jnp.ones(2, jnp.bfloat16), FactsError).dtype == jnp.bfloat16
  assert as_host('x', [[1, 2], [3, 4]], FactsError).tolist() == [[1, 2], [3, 4]]
  assert as_host('x', [jnp.ones(()), 2.0], FactsError).tolist() == [1, 2]


@pytest.mark.parametrize(
  ('call', 'error'),
  [
    (lambda x: fit_logistic(x, Y), ProbingError),
    (lambda x: fit_logistic(X, Y).predict(x), ProbingError),
    (lambda x: auc(x, Y), ProbingError),
    (nonlinear_excess, FactsError),
    (correlate_effects, FactsError),
    (lambda x: neurons.Readout.of(None, x, 1e-5), NeuronError),
  ],
)
def test_masked_and_traced_arrays_are_refused(call, error):
  with pytest.raises(error, match=r'a masked array of shape \[12, 4\]'):
    call(MASKED)
  with pytest.raises(error, match=r'the value is traced[\s\S]*jit, vmap or grad'):
    jax.jit(call)(X.astype(np.float32))


@pytest.mark.parametrize(
  ('call', 'message'),
  [
    (lambda: fit_logistic([[1, 2], [1]], [0, 1]), 'features: .* is not an array'),
    (lambda: fit_logistic(X, [[1], [1, 2]]), 'labels: .* is not an array'),
    (lambda: nonlinear_excess([[1, 2], [1]]), 'the table: .* is not an array'),
    (lambda: search_heads(HEADS, X, Y, [[1, 2], [3]]), 'classes: .* is not an array'),
  ],
)
def test_rows_of_different_lengths_are_refused_by_name(call, message):
  with pytest.raises((ProbingError, FactsError), match=message):
    call()


@pytest.mark.parametrize('x', [np.ones((3, 3)) * 1j, np.array([['1', '2'], ['3', '4']])])
def test_a_table_of_complex_numbers_or_texts_is_refused(x):
  with pytest.raises(FactsError, match='is not a table of numbers'):
    nonlinear_excess(x)


SEEDED = {
  'split': lambda seed: split(Y, seeds=[seed]),
  'make_folds': lambda seed: make_folds(Y, 3, seed=seed),
  'shuffle_maximum': lambda seed: shuffle_maximum(X, Y, shuffles=2, seed=seed),
  'random_directions': lambda seed: random_directions(X, 2, seed),
  'draw_subspaces': lambda seed: draw_subspaces(np.eye(2, 4), 1, seed),
  'SubspacePatching': lambda seed: SubspacePatching(lambda p, x: x, 'resid_post', seed=seed),
  'draw_swaps': lambda seed: draw_swaps(NAMES, seed=seed),
  'compare_groups': lambda seed: compare_groups(TABLE[0], TABLE[1], seed=seed),
  'correlate_effects': lambda seed: correlate_effects(TABLE, seed=seed),
  'measure_alignment': lambda seed: measure_alignment(TABLE, seed=seed),
  'share_of_and': lambda seed: share_of_and(TABLE**2, np.ones(12), np.ones(3), seed=seed),
  'shuffle_weights': lambda seed: shuffle_weights(MLP, 'mlp', stacked=1, seed=seed),
}


@pytest.mark.parametrize('name', SEEDED)
def test_a_seed_is_a_whole_number_from_zero(name):
  for seed in (None, -1, 1.5, True, 'a'):
    with pytest.raises((ProbingError, FactsError), match='whole number, at least 0'):
      SEEDED[name](seed)
  SEEDED[name](np.int64(3))


def test_a_key_of_jax_is_no_seed():
  with pytest.raises(FactsError, match='keys of JAX are not seeds'):
    check_seed(jax.random.key(0), FactsError)
  assert check_seed(jnp.asarray(4), FactsError) == 4
