"""Settings of the dictionaries of a training run: architectures, each with its sparsities, and the ensembles they make.

    Dictionaries(jumprelu=(1e-3, 2e-3), topk=(32, 64), widths=(2304, 4608))
    Dictionaries(clt_topk=(16,), widths=(1024,))                              with a pattern as site and as target

Those that differ only in numbers form an ensemble: there is one ensemble for each architecture, width and treatment of
dead latents, and for each site that a pattern selects.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from mechjax import flags
from mechjax.errors import SAEError
from mechjax.sae import AuxK, AuxZipf, GhostGrads, PAnnealing, Resampling, architecture
from mechjax.sae.checks import check_field
from mechjax.sae.store.gradients import PREFIX
from mechjax.sae.training import MFR, Ensemble

DeadLatents = Literal[
  'none', 'auxk', 'auxzipf', 'ghost_original', 'ghost', 'ghost_unmatched', 'resampling'
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dictionaries:
  """Dictionaries to train.

  Attributes:
    relu: sparsity coefficients of ReLU dictionaries with an L1 penalty.
    gated: sparsity coefficients of gated dictionaries.
    jumprelu: sparsity coefficients of JumpReLU dictionaries with an L0 penalty.
    topk: numbers of active latents of TopK dictionaries.
    batch_topk: numbers of active latents, on average over a batch, of BatchTopK dictionaries.
    p_relu: sparsity coefficients of ReLU dictionaries with a penalty whose exponent p falls from 1 to `p_end`.
    p_gated: the same of gated dictionaries.
    feature_choice: numbers of active latents, on average over a batch, of dictionaries in which each latent has a
      number of tokens of a batch; written as JumpReLU dictionaries.
    gradient_topk: numbers of active latents of dictionaries whose latents are selected by activation times gradient of
      the model's loss; written as TopK dictionaries.
    jumprelu_l0: numbers of active latents that JumpReLU dictionaries with a quadratic penalty aim at.
    clt_topk: numbers of active latents of a layer of cross-layer transcoders with TopK latents; all sites that the
      patterns of site and target select are their layers.
    clt_jumprelu: sparsity coefficients of cross-layer JumpReLU transcoders, which rise over the whole training.
    widths: numbers of latents; of one layer, for cross-layer transcoders.
    seeds: seeds of the initial parameters; every dictionary is trained with each.
    prefixes: prefixes of Matryoshka dictionaries: numbers of first latents that have to reconstruct alone; the last
      is the width.
    dead_latents: treatment of dead latents: none, auxk, auxzipf (latents that are active less often than Zipf's law
      expects, in that proportion), ghost_original, ghost (rescaled by the dead fraction),
      ghost_unmatched (without the factor of the reconstruction loss), resampling; with several, every dictionary is
      trained with each.
    dead_after_tokens: tokens without firing after which a latent is dead.
    resample_every: steps between two resamplings.
    rewarm_steps: steps until the learning rate is back at its value before a resampling.
    matmuls: dtype of the operands of matrix products, float32 or bfloat16; parameters, latents and sums are always
      float32.
    bandwidth: bandwidth of the kernel of JumpReLU's estimators, in units of pre-activations.
    initial_threshold: initial threshold of JumpReLU; raise it for runs of a few thousand steps, which cannot move it
      far.
    decoder_norm: length of the rows of the decoder in training, one or at_most_one.
    p_end: last exponent of p_relu and p_gated, in (0, 1].
    p_start_step: steps until their exponent begins to fall.
    p_end_step: steps until it is p_end, at most the number of steps of the run; must be given with them.
    p_updates: number of jumps in which it falls.
    zipf_alpha: exponent of the densities of feature_choice and auxzipf by rank; 0 for equal densities.
    zipf_beta: shift of the ranks of these densities.
    l0_coefficient: coefficient of the penalties of jumprelu_l0.
    frequency_weight: weight of its penalty on frequent latents; 0 for none.
    frequency_target: share of the tokens on which a latent may be active without that penalty, in (0, 1).
    mfr: weight of the penalty on dictionaries of one ensemble that learn different features; 0 for none.
    mfr_every: steps from one such penalty to the next.
    mfr_ramp_steps: steps in which its weight rises.
    clt_threshold: initial threshold of cross-layer JumpReLU transcoders.
    clt_pre_activation: coefficient of the loss of their dead latents.
  """

  relu: tuple[float, ...] = ()
  gated: tuple[float, ...] = ()
  jumprelu: tuple[float, ...] = ()
  topk: tuple[int, ...] = ()
  batch_topk: tuple[int, ...] = ()
  p_relu: tuple[float, ...] = ()
  p_gated: tuple[float, ...] = ()
  feature_choice: tuple[int, ...] = ()
  gradient_topk: tuple[int, ...] = ()
  jumprelu_l0: tuple[float, ...] = ()
  clt_topk: tuple[int, ...] = ()
  clt_jumprelu: tuple[float, ...] = ()
  widths: tuple[int, ...] = (4_096,)
  seeds: tuple[int, ...] = (0,)
  prefixes: tuple[int, ...] = ()
  dead_latents: tuple[DeadLatents, ...] = flags.with_former_name(('none',), 'revival')
  dead_after_tokens: int = flags.with_former_name(10_000_000, 'dead_after')
  resample_every: int = 5_000
  rewarm_steps: int = 1_000
  matmuls: Literal['float32', 'bfloat16'] = 'float32'
  bandwidth: float = 1e-3
  initial_threshold: float = 1e-3
  decoder_norm: Literal['one', 'at_most_one'] = 'one'
  p_end: float = 0.2
  p_start_step: int = 10_000
  p_end_step: int | None = None
  p_updates: int = 10
  zipf_alpha: float = 0.0
  zipf_beta: float = 0.0
  l0_coefficient: float = 1e-3
  frequency_weight: float = 1.0
  frequency_target: float = 0.1
  mfr: float = 0.0
  mfr_every: int = 10
  mfr_ramp_steps: int = 100
  clt_threshold: float = 0.03
  clt_pre_activation: float = 3e-6

  def __post_init__(self) -> None:
    known = [*_SPARSITY, *_CROSS_LAYER]
    if not any(getattr(self, name) for name in known):
      raise SAEError(
        'no dictionaries are given',
        hint='give one of ' + ', '.join(f'--{n}=...' for n in known),
      )
    if self.cross_layer:
      for name, only in (
        ('dead_latents', ('none',)),
        ('prefixes', ()),
        ('decoder_norm', 'one'),
        ('mfr', 0.0),
      ):
        expected = f'{only} with cross-layer transcoders'
        check_field(self, name, getattr(self, name) == only, expected)
    for name in ('widths', 'seeds', 'dead_latents'):
      values = getattr(self, name)
      check_field(self, name, len({*values}) == len(values) > 0, 'one or more, each once')
    annealed = bool(self.p_relu or self.p_gated)
    check_field(
      self,
      'p_end_step',
      not annealed or self.p_end_step is not None,
      'given with p_relu or p_gated',
    )
    if annealed:
      self._annealing()  # checks the schedule
    self._agreement()

  @property
  def cross_layer(self) -> list[str]:
    """Kinds of cross-layer transcoders to train."""
    return [kind for kind in _CROSS_LAYER if getattr(self, kind)]

  def build_cross_layer(
    self, d_in: int, sites: tuple[str, ...], targets: tuple[str, ...], d_out: int, skip: bool
  ) -> dict[str, Ensemble]:
    """Builds the ensembles of cross-layer transcoders; see `build_ensembles`.

    Args:
      d_in: width of each input site.
      sites: input site of each layer.
      targets: output site of each layer.
      d_out: width of each output site.
      skip: whether they have a skip.
    """
    found = {}
    for kind in self.cross_layer:
      values, hparam = getattr(self, kind), _CROSS_LAYER[kind]
      own: dict[str, Any] = {hparam: max(values), 'n_layers': len(sites)}
      if kind == 'clt_jumprelu':
        own |= {'bandwidth': self.bandwidth, 'initial_threshold': self.clt_threshold}
        own |= {'pre_activation': self.clt_pre_activation}
      for width in self.widths:
        found['_'.join([kind, *([str(width)] * (len(self.widths) > 1))])] = Ensemble(
          sae=architecture(kind)(
            d_in=d_in, d_out=d_out, width=width, skip=skip, matmuls=self.matmuls, **own
          ),
          reads=sites,
          writes=targets,
          seeds=tuple(seed for seed in self.seeds for _ in values),
          hparams={hparam: values * len(self.seeds)},
          dead_after_tokens=self.dead_after_tokens,
        )
    return found

  def build_ensembles(
    self,
    d_in: int,
    site: str | tuple[str, ...],
    target: str | None,
    d_out: int | None,
    skip: bool,
    parts: tuple[int, ...] = (),
  ) -> dict[str, Ensemble]:
    """Builds all ensembles, keyed by a name made from the settings in which they differ.

    Args:
      d_in: width of the input site.
      site: name of the input site, or of the site of each part of crosscoders.
      target: output site of transcoders; None for autoencoders.
      d_out: width of the output site.
      skip: whether transcoders have a skip.
      parts: widths of the parts of crosscoders.
    """
    shared: dict[str, Any] = {'d_in': d_in, 'd_out': d_out, 'skip': skip, 'parts': parts}
    shared |= {'prefixes': self.prefixes, 'matmuls': self.matmuls}
    found = {}
    for kind, hparam in _SPARSITY.items():
      for width in self.widths if getattr(self, kind) else ():
        for dead_latents in self.dead_latents:
          words = [
            kind,
            *([str(width)] * (len(self.widths) > 1)),
            *([dead_latents] * (len(self.dead_latents) > 1)),
          ]
          found['_'.join(words)] = self._build_ensemble(
            kind, hparam, dead_latents, site, target, shared | {'width': width}
          )
    return found

  def _build_ensemble(
    self,
    kind: str,
    hparam: str,
    dead_latents: str,
    site: str | tuple[str, ...],
    target: str | None,
    shared: dict[str, Any],
  ) -> Ensemble:
    values = getattr(self, kind)
    own: dict[str, Any] = {hparam: max(values), 'decoder_norm': self.decoder_norm}
    sae = architecture(_ARCHITECTURE.get(kind, kind))(
      **shared, **own, **self._own_settings(kind), aux_loss=self._build_aux_loss(dead_latents)
    )
    resampling = None
    if dead_latents == 'resampling':
      resampling = Resampling(after_tokens=self.dead_after_tokens, rewarm_steps=self.rewarm_steps)
    return Ensemble(
      sae=sae,
      reads=site,
      writes=target,
      seeds=tuple(seed for seed in self.seeds for _ in values),
      hparams={hparam: values * len(self.seeds)},
      dead_after_tokens=self.dead_after_tokens,
      resampling=resampling,
      resample_every=self.resample_every if resampling else 0,
      guide=f'{PREFIX}{target or site}' if sae.GUIDED else None,
      agreement=self._agreement(),
    )

  def _own_settings(self, kind: str) -> dict[str, Any]:
    """Settings that only one kind of dictionary has."""
    thresholds = {'bandwidth': self.bandwidth, 'initial_threshold': self.initial_threshold}
    if kind == 'jumprelu':
      return thresholds
    if kind == 'jumprelu_l0':
      penalty = {name: getattr(self, name) for name in ('frequency_weight', 'frequency_target')}
      return thresholds | penalty | {'sparsity': self.l0_coefficient}
    if kind == 'feature_choice':
      return {'zipf_alpha': self.zipf_alpha, 'zipf_beta': self.zipf_beta}
    return {'annealing': self._annealing()} if kind in ('p_relu', 'p_gated') else {}

  def _annealing(self) -> PAnnealing:
    assert self.p_end_step is not None
    return PAnnealing(
      start=self.p_start_step, stop=self.p_end_step, p_end=self.p_end, updates=self.p_updates
    )

  def _agreement(self) -> MFR | None:
    settings = MFR(alpha=self.mfr, every=self.mfr_every, ramp_steps=self.mfr_ramp_steps)
    return settings if self.mfr else None

  def _build_aux_loss(self, dead_latents: str) -> AuxK | GhostGrads | None:
    after = self.dead_after_tokens
    if dead_latents == 'auxk':
      return AuxK(after_tokens=after)
    if dead_latents == 'auxzipf':
      return AuxZipf(after_tokens=after, zipf_alpha=self.zipf_alpha, zipf_beta=self.zipf_beta)
    if dead_latents == 'ghost_original':
      return GhostGrads.original(after)
    if dead_latents in ('ghost', 'ghost_unmatched'):
      return GhostGrads.with_rescaling(after, match_reconstruction=dead_latents == 'ghost')
    return None


_SPARSITY = {
  'relu': 'sparsity',
  'gated': 'sparsity',
  'jumprelu': 'sparsity',
  'topk': 'k',
  'batch_topk': 'k',
  'p_relu': 'sparsity',
  'p_gated': 'sparsity',
  'feature_choice': 'k',
  'gradient_topk': 'k',
  'jumprelu_l0': 'l0',
}
_ARCHITECTURE = {'p_relu': 'relu', 'p_gated': 'gated', 'jumprelu_l0': 'targeted_jumprelu'}
"""Name of the architecture of a kind, if it is not that of the kind."""
_CROSS_LAYER = {'clt_topk': 'k', 'clt_jumprelu': 'sparsity'}
