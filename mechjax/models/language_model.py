"""One object for a language model: weights, forward pass, tokenizer and sites.

Every experiment needs the same four things, and they must belong together: a tokenizer from
another file or a loss that counts other tokens changes results without an error. `load` returns
them as one object, whatever code computes the forward pass:

    model = mechjax.load('smollm2-135m')              # or a path, or the name under which a hub has it
    tokens = model.tokens('The capital of France is')
    logits = model(tokens)                            # [1, T, V]
    logits[0, -1, model.token(' Paris')]              # a text that is one token, as an index
    model.text(model.generate('Once upon a time', 20).tokens[0])

`model.apply(params, tokens)` is the pure function underneath, tagged at every site of
`mechjax.sites`: give it to jit, grad, vmap, reap or iterate. `model(tokens)` is the same, jitted,
with `model.params` passed as an argument rather than baked into the program. The model is a pytree of its
parameters: inside a `jit`, `grad` or `vmap` of your own, take it as an argument too,

    jax.jit(lambda model, tokens: model.loss(tokens))(model, tokens)

or half a gigabyte of parameters is compiled in as constants, and a later change of them has no effect.

Rows of different lengths are padded to one length, on either side, and `mask` (bool [B, T], True at real tokens) marks
the real columns: `model(tokens, mask)`, `model.loss(tokens, mask)`, `model.apply(params, tokens, mask)`. The values at
real tokens are then those of the row alone, and those at padding have no meaning (`padding.nan_at_padding` makes them
NaN). Without a mask every column is text (`models/padding.py`). Texts and chats come with their mask:

    tokens, mask = batch = model.tokens(['The capital of France is', 'Once upon a time'])
    model.loss(*batch)
    model.tokens([{'role': 'user', 'content': 'Hello'}])        # int32 [1, T], by the model's own template of chats

Letters in shapes: B batch, T position, D model, V vocabulary.

Sharp edges: inside a traced program a token id outside the vocabulary cannot raise; its row of logits is NaN (`ids`).
Losses are means over positions 1 to T-1, in nats.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypedDict, Unpack, overload

import jax
import jax.numpy as jnp
import numpy as np

from mechjax import errors, fingerprints, generate, harvest, logits, sites
from mechjax.generate import Generation, Steps
from mechjax.generate.sampling import is_integer
from mechjax.models import ids, padding, tokenizers
from mechjax.models import prompts as prompts_lib
from mechjax.models.chat import Message
from mechjax.models.forward_pass import Forward, without_cache
from mechjax.models.padding import Padded
from mechjax.sites import Patterns, Site

Prompts = str | Sequence[str | Message | Sequence[int] | Sequence[Message]] | Padded | jax.Array
"""A text, a chat, several of them, or rows of token ids."""


class StepOptions(TypedDict, total=False):
  """Options of every generation: the settings of `generate.Sampling`, and those of `generate.generate`."""

  temperature: float
  top_k: int | None
  top_p: float | None
  repetition_penalty: float
  frequency_penalty: float
  stop: int | str | Collection[int | str] | None
  seed: int
  n_samples: int
  pad: int


class GenerationOptions(StepOptions, total=False):
  """Options of a generation that is not iterated over."""

  plants: Mapping[str, Any] | None
  sites: Patterns
  progress: bool


@jax.tree_util.register_pytree_node_class
class LanguageModel:
  """Weights, forward pass, tokenizer and sites; a pytree of its parameters.

  Attributes:
    name: name or path of the model.
    params: pytree of arrays; `apply` takes it, or any changed copy.
    apply: pure function (params, tokens [B, T], mask=None) -> logits float32 [B, T, V].
    tokenizer: text to token ids and back.
    n_layers: number of blocks.
    d_model: width of the residual stream.
    n_vocab: number of token ids.
    config: the description of our own decoder; None for upstream codes.
    forward_from: a pass that begins at a layer, for `patching`, see `Forward`; None for upstream codes.
    generator: a step that continues texts, see `mechjax.generate.Model`; with a cache unless the code has none.
  """

  __mechjax_reads__ = ('params', 'apply')

  def __init__(self, name: str, forward: Forward, tokenizer: tokenizers.Tokenizer):
    """Joins the parts; use `mechjax.load`."""
    self.name, self.tokenizer, self.config = name, tokenizer, forward.config
    self.generator = forward.generator or without_cache(forward.apply)
    self.params, self.apply, self.forward_from = forward.params, forward.apply, forward.forward_from
    self.n_layers, self.d_model, self.n_vocab = forward.n_layers, forward.d_model, forward.n_vocab
    self._forward_until = forward.forward_until
    self._jitted_apply = jax.jit(forward.apply)
    self._jitted_unembed = jax.jit(forward.unembed)
    self._rest = _Rest(vars(self))

  def tree_flatten(self) -> tuple:
    return (self.params,), self._rest

  @classmethod
  def tree_unflatten(cls, rest: _Rest, children: tuple) -> LanguageModel:
    made = object.__new__(cls)
    vars(made).update(rest.attributes, params=children[0], _rest=rest)
    return made

  def __setattr__(self, name: str, value: Any) -> None:
    """Replaces an attribute, such as `params`.

    Raises:
      MechjaxError: there is no attribute of this name.
    """
    made = vars(self)
    if '_rest' in made and name not in made:
      known = [k for k in made if not k.startswith('_')]
      raise errors.unknown(errors.MechjaxError, 'attribute of a model', name, known)
    super().__setattr__(name, value)

  def __repr__(self) -> str:
    return f'LanguageModel({self.name!r}, n_layers={self.n_layers}, d_model={self.d_model})'

  def __call__(self, tokens: jax.Array, mask: Any = None) -> jax.Array:
    """Logits, float32 [B, T, V].

    Args:
      tokens: int [B, T].
      mask: True at real tokens, bool [B, T]; None if there is no padding.

    Raises:
      MechjaxError: tokens or a mask of another shape or dtype, ids outside the vocabulary, a row of padding only; for
        upstream codes, padding between the tokens of a row, or (penzai) before them.
    """
    tokens = ids.check_ids(tokens, self.n_vocab)
    return self._jitted_apply(self.params, tokens, **self._mask_option(tokens, mask))

  def check_arguments(self, tokens: Any, *options: Any, **more: Any) -> None:
    """Rejects ids outside the vocabulary, before a harvest traces them."""
    ids.check_ids(tokens, self.n_vocab)

  def __deepcopy__(self, memo: dict[int, Any]) -> LanguageModel:
    """A model with arrays of its own; the compiled programs take arrays as arguments, so both models share them."""
    other = copy.copy(self)
    other.params = copy.deepcopy(self.params, memo)
    return other

  def sites(self) -> list[Site]:
    """Every site, in the order in which the forward pass meets them."""
    return [info.site for info in harvest.sites_of(self, jnp.zeros((1, 1), jnp.int32))]

  def truncate_at(
    self, wanted: str | Site | Iterable[str | Site]
  ) -> Callable[[Any, jax.Array], Any]:
    """Makes a forward pass that ends after the last of some sites, for reading these sites without logits.

    Args:
      wanted: sites or patterns, as everywhere.

    Returns:
      A pure function (params, tokens [B, T], mask=None) with the sows of every layer that it runs: to be reaped,
      planted or iterated. Its result has no use.

    Raises:
      SiteError: a pattern that does not select a site.
    """
    chosen = sites.select(wanted, self.sites())
    after_the_layers = any(not site.path and site.name != 'embed' for site in chosen)
    forward_until = self._forward_until
    if forward_until is None or after_the_layers:
      return self.apply
    stop = 1 + max((site.path[0] for site in chosen if site.path), default=-1)

    def short(params: Any, tokens: jax.Array, mask: Any = None) -> jax.Array:
      return forward_until(params, tokens, stop, mask)

    return short

  def fingerprint(self) -> str:
    """Fingerprint of the parameters, 16 hexadecimal digits; the same on any devices."""
    return fingerprints.of_weights(self.params)

  def unembed(self, residual: jax.Array) -> jax.Array:
    """Logits [..., V] of a residual stream [..., D], by the final norm and the head."""
    if jnp.shape(residual)[-1:] != (self.d_model,):
      raise errors.MechjaxError(
        f'a residual stream has shape [..., {self.d_model}], not {jnp.shape(residual)}'
      )
    return self._jitted_unembed(self.params, residual)

  @overload
  def tokens(
    self, x: str | Sequence[Message], bos: bool | None = None, special: bool = False, *,
    generation_prompt: bool | None = None, padding: Literal['right', 'left'] = 'right',
  ) -> jax.Array: ...  # fmt: skip

  @overload
  def tokens(
    self, x: list[str] | tuple[str, ...] | Sequence[Sequence[Message]], bos: bool | None = None,
    special: bool = False, *, generation_prompt: bool | None = None,
    padding: Literal['right', 'left'] = 'right',
  ) -> Padded: ...  # fmt: skip

  def tokens(
    self,
    x: Any,
    bos: bool | None = None,
    special: bool = False,
    *,
    generation_prompt: bool | None = None,
    padding: Literal['right', 'left'] = 'right',
  ) -> jax.Array | Padded:
    """Token ids of a text or a chat, int32 [1, T]; or of several, padded to [B, T], with their mask.

    Args:
      x: a text; a chat, [{'role': 'user', 'content': 'Hello'}, ...], written by the model's own template; or a list
        of texts or of chats.
      bos: whether the beginning-of-sequence token comes first; None adds it if the model expects it, and in chats if
        the template writes it.
      special: whether special pieces in texts, such as '<|im_end|>', become their tokens; otherwise they are ordinary
        characters.
      generation_prompt: whether a chat ends with the beginning of a message of the assistant; True unless False is
        given. Only for chats.
      padding: side of the padding of several rows, whose ids are 0.

    Returns:
      The ids; for several texts or chats, `Padded`: the ids and the mask, for `model(*tokens)`, `model.loss(*tokens)`
      and every other call that takes both.

    Raises:
      MechjaxError: another value, a row without tokens, a chat that the template refuses, a model without a template,
        or bytes that the vocabulary lacks; the message states the row.
    """
    return prompts_lib.make_tokens(
      self.tokenizer, x, bos=bos, special=special, generation_prompt=generation_prompt, side=padding
    )

  def token(self, text: str) -> int:
    """The id of a text that is one token, such as ' Paris': the index of an answer among the logits.

    Args:
      text: with the space before it, if it follows other words.

    Raises:
      MechjaxError: the text is several tokens or none; the message lists the pieces.
    """
    return self.tokenizer.token(text)

  def text(self, tokens: Any) -> str:
    """Text of one sequence of token ids: [T], [1, T], or a single id.

    Args:
      tokens: a whole text as `tokens` gives it, or a piece of one, which keeps the space before its first word. Special
        tokens are written out; the beginning-of-sequence token only if it is given as a single id.

    Raises:
      MechjaxError: more than one sequence, values that are not ids, or an id without a text.
    """
    array = np.asarray(ids.check_ids(tokens, self.n_vocab, ndim=None))
    if array.ndim > 1 and array.size != array.shape[-1]:
      raise errors.MechjaxError(f'token ids of shape {array.shape} are more than one sequence')
    found = array.reshape(-1).tolist()
    return self.tokenizer.decode(found) if array.ndim else self.tokenizer.piece(found[0])

  def log_probs(self, tokens: jax.Array, mask: Any = None) -> jax.Array:
    """Log-probabilities of every next token, in nats, [B, T, V]; arguments as in a call."""
    return logits.log_probs(self(tokens, mask))

  def loss(self, tokens: jax.Array, mask: Any = None) -> jax.Array:
    """Mean loss of predicting each real token from the real tokens before it, in nats; a scalar.

    Every predicted token has the same weight, in any row; the first token of each row is not predicted.

    Raises:
      MechjaxError: no row has a second token, as far as is known, so there is nothing to predict; or as in a call.
    """
    tokens = ids.check_ids(tokens, self.n_vocab)
    if mask is not None:
      mask = padding.check_mask(mask, tokens.shape)
    if not padding.may_have_two(mask, tokens.shape):
      raise errors.MechjaxError(
        f'tokens of shape {tokens.shape} have nothing to predict: no row has two real tokens',
        hint='put a start token before each text, as model.tokens(text, bos=True) does',
      )
    real_BxT = jnp.ones(jnp.shape(tokens), bool) if mask is None else jnp.asarray(mask)
    order_BxT = padding.tokens_first(real_BxT)
    texts_BxT, counts_BxT = (
      jnp.take_along_axis(x, order_BxT, axis=1)[:, 1:] for x in (jnp.asarray(tokens), real_BxT)
    )
    rows_Bx1 = jnp.arange(len(order_BxT))[:, None]
    following_BxT = jnp.where(counts_BxT, texts_BxT.astype(jnp.int32), -1)
    none_BxT = jnp.full(order_BxT.shape, -1, jnp.int32)
    targets_BxT = none_BxT.at[rows_Bx1, order_BxT[:, :-1]].set(following_BxT)
    losses_BxT = logits.next_token_loss(self.log_probs(tokens, mask), targets_BxT)
    return losses_BxT.sum() / counts_BxT.sum(dtype=losses_BxT.dtype)

  def _mask_option(self, tokens: jax.Array, mask: Any) -> dict[str, jax.Array]:
    """The mask as a keyword of `apply`, if it is needed."""
    if mask is None:
      return {}
    mask = padding.check_mask(mask, jnp.shape(tokens))
    if self.config is None:
      padding.check_contiguous(mask)
      if padding.is_right_padded(mask):  # no token sees it, and not every code accepts a mask
        return {}
    return {'mask': jnp.asarray(mask)}

  def generate(
    self,
    prompts: Prompts,
    n_tokens: int,
    **options: Unpack[GenerationOptions],
  ) -> Generation:
    """Continues texts.

    Args:
      prompts: a text, a chat, texts, chats, or token ids of each row; of any lengths. In chats the message of the
        assistant is opened. What `tokens` returns of several is passed as it is, ids and mask together:
        `model.generate(model.tokens(texts), n)`. Ids without their mask are text in every column.
      n_tokens: maximum number of tokens to generate.
      **options: temperature (0, the default, takes the likeliest token), top_k, top_p, repetition_penalty,
        frequency_penalty: see `mechjax.generate.Sampling`.
        stop: tokens that end a row, as ids or as texts of one token each; by default all tokens that the model's files
        name as the end of a text or a turn.
        n_samples, seed, pad, plants, sites, progress: see `mechjax.generate.generate`.

    Returns:
      Tokens, lengths, log-probabilities, and the values at `sites`; `model.text(out.tokens[0])` is the text of the
      first row.

    Raises:
      MechjaxError: prompts that are neither texts, chats nor ids of the vocabulary, a prompt without tokens, a stop
        text of several tokens, an invalid option; more tokens than learned positions, wherever a stop token may be.
      SiteError, HarvestError: interventions or sites that do not fit, as for `mechjax.generate.generate`.
    """
    rows = prompts_lib.make_rows(self.tokenizer, prompts, self.n_vocab)
    settings = self._generation_options(options)
    return generate.generate(self.generator, self.params, rows, n_tokens, **settings)

  def steps(
    self,
    prompts: Prompts,
    n_tokens: int,
    sites: Patterns = '*',
    **options: Unpack[StepOptions],
  ) -> Steps:
    """Continues texts, with Python between the steps and a loop over the sites within each.

        for step, run in (steps := model.steps('The capital of France is', 6, sites='resid_post.7')):
          for layer, name, value in run:
            run.modified_value = value + direction
        model.text(steps.result.tokens[0])

    Args:
      prompts, n_tokens: as for `generate`.
      sites: sites at which the run of each step stops.
      **options: temperature, top_k, top_p, repetition_penalty, frequency_penalty, n_samples, stop, pad, seed, as for
        `generate`.

    Returns:
      An iterable of (`mechjax.generate.GenerationStep`, run); see `mechjax.generate.Steps`.

    Raises:
      MechjaxError, SiteError: as for `generate`; or code without a cache (penzai).
    """
    rows = prompts_lib.make_rows(self.tokenizer, prompts, self.n_vocab)
    settings = self._generation_options(options)
    return generate.Steps(self.generator, self.params, rows, n_tokens, sites, **settings)

  def stream(
    self,
    prompt: str | Sequence[int | Message] | Padded | jax.Array,
    n_tokens: int,
    **options: Unpack[GenerationOptions],
  ) -> Iterator[str]:
    """Continues one text, and yields the pieces of text as soon as they are known.

    Args:
      prompt: a text, a chat, or token ids [T] or [1, T].
      n_tokens: maximum number of tokens to generate.
      **options: temperature, top_k, top_p, repetition_penalty, frequency_penalty, stop, seed, plants, as for
        `generate`.

    Returns:
      An iterator over pieces, each a token or, where characters are spread over tokens, several. Together they are the
      text of the tokens that `generate` chooses, without the stop token.

    Raises:
      MechjaxError, SiteError, HarvestError: as for `generate`.
    """
    row = prompts_lib.make_row(self.tokenizer, prompt, self.n_vocab)
    settings = self._generation_options(options)
    chosen = generate.stream(self.generator, self.params, row, n_tokens, **settings)
    return self._pieces(chosen)

  def _pieces(self, chosen: Iterable[int]) -> Iterator[str]:
    """Pieces of text of tokens, none of them empty."""
    stream = self.tokenizer.stream()
    for i in chosen:
      if piece := stream.push(i):
        yield piece
    if piece := stream.close():
      yield piece

  def _generation_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `mechjax.generate` from those of `generate`."""
    names = {field.name for field in dataclasses.fields(generate.Sampling)}
    found = {k: v for k, v in options.items() if k not in names}
    found['sampling'] = generate.Sampling(**{k: v for k, v in options.items() if k in names})
    stop = options.get('stop')
    found['stop'] = self.tokenizer.stop_ids if stop is None else self._encode_stops(stop)
    if 'pad' in options and (np.ndim(pad := options['pad']) or pad not in range(self.n_vocab)):
      raise errors.MechjaxError(f'pad={pad!r}; expected an id from 0 to {self.n_vocab - 1}')
    return found

  def _encode_stops(self, stop: Any) -> tuple[int, ...]:
    """The ids of stop tokens that are given as ids, texts or both."""
    listed = list(stop) if np.iterable(stop) and not isinstance(stop, str) else [stop]
    for s in listed:
      if not isinstance(s, str) and not is_integer(s):
        raise errors.MechjaxError(
          f'stop={stop!r:.100}; expected ids or texts of one token each',
          hint="stop='.', or stop=[2]",
        )
    found = [self.tokenizer.token(s) if isinstance(s, str) else s for s in listed]
    return tuple(ids.check_ids(found, self.n_vocab, ndim=1).tolist()) if found else ()


class _Rest:
  """The attributes of a model besides its parameters; equal only to itself."""

  __mechjax_reads__ = ()  # pure functions, and attributes that no forward pass reads

  def __init__(self, attributes: dict[str, Any]):
    self.attributes = {k: v for k, v in attributes.items() if k != 'params'}
