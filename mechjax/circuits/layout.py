"""The sites that a model has, and the shapes of their values.

The engine works on any tagged model, so it must know which of the variations the model has: a norm after the attention
or not, attention and MLP in turn or side by side, an MLP or none. `Layout.of` reads this from the list of sites, which
costs no run, and refuses a model before anything is computed if a site is missing or has other axes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree

from mechjax import harvest
from mechjax.errors import CircuitError
from mechjax.harvest import SiteInfo

NEEDED = ('embed', 'resid_pre', 'attn_norm', 'v', 'attn_probs', 'z', 'attn_out', 'resid_post')
"""Names without which nothing can be frozen; the others have substitutes, or depend on the architecture."""


@dataclasses.dataclass(frozen=True)
class Layout:
  """Sites of a model and their sizes.

  Attributes:
    n_layers, n_heads, n_kv_heads, d_head, width: L, N, K, H, D.
    n_neurons: F; 0 in a model without the site 'mlp_post'.
    length: T of the tokens for which the sites were listed.
    dtype: dtype of the residual stream.
    attention_output: 'attn_raw' with post-norms, otherwise 'attn_out'.
    mlp_output: 'mlp_raw' with post-norms, otherwise 'mlp_out'.
    mlp_input: 'resid_mid', or 'resid_pre' where attention and MLP are parallel.
    has_mlp: whether there are MLPs.
  """

  n_layers: int
  n_heads: int
  n_kv_heads: int
  d_head: int
  width: int
  n_neurons: int
  length: int
  dtype: np.dtype
  attention_output: str
  mlp_output: str
  mlp_input: str
  has_mlp: bool

  @property
  def lead(self) -> tuple[int, int, int]:
    """Leading axes of the values of all layers for one prompt: [L, 1, T]."""
    return self.n_layers, 1, self.length

  @property
  def is_parallel(self) -> bool:
    """Whether the MLP reads the same stream as the attention."""
    return self.has_mlp and self.mlp_input == 'resid_pre'

  def sites(self, extra: Sequence[str] = ()) -> list[str]:
    """Names of the sites that a frozen run is made of."""
    mlp = [self.mlp_input, 'mlp_norm', self.mlp_output, 'mlp_out'] if self.has_mlp else []
    names = [*NEEDED, self.attention_output, *mlp, 'final_norm', 'logits', *extra]
    return [*dict.fromkeys(names)]

  @classmethod
  def of(cls, forward: Callable, params: PyTree, tokens: Int[np.ndarray | Array, 'B T']) -> Layout:
    """Reads the layout of a model.

    Raises:
      CircuitError: tokens that are not [B, T], a missing site, or sites with other axes than the canonical ones.
    """
    if np.ndim(tokens) != 2 or 0 in np.shape(tokens):
      raise CircuitError(
        f'tokens of shape {list(np.shape(tokens))}',
        hint='token ids [B, T]: tokens[None] for one prompt',
      )
    infos = harvest.sites_of(forward, params, jnp.asarray(tokens)[:1])
    first = {info.site.name: info for info in reversed(infos)}
    layers = _count_layers(infos)
    has_mlp = 'mlp_out' in first
    missing = [n for n in [*NEEDED, 'final_norm', 'logits'] if n not in first]
    missing += ['mlp_norm'] if has_mlp and 'mlp_norm' not in first else []
    if missing or not layers:
      raise CircuitError(
        f'the model has no site {(missing or ["resid_pre"])[0]!r}',
        cause='the model is not instrumented, or its attention never forms this value',
        hint='harvest.sites_of(forward, params, tokens) lists its sites',
      )
    dtype = np.dtype(first['resid_pre'].dtype)
    if dtype.itemsize < 4:
      raise CircuitError(
        f'a residual stream of {dtype}',
        cause='sums of attributions need the digits of float32',
        hint='cast the parameters first: jax.tree.map(lambda x: x.astype(jnp.float32), params)',
      )
    shapes = {name: first[name].shape for name in first}
    T, D = np.shape(tokens)[1], shapes['resid_pre'][-1]
    N, H, K = shapes['z'][-2], shapes['z'][-1], shapes['v'][-2]
    expected = {
      'resid_pre': (1, T, D), 'z': (1, T, N, H), 'v': (1, T, K, H), 'attn_probs': (1, N, T, T)
    }  # fmt: skip
    wrong = [n for n, shape in expected.items() if shapes[n] != shape]
    if wrong or N % K:
      raise CircuitError(
        f'{(wrong or ["v"])[0]!r} has shape {list(shapes[(wrong or ["v"])[0]])}',
        cause='another layout than the axes in mechjax.sites.CANONICAL',
        hint='the frozen engine needs canonical axes; the patch of the model says how its own differ',
      )
    found = cls(
      layers, N, K, H, D, shapes['mlp_post'][-1] if 'mlp_post' in first else 0, T, dtype,
      attention_output='attn_raw' if 'attn_raw' in first else 'attn_out',
      mlp_output='mlp_raw' if 'mlp_raw' in first else 'mlp_out',
      mlp_input='resid_mid' if 'resid_mid' in first else 'resid_pre',
      has_mlp=has_mlp,
    )  # fmt: skip
    _check_all_layers(found, infos)
    return found


def _check_all_layers(layout: Layout, infos: Sequence[SiteInfo]) -> None:
  for name in layout.sites():
    at = [info.site.path for info in infos if info.site.name == name]
    if () not in at and at != [(i,) for i in range(layout.n_layers)]:
      raise CircuitError(
        f'{name!r} is at {len(at)} of {layout.n_layers} layers',
        where=', '.join(f'{name}.{path[0]}' for path in at),
        cause='layers of different kinds, such as MLPs in some of them',
        hint='the frozen engine needs the same sites in all layers',
      )


def _count_layers(infos: Sequence[SiteInfo]) -> int:
  """Number of layers; 0 if they are not numbered 0, 1, 2, ..."""
  paths = [info.site.path for info in infos if info.site.name == 'resid_pre']
  return len(paths) if paths == [(i,) for i in range(len(paths))] else 0
