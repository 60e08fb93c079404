"""Effective models: a model in which only some components do their work, and all others are ablated.

"Athletes' sports are looked up by MLPs 2 to 6 at the last token of the name" is a claim that everything else can be
taken away. So take it away: keep the components that are named (`components`), replace the outputs of all others by
means, values of other prompts or zeros (`ablation_values`) at the positions that matter, and see whether the fact is
still read. The result is again a tagged function of (params, inputs): reap it, plant into it, iterate over it,
differentiate it, jit it, or ablate it once more.

    parts = components_of(harvest.sites_of(forward, params, tokens))
    means = measure_means(forward, params, names, parts, positions=[-1], mask=mask)
    model = ablate(forward, Kept.of(parts, 'z.{0,1}, mlp_out.{0,2..6}'), means)
    logits = model(params, tokens, mask=mask)
    stream = harvest.reap(model, sites='resid_post.11')(params, tokens, mask=mask)
    model = ablate(forward, Kept.of(parts, '*'), means, paths=[('mlp_out.1', 'mlp_norm.3')])    only this path

The kept set, the values, the positions and the layers of paths are data. The model is a pytree of them, so one
executable serves a sweep: `jax.jit(lambda model, params, tokens: model(params, tokens))`, and `harvest.reap(model)`
compiles once by itself. Sets can also be stacked: `Kept(parts, members)` takes traced booleans under `jax.vmap`.

With everything kept and no path nothing is planted, and the result is the model bit for bit; in a sweep this set alone
has an executable of its own.

Sharp edges: a replaced output stays the same whatever happens before it, and kept components read the changed stream.
A mask is passed on to a `forward` with a parameter `mask`; for any other, padding must be on the right. If lengths are
traced, a prompt that lacks a position cannot be refused, and becomes NaN.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int32, PyTree, Shaped

from mechjax import harvest
from mechjax.errors import PatchingError
from mechjax.harvest import SiteInfo
from mechjax.patching import alignment, engine, sources
from mechjax.patching.ablated_site import AblatedSite, mismatch, rest_of
from mechjax.patching.ablation_values import AblationValues
from mechjax.patching.alignment import Mask, Positions
from mechjax.patching.checks import check_kind
from mechjax.patching.component_reads import list_layers
from mechjax.patching.components import Kept, mark_parts
from mechjax.patching.cut_paths import CutPaths, HeldModel, Path, check_receivers
from mechjax.patching.nodes import NodeSet
from mechjax.programs.callables import is_pytree


def ablate(
  forward: Callable,
  kept: Kept,
  values: AblationValues,
  *,
  positions: Positions = None,
  paths: Sequence[Path] = (),
) -> EffectiveModel:
  """Makes the effective model of a kept set.

  Args:
    forward: (params, inputs) or (params, inputs, mask=None) -> output; pure, with tagged sites.
    kept: the components that are kept; all others are ablated.
    values: the values that replace theirs.
    positions: where components and paths are ablated, as in `AblationValues.at`; None for all positions of `values`.
    paths: senders and receiver of each path that is ablated while its sender is kept, such as
      ('mlp_out.1', 'mlp_norm.3'); the senders' values at the same positions come from `values`.

  Returns:
    A tagged function (params, inputs, mask=None) -> the output of `forward`.

  Raises:
    SiteError: a path whose sender or receiver is not a site.
    PatchingError: values that lack a component or have other widths; positions without values; a path that cannot be.
  """
  sources.check_forward(forward)
  check_kind('kept', kept, Kept, "Kept.of(nodes, 'z.0, mlp_out.{1,2}')")
  check_kind('values', values, AblationValues, 'measure_means(forward, params, inputs, nodes)')
  nodes = kept.nodes
  values = values if positions is None else values.at(positions)
  _check_values(nodes, values)
  targets = tuple(
    AblatedSite(name, mine, nodes.layouts[name].axes) for name, mine in list_layers(nodes).items()
  )
  return EffectiveModel(
    forward=forward,
    targets=targets,
    ablated={t.name: mark_parts(nodes, t.name, ~jnp.asarray(kept.members)) for t in targets},
    values={t.name: _pick_layers(values, t) for t in targets},
    positions=values.positions,
    paths=CutPaths.of(nodes, paths),
    per_prompt=values.mode == 'resample',
    constant=values.mode == 'zero',
    keeps_all=kept.keeps_all,
  )


def _pick_layers(values: AblationValues, target: AblatedSite) -> Array:
  """Values at the layers of a target."""
  have, x = values.layers[target.name], values.values[target.name]
  return x if have == target.layers else x[np.array([have.index(i) for i in target.layers])]


def _check_values(nodes: NodeSet, values: AblationValues) -> None:
  for site in nodes.sites():
    if site.layer not in values.layers.get(site.name, ()):
      raise PatchingError(
        f'there are no values for {site}',
        where=f'values of: {", ".join(values.layers)}',
        cause='values of other components, or of another model',
        hint='measure the values of all components of the kept set',
      )
    _, sizes = rest_of(nodes.layouts[site.name])
    x = values.values[site.name]
    if x.shape[2 + (values.mode == 'resample') :] != sizes:
      raise mismatch(site.name, x.shape[2 + (values.mode == 'resample') :], sizes)


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True, eq=False)
class EffectiveModel:
  """A tagged function (params, inputs, mask=None) -> output; a pytree of its sets, values and positions.

  Attributes:
    forward: the model that is ablated.
    targets: the sites that have components.
    ablated: the parts of each site that are ablated, bool [layers, *rest], by name.
    values: values that replace them, as in `AblationValues`.
    positions: where, int32 [P] or [B, P]; None for every position.
    paths: the paths that are ablated, or None.
    per_prompt: whether each prompt has values of its own.
    constant: whether all positions have one value.
    keeps_all: whether no component is ablated.
  """

  forward: Callable
  targets: tuple[AblatedSite, ...]
  ablated: dict[str, Bool[Array, ' _ ...']]
  values: dict[str, Shaped[Array, ' _ ...']]
  positions: Int32[np.ndarray | Array, '... _'] | None
  paths: CutPaths | None
  per_prompt: bool
  constant: bool
  keeps_all: bool

  def __call__(self, params: PyTree, inputs: PyTree, mask: Mask | None = None) -> PyTree:
    """Runs the effective model.

    Args:
      params: first argument of `forward`.
      inputs: prompts: token ids [B, T], or a pytree whose first array is [B, T, ...].
      mask: True at real tokens, bool [B, T]; None if there is no padding.

    Raises:
      PatchingError: as `check_arguments`.
    """
    infos, dtypes = self._check(params, inputs, mask)
    options = self._options(mask)
    if self.keeps_all and self.paths is None:
      return self.forward(params, inputs, **options)
    real_BxT = jnp.asarray(alignment.is_real(inputs, mask))
    number_BxT = alignment.number_columns(self.positions, real_BxT)
    missing_BxT = self._find_missing(real_BxT)
    there_BxT = (number_BxT >= 0) | missing_BxT
    replaced = {
      t.name: t.spread(self.values[t.name], number_BxT, missing_BxT, dtype, self.per_prompt)
      for t, dtype in zip(self.targets, dtypes)
    }
    plants: dict[str, PyTree] = {}
    for t in () if self.keeps_all else self.targets:
      ablated = t.mask(self.ablated[t.name], there_BxT)
      plants |= engine.plant_masked(t.name, t.layers, replaced[t.name], ablated)
    if self.paths is not None:
      held = HeldModel.of(self.forward, (params, inputs), options, infos)
      plants |= held.plant_paths(plants, self.paths, self.targets, replaced, there_BxT)
    return harvest.plant(self.forward)(plants, params, inputs, **options)

  def check_arguments(self, params: PyTree, inputs: PyTree, mask: Mask | None = None) -> None:
    """Checks a call, as far as its values are known before the program runs; a harvest does so, too.

    Raises:
      PatchingError: prompts of another number than positions or values; a prompt that lacks a position, or is longer
        than those of the means; padding that the model would read; a site of another shape than the values.
      SiteError: a receiver of a path that does not exist.
    """
    self._check(params, inputs, mask)

  def _check(
    self, params: PyTree, inputs: PyTree, mask: Mask | None
  ) -> tuple[Sequence[SiteInfo], list[np.dtype]]:
    """The checks of a call; returns the sites of the model, and the dtype of each target."""
    real = alignment.is_real(inputs, mask)
    self._check_rows(real.shape[0])
    if not alignment.is_traced(real):
      alignment.check_padding(np.asarray(real), alignment.takes_mask(self.forward))
      self._check_positions(np.asarray(real))
    infos = harvest.sites_of(self.forward, params, inputs, **self._options(mask))
    if self.paths is not None:
      check_receivers(self.paths, infos)
    lead = 2 + self.per_prompt
    return infos, [
      t.check(infos, real.shape, self.values[t.name].shape[lead:]) for t in self.targets
    ]

  def _check_positions(self, real: Bool[np.ndarray, 'B T']) -> None:
    if self.positions is not None:
      if not alignment.is_traced(self.positions):
        alignment.check_there(np.asarray(self.positions), real)
    elif not self.constant:
      long = np.flatnonzero(real.sum(1) > self._n_positions)
      if len(long):
        raise PatchingError(
          f'prompt {long[0]} has {real[long[0]].sum()} tokens, and there are values for {self._n_positions} positions '
          'from the end',
          cause='values that were measured on shorter prompts',
          hint='measure them on prompts of this length, or ablate at some positions only: positions=[-1]',
        )

  def _check_rows(self, n: int) -> None:
    known = [x.shape[1] for x in self.values.values()] if self.per_prompt else []
    if self.positions is not None and self.positions.ndim == 2:
      known.append(self.positions.shape[0])
    other = [k for k in known if k != n]
    if other:
      raise PatchingError(
        f'positions or values of {other[0]} prompts, and {n} prompts',
        cause='a model that was made for another batch',
        hint='ablate(forward, kept, values, positions=...) with the positions of these prompts',
      )

  @property
  def _n_positions(self) -> int:
    return next(iter(self.values.values())).shape[1 + self.per_prompt]

  def _options(self, mask: Mask | None) -> dict[str, Any]:
    """The mask as a keyword of `forward`, if it has this parameter."""
    return {'mask': mask} if mask is not None and alignment.takes_mask(self.forward) else {}

  def _find_missing(self, real_BxT: Bool[Array, 'B T']) -> Bool[Array, 'B T']:
    """Columns that should have a value and do not, which a program can only make NaN."""
    if self.positions is None and self.constant:
      return jnp.zeros(real_BxT.shape, bool)
    return alignment.find_missing(self.positions, real_BxT, self._n_positions)

  def tree_flatten(self) -> tuple:
    data = (self.ablated, self.values, self.positions, self.paths)
    fixed = (self.targets, self.per_prompt, self.constant, self.keeps_all)
    if is_pytree(self.forward):
      return (self.forward, *data), (None, fixed)
    return (None, *data), (self.forward, fixed)

  @classmethod
  def tree_unflatten(cls, aux: tuple, children: Sequence) -> EffectiveModel:
    forward, fixed = aux
    inner, ablated, values, positions, paths = children
    targets, per_prompt, constant, keeps_all = fixed
    return cls(
      inner if forward is None else forward,
      targets,
      ablated,
      values,
      positions,
      paths,
      per_prompt,
      constant,
      keeps_all,
    )
