"""Settings of an evaluation.

It evaluates either a whole run of `mechjax.train_sae`, on its held-out contexts, or dictionaries from files or a hub:

    EvalSettings(run='out/sae')
    EvalSettings(dictionaries=('google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71',), model='...',
                 site='resid_post.20')
"""

from __future__ import annotations

import dataclasses

from mechjax.errors import SAEError
from mechjax.sae.checks import check_field


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalSettings:
  """Settings of an evaluation.

  Attributes:
    run: directory of a training run, all of whose dictionaries are evaluated.
    dictionaries: directories, files or names on a hub, instead of a run.
    model: model of dictionaries without a run.
    code: implementation of the forward pass of the model of dictionaries without a run.
    site: input site of dictionaries without a run; a pattern for sets of dictionaries and cross-layer transcoders, all
      layers of which are spliced together.
    target: output site of transcoders without a run, or a pattern.
    text: source of the tokens for dictionaries without a run.
    context: tokens of a context, for dictionaries without a run.
    tokens: approximate number of tokens to predict, for the table.
    batch: contexts in one pass.
    dashboard: names, as in the table, of the dictionaries that get a page of features; 'all' for all.
    latents: number of latents on a page of features, drawn among those that are ever active; 0 for all.
    feature_tokens: number of tokens that are searched for examples of latents.
    out: output directory; by default `evaluation` in the directory of the run.
    seed: seed of the draw of latents.
  """

  run: str = ''
  dictionaries: tuple[str, ...] = ()
  model: str = 'smollm2-135m'
  code: str = 'decoder'
  site: str = ''
  target: str | None = None
  text: str = 'anarchism'
  context: int = 128
  tokens: int = 32_768
  batch: int = 8
  dashboard: tuple[str, ...] = ()
  latents: int = 1_000
  feature_tokens: int = 131_072
  out: str = ''
  seed: int = 0

  def __post_init__(self) -> None:
    if bool(self.run) == bool(self.dictionaries):
      raise SAEError(
        f'run={self.run!r} and dictionaries={list(self.dictionaries)}', hint='give one of the two'
      )
    if self.dictionaries and not (self.site and self.out):
      raise SAEError(
        f'site={self.site!r} and out={self.out!r} for dictionaries that are not of a run',
        hint='--site=resid_post.20 --out=out/evaluation',
      )
    for name in ('tokens', 'batch', 'feature_tokens'):
      check_field(self, name, getattr(self, name) >= 1, 'at least 1')
    check_field(self, 'latents', self.latents >= 0, 'at least 0')
    check_field(self, 'context', self.context >= 2, 'at least 2')
