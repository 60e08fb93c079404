"""Plan of a generation: whether its interventions permit a cache, decided before anything runs."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, PyTree

from mechjax import errors, harvest
from mechjax import sites as sites_lib
from mechjax.generate import columns, functions, prompts
from mechjax.generate.functions import Function
from mechjax.generate.model import Model
from mechjax.harvest.listing import SiteInfo


@dataclasses.dataclass(frozen=True)
class GenerationPlan:
  """Execution plan of a generation.

  Attributes:
    plants: resolved plants (`functions.resolve`).
    sites: patterns of the sites that are read.
    whole: whether every step is a pass over whole texts.
    exact: whether passes are exactly as long as the text, as planted arrays require.
  """

  plants: dict[str, PyTree]
  sites: tuple[str, ...]
  whole: bool
  exact: bool


def make(
  model: Model,
  params: PyTree,
  rows: Sequence[Int[np.ndarray, ' _']],
  n_tokens: int,
  plants: Mapping[str, PyTree],
  sites: sites_lib.Patterns,
) -> GenerationPlan:
  """Plans a generation; arguments as for `generate`.

  Raises:
    SiteError, HarvestError: a plant or a site that does not fit.
    MechjaxError: a row lacks positions that a `Positioned` function needs.
  """
  if not isinstance(plants, Mapping):
    raise errors.HarvestError(
      f'plants={plants!r:.100}; expected a dict from sites to values or functions',
      hint="plants={'mlp_out.5': jnp.zeros_like}",
    )
  patterns, without_cache = tuple(sites_lib.as_patterns(sites)), model.new_cache is None
  if not plants and not patterns:
    return GenerationPlan({}, (), whole=without_cache, exact=False)
  infos = check_sites(model, params, rows, [*patterns, *map(str, plants)])
  resolved = functions.resolve(plants, infos)
  planted = functions.functions(resolved)
  arrays = [pattern for pattern in resolved if pattern not in planted]
  sizes, T = prompts.sizes_of(rows), prompts.bucket(max(map(len, rows)))
  _check_positions(planted, sizes, n_tokens)
  lengths = range(int(sizes.min()), int(sizes.max()) + n_tokens)
  for pattern in arrays:
    _check_array(pattern, resolved[pattern])
  if arrays and n_tokens > 1:
    raise errors.HarvestError(
      f'an array is planted at {arrays[0]!r}, and n_tokens={n_tokens}',
      cause='an array fits texts of one length, and every token makes the text longer',
      hint='plant a function of the value, or generate one token',
    )
  widths = {k: _widths(f, lengths, T, arrays != []) for k, f in planted.items()}
  for pattern, f in planted.items():
    for width in widths[pattern]:
      f.stage(width)  # its own errors come before anything runs
    if f.maps:
      f.check_positioned(widths[pattern])
  if len({*sizes}) > 1:
    _check_rows_apart(planted, widths, arrays)
  stepwise = all(f.maps or f.acts_on_each_position([*lengths, T, 1]) for f in planted.values())
  exact = bool(arrays)
  return GenerationPlan(
    resolved, patterns, whole=exact or without_cache or not stepwise, exact=exact
  )


def check_sites(
  model: Model,
  params: PyTree,
  rows: Sequence[Int[np.ndarray, ' _']],
  patterns: Sequence[str | sites_lib.Site],
) -> Sequence[SiteInfo]:
  """Checks that sites exist and have the columns of a step's tokens, and lists all sites of a step.

  Raises:
    SiteError: they do not.
  """
  B, T = len(rows), prompts.bucket(max(map(len, rows)))
  tokens, mask = (jnp.asarray(x) for x in prompts.align(rows, T))
  cache = jax.eval_shape(lambda: model.empty_cache(params, B, T))
  infos = harvest.sites_of(model.step, params, tokens, mask, cache)
  chosen = {*sites_lib.select(patterns, [i.site for i in infos])}
  columns.check((i for i in infos if i.site in chosen), B, T)
  return infos


def _check_array(pattern: str, value: PyTree) -> None:
  leaves = jax.tree.leaves(value, is_leaf=lambda x: x is None)
  if not leaves or not all(hasattr(x, 'dtype') or isinstance(x, numbers.Number) for x in leaves):
    raise errors.HarvestError(
      f'the plant at {pattern!r} is {value!r:.100}, of type {type(value).__name__}',
      hint='plant a function of the value, such as jnp.zeros_like, or an array of its shape',
    )


def _widths(f: Function, lengths: Sequence[int], T: int, exact: bool) -> list[int]:
  """Widths at which a function is applied."""
  if not f.maps:
    return list(lengths)
  found = lengths if exact else [T, *map(prompts.bucket, lengths)]
  return sorted({2, *(max(2, n) for n in found)})


def _check_rows_apart(
  planted: Mapping[str, Function],
  widths: Mapping[str, Sequence[int]],
  arrays: Sequence[str],
) -> None:
  mixing = [k for k, f in planted.items() if not f.keeps_rows_apart(widths[k])]
  if arrays or mixing:
    raise errors.HarvestError(
      f'prompts of different lengths, and the plant at {[*arrays, *mixing][0]!r} may mix rows',
      cause='rows of different length have no common columns; a function must be proven to keep rows apart',
      hint='generate from prompts of one length at a time',
    )


def _check_positions(
  planted: Mapping[str, Function], sizes: Int[np.ndarray, ' B'], n_tokens: int
) -> None:
  """Lets each `Positioned` function check that rows have the positions that it needs."""
  for f in planted.values():
    if isinstance(f.fn, harvest.Positioned) and f.fn.check is not None:
      f.fn.check(sizes, sizes + n_tokens - 1)  # the last token is chosen, and not read
