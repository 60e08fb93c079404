"""Activations of two models on the same tokens, for crosscoders that compare models.

Both models run in one function, whose sows have the names of the sites with the name of the model before them, so that
everything that reads sites of one model reads those of two:

    forward = join_forwards([base.truncate_at(read), chat.truncate_at(read)], ['resid_post.15'])
    both = ['model_resid_post.15', 'other_model_resid_post.15']
    harvest.reap(forward, sites=both)((base.params, chat.params), tokens)

An id must be the same text for both, so models with other tokenizers are refused.

Sharp edges: sows of the models under their own names occur twice, and cannot be read. The ids of texts are those of
the first model's tokenizer. The two may differ in special tokens that they begin and end texts with, as a base and a
chat model do; contexts have those of the first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from mechjax import harvest
from mechjax import sites as sites_lib
from mechjax.errors import SAEError
from mechjax.models.tokenizers import Tokenizer

NAMES = ('model', 'other_model')
"""Names of the two models: those of the flags."""

_SAMPLE = (
  'The 3 quick foxes, "jumping" over\n\tDr. Müller\'s fence in 1999: naïve? ПРИВЕТ 你好 x**2 == 4;'
)


def name_of(model: str, site: str) -> str:
  """Name of a site of one of the models."""
  return f'{model}_{sites_lib.parse(site)}'


def join_forwards(forwards: Sequence[Callable], read: Sequence[str]) -> Callable:
  """Makes one function of two forward passes.

  Args:
    forwards: (params, tokens) -> anything with sows, of each model of `NAMES`.
    read: sites of both.

  Returns:
    (pair of params, tokens) -> None, with a sow of each site of each model.
  """
  wanted = [sites_lib.parse(site) for site in read]

  def run(params: tuple[Any, ...], tokens: jax.Array) -> None:
    for name, forward, own in zip(NAMES, forwards, params, strict=True):
      found = harvest.reap(forward, sites=[*map(str, wanted)])(own, tokens)
      for site in wanted:
        _sow(f'{name}_{site.name}', site.path, found[site])

  return run


def check_same_tokens(first: Tokenizer, second: Tokenizer, names: tuple[str, str]) -> None:
  """Checks that every id is the same text for two tokenizers, and that they split a text alike.

  Args:
    first: tokenizer of one model.
    second: tokenizer of the other.
    names: names of the models, for the error.

  Raises:
    SAEError: they differ; the message contains the first difference.
  """
  cause = 'activations of two models can be compared on the same tokens only'
  hint = 'two models of one family, such as a base model and its fine-tuned version'
  if first.n_vocab != second.n_vocab:
    raise SAEError(
      f'{names[0]} has {first.n_vocab} tokens and {names[1]} has {second.n_vocab}',
      cause=cause,
      hint=hint,
    )
  for i in range(first.n_vocab):
    one, other = first.join([i]), second.join([i])
    if one != other:
      raise SAEError(
        f'token {i} is {one!r} for {names[0]} and {other!r} for {names[1]}', cause=cause, hint=hint
      )
  splits = [tokenizer.split(_SAMPLE) for tokenizer in (first, second)]
  if splits[0] != splits[1]:
    raise SAEError(
      f'{names[0]} splits {_SAMPLE[:20]!r}... into {splits[0][:8]} and {names[1]} into {splits[1][:8]}',
      cause=cause,
      hint=hint,
    )


def _sow(name: str, path: tuple[int, ...], value: jax.Array) -> None:
  if not path:
    harvest.sow(value, name=name)
    return
  with sites_lib.layer(path[0]):
    _sow(name, path[1:], value)
