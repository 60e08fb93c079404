"""One object for a language model: weights, forward pass, tokenizer and sites.

Every experiment needs the same four things, and needs them to belong together: a tokenizer from
another file or a loss that counts other tokens shifts results quietly. `load` returns them as one
object, whatever code computes the forward pass:

    model = mechjax.load('smollm2-135m')              # or the path of a GGUF file
    tokens = model.tokens('The capital of France is')
    logits = model(tokens)                            # [1, T, V]

`model.apply(params, tokens)` is the pure function underneath, tagged at every site of
`mechjax.sites`: give it to jit, grad, vmap, reap or iterate. `model(tokens)` is the same, jitted,
with `model.params` passed as an argument rather than baked into the program; inside a `jit` of
your own, call `apply` with the parameters as an argument too, or half a gigabyte of them is
compiled in as constants.

Letters in shapes: B batch, T position, D model, V vocabulary.

Sharp edges: token ids are not checked against the vocabulary (JAX clamps an index that is too
large). Losses are means over positions 1 to T-1, in nats.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mechjax import errors, harvest
from mechjax.models import tokenizers
from mechjax.sites import Site
from mechjax.weights import fetch
from mechjax.weights.gguf import GGUFFile

# The code that computes the forward pass, by the name `load` takes, and the module that drives it.
CODES = {
  'gemma': 'mechjax.models.gemma',
  'penzai': 'mechjax.models.penzai',
  'transformers': 'mechjax.models.transformers',
  'tunix': 'mechjax.models.tunix',
}


@dataclasses.dataclass(frozen=True)
class Forward:
  """A forward pass as pure functions, which is what a module that drives a code base returns.

  Attributes:
    params: pytree of arrays.
    apply: (params, tokens [B, T]) -> logits float32 [B, T, V].
    unembed: (params, residual [..., D]) -> logits [..., V], by the model's own final norm and head.
    n_layers: number of blocks.
    d_model: D.
  """

  params: Any
  apply: Callable[[Any, jax.Array], jax.Array]
  unembed: Callable[[Any, jax.Array], jax.Array]
  n_layers: int
  d_model: int


class LanguageModel:
  """Weights, forward pass, tokenizer and sites.

  Attributes:
    name: what was loaded.
    params: pytree of arrays; `apply` takes it, or any changed copy.
    apply: pure function (params, tokens [B, T]) -> logits float32 [B, T, V].
    tokenizer: text to token ids and back.
    n_layers: number of blocks.
    d_model: width of the residual stream.
  """

  def __init__(self, name: str, forward: Forward, tokenizer: tokenizers.Tokenizer):
    """Joins the parts; use `load`."""
    self.name, self.tokenizer = name, tokenizer
    self.params, self.apply = forward.params, forward.apply
    self.n_layers, self.d_model = forward.n_layers, forward.d_model
    self._jitted_apply = jax.jit(forward.apply)
    self._jitted_unembed = jax.jit(forward.unembed)

  def __repr__(self) -> str:
    return f'LanguageModel({self.name!r}, n_layers={self.n_layers}, d_model={self.d_model})'

  def __call__(self, tokens: jax.Array) -> jax.Array:
    """Logits, float32 [B, T, V], of tokens, int [B, T]."""
    return self._jitted_apply(self.params, _checked(tokens))

  def sites(self) -> list[Site]:
    """Every site, in the order in which the forward pass meets them."""
    return [info.site for info in harvest.sites_of(self, jnp.zeros((1, 1), jnp.int32))]

  def unembed(self, residual: jax.Array) -> jax.Array:
    """Logits [..., V] that the final norm and the head would read in a residual stream [..., D]."""
    return self._jitted_unembed(self.params, residual)

  def tokens(self, text: str) -> jax.Array:
    """Token ids of a text, int32 [1, T]."""
    return jnp.asarray(self.tokenizer.encode(text), jnp.int32)[None]

  def text(self, ids: jax.Array | Iterable[int] | int) -> str:
    """Text of one sequence of token ids: [T], [1, T], or a single id."""
    array = np.asarray(ids)
    if array.ndim > 1 and array.size != array.shape[-1]:
      raise errors.MechjaxError(f'token ids of shape {array.shape} are more than one sequence')
    return self.tokenizer.decode(array.reshape(-1).tolist())

  def log_probs(self, tokens: jax.Array) -> jax.Array:
    """Log-probabilities of every next token, in nats, [B, T, V]."""
    return jax.nn.log_softmax(self(tokens))

  def loss(self, tokens: jax.Array) -> jax.Array:
    """Mean loss of predicting tokens[:, 1:], in nats; a scalar."""
    predicted = self.log_probs(tokens)[:, :-1]
    return -jnp.take_along_axis(predicted, tokens[:, 1:, None], axis=-1).mean()


def load(
  name_or_path: str | os.PathLike[str], code: str = 'tunix', *, accept_terms: bool = False
) -> LanguageModel:
  """Loads a language model.

  Args:
    name_or_path: a name in `mechjax.weights.fetch.SOURCES`, fetched on first use, or the path of
      a GGUF
      file.
    code: whose forward pass computes it: a key of `CODES`.
    accept_terms: whether you accept the terms of weights that come under any, as Gemma's do; an
      environment variable that the error names does the same.

  Returns:
    The model, instrumented, parameters on the default device in float32.

  Raises:
    FetchError: the model is neither cached nor to be had, its terms have not been accepted, or
      there is no file at the path.
    WeightsError: the file is damaged, or not of an architecture that `code` can compute.
    MissingExtraError: an optional library is not installed.
    MechjaxError: `code` is unknown.
  """
  if code not in CODES:
    raise errors.MechjaxError(f'no code called {code!r}', where=f'known: {sorted(CODES)}')
  file = GGUFFile(_find(name_or_path, accept_terms))
  forward = importlib.import_module(CODES[code]).forward(file)
  return LanguageModel(str(name_or_path), forward, tokenizers.from_gguf(file.metadata))


def _find(name_or_path: str | os.PathLike[str], accept_terms: bool) -> Path:
  """A path is what has a suffix, a separator or a file behind it; the rest are names."""
  path = Path(name_or_path).expanduser()
  if path.is_file():
    return path
  text = os.fspath(name_or_path)
  if path.suffix == '.gguf' or os.sep in text:
    raise errors.FetchError(f'there is no file {path}', where=f'working directory {Path.cwd()}')
  return fetch.path_of(text, accept_terms)


def _checked(tokens: jax.Array) -> jax.Array:
  if jnp.ndim(tokens) != 2 or not jnp.issubdtype(jnp.result_type(tokens), jnp.integer):
    raise errors.MechjaxError(
      f'tokens have shape {jnp.shape(tokens)} and dtype {jnp.result_type(tokens)}; '
      'integers of shape [B, T] are wanted',
      mend='model.tokens(text) makes them; tokens[None] adds a missing batch axis',
    )
  return tokens
