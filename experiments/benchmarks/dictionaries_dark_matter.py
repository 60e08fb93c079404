"""Part of the benchmark `dictionaries`: regressions of the error of a dictionary while activations stream through.

Activations of resid_post.15 of SmolLM2-135M (D 576) on batches of 8 x 128 tokens, brought to the host; the dictionary
is a TopK with k = 32 and M = 1,536.

dark_matter_over_harvest      time of harvesting, reconstructing and adding to the regressions of the error and of its
                              norm, over that of harvesting alone
regressions_over_harvest      the same without the dictionary: the reconstructions are given
dark_matter_recompiles        number of compilations by another dictionary of the same shape

The fit at the end (eleven eigenvalue problems of size D) is not included: it does not depend on the number of tokens.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import timing
from mechjax import harvest
from mechjax.sae import TopK
from mechjax.sae.analysis import DarkMatter
from mechjax.sae.analysis.dark_matter import add_reconstructions

SITE, ROWS, TOKENS, BATCHES, ROUNDS = 'resid_post.15', 8, 128, 2, 7
WIDTH, K = 1536, 32
TARGETS = {'dark_matter_over_harvest': '<= 1.1', 'dark_matter_recompiles': '0'}


def measure(model: Any) -> dict[str, Any]:
  """All metrics of this file, of a model with `truncate_at`."""
  random = np.random.default_rng(0)
  ids = random.integers(100, model.n_vocab, (BATCHES, ROWS, TOKENS)).astype(np.int32)
  kept = np.ones((ROWS, TOKENS), bool)
  read = jax.jit(harvest.reap(model.truncate_at(SITE), sites=[SITE]))
  take = lambda tokens: read(model.params, tokens)[SITE].astype(jnp.float32)  # noqa: E731
  sae = TopK(d_in=model.d_model, width=WIDTH, k=K)
  own, other = (sae.init(jax.random.key(seed)) for seed in range(2))
  made = np.asarray(take(ids[0])) * np.float32(0.9)

  def stream(params: Any) -> None:
    analysis = DarkMatter()
    for tokens in ids:
      add_reconstructions(analysis, sae, params, take(tokens), kept)

  def regress() -> None:
    analysis = DarkMatter()
    for tokens in ids:
      analysis.add(np.asarray(take(tokens)), made, kept)

  calls = {
    'harvest': lambda: [np.asarray(take(tokens)) for tokens in ids],
    'all': lambda: stream(own),
    'regressions': regress,
  }
  times = timing.interleave(calls, rounds=ROUNDS)
  with timing.compilations() as again:
    stream(other)
  return {
    'dark_matter_over_harvest': times.ratio('all', 'harvest'),
    'regressions_over_harvest': times.ratio('regressions', 'harvest'),
    'dark_matter_recompiles': again.count,
  }
