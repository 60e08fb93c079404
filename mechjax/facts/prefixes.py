"""Names that share a prefix: the prefix is computed once, and each surname costs one token.

In a product of names every first name is read with every surname, and a name is three tokens: the token that begins
texts, the first name, the surname. A causal model computes the first two without the third. So they run once for each
first name, with a cache of keys and values, and every surname continues from there: 100 x 100 names are 10,200 tokens
instead of 30,000, and every value is that of the whole pass, up to the rounding of products of other shapes.

    step, new_cache = ...                        those of `mechjax.generate.Model`
    read = share_prefix(step, new_cache, params, names.prefix, 'mlp_post.{0..6}')
    read_product(read, names)

Sharp edge: only models with a cache can continue; `reads.read_whole` reads any tagged model.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int32, PyTree

from mechjax import harvest, watching
from mechjax.errors import FactsError
from mechjax.facts.needed_sites import check_sites
from mechjax.facts.reads import Read, Select, as_grid, keep_last

Step = Callable[[PyTree, Int32[Array, 'B T'], Bool[Array, 'B T'], PyTree], tuple[Array, PyTree]]
"""(params, tokens, mask, cache) -> (logits, cache with these tokens)."""


def share_prefix(
  step: Step,
  new_cache: Callable[[PyTree, int, int], PyTree] | None,
  params: PyTree,
  prefix: tuple[int, ...],
  sites: str,
  select: Select | None = None,
) -> Read:
  """Makes a function that reads names, of which those with one first name share its computation.

  Args:
    step: continues from a cache, with tagged sites.
    new_cache: (params, number of rows, number of slots) -> an empty cache.
    params: parameters of the model.
    prefix, sites, select: as in `reads.read_whole`.

  Raises:
    FactsError: a model without a cache, or without the sites.
  """
  if new_cache is None:
    raise FactsError('the model has no cache', hint='read_whole reads names in whole passes')
  make = new_cache
  T = len(prefix) + 1
  axes = _row_axes(make, params, T + 1)
  one = np.zeros((1, 1), np.int32)
  empty = jax.eval_shape(lambda p: make(p, 1, T + 1), params)
  check_sites(lambda p, t: step(p, t, jnp.ones(t.shape, bool), _zeros(empty)), params, one, sites)

  def run(params, before, last):
    rows, n = len(before), len(last)
    _, cache = step(params, before, jnp.ones(before.shape, bool), make(params, rows, T + 1))
    cache = jax.tree.map(lambda x, axis: x if axis < 0 else jnp.repeat(x, n, axis), cache, axes)
    tokens = jnp.tile(last, rows)[:, None]
    acts = harvest.reap(step, sites=sites)(params, tokens, jnp.ones(tokens.shape, bool), cache)
    return keep_last(select, params, acts)

  run = watching.jit(run, step, make, *([] if select is None else [select]))

  def read(first, last):
    before = np.tile(np.array([*prefix, 0], np.int32), (len(first), 1))
    before[:, -1] = first
    return as_grid(run(params, before, last.astype(np.int32)), len(first), len(last))

  return read


def _zeros(shapes: PyTree) -> PyTree:
  return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)


def _row_axes(new_cache: Callable, params: PyTree, slots: int) -> PyTree:
  """The axis of rows of each array of a cache; -1 for one without rows."""
  shapes = [jax.eval_shape(lambda p, n=n: new_cache(p, n, slots), params) for n in (2, 3)]

  def find(a, b):
    differing = [i for i, (m, n) in enumerate(zip(a.shape, b.shape)) if m != n]
    return differing[0] if differing else -1

  return jax.tree.map(find, *shapes)
