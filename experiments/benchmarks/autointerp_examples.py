"""Part of the benchmark `autointerp`: excerpts that are shown to an explainer and scored as well, SmolLM2-135M.

examples_shown_and_scored    texts of excerpts, and pairs of excerpts that overlap, that are on a shown and on a scored
                             list of one latent, counted over a collection of examples
excerpts                     excerpts that were compared

The dictionary is random: its latents are active on ordinary text, which is all that matters here. The count compares
every shown excerpt with every scored one, by sequence and place and by its tokens, and does not use the split.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import mechjax
from experiments.benchmarks import timing
from experiments.contexts import find_special, read_contexts
from mechjax import harvest, sae, sites
from mechjax.autointerp import LatentExamples, collect_examples
from mechjax.errors import InterpretationError
from mechjax.eval_sae.subjects import vocabulary
from mechjax.models.language_model import LanguageModel

SITE, WIDTH, K, LATENTS, CONTEXT, ROWS = sites.parse('resid_post.5'), 512, 16, 16, 128, 8
TARGETS = {'examples_shown_and_scored': '0'}


def measure(model: LanguageModel | None = None, contexts: int = 96) -> dict[str, Any]:
  """All metrics of this file."""
  model = model or mechjax.load('smollm2-135m')
  hint = 'another text'
  rows = read_contexts(model, 'anarchism', contexts, CONTEXT, InterpretationError, hint)
  kept = ~np.isin(rows, find_special(model))
  read = jax.jit(harvest.reap(model.truncate_at(SITE), sites=[SITE]))
  one = sae.TopK(d_in=model.d_model, width=WIDTH, k=K)
  examples = collect_examples(
    lambda tokens: read(model.params, jnp.asarray(tokens))[SITE],
    one,
    one.init(jax.random.key(0)),
    [(rows[i : i + ROWS], kept[i : i + ROWS]) for i in range(0, len(rows), ROWS)],
    vocabulary(model),
    latents=np.arange(LATENTS),
  )
  return {
    'examples_shown_and_scored': sum(map(count_both, examples)),
    'excerpts': sum(len(e.all_shown) + len(e.scored) for e in examples),
  }


def count_both(examples: LatentExamples) -> int:
  """Pairs of a shown and a scored excerpt of one latent that overlap, or have the same tokens."""
  return sum(
    (
      one.sequence == other.sequence
      and one.start < other.start + len(other.tokens)
      and other.start < one.start + len(one.tokens)
    )
    or np.array_equal(one.tokens, other.tokens)
    for one in examples.all_shown
    for other in examples.scored
  )


if __name__ == '__main__':
  timing.report('autointerp: examples', measure(), TARGETS)
