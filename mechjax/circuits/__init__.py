"""Circuits in features: which parts of a model, at which tokens, make a latent or a logit.

Every question here has an answer that is a sum: attention patterns and the denominators of norms are held at their
values, and the rest of the residual stream is linear. `attention` splits the pre-activation of a latent of an
attention dictionary over heads and source tokens; `decomposition` a logit over layers, heads and neurons;
`composition` measures which heads read which others; `lens` reads the stream of every layer.
"""

from typing import TYPE_CHECKING

from mechjax import lazy

if not TYPE_CHECKING:
  __getattr__, __dir__ = lazy.package(__name__)
