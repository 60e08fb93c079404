"""Our own decoder behind a `LanguageModel`: weights from several formats, one pure function.

A model is a GGUF file, a directory in HuggingFace's layout, or an Orbax checkpoint that mechjax wrote. All three are
described by the settings of a `config.json`, become a `Config` and a tree of stacked, possibly sharded arrays, and run
in `decoder`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from mechjax import errors, generate
from mechjax.models import decoder, families, ids, padding, sharding, tokenizer_files
from mechjax.models.forward_pass import Forward
from mechjax.models.tokenizers import Tokenizer
from mechjax.weights import huggingface, llama_cpp, orbax
from mechjax.weights.gguf import GGUFFile

PROMPT_COLUMNS = 128
"""Columns of prompts that a generation computes at once: enough for the arithmetic to be the limit."""


def load(
  path: Path, dtype: Any = jnp.float32, mesh: jax.sharding.Mesh | None = None
) -> tuple[Forward, Tokenizer]:
  """Reads a model.

  Args:
    path: a GGUF file, or a directory with `config.json` and safetensors or with an Orbax checkpoint.
    dtype: of the parameters: one of `mechjax.precision.DTYPES`.
    mesh: devices for the parameters, by the rules of `sharding`; None for the default device.

  Returns:
    Its forward pass and tokenizer.

  Raises:
    WeightsError: a file is damaged, or the family is not known.
  """
  if path.is_file():
    file = GGUFFile(path)
    described = llama_cpp.config(file)
    read: Callable[[Any], Any] = functools.partial(llama_cpp.read, file)
    tokenizer = tokenizer_files.from_gguf(file.metadata)
  else:
    described, read = _open_directory(path)
    tokenizer = tokenizer_files.from_huggingface(path, described)
  config = families.from_hf(described)
  if mesh is None:
    params = read(decoder.shapes(config, dtype))
  else:
    params = read(sharding.shard_shapes(config, mesh, dtype))
  return forward(params, config), tokenizer


def _open_directory(path: Path) -> tuple[dict[str, Any], Callable[[Any], Any]]:
  if orbax.is_checkpoint(path):
    return orbax.config(path), functools.partial(orbax.read, path)
  return huggingface.config(path), functools.partial(huggingface.read, path)


def forward(params: Mapping[str, Any], config: decoder.Config) -> Forward:
  """The decoder of these parameters, as pure functions."""
  return Forward(
    params=params,
    apply=_Apply(config),
    unembed=functools.partial(_unembed, config),
    n_layers=config.n_layers,
    d_model=config.d_model,
    n_vocab=config.n_vocab,
    config=config,
    generator=_generator(config),
    forward_from=functools.partial(_forward_from, config),
    forward_until=functools.partial(_forward_until, config),
  )


class _Apply:
  """(params, tokens, mask=None, **options of `decoder.forward`) -> logits."""

  def __init__(self, config: decoder.Config):
    self.config = config

  def __call__(self, params: Any, tokens: jax.Array, mask: Any = None, **options: Any) -> jax.Array:
    if mask is not None:
      if options.get('segments') is not None:
        raise errors.MechjaxError(
          'both mask= and segments= are given',
          hint='give segments= only: 0 is padding, and equal numbers are one text',
        )
      options['segments'] = _segments(mask, tokens)
    return decoder.forward(params, tokens, self.config, **options)

  def check_arguments(
    self, params: Any, tokens: jax.Array, mask: Any = None, **options: Any
  ) -> None:
    """Rejects ids outside the vocabulary, before a harvest traces them."""
    ids.check_ids(tokens, self.config.n_vocab)


def _unembed(config: decoder.Config, params: Any, residual: jax.Array) -> jax.Array:
  return decoder.unembed(params, residual, config)


def _segments(mask: Any, tokens: jax.Array) -> jax.Array | None:
  if mask is None:
    return None
  return jnp.asarray(padding.check_mask(mask, jnp.shape(tokens)))


def _forward_from(
  config: decoder.Config,
  params: Any,
  tokens: jax.Array,
  residual: jax.Array,
  start: Any,
  at: Any,
  mask: Any = None,
  unroll: bool = False,
) -> jax.Array:
  options: dict[str, Any] = {'at': at, 'segments': _segments(mask, tokens), 'unroll': unroll}
  return decoder.forward_from(params, tokens, residual, start, config, **options)


def _forward_until(
  config: decoder.Config, params: Any, tokens: jax.Array, stop: int, mask: Any = None
) -> jax.Array:
  segments = _segments(mask, tokens)
  residual = decoder.embed(params, tokens, config, segments=segments)
  return decoder.blocks(params, residual, config, stop=stop, segments=segments)


@functools.cache
def _generator(config: decoder.Config) -> generate.Model:
  def step(params: Any, tokens: jax.Array, mask: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
    return decoder.step(params, tokens, cache, config, segments=mask.astype(jnp.int32))

  def new_cache(params: Any, rows: int, slots: int) -> Any:
    return decoder.new_cache(config, rows, slots, params['embed']['tokens'].dtype)

  return generate.Model(step, new_cache, config.n_positions or None, PROMPT_COLUMNS)
