"""The probe that a head is: directions of classes that are made from weights alone.

A head that moves a fact from a name to the answer attends to the name and reads the fact with W_V. If it attends to
the name with weight 1, all that it does to the logit of class c is linear in its normalised input, and that direction
can be written down without any training:

    W_c = g1 * W_V W_O (g_post * (g_final * W_U[c]))          * multiplies element by element
    score of class c = x / rms(x) · W_c                       x: the stream at the name, before the head's layer

With LayerNorm each norm takes off a mean as well: x loses that of its entries, and what is written loses its own before
it is multiplied by g_final. The scales of later norms are frozen: each is one positive factor for all classes of an
example, which is dropped. Biases (of norms, of values, of W_O) add a constant to each class. The input is centred by
its mean over the names at that layer, and such constants vanish with it.

    weights = HeadWeights.of(**take_head_weights(model.params, model.config))      from mechjax.models.head_weights
    probe = make_probe(weights, layer=12, head=2, classes=[token_a, token_b, token_c])
    probe.predict(stream)                                                          [B], indices of `classes`
    found = search_heads(weights, stream, labels, classes, centre_on=other_names)  all heads at once
    found.accuracy, found.standard_error, found.top(5)                             [L, N]

`search_heads` reads one layer with all heads (the question: where is the fact already readable?) or every head's own
layer. Centre on names that are not scored, and choose heads on those as well.

Sharp edges: a norm of queries and keys does not matter here, a norm of values would, and is not supported. A cap of the
logits is monotone but not linear, and is left out. An exact tie of two classes counts as wrong. The standard error of
an accuracy is that of a binomial share, which is 0 at 0 and 1.

Letters: L layers, B names, D width, N query heads, K key-value heads, H head width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, Int

from mechjax import host_arrays, precision
from mechjax.errors import ProbingError
from mechjax.probing.checks import check_count
from mechjax.probing.heads import HeadWeights, normalise

Tokens = Sequence[int] | Int[np.ndarray | Array, ' classes']
"""Token ids of the classes."""

Labels = Sequence[int] | Int[np.ndarray | Array, ' B']
"""Class of each name, an index of the classes."""

Stream = Float[np.ndarray | Array, 'B D'] | Float[np.ndarray | Array, 'L B D']
"""The stream at one token of each name, before one layer or before every layer."""


@dataclasses.dataclass(frozen=True, eq=False)
class MechanisticProbe:
  """A head as a probe.

  Attributes:
    layer, head: the head.
    directions: W_c of each class, [D, classes].
    classes: token id of each class.
    norm, eps: the norm through which the head reads the stream.
  """

  layer: int
  head: int
  directions: Float[Array, 'D classes']
  classes: Int[np.ndarray, ' classes']
  norm: str
  eps: float

  def scores(self, x: Float[np.ndarray | Array, 'B D']) -> Float[Array, 'B classes']:
    """Scores of each class, not centred, [B, classes].

    Multiplied by the scales of the later norms (1/rms of what they normalise), differences of scores between two names
    are differences of the head's direct effects on the logits, if it attends to the name with weight 1.

    Args:
      x: stream before the head's layer.

    Raises:
      ProbingError: another width, NaN or infinity.
    """
    x = _check_stream(x, (len(self.directions),))
    return precision.matmul(normalise(x, self.norm, self.eps), self.directions)

  def predict(
    self,
    x: Float[np.ndarray | Array, 'B D'],
    centre_on: Float[np.ndarray | Array, '_ D'] | None = None,
  ) -> Int[np.ndarray, ' B']:
    """The class with the largest centred score, an index of `classes`; -1 for a tie.

    Args:
      x: stream before the head's layer.
      centre_on: the names whose mean is taken off; None for those of `x`.

    Raises:
      ProbingError: as `scores`; names that are all the same, if they are those to centre on.
    """
    if centre_on is None:
      _check_differ(x)
    scores = self.scores(x)
    mean = (scores if centre_on is None else self.scores(centre_on)).mean(0)
    return np.asarray(_choose(scores - mean))


class HeadAccuracy(NamedTuple):
  """A head and the accuracy of its probe."""

  layer: int
  head: int
  accuracy: float
  standard_error: float


@dataclasses.dataclass(frozen=True, eq=False)
class HeadSearch:
  """Accuracy of every head of a model as a probe.

  Attributes:
    predictions: class of each name by each head, -1 for a tie, int [L, N, B].
    labels: the right classes, [B].
    accuracy: share of names that are right, float64 [L, N].
    standard_error: sqrt(p (1 - p) / B), float64 [L, N].
  """

  predictions: Int[np.ndarray, 'L N B']
  labels: Int[np.ndarray, ' B']

  @property
  def accuracy(self) -> Float64[np.ndarray, 'L N']:
    return (self.predictions == self.labels).mean(-1)

  @property
  def standard_error(self) -> Float64[np.ndarray, 'L N']:
    p = self.accuracy
    return np.sqrt(p * (1 - p) / len(self.labels))

  @property
  def majority(self) -> float:
    """Accuracy of a probe that always answers with the largest class."""
    return float(np.bincount(self.labels).max() / len(self.labels))

  def top(self, n: int) -> list[HeadAccuracy]:
    """The `n` heads with the largest accuracy, best first; of equal ones the lower layer and head.

    Raises:
      ProbingError: less than one head.
    """
    check_count('n', n, 1)
    accuracy, errors = self.accuracy, self.standard_error
    best = np.argsort(-accuracy, axis=None, kind='stable')[:n]
    places = [divmod(int(i), accuracy.shape[1]) for i in best]
    return [HeadAccuracy(l, h, float(accuracy[l, h]), float(errors[l, h])) for l, h in places]


def make_probe(
  weights: HeadWeights, layer: int | np.integer, head: int | np.integer, classes: Tokens
) -> MechanisticProbe:
  """Makes the probe of one head.

  Args:
    weights: those of the model.
    layer, head: the head, counted from 0.
    classes: token id of each class.

  Raises:
    ProbingError: no such head; classes that are not different tokens of the vocabulary.
  """
  tokens = _check_classes(classes, weights.W_U.shape[1])
  for name, value, n in zip(('layer', 'head'), (layer, head), weights.shape):
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 0 <= value < n:
      raise ProbingError(f'there is no {name} {value!r} among {n}')
  group = weights.shape[1] // weights.W_V.shape[2]
  write = precision.matmul(_wide(weights.W_O[layer, head]), _read_out(weights, tokens)[layer])
  directions = precision.matmul(_wide(weights.W_V[layer][:, head // group]), write)
  if weights.attn_gain is not None:
    directions = _wide(weights.attn_gain[layer])[:, None] * directions
  return MechanisticProbe(int(layer), int(head), directions, tokens, weights.norm, weights.eps)


def search_heads(
  weights: HeadWeights,
  x: Stream,
  labels: Labels,
  classes: Tokens,
  *,
  centre_on: Stream | None = None,
) -> HeadSearch:
  """Scores every head of a model as a probe, all in one product.

  Args:
    weights: those of the model.
    x: stream at one token of each name, before one layer [B, D], which all heads read; or before every layer
      [L, B, D], where each head reads its own.
    labels: class of each name, an index of `classes`.
    classes: token id of each class.
    centre_on: other names, whose mean is taken off, in the same form as `x`; None for the names that are scored.

  Raises:
    ProbingError: shapes that do not fit together; labels that are not indices of classes, or a class with fewer than
      two names; names that are all the same; NaN or infinity.
  """
  tokens = _check_classes(classes, weights.W_U.shape[1])
  L, D = weights.shape[0], weights.W_U.shape[0]
  shape = (L, D) if np.ndim(x) == 3 else (D,)
  x = _check_stream(x, shape)
  reference = x if centre_on is None else _check_stream(centre_on, shape)
  known = _check_labels(labels, x.shape[-2], len(tokens))
  _check_differ(x)
  chosen = _search(weights, normalise(x, weights.norm, weights.eps), reference, tokens)
  return HeadSearch(np.asarray(chosen), known)


def _search(
  weights: HeadWeights, x: Array, reference: Array, tokens: np.ndarray
) -> Int[Array, 'L N B']:
  """Classes by all heads, from the normalised stream and that of the names to centre on."""
  x = x - normalise(reference, weights.norm, weights.eps).mean(-2, keepdims=True)
  gain = 1.0 if weights.attn_gain is None else _wide(weights.attn_gain)[:, None]
  x_LxBxD = jnp.broadcast_to(gain * x, (weights.shape[0], *x.shape[-2:]))
  values_LxBxKxH = precision.einsum('lbd,ldkh->lbkh', x_LxBxD, _wide(weights.W_V))
  write = precision.einsum('lnhd,ldc->lnhc', _wide(weights.W_O), _read_out(weights, tokens))
  L, N, H, n = write.shape
  by_group = write.reshape(L, values_LxBxKxH.shape[2], -1, H, n)
  scores = precision.einsum('lbkh,lkghc->lkgbc', values_LxBxKxH, by_group)
  if not bool(jnp.isfinite(scores).all()):
    raise ProbingError('the scores contain NaN or infinity', cause='weights that are not finite')
  return _choose(scores.reshape(L, N, -1, n))


def _read_out(weights: HeadWeights, tokens: np.ndarray) -> Float[Array, 'L D classes']:
  """Directions, at the output of each layer's attention, that raise the logits of some tokens."""
  out = _wide(weights.W_U[:, tokens])
  if weights.final_gain is not None:
    out = _take_off_mean(weights, _wide(weights.final_gain)[:, None] * out)
  out = jnp.broadcast_to(out, (weights.shape[0], *out.shape))
  if weights.post_gain is not None:
    out = _take_off_mean(weights, _wide(weights.post_gain)[:, :, None] * out)
  return out


def _take_off_mean(weights: HeadWeights, out: Array) -> Array:
  """The directions without their mean over D: LayerNorm takes it off the stream before it multiplies."""
  return out - out.mean(-2, keepdims=True) if weights.norm == 'layer' else out


def _choose(scores: Array) -> Int[Array, ' ...']:
  """The class with the largest score, and -1 for a tie."""
  ties = (scores == scores.max(-1, keepdims=True)).sum(-1) > 1
  return jnp.where(ties, -1, scores.argmax(-1).astype(jnp.int32))


def _wide(x: np.ndarray | Array) -> Array:
  return precision.wide(jnp.asarray(x))


# --- checks ---------------------------------------------------------------------------------------------------


def _check_classes(classes: Tokens, n_vocab: int) -> Int[np.ndarray, ' classes']:
  tokens = host_arrays.as_host('classes', classes, ProbingError)
  if tokens.ndim != 1 or tokens.dtype.kind not in 'iu' or len(tokens) < 2:
    raise ProbingError(
      f'classes={classes!r:.100} should be two token ids or more',
      cause='a class whose name is several tokens',
      hint="[model.token(' golf'), model.token(' tennis')]: one token for each class",
    )
  if len(set(tokens.tolist())) < len(tokens) or tokens.min() < 0 or tokens.max() >= n_vocab:
    raise ProbingError(
      f'classes={tokens.tolist()} should be different tokens of a vocabulary of {n_vocab}',
      cause='two classes whose names begin with the same token',
    )
  return tokens


def _check_labels(labels: Labels, n: int, n_classes: int) -> Int[np.ndarray, ' B']:
  found = host_arrays.as_host('labels', labels, ProbingError)
  if found.shape != (n,) or found.dtype.kind not in 'iu':
    raise ProbingError(
      f'labels of shape {list(found.shape)} and type {found.dtype} for {n} names',
      hint='int [B]: for each name the index of its class',
    )
  wrong = found[(found < 0) | (found >= n_classes)]
  if len(wrong):
    raise ProbingError(
      f'label {wrong[0]} is not an index of {n_classes} classes',
      cause='token ids in place of indices',
    )
  counts = np.bincount(found, minlength=n_classes)
  if counts.min() < 2:
    raise ProbingError(
      f'class {counts.argmin()} has {counts.min()} names, and a class needs two or more',
      where=f'names of each class: {counts.tolist()}',
      hint='leave the class out of `classes`, or add names',
    )
  return found


def _check_stream(x: np.ndarray | Array, shape: tuple[int, ...]) -> Array:
  """Checks a stream of shape [*layers, B, D]; `shape` is (D,) or (L, D)."""
  found = jnp.asarray(host_arrays.as_host('the stream', x, ProbingError))
  good = found.ndim == len(shape) + 1 and (*found.shape[:-2], found.shape[-1]) == shape
  if not good or not found.shape[-2] or not jnp.issubdtype(found.dtype, jnp.floating):
    expected = ', '.join(map(str, (*shape[:-1], 'B', shape[-1])))
    raise ProbingError(
      f'the stream is {found.dtype.name}{list(found.shape)}, and [{expected}] was expected',
      cause='a stream of another model or layer; or of one layer in one argument and of every layer in the other',
      hint='resid_pre at the last token of each name',
    )
  if not bool(jnp.isfinite(found).all()):
    raise ProbingError('the stream contains NaN or infinity', cause='padding, or an overflow')
  return found


def _check_differ(x: np.ndarray | Array) -> None:
  x = jnp.asarray(x)
  if bool((x == x[..., :1, :]).all()):
    raise ProbingError(
      f'the stream of all {x.shape[-2]} names is the same',
      cause='the stream at a token before the names, or one name given several times',
      hint='the last token of each name: resid_pre there, not at a fixed column',
    )
