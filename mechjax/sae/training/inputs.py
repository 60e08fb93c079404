"""Activations of a training, from anything that has them: a model, a source, arrays, or a generator.

    find_inputs(model, ['resid_post.15'], contexts=contexts, ...)          the model runs for each bucket
    find_inputs(Stored.open('out/acts'), ['resid_post.15'], ...)          activations on disk
    find_inputs(x, ['resid_post.15'], ...)                                an array [n, D], or arrays by site
    find_inputs(lambda: make_blocks(seed=0), ['resid_post.15'], ...)      blocks [m, D], or blocks by site

A model is anything with `name`, `params`, `apply`, `truncate_at` and `fingerprint`, such as `mechjax.load` returns.

Sharp edge: all of them get an identity, which a resumed training compares; that of a generator or a source is its first
bucket.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from mechjax.errors import SAEError
from mechjax.sae.store import ActivationSource, Contexts, Generated, Harvester, InMemory, Streamed
from mechjax.sae.store.contexts import first_token
from mechjax.sae.store.gradients import is_gradient
from mechjax.sae.store.harvesting import Rows
from mechjax.sae.store.in_memory import check_blocks, check_rows, digest_rows

_MAX_SAMPLE = 1 << 16
"""Tokens of a model or a generator that figures are measured on."""


@runtime_checkable
class ReadableModel(Protocol):
  """A model whose activations can be read."""

  name: str
  params: Any

  def apply(self, params: Any, tokens: jax.Array) -> Any:
    """The forward pass, which gradients at sites need."""

  def truncate_at(self, sites: Any) -> Callable[..., Any]:
    """The forward pass up to some sites."""

  def fingerprint(self) -> str:
    """Digest of the parameters."""


@runtime_checkable
class _Source(Protocol):
  bucket_rows: int
  per_epoch: int
  widths: dict[str, int]

  def bucket(self, number: int) -> Rows:
    """The same as `ActivationSource.bucket`."""


@dataclasses.dataclass(frozen=True, eq=False)
class TrainingInputs:
  """Activations of a training.

  Attributes:
    source: source of buckets.
    sample: activations for the figures; None to take the first bucket.
    held_out: whether the sample is not trained on.
    identity: function that returns a text that differs for other activations.
    about: metadata by the names of `Metadata`: model_name, context_size, ...
    restartable: whether the activations can be read again, by a training that resumes.
  """

  source: ActivationSource
  sample: Rows | None
  held_out: bool
  identity: Callable[[], str]
  about: dict[str, Any]
  restartable: bool = True


def find_inputs(
  data: Any,
  sites: Sequence[str],
  *,
  batch: int,
  seed: int,
  bucket_tokens: int,
  contexts: Any = None,
  held_out: Any = None,
  forward_batch: int = 16,
) -> TrainingInputs:
  """Finds the source of buckets.

  Args:
    data: a model, a source, an array, arrays by site, a function that returns an iterable of blocks, or an iterator.
    sites: sites that are read and reconstructed.
    batch: tokens of a step.
    seed: seed of the order of contexts.
    bucket_tokens: maximum number of activations per bucket, of a model and of a generator.
    contexts: tokens for a model: `Contexts`, or ids, int [N, T].
    held_out: activations, or contexts of a model, for the figures.
    forward_batch: contexts in one forward pass of a model.

  Raises:
    SAEError: none of these; a site is missing; contexts without a model, or a model without contexts; wrong arrays.
    SiteError: the model does not have a site.
  """
  if isinstance(data, ReadableModel):
    return _of_model(data, sites, batch, seed, bucket_tokens, contexts, held_out, forward_batch)
  if contexts is not None:
    raise SAEError(
      f'contexts for a {type(data).__name__}', hint='only a model computes activations of contexts'
    )
  known = held_out is not None
  sample = check_rows(_pick(_name(held_out, sites), sites)) if known else None
  if isinstance(data, _Source):
    _pick(data.widths, sites)
    return TrainingInputs(data, sample, known, lambda: _describe_source(data), {})
  if isinstance(data, Mapping | np.ndarray | jax.Array):
    arrays = InMemory(check_rows(_pick(_name(data, sites), sites)), batch)
    return TrainingInputs(arrays, sample, known, lambda: arrays.digest, _dtype_of(arrays.arrays))
  if callable(data) or isinstance(data, Iterator):
    made = Generated(_name_blocks(data, sites), max(batch, bucket_tokens // batch * batch))
    _pick(made.widths, sites)
    first = made.bucket(0)
    sample = sample or {site: x[:_MAX_SAMPLE] for site, x in first.items()}
    digest = digest_rows(first)
    return TrainingInputs(made, sample, known, lambda: digest, _dtype_of(first), made.restartable)
  raise SAEError(
    f'a {type(data).__name__} has no activations',
    hint='a model with contexts=, a source, an array [n, D], {site: array}, or a function that returns blocks',
  )


def _of_model(
  model: ReadableModel,
  sites: Sequence[str],
  batch: int,
  seed: int,
  bucket_tokens: int,
  contexts: Any,
  held_out: Any,
  forward_batch: int,
) -> TrainingInputs:
  if contexts is None:
    raise SAEError(
      'a model without contexts',
      hint='contexts=store.pack(texts, ...), or ids of tokens, int [N, T]',
    )
  own = _contexts(contexts, model)
  read = [*dict.fromkeys(sites)]
  forward = model.apply if any(map(is_gradient, read)) else model.truncate_at(read)
  harvester = Harvester(forward, model.params, read, own, batch=forward_batch)
  kept = own.count_kept()
  n = min(bucket_tokens, int(kept.sum())) // batch * batch
  if not n:
    raise SAEError(f'contexts with {int(kept.sum())} activations for batches of {batch}')
  sample = None
  if held_out is not None:
    other = dataclasses.replace(harvester, contexts=_contexts(held_out, model))
    numbers = np.arange(len(other.contexts))
    sample = check_rows(other.rows(numbers[: _count_needed(other.contexts)], 0, _MAX_SAMPLE))
  first = np.unique(own.tokens(slice(None))[:, 0])
  about = {
    'model_name': model.name,
    'context_size': own.length,
    'prepend_bos': len(first) == 1 and first[0] in own.special,
    'activation_dtype': 'float32',
  }
  identity = f'{model.name}, {model.fingerprint()}, contexts {own.digest}, buckets of {n}'
  source = Streamed(harvester, n, seed)
  return TrainingInputs(source, sample, sample is not None, lambda: identity, about)


def _describe_source(source: ActivationSource) -> str:
  digest = digest_rows(source.bucket(0))
  return f'first bucket {digest}, {source.per_epoch} buckets of {source.bucket_rows} in an epoch'


def _contexts(given: Any, model: Any) -> Contexts:
  """Contexts of tokens; of an array, BOS and EOS of the model's tokenizer do not count."""
  if isinstance(given, Contexts):
    return given
  ids = np.asarray(given)
  if ids.ndim != 2 or ids.dtype.kind not in 'iu' or not ids.size:
    raise SAEError(
      f'contexts of {ids.dtype} {list(ids.shape)}', hint='ids of tokens, int [N, T], or Contexts'
    )
  tokenizer = getattr(model, 'tokenizer', None)
  ends = (first_token(tokenizer), tokenizer.eos) if tokenizer is not None else ()
  special = tuple(sorted({int(i) for i in ends if i is not None}))
  ids = np.ascontiguousarray(ids, np.int32)
  digest = hashlib.sha256(ids.tobytes() + f'{ids.shape} {special}'.encode()).hexdigest()
  return Contexts(ids, np.arange(len(ids)), special, digest)


def _count_needed(contexts: Contexts) -> int:
  """Number of first contexts that have enough activations for the figures."""
  ends = np.cumsum(contexts.count_kept())
  return int(np.searchsorted(ends, _MAX_SAMPLE)) + 1


def _name(data: Any, sites: Sequence[str]) -> Mapping[str, Any]:
  """Arrays by site; one array is that of the only site."""
  if isinstance(data, Mapping):
    return data
  if len({*sites}) > 1:
    raise SAEError(
      f'one array for the sites {[*dict.fromkeys(sites)]}',
      hint='{site: array, ...} of the same tokens',
    )
  return {sites[0]: data}


def _pick(data: Mapping[str, Any], sites: Sequence[str]) -> dict[str, Any]:
  if missing := sorted({*sites} - {*data}):
    raise SAEError(f'no activations of {missing}', where=f'there are those of {sorted(data)}')
  return {site: data[site] for site in dict.fromkeys(sites)}


def _name_blocks(data: Any, sites: Sequence[str]) -> Any:
  """The same function or iterator, with blocks by site that hold the needed sites only."""

  def name(blocks: Iterable[Any]) -> Iterator[Mapping[str, Any]]:
    for block in blocks:
      yield _pick(_name(block, sites), sites)

  return (lambda: name(check_blocks(data()))) if callable(data) else name(data)


def _dtype_of(rows: Mapping[str, np.ndarray]) -> dict[str, Any]:
  return {'activation_dtype': f'{next(iter(rows.values())).dtype}'}
