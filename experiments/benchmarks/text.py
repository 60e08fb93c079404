"""Text in, text out: what generation costs over the model's own steps, and in other code.

    python -m experiments.benchmarks.text        about three minutes on two cores, 3 GB

Expected: decode_over_bare_loop <= 1.05; positioned_step_over_plain <= 1.05.

All are greedy, for one text, 64 tokens of SmolLM2.

  decode_over_bare_loop        seconds of `generate` over those of a bare loop over the same cached step, written here
  decode_tokens_per_s          tokens a second of `generate`
  positioned_step_over_plain   seconds with a function of positions at resid_post.15 over those without
  upstream_cached_over_own     seconds of google-tunix's own class with its own cache over those of our decoder
  generate_over_transformers   seconds over those of transformers on PyTorch, two threads each (needs the extra truth)
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from absl import app

import mechjax
from experiments.benchmarks import timing
from mechjax.generate import Positioned
from mechjax.models import decoder
from mechjax.weights import fetch, huggingface, llama_cpp
from mechjax.weights.gguf import GGUFFile

TARGETS = {'decode_over_bare_loop': '<= 1.05', 'positioned_step_over_plain': '<= 1.05'}
NAME, TEXT, N_TOKENS = 'smollm2-135m', 'Once upon a time', 64


def continued(model, **options) -> Callable[[], Any]:
  return lambda: model.generate(TEXT, N_TOKENS, stop=(), **options).tokens


def decode_over_bare_loop(model, rounds=7):
  config, params, prompt = model.config, model.params, model.tokens(TEXT)

  @functools.partial(jax.jit, donate_argnums=2)
  def step(params, tokens, cache):
    logits, cache = decoder.step(params, tokens, cache, config)
    return logits[:, -1:].argmax(-1).astype(jnp.int32), cache

  def bare():
    token, cache = step(params, prompt, decoder.new_cache(config, 1, 128))
    for _ in range(N_TOKENS - 1):
      token, cache = step(params, token, cache)
    return token

  times = timing.interleave({'ours': continued(model), 'bare': bare}, rounds)
  return {
    'decode_over_bare_loop': times.ratio('ours', 'bare'),
    'decode_tokens_per_s': N_TOKENS / times.median('ours'),
  }


def positioned_step_over_plain(model, rounds=7):
  v = jax.random.normal(jax.random.key(0), (model.d_model,))

  def steer(x, positions, prompt_length):
    return jnp.where((positions >= prompt_length[:, None])[..., None], x + v, x)

  plants = {'resid_post.15': Positioned(steer)}
  calls = {'steered': continued(model, plants=plants), 'plain': continued(model)}
  times = timing.interleave(calls, rounds)
  return {'positioned_step_over_plain': times.ratio('steered', 'plain')}


def upstream_cached_over_own(model, rounds=3):
  upstream = mechjax.load(NAME, code='tunix')
  times = timing.interleave({'upstream': continued(upstream), 'own': continued(model)}, rounds)
  return {'upstream_cached_over_own': times.ratio('upstream', 'own')}


def generate_over_transformers(model, rounds=3):
  import torch
  import transformers

  torch.set_num_threads(2)
  with tempfile.TemporaryDirectory() as parent:
    path = f'{parent}/{NAME}'
    huggingface.write(path, model.params, llama_cpp.config(GGUFFile(fetch.path_of(NAME))))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(path, dtype='float32').eval()
  tokens = torch.tensor(model.tokens(TEXT).tolist())
  options = {'max_new_tokens': N_TOKENS, 'do_sample': False, 'eos_token_id': None}

  def call():
    with torch.no_grad():
      theirs.generate(tokens, attention_mask=torch.ones_like(tokens), pad_token_id=0, **options)

  times = timing.interleave({'ours': continued(model), 'transformers': call}, rounds)
  return {'generate_over_transformers': times.ratio('ours', 'transformers')}


def main(argv):
  del argv
  model = mechjax.load(NAME)
  parts = (
    decode_over_bare_loop,
    positioned_step_over_plain,
    upstream_cached_over_own,
    generate_over_transformers,
  )
  metrics: dict[str, Any] = {}
  for part in parts:
    print(part.__name__, flush=True)
    metrics |= part(model)
  timing.report('text', metrics, TARGETS)


if __name__ == '__main__':
  app.run(main)
