"""Settings of end-to-end fine-tuning, a part of the settings of a run: `FineTuning(begin_with='out/run', kl=1.0)`."""

from __future__ import annotations

import dataclasses

from mechjax.errors import SAEError
from mechjax.sae.checks import check_field


@dataclasses.dataclass(frozen=True, kw_only=True)
class FineTuning:
  """End-to-end fine-tuning of the dictionaries of a finished run.

  Attributes:
    begin_with: directory of a finished run of the same model, site and dictionaries, which are fine-tuned so that the
      model continues from their reconstructions as from its activations; by default dictionaries are trained on
      activations alone.
    kl: weight of the KL divergence of the logits, in nats per token.
    later: later sites whose mean squared error counts, a pattern such as resid_post.{16..29}; by default none.
    mse: weight of the error at later sites, of unnormalised activations.
    reconstruction: weight of the reconstruction loss of the dictionary itself.
  """

  begin_with: str = ''
  kl: float = 1.0
  later: str = ''
  mse: float = 0.0
  reconstruction: float = 0.0

  def __post_init__(self) -> None:
    others = [f.name for f in dataclasses.fields(self) if f.name != 'begin_with']
    changed = [name for name in others if getattr(self, name) != getattr(type(self), name)]
    if changed and not self.begin_with:
      raise SAEError(
        f'{changed} without begin_with',
        cause='they are weights of end-to-end fine-tuning, which begins with a finished run',
        hint='--begin_with=out/run',
      )
    check_field(
      self,
      'later',
      bool(self.later) == (self.mse > 0),
      f'{"given" if self.mse else "empty"} with mse={self.mse}',
    )
