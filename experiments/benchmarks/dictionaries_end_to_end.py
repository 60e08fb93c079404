"""Part of the benchmark `dictionaries`: a step of end-to-end training, over the passes that it cannot avoid.

SmolLM2-135M, resid_post.15 of 30 layers, TopK with 4,608 latents and k = 32, four contexts of 128 tokens, KL and the
error of two later sites. Above the site a step needs two forward passes and one backward pass, to the activations of
the site and not to parameters; these are timed bare, with a given cotangent of the logits. Below the site it needs one
forward pass, which is timed too.

e2e_step_over_passes              (step - forward pass below the site) over the passes above it
e2e_whole_step_over_passes        step over the same passes, the pass below the site included in the step alone
e2e_step_over_all_passes          step over all of these passes
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import timing
from mechjax import harvest
from mechjax.models.language_model import LanguageModel
from mechjax.sae import TopK
from mechjax.sae.store import Scale
from mechjax.sae.training import EndToEnd, Ensemble, Optimisation, Trainer

SITE, LATER, SHAPE, ROUNDS = 'resid_post.15', ('resid_post.20', 'resid_post.29'), (4, 128), 7
TARGETS = {'e2e_step_over_passes': '<= 1.15'}


def stepping(model: LanguageModel, above: Callable, tokens: jax.Array) -> Callable:
  """A call that takes the next step of a training."""
  read = harvest.reap(model.truncate_at(SITE), sites=[SITE])
  x = np.asarray(read(model.params, tokens)[SITE])[:, 1:].reshape(-1, model.d_model)
  scales = {SITE: Scale(float(np.sqrt(np.square(x).sum(1).mean())), x.mean(0))}
  objective = EndToEnd(
    model.apply, model.params, SITE, scales, later=LATER, mse=1e-3, forward_from=above
  )
  sae = TopK(d_in=model.d_model, width=4608, k=32)
  optimisation = Optimisation(steps=10_000)
  trainer = Trainer({'a': Ensemble(sae=sae, reads=SITE)}, optimisation, objective=objective)
  state = trainer.init()
  batch = {'tokens': tokens, 'kept': jnp.arange(SHAPE[1]) > jnp.zeros((SHAPE[0], 1), jnp.int32)}

  def step() -> Any:
    nonlocal state
    state, metrics = trainer.step(state, batch)
    return state, metrics

  return step


def bare_passes(model: LanguageModel, above: Callable, tokens: jax.Array) -> Callable:
  """A call of two forward passes and one backward pass above the site."""

  @jax.jit
  def passes(params: Any, x: jax.Array, other: jax.Array, cotangent: jax.Array) -> Any:
    run = lambda x: above(params, tokens, x, 16, None)  # noqa: E731
    logits, pull = jax.vjp(run, other)
    return run(x), logits, pull(cotangent)

  x, other = jax.random.normal(jax.random.key(1), (2, *SHAPE, model.d_model))
  cotangent = jax.random.normal(jax.random.key(2), (*SHAPE, model.n_vocab)) / model.n_vocab
  return lambda: passes(model.params, x, other, cotangent)


def end_to_end_steps(model: LanguageModel) -> dict[str, Any]:
  """All metrics of this file; about two minutes on two cores."""
  assert model.forward_from is not None
  above = functools.partial(model.forward_from, unroll=True)
  tokens = jax.random.randint(jax.random.key(0), SHAPE, 0, model.n_vocab)
  below = jax.jit(harvest.reap(model.truncate_at(SITE), sites=[SITE]))
  calls = {
    'step': stepping(model, above, tokens),
    'passes': bare_passes(model, above, tokens),
    'below': lambda: below(model.params, tokens),
  }
  seconds = timing.interleave(calls, rounds=ROUNDS, warmup=2).seconds
  rounds = [*zip(seconds['step'], seconds['passes'], seconds['below'])]
  return {
    'e2e_step_over_passes': statistics.median((step - low) / up for step, up, low in rounds),
    'e2e_whole_step_over_passes': statistics.median(step / up for step, up, _ in rounds),
    'e2e_step_over_all_passes': statistics.median(step / (up + low) for step, up, low in rounds),
  }
