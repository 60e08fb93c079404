"""Functions that read names: the values of a model at the surname, for several first names and surnames at once.

A read takes tokens of first names [G] and of surnames [H], and returns values of all their pairs, [G, H, ...] by name.
`read_whole` makes one of any tagged model, which reads each pair in a pass of its own; `prefixes.share_prefix` makes
one of a model with a cache, which computes the prefix and the first name once. `make_row_reader` reads any rows.

    read = read_whole(model.apply, model.params, names.prefix, 'mlp_pre.3, mlp_post.3')
    read(names.first[:2], names.last)['mlp_post']        [2, H, 1, F]: one layer

With `select` only what is needed leaves the device, such as the reading of a probe, or the up projection of a gated
MLP, which is not a site (`excess.check_gate` tests that it is the right one):

    lambda params, acts: {
      'probe': precision.matmul(acts['resid_post.5'], directions),
      'up': precision.matmul(acts['mlp_norm.3'], params['layers']['mlp']['up'][3]),
    }

Sharp edge: `forward` runs without a mask, so that a prefix must be as long as the tokens before each name really are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32, PyTree

from mechjax import harvest, watching
from mechjax.errors import FactsError
from mechjax.facts.finite import as_tokens, check_count, check_finite
from mechjax.facts.needed_sites import check_sites
from mechjax.programs.callables import check_function

Values = Mapping[str, Float[Array | np.ndarray, 'first last ...']]
"""Values at the surname, by name: [first names, surnames, ...]."""

Read = Callable[[Int32[np.ndarray, ' first'], Int32[np.ndarray, ' last']], Values]
"""(tokens of first names, tokens of surnames) -> values of all their pairs."""

Select = Callable[[PyTree, harvest.Activations], Mapping[str, Float[Array, 'B ...']]]
"""(params, activations [L, B, ...] at the surname) -> the values to keep, [B, ...] by name."""


def read_whole(
  forward: Callable,
  params: PyTree,
  prefix: tuple[int, ...],
  sites: str,
  select: Select | None = None,
) -> Read:
  """Makes a function that reads names in whole passes, each name with its prefix.

  Args:
    forward: (params, tokens [B, T]) -> output; pure, with tagged sites, such as `model.apply` or
      `model.truncate_at(sites)`, which leaves out the layers above.
    params: its parameters.
    prefix: tokens before each name.
    sites: sites to read, whose axes begin with B and T.
    select: makes the values to keep, such as the products of a probe; None for all of them, [B, L, ...] by name of
      the site.

  Raises:
    FactsError: the model does not have the sites.
  """
  run = _make_run(forward, sites, select)
  check_sites(forward, params, np.array([[*prefix, 0, 0]], np.int32), sites)

  def read(first, last):
    pairs = np.stack(np.meshgrid(first, last, indexing='ij'), -1).reshape(-1, 2)
    before = np.tile(np.array(prefix, np.int32), (len(pairs), 1))
    rows = np.concatenate([before, pairs.astype(np.int32)], 1)
    return as_grid(run(params, rows), len(first), len(last))

  return read


def make_row_reader(
  forward: Callable, sites: str, select: Select | None = None, batch: int = 256
) -> Callable[[PyTree, Int32[np.ndarray, 'rows T']], dict[str, Float[np.ndarray, 'rows ...']]]:
  """Makes a function that reads the last position of rows of tokens of one length.

  Args:
    forward, sites, select: as in `read_whole`.
    batch: number of rows that run at once.

  Returns:
    (params, rows) -> values [rows, ...] by name. It compiles once for rows of one length, for any parameters; it raises
    FactsError for a model without the sites, no rows, and NaN.
  """
  run = _make_run(forward, sites, select)
  check_count('batch', batch, 1)

  def read(params, rows):
    rows = as_tokens('rows', rows, 2)
    check_sites(forward, params, rows[:1], sites)
    size, parts = min(batch, len(rows)), []
    for start in range(0, len(rows), size):
      index = np.minimum(np.arange(start, start + size), len(rows) - 1)
      parts.append({name: np.asarray(x) for name, x in run(params, rows[index]).items()})
    found = {name: np.concatenate([p[name] for p in parts])[: len(rows)] for name in parts[0]}
    for name, x in found.items():
      check_finite(name, x)
    return found

  return read


def _make_run(forward: Callable, sites: str, select: Select | None) -> watching.Jitted:
  """A function (params, rows) -> values at the last position."""
  check_function(forward, FactsError, 'read_whole(model.apply, model.params, prefix, sites)')

  def run(params, rows):
    return keep_last(select, params, harvest.reap(forward, sites=sites)(params, rows))

  return watching.jit(run, forward, *([] if select is None else [select]))


def keep_last(
  select: Select | None, params: PyTree, acts: harvest.Activations
) -> dict[str, Float[Array, 'B ...']]:
  """The values to keep, from activations of whole rows, of which only the last position is used."""
  take = lambda name, x, lead: x[(slice(None),) * (lead + 1) + (-1,)]  # noqa: E731
  last = acts.map(take)
  if select is not None:
    return dict(select(params, last))
  names = dict.fromkeys(site.partition('.')[0] for site in last)
  layers = {name: last.layers(name) for name in names}
  return {
    name: jnp.moveaxis(last.stack(name), 0, 1) if layers[name] != [None] else last.stack(name)
    for name in names
  }


def as_grid(values: Mapping[str, Array], n_first: int, n_last: int) -> dict[str, np.ndarray]:
  """Values [first names * surnames, ...] as [first names, surnames, ...], on the host."""
  return {name: np.asarray(x).reshape(n_first, n_last, *x.shape[1:]) for name, x in values.items()}
