"""A site with components: how values by position from the end become plants for a batch.

Values that replace those of components have their positions in front of the other axes, [layers, P, *rest], whatever
the layout of the site. A plant has exactly the site's shape. The way between the two is the same for all components,
so it stands here:

    site = AblatedSite('z', layers=(0, 1), axes='BTNH')
    site.spread(values, number, missing, dtype)       [layers, P, N, H] -> [layers, B, T, N, H]
    site.mask(parts, there)                           bool [layers, N, 1] and [B, T] -> bool [layers, B, T, N, 1]

Letters: B prompts, T columns. P, on this page, is a number of positions from the end; rest are all other axes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int32, Shaped

from mechjax import sites
from mechjax.errors import PatchingError
from mechjax.harvest import SiteInfo
from mechjax.patching.nodes import AxisLayout


@dataclasses.dataclass(frozen=True)
class AblatedSite:
  """A site name with components.

  Attributes:
    name: name of the site.
    layers: the layers that have components; (None,) for a site without layers.
    axes: letters of the axes of its value.
  """

  name: str
  layers: tuple[int | None, ...]
  axes: str

  def check(
    self, infos: Sequence[SiteInfo], shape: tuple[int, ...], rest: tuple[int, ...]
  ) -> np.dtype:
    """Checks that a model has this site, and returns the dtype of its values.

    Args:
      infos: the sites of the model at the prompts at hand.
      shape: B and T of the prompts.
      rest: sizes of the other axes of the values.

    Raises:
      PatchingError: a layer that does not exist, or another shape.
    """
    there = {info.site: info for info in infos}
    dtypes = set()
    for layer in self.layers:
      site = sites.Site(self.name, () if layer is None else (layer,))
      if site not in there:
        raise PatchingError(
          f'this model has no site {site}', cause='components or values of another model'
        )
      info = there[site]
      sizes = dict(zip(self.axes, info.shape))
      mine = tuple(n for a, n in zip(self.axes, info.shape) if a not in 'BT')
      if len(info.shape) != len(self.axes) or mine != rest:
        raise mismatch(str(site), mine, rest)
      if (sizes['B'], sizes['T']) != tuple(shape):
        raise PatchingError(
          f'{site} has shape {info.shape} with axes {self.axes!r}, and the prompts are {list(shape)}',
          hint='the first array of the inputs is [B, T, ...]; components_of takes axes= of other layouts',
        )
      dtypes.add(np.dtype(info.dtype))
    if len(dtypes) > 1:
      raise PatchingError(f'the layers of {self.name!r} have the dtypes {sorted(map(str, dtypes))}')
    return dtypes.pop()

  def spread(
    self,
    values: Shaped[Array, ' L ...'],
    number_BxT: Int32[Array, 'B T'],
    missing_BxT: Bool[Array, 'B T'],
    dtype: np.dtype,
    per_prompt: bool = False,
  ) -> Shaped[Array, ' L ...']:
    """Values at the columns of their positions, [layers, *site].

    Args:
      values: [layers, P, *rest], or [layers, B, P, *rest] with `per_prompt`.
      number_BxT: number of each column's position; any value where the column is not used.
      missing_BxT: columns that become NaN.
      dtype: of the result.
      per_prompt: whether each prompt has values of its own.
    """
    axis = 1 + per_prompt
    number_BxT = jnp.clip(number_BxT, 0, values.shape[axis] - 1)
    if per_prompt:
      x = jax.vmap(lambda mine, number: mine[:, number], (1, 0), 1)(values, number_BxT)
    else:
      x = values[:, number_BxT]
    missing = missing_BxT.reshape(1, *missing_BxT.shape, *[1] * (x.ndim - 3))
    return from_front(jnp.where(missing, jnp.nan, x).astype(dtype), self.axes)

  def mask(
    self, parts: Bool[Array, ' L ...'], there_BxT: Bool[Array, 'B T']
  ) -> Bool[Array, ' L ...']:
    """Mask of some parts, bool [layers, *rest], at some columns: [layers, *site], broadcastable."""
    there = there_BxT.reshape(1, *there_BxT.shape, *[1] * (parts.ndim - 1))
    return from_front(parts[:, None, None] & there, self.axes)


def rest_of(layout: AxisLayout) -> tuple[str, tuple[int, ...]]:
  """Letters and sizes of the axes of a site besides prompts and positions, in their order."""
  rest = [(a, n) for a, n in zip(layout.axes, layout.shape) if a not in 'BT']
  return ''.join(a for a, _ in rest), tuple(n for _, n in rest)


def mismatch(name: str, one: tuple[int, ...], other: tuple[int, ...]) -> PatchingError:
  """The error for a site whose shape is not that of the components or values."""
  return PatchingError(
    f'{name!r} has the shape {list(one)} besides prompts and positions, and {list(other)} was expected',
    cause='components or values of another model',
    hint='make components, kept set and values from this model',
  )


def to_front(x: Shaped[Array, ' L ...'], axes: str) -> Shaped[Array, ' L ...']:
  """Moves prompts and positions to the front: [L, *axes] -> [L, B, T, *rest]."""
  return jnp.moveaxis(x, (1 + axes.index('B'), 1 + axes.index('T')), (1, 2))


def from_front(x: Shaped[Array, ' L ...'], axes: str) -> Shaped[Array, ' L ...']:
  """Inverse of `to_front`."""
  return jnp.moveaxis(x, (1, 2), (1 + axes.index('B'), 1 + axes.index('T')))
