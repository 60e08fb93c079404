"""Cost of texts: long prompts without scores, reads of every site, and generation.

    python -m experiments.benchmarks.text        about twenty minutes on two cores, 8 GB

SmolLM2-135M, float32. Generations are greedy, for one text, 64 tokens.

  fused_over_plain_*             seconds of the layers over 1,024 and 4,096 tokens with attention block by block, over
                                 those with all scores
  temp_bytes_8k_over_ideal       compiled temporary bytes of reading resid_post over 8,192 tokens, over those of the
                                 same program with the queries in place of the attention's result
  prefill_1k_over_matmul         FLOP/s of a forward pass over 1,024 tokens (products only, causal attention counted
                                 half), over those of a product of two 2,048 x 2,048 matrices in the same run
  read_everything_over_forward   seconds of reading every site over those of the logits alone, for 1 x 128 and 8 x 128
                                 tokens, with `memory.keep_freed`; *_default without it
  decode_over_bare_loop          seconds of `generate` over those of a bare loop over the same cached step, written here
  decode_tokens_per_s            tokens a second of `generate`
  positioned_step_over_plain     seconds with a function of positions at resid_post.15 over those without
  upstream_cached_over_own       seconds of google-tunix's own class with its own cache over those of our decoder
  generate_over_transformers     seconds over those of transformers on PyTorch, two threads each (needs the extra truth)
"""

from __future__ import annotations

import contextlib
import functools
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app

import mechjax
from experiments.benchmarks import timing
from mechjax import harvest, memory
from mechjax.generate import Positioned
from mechjax.models import attention, blockwise, decoder
from mechjax.models.language_model import LanguageModel
from mechjax.weights import fetch, huggingface, llama_cpp
from mechjax.weights.gguf import GGUFFile

TARGETS = {
  'fused_over_plain_1k': '<= 1.0',
  'fused_over_plain_4k': '<= 0.8',
  'temp_bytes_8k_over_ideal': '<= 1.2',
  'prefill_1k_over_matmul': '>= 0.75',
  'read_everything_over_forward': '<= 1.2',
  'read_everything_over_forward_8': '<= 1.2',
  'decode_over_bare_loop': '<= 1.05',
  'positioned_step_over_plain': '<= 1.05',
}
NAME, TEXT, N_TOKENS = 'smollm2-135m', 'Once upon a time', 64


def random_tokens(model: LanguageModel, B: int, T: int) -> jax.Array:
  """Random ids, int32 [B, T]."""
  random = np.random.default_rng(0)
  return jnp.asarray(random.integers(0, model.n_vocab, (B, T)), jnp.int32)


# --- long prompts -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def replace(module: Any, name: str, value: Any) -> Iterator[None]:
  """Replaces an attribute of a module while programs are traced."""
  before = getattr(module, name)
  setattr(module, name, value)
  try:
    yield
  finally:
    setattr(module, name, before)


def compile_anew(f: Callable, *args: Any) -> Any:
  """Compiles a copy of `f` for which JAX has cached nothing."""
  return jax.jit(lambda *xs: f(*xs)).lower(*args).compile()


def fused_ratios(model) -> dict[str, float]:
  config = model.config
  assert config is not None

  def layers(params, tokens):
    return decoder.blocks(params, decoder.embed(params, tokens, config), config)

  metrics = {}
  for name, T, rounds in (('1k', 1024, 9), ('4k', 4096, 5)):
    args = model.params, random_tokens(model, 1, T)
    fused = compile_anew(layers, *args)
    with replace(attention, 'LONG', 2**62):
      plain = compile_anew(layers, *args)
    difference = float(jnp.abs(fused(*args) - plain(*args)).max())
    assert difference < 1e-2 * float(jnp.abs(plain(*args)).max()), difference
    calls = {'fused': lambda f=fused, a=args: f(*a), 'plain': lambda f=plain, a=args: f(*a)}
    metrics[f'fused_over_plain_{name}'] = timing.interleave(calls, rounds).ratio('fused', 'plain')
  return metrics


def temporary_bytes(model) -> dict[str, float]:
  assert model.config is not None
  args = decoder.shapes(model.config), jax.ShapeDtypeStruct((1, 8192), jnp.int32)

  def measure():
    forward = lambda params, tokens: model.apply(params, tokens)  # noqa: E731  # staged anew
    read = harvest.reap(forward, sites='resid_post.*')
    return compile_anew(read, *args).memory_analysis().temp_size_in_bytes

  needed = measure()
  with replace(blockwise, 'attend', lambda q, *_, **__: q):
    ideal = measure()
  return {'temp_bytes_8k_over_ideal': needed / ideal}


def prefill_rate(model, T: int = 1024, n: int = 2048, products: int = 8) -> dict[str, float]:
  c = model.config
  assert c is not None
  forward, tokens = jax.jit(model.apply), random_tokens(model, 1, T)
  matrix = jax.random.normal(jax.random.key(0), (n, n))
  multiply = jax.jit(jnp.matmul)
  calls = {
    'forward': lambda: forward(model.params, tokens),
    'products': lambda: [multiply(matrix, matrix) for _ in range(products)],
  }
  times = timing.interleave(calls, 9)
  heads = (2 * c.n_heads + 2 * c.n_kv_heads) * c.d_head
  weights = c.n_layers * c.d_model * (heads + 3 * c.d_mlp) + c.d_model * c.n_vocab
  # Scores and mixed values, over the visible half of the keys.
  attended = 2 * c.n_layers * c.n_heads * c.d_head * T * (T + 1) // 2
  flops = 2 * (T * weights + attended)
  share = flops / (2 * products * n**3) * times.ratio('products', 'forward')
  return {'prefill_1k_over_matmul': share}


# --- reading ------------------------------------------------------------------------------------------------


def read_everything(model) -> dict[str, float]:
  """Measured in new processes, because the settings of memory are those of a whole process."""
  del model
  metrics = {}
  for name, keeps in (('', True), ('_default', False)):
    code = f'from experiments.benchmarks import text; text.print_read_ratios({keeps})'
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    one, eight = map(float, out.stdout.split()[-2:])
    metrics[f'read_everything_over_forward{name}'] = one
    metrics[f'read_everything_over_forward_8{name}'] = eight
  return metrics


def print_read_ratios(keeps: bool) -> None:
  """Prints the ratios for 1 and for 8 rows of 128 tokens."""
  assert not keeps or memory.keep_freed(), 'this needs the GNU C library'
  model = mechjax.load(NAME)
  plain = jax.jit(model.apply)
  read = jax.jit(lambda *args: harvest.call_and_reap(model.apply, sites='*')(*args))
  for B, rounds in ((1, 15), (8, 7)):
    args = model.params, random_tokens(model, B, 128)
    calls = {'plain': lambda a=args: plain(*a), 'read': lambda a=args: read(*a)}
    print(timing.interleave(calls, rounds).ratio('read', 'plain'))


# --- generation ---------------------------------------------------------------------------------------------


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
    temporary_bytes,
    fused_ratios,
    prefill_rate,
    read_everything,
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
