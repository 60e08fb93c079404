"""What is to be evaluated, and on how much.

Either a whole run of `mechjax.train_sae`, on the contexts that it held out, or dictionaries from files or a hub:

    EvalSettings(run='out/sae')
    EvalSettings(dictionaries=('google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71',), model='...',
                 site='resid_post.20')
"""

from __future__ import annotations

import dataclasses

from mechjax.errors import SAEError
from mechjax.sae.checks import expect


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalSettings:
  """An evaluation.

  Attributes:
    run: directory of a training, all of whose dictionaries are evaluated.
    dictionaries: directories, files or places on a hub, instead of a run.
    model: of which dictionaries without a run are.
    code: whose code computes its forward pass.
    site: what they read.
    target: what they say, for transcoders.
    text: where tokens come from, for dictionaries without a run.
    context: tokens of a context.
    tokens: how many are predicted, about.
    batch: contexts in one pass.
    dashboard: for which dictionaries there is a page of features, by their names in the table; 'all' for all.
    latents: how many latents such a page shows, drawn among those that are ever active; 0 for all.
    feature_tokens: how many tokens are searched for examples.
    out: where to write; by default `evaluation` in the directory of the run.
    seed: of what is drawn.
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
      expect(self, name, getattr(self, name) >= 1, 'at least 1')
    expect(self, 'latents', self.latents >= 0, 'at least 0')
    expect(self, 'context', self.context >= 2, 'at least 2')
