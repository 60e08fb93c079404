"""Ablation of single paths: what one component reads from another, and nothing else.

An MLP may matter because a later MLP reads its output, or because the output reaches the answer directly. To ablate the
path MLP_i -> MLP_j, MLP j alone reads a stream in which the output of MLP i is replaced by its mean; everything else
reads the real one (Wang et al. 2022; Goldowsky-Dill et al. 2023; docs/methods.md, section 3.1):

    pass 1    the model as it is: the values of all components
    pass 2    all components have these values, except the sender, which has its replacement. So the change travels
              along the residual stream alone; the value that arrives at the receiver (its norm) is recorded
    pass 3    the recorded value is planted at the receiver

Several senders of one receiver are replaced in one pass. Several receivers are taken in the order of their layers, so
that a later one sees the effect of an earlier one: 2 R + 1 passes for R receivers. Passes 1 and 2 have no sites for a
harvest around them, so that `resid_post.5` of an effective model is a site of its last pass.

Sharp edges: a receiver is the norm through which a component reads the stream: 'mlp_norm', 'attn_norm', 'final_norm'.
In a model whose attention and MLP are parallel, a layer's attention is not read by its MLP, and this path has no
effect. If a model has no 'z', attention is held at 'attn_out'.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int32, PyTree, Shaped

from mechjax import harvest, sites
from mechjax.errors import PatchingError, unknown
from mechjax.harvest import SiteInfo
from mechjax.patching import engine
from mechjax.patching.ablated_site import AblatedSite
from mechjax.patching.components import Choice, Kept, mark_parts
from mechjax.patching.nodes import NodeSet

RECEIVERS = ('attn_norm', 'mlp_norm', 'final_norm')
"""Sites through which a component or the unembedding reads the stream."""

Path = tuple[Choice, str]
"""Senders (patterns, nodes) and the site of a receiver: ('mlp_out.1', 'mlp_norm.3')."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CutPaths:
  """Paths that are ablated, with the receivers in the order of their layers.

  Attributes:
    names: site name of each receiver.
    layers: layer of each receiver, int32 [R]; -1 for a site without layers.
    senders: the parts of each site that send to each receiver, bool [R, layers, *rest], by site name.
  """

  names: tuple[str, ...] = dataclasses.field(metadata={'static': True})
  layers: Int32[np.ndarray | Array, ' R']
  senders: dict[str, Bool[np.ndarray | Array, 'R _ ...']]

  @classmethod
  def of(cls, nodes: NodeSet, paths: Sequence[Path]) -> CutPaths | None:
    """Checks paths, and joins those of one receiver; None without paths.

    Args:
      nodes: the components that may send.
      paths: senders and receiver of each path.

    Raises:
      SiteError: a sender or receiver that is not a site.
      PatchingError: a receiver that is not a norm; a sender above its receiver.
    """
    members: dict[sites.Site, Any] = {}
    for choice, receiver in paths:
      site = _check_receiver(receiver)
      chosen = np.asarray(Kept.of(nodes, choice).members)
      _check_below(nodes, chosen, site)
      members[site] = members.get(site, False) | chosen
    if not members:
      return None
    order = sorted(members, key=_height)
    layers = np.array([-1 if site.layer is None else site.layer for site in order], np.int32)
    senders: dict[str, Any] = {
      name: jnp.stack([mark_parts(nodes, name, members[site]) for site in order])
      for name in dict.fromkeys(site.name for site in nodes.sites())
    }
    return cls(tuple(site.name for site in order), layers, senders)


def _height(site: sites.Site) -> tuple[float, int]:
  """Order of a site in a forward pass."""
  outside = -1 if site.name == 'embed' else np.inf
  order = [*sites.CANONICAL].index(site.name) if site.name in sites.CANONICAL else 0
  return (site.path[0] if site.path else outside), order


def _check_receiver(receiver: str) -> sites.Site:
  site = sites.parse(receiver)
  if site.name not in RECEIVERS:
    raise unknown(
      PatchingError,
      'receiver of a path',
      site.name,
      RECEIVERS,
      cause='a receiver is the norm through which a component reads the stream',
    )
  return site


def _check_below(nodes: NodeSet, chosen: Bool[np.ndarray, ' nodes'], receiver: sites.Site) -> None:
  if not chosen.any():
    raise PatchingError(f'the path to {receiver} has no sender')
  late = [node for node in nodes[chosen] if _height(node.site) > _height(receiver)]
  if late:
    raise PatchingError(
      f'{late[0]} does not lie below {receiver}', cause='sender and receiver are exchanged'
    )


def check_receivers(cut: CutPaths, infos: Sequence[SiteInfo]) -> None:
  """Raises SiteError if a receiver does not exist in a model; layers that are traced are not checked."""
  if isinstance(cut.layers, jax.core.Tracer):
    return
  there = [info.site for info in infos]
  for name, layer in zip(cut.names, np.asarray(cut.layers).tolist()):
    sites.select(sites.Site(name, () if layer < 0 else (layer,)), there)


@dataclasses.dataclass(frozen=True)
class HeldModel:
  """A model whose components can be held at the values of a run.

  Attributes:
    forward: the model.
    args: its arguments.
    options: its keyword arguments.
    names: names of the sites that are held: 'z', or 'attn_out' in a model without it, and 'mlp_out'.
    layers: all layers of each site name, in order; (None,) for a site without layers.
  """

  forward: Callable
  args: tuple[PyTree, ...]
  options: Mapping[str, PyTree]
  names: tuple[str, ...]
  layers: Mapping[str, tuple[int | tuple[int, ...] | None, ...]]

  @classmethod
  def of(
    cls,
    forward: Callable,
    args: tuple[PyTree, ...],
    options: Mapping[str, PyTree],
    infos: Sequence[SiteInfo],
  ) -> HeldModel:
    """The model of a call whose sites are listed in `infos`."""
    layers: dict[str, tuple] = {}
    for info in infos:
      layers[info.site.name] = (*layers.get(info.site.name, ()), info.site.layer)
    attention = 'z' if 'z' in layers else 'attn_out'
    names = tuple(name for name in (attention, 'mlp_out') if name in layers)
    return cls(forward, args, options, names, layers)

  def plant_paths(
    self,
    plants: Mapping[str, PyTree],
    cut: CutPaths,
    targets: Sequence[AblatedSite],
    replaced: Mapping[str, Shaped[Array, ' L ...']],
    there_BxT: Bool[Array, 'B T'],
  ) -> dict[str, PyTree]:
    """Makes the plants of the receivers.

    Args:
      plants: the plants of ablated components.
      cut: the paths.
      targets: the sites that have components.
      replaced: values that replace those of the components, [layers, *site], by site name.
      there_BxT: the columns at which paths are ablated.
    """
    received: dict[str, list] = {}
    found: dict[str, PyTree] = {}
    for r, name in enumerate(cut.names):
      base = self._read({**plants, **found})
      held: dict[str, PyTree] = {k: base.stack(k) for k in self.names}
      for t in targets:
        mask, new = t.mask(cut.senders[t.name][r], there_BxT), replaced[t.name]
        if t.name in self.names:
          held[t.name] = self._replace(t, held[t.name], new, mask)
        else:
          held |= engine.plant_masked(t.name, t.layers, new, mask)
      received.setdefault(name, []).append(self._receive(held, name, cut.layers[r]))
      found = self._plant_received(received, cut, there_BxT)
    return found

  def _read(self, plants: Mapping[str, PyTree]) -> harvest.Activations:
    """Values of all components in the model with these plants."""

    def read(plants, args, options):
      return harvest.harvest(self.forward, sites=self.names)(plants, *args, **options)[1]

    return _hide(read)(dict(plants), self.args, self.options)

  def _replace(self, t: AblatedSite, base: Array, new: Array, mask: Array) -> Array:
    """The values of a held site, with those of the senders replaced."""
    if t.layers == (None,):
      return jnp.where(mask[0], new[0], base)
    index = np.array([self.layers[t.name].index(i) for i in t.layers])
    return base.at[index].set(jnp.where(mask, new, base[index]))

  def _receive(self, held: Mapping[str, PyTree], name: str, layer: Array) -> Array:
    """The value that arrives at a receiver while the components are held, [B, T, D]."""

    def receive(held, layer, args, options):
      where: Any = name if self.layers[name] == (None,) else {name: layer[None]}
      acts = harvest.harvest(self.forward, sites=where)(held, *args, **options)[1]
      return acts.stack(name)

    value = _hide(receive)(dict(held), layer, self.args, self.options)
    return value if self.layers[name] == (None,) else value[0]

  def _plant_received(
    self, received: Mapping[str, list], cut: CutPaths, there_BxT: Bool[Array, 'B T']
  ) -> dict[str, PyTree]:
    found: dict[str, PyTree] = {}
    mask = there_BxT[:, :, None]
    for name, values in received.items():
      if self.layers[name] == (None,):
        found[name] = harvest.Masked(values[0], mask)
      else:
        mine = np.array([r for r, other in enumerate(cut.names) if other == name])[: len(values)]
        planted = harvest.Masked(jnp.stack(values), mask[None])
        found[name] = harvest.At(jnp.asarray(cut.layers)[mine], planted)
    return found


def _hide(f: Callable) -> Callable:
  """The function without sites, so that a harvest around it does not see them."""
  return functools.partial(harvest.plant(f, tag='mechjax hidden pass', exclusive=True), {})
