"""Checks of features, labels and penalties: each raises a ProbingError that contains the value.

A probe is fitted to anything: to one NaN, to labels that belong to other rows, to a class of one example, to features
that do not vary. The number that comes out looks like any other. So all of this is refused here, before anything is
computed, and what passes is float64 on the host.

Sharp edge: labels are whole numbers, booleans or texts, and all of one kind: of texts with a NaN among them NumPy
makes a class 'nan'. Floating-point labels are refused even if they are whole, because values to regress on look the
same.

Letters: B examples, D features.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, Int, Num, Shaped

from mechjax import host_arrays
from mechjax.errors import ProbingError

Features = Num[np.ndarray | Array, '*_ B D']
"""Features of B examples, floating-point or whole numbers; leading axes are problems that are solved at once."""

Labels = Shaped[np.ndarray | Array, '*_ B'] | Sequence[int] | Sequence[str] | Sequence[bool]
"""Class of each example: whole numbers, booleans or texts."""

Penalties = float | Sequence[float] | Num[np.ndarray | Array, '*_']
"""A penalty, or one for each problem."""


def check_features(features: Features, name: str = 'features') -> Float64[np.ndarray, '*_ B D']:
  """Returns features in float64.

  Args:
    features: [..., B, D].
    name: their name in messages.

  Raises:
    ProbingError: fewer than two axes, an empty axis, not real numbers, NaN or infinity; traced or masked arrays.
  """
  array = host_arrays.as_host(name, features, ProbingError)
  if not is_real(array):
    raise ProbingError(
      f'{name} of type {array.dtype}; expected floating-point or whole numbers',
      hint='x.astype(float) for booleans',
    )
  if array.ndim < 2 or not array.size:
    raise ProbingError(
      f'{name} of shape {array.shape}; expected [B, D]: B examples with D features',
      hint='x[:, None] for one feature',
    )
  found = np.asarray(array, np.float64)
  bad = ~np.isfinite(found)
  if bad.any():
    place = tuple(int(i) for i in np.argwhere(bad)[0])
    raise ProbingError(
      f'{name} contain NaN or infinity: {found[place]} at {list(place)}, and {int(bad.sum()) - 1} more',
      cause='an activation that overflowed, or rows that were never filled',
      hint='read activations in float32',
    )
  return found


def is_real(array: Shaped[np.ndarray, ' ...']) -> bool:
  """Whether an array has floating-point or whole numbers, bfloat16 included."""
  return array.dtype.kind in 'iu' or jnp.issubdtype(array.dtype, jnp.floating)


KINDS = {'i': 'whole numbers', 'u': 'whole numbers', 'b': 'booleans', 'U': 'texts', 'S': 'bytes'}
"""Kinds of classes, by the letter of NumPy."""


def as_classes(
  name: str, given: Shaped[np.ndarray | Array, ' ...'] | Sequence
) -> Shaped[np.ndarray, ' ...']:
  """Returns classes, or names of groups, as an array; no value is converted to another kind.

  Args:
    name: their name in messages.
    given: an array, also one of objects, as pandas makes it; or a sequence.

  Returns:
    An array of one of `KINDS`; of another dtype if there are other values, such as floating-point numbers alone.

  Raises:
    ProbingError: values of several kinds, of which NumPy would make texts or numbers; traced or masked arrays.
  """
  array = host_arrays.as_host(name, given, ProbingError)
  if hasattr(given, 'dtype') and array.dtype.kind not in 'OT':
    return array
  values = np.asarray(given, object).ravel().tolist()
  first: dict[type, int] = {}
  for i, value in enumerate(values):
    first.setdefault(type(value), i)
  kinds: dict[str, int] = {}
  for kind, i in first.items():
    kinds.setdefault(KINDS.get(np.asarray(values[i]).dtype.kind, kind.__name__), i)
  if len(kinds) > 1:
    a, b = (values[i] for i in [*kinds.values()][:2])
    raise ProbingError(
      f'{name} of several kinds: {", ".join(kinds)}',
      where=f'{a!r:.50} and {b!r:.50}',
      cause='a missing value (NaN or None), or labels that were joined',
      hint='leave these examples out, or make all of one kind',
    )
  known = {*kinds} <= {*KINDS.values()}
  return np.array(values).reshape(array.shape) if known and values else array


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedLabels:
  """Labels as numbers of their classes.

  Attributes:
    classes: the different labels, sorted.
    codes: the class of each example, an index of `classes`.
  """

  classes: Shaped[np.ndarray, ' classes']
  codes: Int[np.ndarray, '*problems B']

  @property
  def counts(self) -> Int[np.ndarray, '*problems classes']:
    """Number of examples of each class in each problem."""
    every = np.arange(len(self.classes))
    return (self.codes[..., None] == every).sum(-2)


def check_labels(labels: Labels, n: int, min_members: int = 2) -> EncodedLabels:
  """Encodes labels, one for each of `n` examples.

  Args:
    labels: [..., B].
    n: number of examples, B.
    min_members: least number of examples of each class, in each problem.

  Raises:
    ProbingError: floating-point labels, or labels of several kinds; another number of them than examples, one class
      only, or a class with fewer members.
  """
  array = as_classes('labels', labels)
  if array.dtype.kind not in KINDS:
    raise ProbingError(
      f'labels of type {array.dtype}; expected whole numbers, booleans or texts',
      cause='values to regress on, or a missing label',
      hint='labels.astype(int) if they are classes; fit_ridge(features, values) if they are values',
    )
  if not array.ndim or array.shape[-1] != n:
    raise ProbingError(
      f'labels of shape {array.shape} for {n} examples',
      cause='labels of another set of examples',
      hint='one label for each row of the features',
    )
  classes, codes = np.unique(array, return_inverse=True)
  found = EncodedLabels(classes, codes.reshape(array.shape))
  _check_members(found, min_members)
  return found


def _check_members(labels: EncodedLabels, min_members: int) -> None:
  if len(labels.classes) < 2:
    raise ProbingError(
      f'all labels are {labels.classes[0].item()!r}: there is one class only',
      cause='a part of examples that are sorted by class',
      hint='split(labels) draws every class into every part',
    )
  counts = labels.counts
  if counts.min() >= min_members:
    return
  *problem, number = (int(i) for i in np.argwhere(counts < min_members)[0])
  n = counts[(*problem, number)]
  raise ProbingError(
    f'the class {labels.classes[number].item()!r} has {n} member{"" if n == 1 else "s"}, fewer than {min_members}',
    where=f'problem {problem}' if problem else None,
    cause='a rare class, or labels that differ by a misspelling',
    hint='leave the class out, or join it with another',
  )


def check_penalty(l2: Penalties) -> Float64[np.ndarray, '*_']:
  """Returns penalties in float64.

  Raises:
    ProbingError: not positive and finite. Without a penalty, classes that can be separated have no finite solution.
  """
  found = host_arrays.as_host('l2', l2, ProbingError)
  if not is_real(found) or not (np.isfinite(found).all() and (found > 0).all()):
    raise ProbingError(
      f'l2={l2!r:.100}; expected finite numbers over 0',
      cause='classes that can be separated have no finite solution without a penalty',
      hint='1.0; or choose_l2(features, labels).l2, by cross-validation',
    )
  return found.astype(np.float64)


def check_count(name: str, value: object, at_least: int) -> int:
  """Returns a whole number.

  Raises:
    ProbingError: not a whole number, or less than `at_least`.
  """
  try:
    found = None if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
  except TypeError:
    found = None
  if found is None or found < at_least:
    raise ProbingError(f'{name}={value!r:.100}; expected a whole number of at least {at_least}')
  return found


def as_number(name: str, value: object) -> float:
  """Returns one real number of any type, also of NumPy or JAX; NaN for anything else."""
  found = host_arrays.as_host(name, value, ProbingError)
  return math.nan if found.ndim or not is_real(found) else float(found)


def check_share(name: str, value: object) -> float:
  """Returns a share between 0 and 1, both ends excluded.

  Raises:
    ProbingError: not such a number.
  """
  found = as_number(name, value)
  if not 0 < found < 1:
    raise ProbingError(f'{name}={value!r:.100}; expected a share between 0 and 1')
  return found


def check_width(features: Float[np.ndarray, '*_ B D'], width: int, name: str = 'features') -> None:
  """Raises ProbingError for features of another number than `width`."""
  if features.shape[-1] != width:
    raise ProbingError(
      f'{name} of width {features.shape[-1]}, and a probe of {width} features',
      cause='activations of another site or model',
    )
