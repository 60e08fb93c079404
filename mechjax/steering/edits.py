"""Edits of the residual stream: a vector added, a latent clamped, directions removed.

An edit is a description: a site, positions and arrays. Its plants are functions of a site's value and of positions, so
that one description serves a pass, a generation and upstream code (`where`):

    edit = Add('resid_pre.12', V, where=first(3))
    model.generate(prompts, 50, plants=edit.plants(4.0))                          in a generation
    plants = in_one_pass(edit.plants(4.0), mask)                                   in one pass
    logits = harvest.plant(forward)(plants, params, tokens)

    Add        x + c v                                   one vector, or another one at each position
    Clamp      x + c (a - f_i(x)) d_i                    latent i of a dictionary set to a (`clamping`)
    Project    (1 - c) x + c (x - (x Q^T) Q)             removes the span of an orthonormal basis
    Ablate     the same for one direction r: x - c r^ r^T x, at every site that a pattern selects (`WRITES`)
    Together   several edits at different sites

The coefficient c, vectors, bases, the target a and the layer (`layer=`) are arrays that the plants close over: a sweep
over any of them compiles nothing. c = 0 and an empty basis change no bit: values are chosen, not multiplied by zero,
which would turn -0.0 into 0.0. The derivative in c at 0 is that of the formula all the same.

Clamping needs no reconstruction. With f' = f but f'_i = a, decode(f') + (x - decode(f)) = x + (a - f_i) d_i: the
reconstruction and its error cancel (Templeton et al. 2024).

Sharp edges: the arithmetic is in float32 or the widest dtype of value and vector, and the result in the dtype of the
site. A site that a generation's plan names twice is refused there. At sites [B, T, D] only: heads have other axes.

Letters: B prompts of a batch, T positions, D model width.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Int32

from mechjax import harvest, precision, sites
from mechjax.errors import SteeringError
from mechjax.steering.bases import normalise, remove
from mechjax.steering.checks import check_layer, check_number, check_vector, is_traced
from mechjax.steering.where import Ordered, Where, everywhere

Change = Callable[[Array, Array, Array, Array], Array]
"""(value in a wide dtype [B, T, D], positions [B, T], prompt lengths [B], coefficient) -> new value."""

Plants = dict[str, harvest.Positioned | harvest.At]
"""Plants of an edit, by site."""

WRITES = 'embed, attn_out, mlp_out'
"""Sites of all writes to the residual stream of a decoder. A direction that is removed from each of them is absent from
the stream at every layer, and no later layer can bring it back (Arditi et al. 2024, section 2.4)."""

_SLACK = 1e-3
"""Largest entry of |Q Q^T - I| in a basis that counts as orthonormal; bases in bfloat16 are not."""


class Edit(abc.ABC):
  """A change of a model's activations at some positions."""

  where: Where

  @abc.abstractmethod
  def plants(self, c: ArrayLike = 1.0) -> Plants:
    """Plants of the edit, for `generate`, and through `in_one_pass` for `harvest.plant`.

    Args:
      c: coefficient, a number that may be traced; 0 changes nothing, bit for bit.

    Raises:
      SteeringError: not one finite number.
    """


@dataclasses.dataclass(frozen=True, eq=False)
class SiteEdit(Edit):
  """An edit at the sites that one pattern selects.

  Attributes:
    site: the site, such as 'resid_pre.12', or a pattern; a name without a layer if `layer` is given.
    layer: number of the layer, which may be traced, in place of one in `site`; None if `site` has it.
    where: positions that are changed.
  """

  site: str | sites.Site
  layer: int | Int[Array, ''] | None = dataclasses.field(default=None, kw_only=True)
  where: Where = dataclasses.field(default=everywhere, kw_only=True)

  def __post_init__(self) -> None:
    patterns = sites.as_patterns(self.site)
    check_layer(self.layer)
    if self.layer is not None and any(map(sites.names_layers, patterns)):
      raise SteeringError(
        f'site={self.site!r} names a layer, and layer={self.layer!r} as well',
        hint="Add('resid_pre', V, layer=12) or Add('resid_pre.12', V)",
      )
    if not isinstance(self.where, Where):
      raise SteeringError(
        f'where={self.where!r:.100} is not a choice of positions',
        hint='first(n), last(n), at(4, 5), prompt, generated, everywhere, mask(array)',
      )

  @abc.abstractmethod
  def change(self) -> Change:
    """Makes the function that changes all positions of a value; arrays that it closes over are data."""

  def plants(self, c: ArrayLike = 1.0) -> Plants:
    planted = harvest.Positioned(_apply(self, check_number('c', c)), self.where.check)
    pattern = ', '.join(sites.as_patterns(self.site))
    if self.layer is None:
      return {pattern: planted}
    return {pattern: harvest.At(jnp.asarray(self.layer, jnp.int32), planted)}


@dataclasses.dataclass(frozen=True, eq=False)
class Add(SiteEdit):
  """Adds a vector: x + c v.

  Attributes:
    vector: [D], the same at each position that is changed; or [n, D], one for each of the n positions of `where`, which
      is then `first(n)`, `last(n)` or `at` with n positions.

  Raises:
    SteeringError: a vector with NaN or of zeros, or of another shape; as many vectors as positions are needed.
  """

  vector: Float[Array | np.ndarray, '*n D']
  where: Where = dataclasses.field(kw_only=True)

  def __post_init__(self) -> None:
    super().__post_init__()
    check_vector('the vector', self.vector, (1, 2))
    if np.ndim(self.vector) == 2:
      n = np.shape(self.vector)[0]
      if not isinstance(self.where, Ordered) or self.where.n != n:
        raise SteeringError(
          f'{n} vectors, one for each position, and where={self.where}',
          hint=f'where=first({n}), or another choice of {n} positions',
        )

  def change(self) -> Change:
    vector = jnp.asarray(self.vector)
    where = self.where

    def add(x, positions_BxT, prompt_length_B, c):
      _check_width(x, vector.shape[-1], 'a vector')
      x, added, c = _common(x, vector, c)
      if isinstance(where, Ordered) and added.ndim == 2:
        rank_BxT = jnp.clip(where.rank(positions_BxT, prompt_length_B), 0, len(added) - 1)
        return x + c * added[rank_BxT]
      return x + c * added

    return add


@dataclasses.dataclass(frozen=True, eq=False)
class Project(SiteEdit):
  """Removes the span of an orthonormal basis: (1 - c) x + c (x - (x Q^T) Q).

  Attributes:
    basis: Q [n, D] with orthonormal rows, from `orthonormal_basis`; without rows, the edit changes nothing.

  Raises:
    SteeringError: rows that are not orthonormal, or contain NaN.
  """

  basis: Float[Array | np.ndarray, 'n D']

  def __post_init__(self) -> None:
    super().__post_init__()
    if np.shape(self.basis)[:1] == (0,) and np.ndim(self.basis) == 2:
      return
    check_vector('the basis', self.basis, (2,))
    if not is_traced(self.basis):
      rows = np.asarray(self.basis, np.float64)
      error = np.abs(rows @ rows.T - np.eye(len(rows))).max()
      if error > _SLACK:
        raise SteeringError(
          f'the rows of the basis are not orthonormal: an entry of Q Q^T is off by {error:.2g}',
          cause='directions that were not made orthogonal, whose removal would leave or overshoot a part',
          hint='orthonormal_basis(vectors)',
        )

  def change(self) -> Change:
    basis = jnp.asarray(self.basis)
    return lambda x, positions_BxT, prompt_length_B, c: _remove_part(x, basis, c)


@dataclasses.dataclass(frozen=True, eq=False)
class Ablate(SiteEdit):
  """Directional ablation: x - c r^ r^T x (Arditi et al. 2024, equation 4).

  Attributes:
    site: the sites, such as `WRITES`, every write to the residual stream. At a site that is not a write, such as
      resid_pre, the next layer writes the direction again.
    direction: r [D], of any length but 0.

  Raises:
    SteeringError: a direction of zeros or with NaN.
  """

  direction: Float[Array | np.ndarray, ' D']

  def __post_init__(self) -> None:
    super().__post_init__()
    check_vector('the direction', self.direction, (1,))

  def change(self) -> Change:
    basis = normalise(self.direction)[None]
    return lambda x, positions_BxT, prompt_length_B, c: _remove_part(x, basis, c)


@dataclasses.dataclass(frozen=True, eq=False)
class Together(Edit):
  """Several edits at different sites, with one coefficient.

  Attributes:
    edits: the edits.

  Raises:
    SteeringError: no edit.
  """

  edits: Sequence[Edit]

  def __post_init__(self) -> None:
    object.__setattr__(self, 'edits', tuple(self.edits))
    if not self.edits or not all(isinstance(e, Edit) for e in self.edits):
      raise SteeringError(f'Together({self.edits!r:.100}); expected one edit or more')

  @property
  def where(self) -> Where:  # type: ignore[override]
    """Positions that any of the edits changes."""
    found = self.edits[0].where
    for edit in self.edits[1:]:
      found = found | edit.where
    return found

  def plants(self, c: ArrayLike = 1.0) -> Plants:
    found: Plants = {}
    for edit in self.edits:
      for site, planted in edit.plants(c).items():
        if site in found:
          raise SteeringError(
            f'two edits at {site!r}',
            cause='edits at one site, or at two layers of one name that are given as data, by layer=',
            hint="join the vectors; or name the layers: 'resid_pre.0', 'resid_pre.1'",
          )
        found[site] = planted
    return found


def _apply(edit: SiteEdit, c: Float[Array, '']) -> Callable[[Array, Array, Array], Array]:
  """The function of a value, its positions and prompt lengths that an edit plants."""
  where, change = edit.where, edit.change()

  def apply(
    value: Float[Array, 'B T D'],
    positions_BxT: Int32[Array, 'B T'],
    prompt_length_B: Int32[Array, ' B'],
  ) -> Float[Array, 'B T D']:
    if value.ndim != 3:
      raise SteeringError(
        f'an edit of a site of shape {value.shape}',
        cause='edits change vectors [B, T, D]; heads, keys and probabilities have other axes',
        hint='a site of the residual stream, or of what is written to it: resid_pre, attn_out, mlp_out, resid_post',
      )
    if value.shape[:2] != positions_BxT.shape:
      raise SteeringError(
        f'an edit of a value of shape {value.shape} at positions of shape {positions_BxT.shape}',
        cause='a mask, or a shape of tokens, of another batch',
        hint='in_one_pass(plants, mask) takes the mask of the tokens, or tokens.shape',
      )
    chosen_BxT = where.choose(positions_BxT, prompt_length_B)
    new = change(precision.wide(value), positions_BxT, prompt_length_B, c).astype(value.dtype)
    return jnp.where(chosen_BxT[..., None], _unless_zero(c, new, value), value)

  return apply


@jax.custom_jvp
def _unless_zero(c: Array, new: Array, old: Array) -> Array:
  """The new value, or the old one to the last bit if c is 0; the derivative is that of the new value in both cases."""
  return jnp.where(c != 0, new, old)


@_unless_zero.defjvp
def _(primals: tuple[Array, Array, Array], tangents: tuple[Array, Array, Array]) -> tuple:
  return _unless_zero(*primals), tangents[1]


def _remove_part(x: Array, basis: Array, c: Array) -> Array:
  """(1 - c) x + c (x without the span of the basis): exactly the second at c = 1."""
  if not len(basis):
    return x
  x, basis, c = _common(x, basis, c)
  return (1 - c) * x + c * remove(x, basis)


def _common(*arrays: Array) -> list[Array]:
  """The arrays in the widest of the dtypes of the value and of what is added to it, which come first."""
  dtype = jnp.promote_types(arrays[0].dtype, arrays[1].dtype)
  return [x.astype(dtype) for x in arrays]


def _check_width(x: Array, D: int, what: str) -> None:
  if x.shape[-1] != D:
    raise SteeringError(
      f'{what} of width {D} at a site of width {x.shape[-1]}',
      cause='made from another model, or at another kind of site',
    )
