"""Checks of activations, attributes and masks: each returns arrays on the host, or raises a YardstickError.

A yardstick compares methods with a known answer, so that a wrong row, a NaN or a label of another prompt makes a method
look worse than it is, and nothing else shows it. All of these are found before anything is computed.

    acts = as_matrix('acts', acts)                          float64 [B, D]
    known = as_attributes({'io': names, 'pos': bits}, len(acts))

Sharp edge: values of an attribute are whole numbers, booleans or texts, all of one kind; a floating-point number, also
a NaN that stands for a missing value, is refused.

Letters: B prompts, D features.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float64, Shaped

from mechjax import host_arrays
from mechjax.errors import YardstickError

Matrix = Shaped[np.ndarray | Array, 'B D']
"""Numbers of B prompts, [B, D]: activations, or latents [B, M]."""

Rows = Shaped[np.ndarray | Array, 'M D']
"""Rows of a decoder."""

Values = Shaped[np.ndarray | Array, ' B'] | Sequence[int] | Sequence[str] | Sequence[bool]
"""Value of an attribute at each prompt: whole numbers, booleans or texts."""

Attributes = Mapping[str, Values]
"""Values of each attribute, keyed by its name."""

KINDS = {'i': 'whole numbers', 'u': 'whole numbers', 'b': 'booleans', 'U': 'texts'}
"""Kinds of values of an attribute, by the letter of NumPy."""


def check_numbers(name: str, x: object, ndim: int) -> Shaped[np.ndarray, ' ...']:
  """Returns real, finite numbers on the host, in their own dtype.

  Args:
    name: their name in messages.
    x: the numbers; booleans count as 0 and 1.
    ndim: number of axes.

  Raises:
    YardstickError: another number of axes, an empty array, other things than numbers, NaN or infinity; traced or masked
      arrays.
  """
  found = host_arrays.as_host(name, x, YardstickError)
  real = found.dtype.kind in 'biu' or jnp.issubdtype(found.dtype, jnp.floating)
  if not real or found.ndim != ndim or not found.size:
    raise YardstickError(
      f'{name} of shape {list(found.shape)} and type {found.dtype}; expected numbers with {ndim} axes, not empty'
    )
  finite = np.isfinite(found)
  if not finite.all():
    bad = np.argwhere(~finite)
    at = [int(i) for i in bad[0]]
    raise YardstickError(
      f'NaN or infinity in {name}: {found[tuple(at)]} at {at}, and {len(bad) - 1} more',
      cause='an activation that overflowed, or rows that were never filled',
    )
  return found


def as_numbers(name: str, x: object, ndim: int) -> Float64[np.ndarray, ' ...']:
  """Returns real, finite numbers in float64; arguments and errors as for `check_numbers`."""
  return np.asarray(check_numbers(name, x, ndim), np.float64)


def as_matrix(name: str, x: Matrix, rows: int | None = None) -> Float64[np.ndarray, 'B D']:
  """Returns numbers [B, D] in float64; errors as for `as_numbers`, and for another number of rows than `rows`."""
  found = as_numbers(name, x, 2)
  check_rows(name, len(found), rows)
  return found


def check_rows(name: str, found: int, expected: int | None) -> None:
  """Raises YardstickError for another number of rows than expected; None expects any number."""
  if expected is not None and found != expected:
    raise YardstickError(
      f'{name} has {found} rows for {expected} prompts', cause='the rows of another set of prompts'
    )


def as_values(name: str, values: Values, rows: int | None = None) -> Shaped[np.ndarray, ' B']:
  """Returns the values of an attribute.

  Args:
    name: name of the attribute.
    values: its value at each prompt.
    rows: number of prompts; None for any.

  Raises:
    YardstickError: another number of values, one value alone, floating-point numbers, or values of several kinds.
  """
  found = host_arrays.as_host(name, values, YardstickError)
  if not found.ndim:
    raise YardstickError(
      f'the attribute {name!r} is {values!r:.100}', cause='expected a value for each prompt'
    )
  if not hasattr(values, 'dtype') or found.dtype.kind in 'OT':
    kinds = {KINDS.get(np.asarray(v).dtype.kind, type(v).__name__) for v in values}
    if len(kinds) > 1:
      raise YardstickError(f'the attribute {name!r} has values of several kinds: {sorted(kinds)}')
    found = np.asarray([*values])
  if found.dtype.kind not in KINDS or found.ndim != 1 or not found.size:
    raise YardstickError(
      f'the attribute {name!r} has values of shape {list(found.shape)} and type {found.dtype}',
      cause='expected one whole number, boolean or text for each prompt',
      hint='x.astype(int) if the numbers are classes',
    )
  check_rows(f'the attribute {name!r}', len(found), rows)
  return found


def check_same_kind(name: str, found: Shaped[np.ndarray, ' some'], like: object) -> None:
  """Raises YardstickError for texts where numbers are expected, or the reverse: none of them would be equal."""
  expected = np.asarray(like).reshape(-1)
  if (found.dtype.kind == 'U') != (expected.dtype.kind == 'U'):
    raise YardstickError(
      f'{name} has values such as {found[0].item()!r}, and is compared with {expected[0].item()!r}',
      cause='numbers in one and texts in the other, of which none are equal',
      hint='the same kind in both, such as token ids',
    )


def as_attributes(attributes: Attributes, rows: int | None = None) -> dict[str, np.ndarray]:
  """Returns attributes whose values may be all equal; errors as for `as_values`, and without any attribute."""
  if not isinstance(attributes, Mapping) or not attributes:
    raise YardstickError(
      f'attributes={attributes!r:.100}; expected values of one attribute or more, keyed by name',
      hint="{'io': names, 'pos': bits}",
    )
  found = {name: as_values(name, values, rows) for name, values in attributes.items()}
  lengths = {name: len(values) for name, values in found.items()}
  if len({*lengths.values()}) > 1:
    raise YardstickError(f'attributes of different numbers of prompts: {lengths}')
  return found


def check_varies(name: str, values: Shaped[np.ndarray, ' B']) -> None:
  """Raises YardstickError for an attribute with one value alone."""
  if len(np.unique(values)) < 2:
    raise YardstickError(
      f'the attribute {name!r} has one value alone, {values[0].item()!r}',
      cause='prompts of one template, or one part of sorted prompts',
      hint='prompts in which it varies, or leave the attribute out',
    )


def as_mask(name: str, x: object, ndim: int) -> Bool[np.ndarray, ' ...']:
  """Returns booleans; raises YardstickError for another type or number of axes, and for an empty mask."""
  found = host_arrays.as_host(name, x, YardstickError)
  if found.dtype != np.bool_ or found.ndim != ndim or not found.size:
    raise YardstickError(
      f'{name} of shape {list(found.shape)} and type {found.dtype}; expected booleans with {ndim} axes',
      hint='latents > 0 for latents that are active',
    )
  return found


def check_whole(name: str, value: object, minimum: int) -> int:
  """Returns a whole number; raises YardstickError for anything else, or a number below the minimum."""
  try:
    found = minimum - 1 if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
  except TypeError:
    found = minimum - 1
  if found < minimum:
    raise YardstickError(f'{name}={value!r:.100}; expected a whole number, at least {minimum}')
  return found


def as_sizes(name: str, values: object) -> tuple[int, ...]:
  """Returns whole numbers of at least 1; raises YardstickError for anything else, one number alone, or none."""
  if not isinstance(values, Iterable) or isinstance(values, str | Mapping):
    raise YardstickError(f'{name}={values!r:.100}; expected several numbers', hint=f'{name}=(1, 2)')
  found = tuple(check_whole(name, value, 1) for value in values)
  if not found:
    raise YardstickError(f'{name}={values!r:.100}; expected whole numbers')
  return found


def check_share(name: str, value: object) -> float:
  """Returns a number above 0 and at most 1; raises YardstickError for anything else."""
  number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
  if not number or not 0 < float(value) <= 1:  # type: ignore[arg-type]
    raise YardstickError(f'{name}={value!r:.100}; expected a number above 0 and at most 1')
  return float(value)  # type: ignore[arg-type]
