"""Part of the benchmark `steering`: the cost of a search for a direction in SmolLM2-135M, 8 + 8 prompts of 24 tokens.

candidate_over_passes     scores of 24 candidates, one before each layer, the plain passes included, over the passes
                          that they need: two and the share of the layers above, for each candidate. A pass is the
                          jitted `model.apply` and its logits at the last position
candidate_over_short      the same over passes that compute logits at the last position alone, as the scores do
ablated_pass_over_plain   a jitted pass with a direction removed from every write over one without
candidates_recompiles     number of compilations by other candidates
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import timing
from mechjax import harvest
from mechjax.steering import WRITES, Ablate, DirectionSelection, PromptSet, in_one_pass, log_odds

PROMPTS, TOKENS, POSITIONS, ROUNDS = 8, 24, 1, 3
TARGETS = {
  'candidate_over_passes': '<= 1.1',
  'ablated_pass_over_plain': '<= 1.1',
  'candidates_recompiles': '0',
}


def measure(model: Any) -> dict[str, Any]:
  """All metrics of this file, of a model that begins passes in the middle."""
  random = np.random.default_rng(0)
  rows = random.integers(100, model.n_vocab, (2, PROMPTS, TOKENS)).astype(np.int32)
  sets = [PromptSet.of((x, np.ones(x.shape, bool))) for x in rows]
  return measure_sweep(model, sets, random) | measure_pass(model, sets[0], random)


def measure_sweep(model: Any, sets: list[PromptSet], random: np.random.Generator) -> dict[str, Any]:
  """Cost of scoring candidates, over the passes that they need."""
  select = DirectionSelection(model.apply, log_odds([5, 9]), forward_from=model.forward_from)
  shape = (POSITIONS, model.n_layers, model.d_model)
  first, others = random.standard_normal((2, *shape))
  score = lambda candidates: select.score(model.params, candidates, *sets)  # noqa: E731
  scores = score(first)
  with timing.compilations() as again:
    score(others)
  last = np.full((PROMPTS, 1), TOKENS - 1, np.int32)
  stream = np.zeros((PROMPTS, TOKENS, model.d_model), np.float32)
  tokens, mask = sets[0].tokens, sets[0].mask
  short = jax.jit(lambda p, t, m: model.forward_from(p, t, stream, 0, last, m)[:, 0])
  whole = jax.jit(lambda p, t, m: model.apply(p, t, m)[:, -1])
  calls = {
    'sweep': lambda: score(others).values,
    'short': lambda: short(model.params, tokens, mask),
    'whole': lambda: whole(model.params, tokens, mask),
  }
  times = timing.interleave(calls, rounds=ROUNDS)
  needed = POSITIONS * sum(2 + 1 - l / model.n_layers for l in range(scores.depth))
  return {
    'candidates': POSITIONS * scores.depth,
    'seconds_a_candidate': times.median('sweep') / (POSITIONS * scores.depth),
    'candidate_over_passes': times.ratio('sweep', 'whole') / needed,
    'candidate_over_short': times.ratio('sweep', 'short') / needed,
    'candidates_recompiles': again.count,
  }


def measure_pass(model: Any, prompts: PromptSet, random: np.random.Generator) -> dict[str, Any]:
  """Cost of one pass with a direction removed from every write."""
  direction = jnp.asarray(random.standard_normal(model.d_model), jnp.float32)

  @jax.jit
  def ablated(params, tokens, mask, direction):
    plants = in_one_pass(Ablate(WRITES, direction).plants(), mask)
    return harvest.plant(model.apply)(plants, params, tokens, mask=mask)

  plain = jax.jit(model.apply)
  inputs = model.params, prompts.tokens, prompts.mask
  calls = {'ablated': lambda: ablated(*inputs, direction), 'plain': lambda: plain(*inputs)}
  times = timing.interleave(calls, rounds=15)
  return {'ablated_pass_over_plain': times.ratio('ablated', 'plain')}
