"""Ensembles: dictionaries of one shape that train together on the same activations.

A sweep over sparsity coefficients, or over seeds, trains many dictionaries that differ only in numbers. Trained
together they share every batch (whose activations cost as much as a step) and one compiled step. An ensemble is such a
group; a training has any number of ensembles, of any architectures and sites, by name:

    {'jump': Ensemble(sae=JumpReLU(d_in=768, width=6144, sparsity=1e-3), reads='resid_post.5', seeds=(0, 0, 0),
                       hparams={'sparsity': (5e-4, 1e-3, 2e-3)}),
     'topk': Ensemble(sae=TopK(d_in=768, width=6144, k=64), reads='resid_post.5', seeds=(0, 1),
                      hparams={'k': (32, 64)}),
     'mlp':  Ensemble(sae=ReLU(d_in=768, d_out=768, width=6144, sparsity=1e-3), reads='mlp_in.5', writes='mlp_out.5')}

Cross-layer transcoders read and write a tuple of sites, one for each layer; crosscoders read a tuple of sites, one for
each of their `parts`.

Each member equals a dictionary trained alone with its seed and its values; `member` returns the settings of that one.

Sharp edge: the number of tokens after which a latent is dead is the same for the whole ensemble. A loss for dead
latents and resampling each define it; if an ensemble has both, they must agree.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

import jax
import jax.numpy as jnp

from mechjax.errors import SAEError
from mechjax.sae.architectures import Architecture, CrossLayer
from mechjax.sae.checks import check_field
from mechjax.sae.dead_latents.counters import check_tokens
from mechjax.sae.dead_latents.resampling import Resampling
from mechjax.sae.training.mfr import MFR

Values = tuple[tuple[str, tuple[float, ...]], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ensemble:
  """Dictionaries of one shape.

  Attributes:
    sae: common settings of the members.
    reads: input site, a key of every batch; one for each layer of cross-layer transcoders, and for each part of
      crosscoders, as a tuple.
    writes: site that a transcoder reconstructs, or a tuple of them; None for an autoencoder.
    seeds: one seed for each member.
    hparams: traced hyperparameters of `sae`, with a value for each member; stored as sorted pairs, so that an ensemble
      is hashable. The others have the value of `sae`.
    dead_after_tokens: number of tokens without firing after which a latent is dead, unless `sae.aux_loss` or
      `resampling` defines it.
    resampling: settings of resampling, or None.
    resample_every: number of steps between resamplings; 0 without `resampling`.
    guide: site of the gradients that guide the selection of latents (`GradientTopK`); None for other architectures.
    agreement: makes members learn the same features (`mfr`), or None.

  Raises:
    SAEError: settings that contradict each other; the message contains the value.
  """

  sae: Architecture
  reads: str | tuple[str, ...]
  writes: str | tuple[str, ...] | None = None
  seeds: tuple[int, ...] = (0,)
  hparams: Mapping[str, tuple[float, ...]] | Values = ()
  dead_after_tokens: int = 10_000_000
  resampling: Resampling | None = None
  resample_every: int = 0
  guide: str | None = None
  agreement: MFR | None = None

  def __post_init__(self) -> None:
    pairs = sorted((name, tuple(values)) for name, values in dict(self.hparams).items())
    object.__setattr__(self, 'hparams', tuple(pairs))
    check_field(self, 'reads', bool(self.reads), 'the name of a site')
    check_field(self, 'sae', isinstance(self.sae, Architecture), 'a dictionary such as ReLU(...)')
    transcodes = self.sae.d_out is not None
    expected = 'the site of the target' if transcodes else 'None without d_out'
    check_field(self, 'writes', bool(self.writes) == transcodes, expected)
    self._check_layers()
    valid = isinstance(self.seeds, Sequence) and len(self.seeds) > 0
    valid = valid and all(isinstance(seed, Integral) and 0 <= seed < 2**32 for seed in self.seeds)
    check_field(self, 'seeds', valid, 'one or more whole numbers from 0 to 2**32 - 1, as a tuple')
    for name, values in pairs:
      if len(values) != self.members:
        raise SAEError(f'{name}={values} for an ensemble with {self.members} seeds {self.seeds}')
    self.sae.hparams(**dict(pairs))  # checks the values
    check_tokens(self, 'dead_after_tokens')
    every = self.resample_every > 0 if self.resampling else self.resample_every == 0
    check_field(self, 'resample_every', every, f'{"positive" if self.resampling else "0"}')
    self._check_tokens()
    self._check_partners()

  @property
  def sites(self) -> tuple[str, ...]:
    """All sites that a batch must have."""
    return (*self.input_sites, *self.target_sites, *([self.guide] if self.guide else []))

  @property
  def input_sites(self) -> tuple[str, ...]:
    """Sites that are read."""
    return self.reads if isinstance(self.reads, tuple) else (self.reads,)

  @property
  def target_sites(self) -> tuple[str, ...]:
    """Sites that are reconstructed: of an autoencoder, those that are read."""
    written = self.writes or self.reads
    return written if isinstance(written, tuple) else (written,)

  @property
  def members(self) -> int:
    """N, number of dictionaries."""
    return len(self.seeds)

  @property
  def after_tokens(self) -> int:
    """Number of tokens without firing after which a latent is dead."""
    numbers = [part.after_tokens for part in (self.sae.aux_loss, self.resampling) if part]
    return numbers[0] if numbers else self.dead_after_tokens

  def member(self, n: int) -> Architecture:
    """Settings of one member."""
    own: dict[str, Any] = {name: values[n] for name, values in dict(self.hparams).items()}
    return dataclasses.replace(self.sae, **own)

  def member_hparams(self) -> dict[str, jax.Array]:
    """All traced hyperparameters, [N] each."""
    hparams = self.sae.hparams(**dict(self.hparams))
    return {name: jnp.broadcast_to(value, self.members) for name, value in hparams.items()}

  def keys(self) -> jax.Array:
    """A random key for each member, [N]."""
    return jnp.stack([jax.random.key(seed) for seed in self.seeds])

  def _check_layers(self) -> None:
    """Checks that cross-layer transcoders and crosscoders, and only they, have tuples of sites."""
    crosses = isinstance(self.sae, CrossLayer)
    n = self.sae.n_layers if isinstance(self.sae, CrossLayer) else len(self.sae.parts)
    for name in ('reads', 'writes'):
      value = getattr(self, name)
      if not (crosses or (name == 'reads' and self.sae.is_crosscoder)):
        check_field(self, name, value is None or isinstance(value, str), 'the name of one site')
      else:
        several = isinstance(value, tuple) and len(value) == len({*value}) == n
        kind = 'layer' if crosses else 'part'
        check_field(self, name, several, f'{n} sites as a tuple, one for each {kind}')
    if crosses and self.resampling:
      raise SAEError(
        'resampling of a cross-layer transcoder', hint='its pre_activation revives latents'
      )

  def _check_partners(self) -> None:
    expected = 'a site of gradients' if self.sae.GUIDED else f'None for {type(self.sae).__name__}'
    check_field(self, 'guide', bool(self.guide) == self.sae.GUIDED, expected)
    if self.agreement is None:
      return
    if isinstance(self.sae, CrossLayer):
      raise SAEError('an agreement of cross-layer transcoders', hint='agreement=None')
    if self.members < 2:
      raise SAEError(
        f'an agreement of the members of an ensemble with seeds={self.seeds}',
        cause='one dictionary has no other to agree with',
        hint='seeds=(0, 1)',
      )

  def _check_tokens(self) -> None:
    aux_loss, resampling = self.sae.aux_loss, self.resampling
    if aux_loss and resampling and aux_loss.after_tokens != resampling.after_tokens:
      raise SAEError(
        f'latents are dead after {aux_loss.after_tokens} tokens for {type(aux_loss).__name__} '
        f'and after {resampling.after_tokens} for resampling',
        hint='set the same after_tokens for both',
      )
