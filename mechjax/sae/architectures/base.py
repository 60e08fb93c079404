"""Common parts of all dictionaries: two matrices, a target, and a loss in named parts.

A dictionary reads activations x and reconstructs them as a sparse sum of directions,

    f = encode(x) [B, M]        x_hat = f @ W_dec + b_dec

An ARCHITECTURE is a frozen dataclass: its fields are the settings, its methods pure functions of a dict of arrays.
Architectures differ in how latents become active and how the number of active latents is kept small. Each file states
this as in the paper (docs/methods.md, section 4). The common settings, valid for any architecture, are defined here:

    d_out      a target other than the input: a TRANSCODER, y_hat = f @ W_dec + b_dec, whose encoder sees x itself
               instead of x - b_dec (Dunefsky et al. 2024)
    skip       a SKIP TRANSCODER adds x @ W_skip, initially zero (Paulo et al. 2025)
    prefixes   a MATRYOSHKA dictionary: the first m latents alone must reconstruct the target too, for each m in
               prefixes, and the losses are added (Bussmann et al. 2025)
    parts      a CROSSCODER: x is several activations of a token side by side, each divided by its own scale, such as
               those of several layers or of two models, and a latent has a direction in each (Lindsey et al. 2024)
    aux_loss   a loss for dead latents (`mechjax.sae.dead_latents`)
    decoder_norm   'one' keeps rows of W_dec at unit length in training, 'at_most_one' only shortens longer ones

Parameters: W_enc [D, M], W_dec [M, E] with rows of unit length, b_dec [E], W_skip [D, E] with `skip`, and the
architecture's own vectors [M], named in its `PER_LATENT`. Names follow published files where such files exist.

Static and traced hyperparameters. The fields are static: they are hashed, and another value compiles again. The TRACED
HYPERPARAMETERS, named in `TRACED` (the sparsity coefficient, or k), can also be passed as arrays through `hparams`,
without recompilation; an ensemble of dictionaries of one shape trains together by

    hparams = sae.hparams(sparsity=[1e-3, 3e-3])
    jax.vmap(sae.loss, in_axes=(0, None, None, 0))(params, x, None, hparams)

`UNIT_ROWS` states whether rows of W_dec are kept at unit length in training, and `RAMPED_THROUGHOUT` whether the
sparsity coefficient rises over the whole training and not over its warm-up.

To add an architecture, write one file with a subclass that implements the abstract methods, and one line in the
registry.

Sharp edges. Losses are means over tokens of sums over d, and published coefficients assume E|x|^2 = 1. The initial
W_enc is the transpose of W_dec, except in a transcoder, where the two read and write different spaces. Rows of the
decoder of a crosscoder have no fixed length, and latents are weighed (`crosscoder_parts`). With one part, parts=(D,),
it is an autoencoder, and trained as one.

Letters in shapes: B tokens, D width of x, E width of the target (D unless `d_out`), M latents, A active latents, P
parts.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from mechjax.errors import SAEError
from mechjax.sae.architectures.crosscoder_parts import check_parts
from mechjax.sae.architectures.losses import AuxLoss, DensityLoss, LossOutput, mean_squared_norm
from mechjax.sae.checks import check_activations, check_field, check_some, check_whole
from mechjax.sae.ops import sparse
from mechjax.sae.ops.matmul import MATMULS, offset_product, product
from mechjax.sae.ops.sparse import Sparse
from mechjax.sae.ops.unit_rows import Params, normalise, shorten, unit_rows
from mechjax.sae.provenance import Metadata

HParams = Mapping[str, jax.Array]
DECODER_NORMS = ('one', 'at_most_one')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture(abc.ABC):
  """Settings of a dictionary, and pure functions of its parameters.

  Attributes:
    d_in: D, width of the input activations.
    width: M, number of latents.
    d_out: E, width of the target activations at another site; None to reconstruct the input itself.
    skip: whether x @ W_skip is added to the reconstruction; requires `d_out`.
    prefixes: numbers of first latents that must reconstruct the target alone, increasing, the last equal to `width`;
      empty for all latents only.
    aux_loss: a loss for dead latents, or None.
    decoder_norm: 'one' for rows of W_dec of unit length, or 'at_most_one' for rows of up to that length.
    parts: widths of the activations that x consists of, which add up to `d_in`; empty if there is one.
    matmuls: 'float32', or 'bfloat16' for products of rounded operands (`mechjax.sae.ops.matmul`).
    provenance: the model, the site and the texts that it was trained on, as far as its files state them; not compared.

  Raises:
    SAEError: settings that do not describe a dictionary; the message contains the value.
  """

  TRACED: ClassVar[tuple[str, ...]]
  PER_LATENT: ClassVar[Mapping[str, float]]
  OBSERVED: ClassVar[tuple[str, ...]] = ()
  DECODER_PRODUCTS: ClassVar[int] = 3
  UNIT_ROWS: ClassVar[bool] = True
  RAMPED_THROUGHOUT: ClassVar[bool] = False
  GUIDED: ClassVar[bool] = False
  TRAINING_ONLY: ClassVar[Mapping[str, object]] = {'aux_loss': None, 'decoder_norm': 'one'}
  HAS_PARTS: ClassVar[bool] = False

  d_in: int
  width: int
  d_out: int | None = None
  skip: bool = False
  prefixes: tuple[int, ...] = ()
  aux_loss: AuxLoss | None = None
  decoder_norm: str = 'one'
  parts: tuple[int, ...] = ()
  matmuls: str = 'float32'
  provenance: Metadata | None = dataclasses.field(default=None, compare=False, repr=False)

  def __post_init__(self) -> None:
    check_whole(self, 'd_in', 'width', *(['d_out'] if self.d_out is not None else []))
    for name in ('d_in', 'width'):
      check_field(self, name, getattr(self, name) >= 1, 'at least 1')
    check_field(self, 'd_out', self.d_out is None or self.d_out >= 1, 'at least 1, or None')
    check_field(self, 'matmuls', self.matmuls in MATMULS, f'one of {[*MATMULS]}')
    norms = DECODER_NORMS if self.UNIT_ROWS else DECODER_NORMS[:1]
    check_field(self, 'decoder_norm', self.decoder_norm in norms, f'one of {[*norms]}')
    check_field(self, 'skip', not self.skip or self.d_out is not None, 'False without d_out')
    self._check_prefixes()
    check_parts(self)
    aux = self.aux_loss
    known = isinstance(aux, AuxLoss) and not isinstance(aux, type)
    check_field(self, 'aux_loss', aux is None or known, 'a loss such as AuxK(), or None')

  def _check_prefixes(self) -> None:
    p = self.prefixes
    increasing = (
      isinstance(p, tuple)
      and all(isinstance(n, numbers.Integral) for n in p)
      and list(p) == sorted({*p})
      and (not p or (p[0] >= 1 and p[-1] == self.width))
    )
    expected = f'increasing and end with width={self.width}, as a tuple, or ()'
    check_field(self, 'prefixes', increasing, expected)

  # --- defined by each architecture -----------------------------------------------------------------------

  @abc.abstractmethod
  def encode(self, params: Params, x: jax.Array) -> jax.Array:
    """Latents at inference, after training, [..., M].

    Args:
      params: the parameters.
      x: activations, [..., D].
    """

  @abc.abstractmethod
  def loss(
    self,
    params: Params,
    x: jax.Array,
    y: jax.Array | None = None,
    hparams: HParams | None = None,
    dead: jax.Array | None = None,
  ) -> tuple[jax.Array, LossOutput]:
    """The training loss.

    Args:
      params: the parameters.
      x: activations, [B, D].
      y: the target, [B, E]; None for x.
      hparams: traced hyperparameters, from `hparams`; None for the settings.
      dead: mask of dead latents, bool [M]; None to omit `aux_loss`.

    Returns:
      The loss, and its parts with the latents and the error.
    """

  def encode_sparse(self, params: Params, x: jax.Array) -> Sparse | None:
    """The latents of `encode` in sparse form, if the architecture has them without an array [B, M]; otherwise None.

    Args:
      params: the parameters.
      x: activations, [B, D].
    """
    return None

  def as_jumprelu(self, params: Params) -> tuple[Architecture, Params]:
    """An equivalent `JumpReLU`, with the same `encode` and `decode`, as files of dictionaries store it.

    Raises:
      SAEError: the architecture does not select latents by thresholds.
    """
    raise SAEError(
      f'{type(self).__name__} selects latents by rank and has no thresholds', hint='use BatchTopK'
    )

  def observe(self, params: Params, latents: jax.Array | Sparse) -> Params:
    """Updates the parameters named in `OBSERVED`, which have no gradient, after a training batch."""
    return params

  def as_shardable(self) -> Architecture:
    """The same dictionary, computed in a way that can be sharded over devices."""
    return self

  def check_batch(self, n_tokens: int) -> None:
    """Checks that the loss is defined for batches of this size.

    Raises:
      SAEError: it is not; only architectures that select latents over a batch have such limits.
    """
    del n_tokens

  def training_state(self) -> Params:
    """Initial values of parameters that only training needs; the loss returns new ones as `LossOutput.observed`."""
    if isinstance(self.aux_loss, DensityLoss):
      return {'density': jnp.zeros(self.width, jnp.float32)}
    return {}

  def for_inference(self, params: Params) -> tuple[Architecture, Params]:
    """The dictionary without settings and parameters that only training needs; files hold this one."""
    dropped = self.training_state()
    left = {name: value for name, value in params.items() if name not in dropped}
    settings: dict[str, Any] = dict(self.TRAINING_ONLY)
    return dataclasses.replace(self, **settings), left

  # --- common to all --------------------------------------------------------------------------------------

  @property
  def operations_per_token(self) -> int:
    """Floating-point operations of the dense products of a training step: the encoder and its gradient, and the
    decoder, its gradient and that of the latents. A skip and dead latents are not counted."""
    return 2 * self.width * (2 * self.d_in + self.DECODER_PRODUCTS * self.target_width)

  @property
  def n_latents(self) -> int:
    """Number of latents: `width`, unless an architecture has as many on each of several layers."""
    return self.width

  @property
  def latent_axes(self) -> dict[str, int]:
    """Axis of the latents in each parameter that has one."""
    density = ['density'] if isinstance(self.aux_loss, DensityLoss) else []
    return {**dict.fromkeys([*self.PER_LATENT, *density], 0), 'W_enc': 1, 'W_dec': 0}

  @property
  def target_width(self) -> int:
    """E, the width of the target."""
    return self.d_in if self.d_out is None else self.d_out

  @property
  def is_crosscoder(self) -> bool:
    """Whether x has several parts."""
    return len(self.parts) > 1

  @property
  def has_unit_rows(self) -> bool:
    """Whether training keeps rows of W_dec at unit length."""
    return self.UNIT_ROWS and self.decoder_norm == 'one' and not self.is_crosscoder

  def constrain(self, params: Params) -> Params:
    """Parameters with rows of W_dec of an allowed length, after an update."""
    if self.has_unit_rows:
      return normalise(params)
    return shorten(params) if self.decoder_norm == 'at_most_one' else params

  def initial_values(self) -> dict[str, float]:
    """Initial value of each parameter in `PER_LATENT`."""
    return dict(self.PER_LATENT)

  def init(self, key: jax.Array, centre: jax.Array | None = None) -> Params:
    """Initial parameters: W_dec is He-uniform with its rows normalised, W_enc its transpose, the rest constants.

    Args:
      key: a random key.
      centre: initial b_dec, [E], such as the mean of the target; None for zeros.

    Raises:
      SAEError: the centre has another shape, or the key is not an array.
    """
    E, M = self.target_width, self.width
    if not isinstance(key, (jax.Array, np.ndarray)):
      raise SAEError(f'key={key!r:.100} is not a random key', hint='jax.random.key(0)')
    if centre is not None and jnp.shape(centre) != (E,):
      raise SAEError(f'a centre of shape {jnp.shape(centre)} for a reconstruction of width {E}')
    of_decoder, of_encoder = jax.random.split(key)
    he_uniform = jax.nn.initializers.he_uniform()
    W_dec = unit_rows(he_uniform(of_decoder, (M, E), jnp.float32))
    own = unit_rows(he_uniform(of_encoder, (M, self.d_in), jnp.float32))
    params = {
      name: jnp.full(M, value, jnp.float32) for name, value in self.initial_values().items()
    }
    params |= {'W_enc': (own if self.d_out else W_dec).T, 'W_dec': W_dec}
    params['b_dec'] = (
      jnp.zeros(E, jnp.float32) if centre is None else jnp.asarray(centre, jnp.float32)
    )
    if self.skip:
      params['W_skip'] = jnp.zeros((self.d_in, E), jnp.float32)
    return params | self.training_state()

  def hparams(self, **values: ArrayLike | Sequence[float]) -> dict[str, jax.Array]:
    """Traced hyperparameters as arrays: the values given, and the settings for the others.

    Args:
      **values: numbers, or lists of numbers with one for each dictionary of an ensemble.

    Raises:
      SAEError: a setting is static, or a value is out of range.
    """
    if unknown := sorted({*values} - {*self.TRACED}):
      raise SAEError(
        f'{unknown} of {type(self).__name__} are not traced hyperparameters',
        cause=f'traced are {[*self.TRACED]}',
      )
    given = {name: np.asarray(values.get(name, getattr(self, name))) for name in self.TRACED}
    for name, array in given.items():
      for value in array.reshape(-1).tolist():
        dataclasses.replace(self, **{name: value})  # checks it
    return {name: jnp.asarray(array) for name, array in given.items()}

  def hparam(self, hparams: HParams | None, name: str, dtype: DTypeLike) -> jax.Array:
    """One traced hyperparameter, a scalar.

    Within jit and vmap a value is not known: there `hparams` has checked its range, or nothing has.

    Raises:
      SAEError: `hparams` has other names, several values outside vmap, a number that is not whole in place of one that
        is, or a known value out of range.
    """
    if hparams is None:
      return jnp.asarray(getattr(self, name), dtype)
    hint = f'loss(..., hparams=sae.hparams({", ".join(f"{n}=..." for n in self.TRACED)}))'
    if {*hparams} != {*self.TRACED}:
      raise SAEError(
        f'hparams with {sorted(hparams)} for a {type(self).__name__}',
        cause=f'its traced hyperparameters are {[*self.TRACED]}',
        hint=hint,
      )
    given = hparams[name]
    value = jnp.asarray(given)
    if jnp.issubdtype(dtype, jnp.integer) and not jnp.issubdtype(value.dtype, jnp.integer):
      raise SAEError(f'hparams[{name!r}]={given!r:.100} should be a whole number', hint=hint)
    if value.ndim:
      raise SAEError(
        f'hparams[{name!r}] has shape {list(value.shape)}; expected one number',
        cause='hyperparameters of an ensemble outside vmap',
        hint='jax.vmap(sae.loss, in_axes=(0, None, None, 0))(params, x, None, hparams)',
      )
    if not isinstance(given, jax.core.Tracer):
      self.hparams(**{name: np.asarray(given).item()})  # checks it
    return value.astype(dtype)

  def pre_activations(self, params: Params, x: jax.Array) -> jax.Array:
    """(x - b_dec) @ W_enc + b_enc, or x @ W_enc + b_enc in a transcoder, [..., M]."""
    return self.project(params, x) + params['b_enc']

  def project(self, params: Params, x: jax.Array) -> jax.Array:
    """(x - b_dec) @ W_enc, or x @ W_enc in a transcoder, [..., M]."""
    self._check(params, x, 'd_in', self.d_in)
    if self.d_out is not None:
      return product(x, params['W_enc'], self.matmuls)
    return offset_product(x, params['b_dec'], params['W_enc'], self.matmuls)

  def decode(
    self, params: Params, latents: jax.Array | Sparse, x: jax.Array | None = None
  ) -> jax.Array:
    """Reconstructs the target from latents, [..., E].

    Args:
      params: the parameters.
      latents: [..., M] or `Sparse`.
      x: the input, [..., D], which a skip transcoder requires.

    Raises:
      SAEError: latents of another dictionary; the input of a skip transcoder is missing.
    """
    width = latents.width if isinstance(latents, Sparse) else jnp.shape(latents)[-1]
    if width != self.width:
      raise SAEError(f'{width} latents for a dictionary with width={self.width}')
    return self._product(latents, params['W_dec']) + self._base(params, x)

  def reconstruct(self, params: Params, x: jax.Array) -> jax.Array:
    """The target of activations, decode(encode(x)), [..., E]; by sparse latents if the architecture has them.

    Args:
      params: the parameters.
      x: activations, [..., D].
    """
    check_activations(x)
    x_BxD = x.reshape(-1, x.shape[-1])
    latents = self.encode_sparse(params, x_BxD)
    if latents is None:
      return self.decode(params, self.encode(params, x), x)
    y_BxE = _decode(self, params, latents, x_BxD)
    return y_BxE.reshape(*x.shape[:-1], self.target_width)

  def reconstruction_loss(
    self, params: Params, latents: jax.Array | Sparse, x: jax.Array, y: jax.Array | None
  ) -> tuple[jax.Array, jax.Array]:
    """Sum over prefixes m of the mean of |target - f[:m] @ W_dec[:m] - b_dec|^2.

    Args:
      params: the parameters.
      latents: [B, M] or `Sparse`.
      x: the input, [B, D].
      y: the target, [B, E]; None for x.

    Returns:
      The sum, and the error of all latents, [B, E].
    """
    error = self.remaining_target(params, x, y)
    total = jnp.zeros((), error.dtype)
    for between, W_dec in _between_prefixes(latents, params['W_dec'], self.prefixes):
      error = error - self._product(between, W_dec)
      total = total + mean_squared_norm(error)
    return total, error

  def remaining_target(self, params: Params, x: jax.Array, y: jax.Array | None) -> jax.Array:
    """The part of the target (x or y) for the latents to reconstruct: the target minus b_dec and the skip, [B, E].

    Raises:
      SAEError: x is not [B, D]; a target is missing, of other tokens, or not expected.
    """
    self._check_tokens(x)
    return self._target(params, x, y) - self._base(params, x)

  def _product(self, latents: jax.Array | Sparse, W_dec: jax.Array) -> jax.Array:
    if isinstance(latents, Sparse):
      return sparse.decode(latents.values, latents.indices, W_dec, self.matmuls)
    return product(latents, W_dec, self.matmuls)

  def _base(self, params: Params, x: jax.Array | None) -> jax.Array:
    """The reconstruction without any latent."""
    if not self.skip:
      return params['b_dec']
    if x is None:
      raise SAEError(
        'a skip transcoder needs the input to decode latents', hint='decode(params, f, x)'
      )
    return params['b_dec'] + product(x, params['W_skip'], self.matmuls)

  def _target(self, params: Params, x: jax.Array, y: jax.Array | None) -> jax.Array:
    if (y is None) != (self.d_out is None):
      raise SAEError(
        f'd_out={self.d_out} and {"no target" if y is None else "a target"}',
        cause='a transcoder has a target, an autoencoder does not',
        hint='loss(params, x, y) with d_out set, loss(params, x) without',
      )
    if y is None:
      return x
    self._check(params, y, 'd_out', self.target_width)
    if y.shape[:-1] != x.shape[:-1]:
      raise SAEError(f'inputs {x.shape} and targets {y.shape} are not of the same tokens')
    return y

  def _check_tokens(self, x: jax.Array) -> None:
    check_activations(x)
    if jnp.ndim(x) != 2:
      raise SAEError(
        f'a loss of activations of shape {jnp.shape(x)}, which are not [B, D]',
        cause='penalties are means over the first axis alone',
        hint='x.reshape(-1, x.shape[-1])',
      )
    check_some(x)

  def _check(self, params: Params, x: jax.Array, name: str, size: int) -> None:
    check_activations(x)
    if x.shape[-1] != size:
      raise SAEError(f'activations of shape {x.shape} for a dictionary with {name}={size}')
    expected = (self.d_in, self.width), (self.width, self.target_width)
    found = params['W_enc'].shape, params['W_dec'].shape
    if found != expected:
      raise SAEError(
        f'W_enc and W_dec have shapes {found}, not {expected}',
        cause='the parameters of a dictionary with other settings, or of an ensemble outside vmap',
      )


@functools.partial(jax.jit, static_argnums=0)  # kernels on arrays would be compiled at each call
def _decode(sae: Architecture, params: Params, latents: Sparse, x_BxD: jax.Array) -> jax.Array:
  return sae.decode(params, latents, x_BxD)


def _between_prefixes(
  latents: jax.Array | Sparse, W_dec: jax.Array, prefixes: tuple[int, ...]
) -> Iterable[tuple[jax.Array | Sparse, jax.Array]]:
  """Latents and decoder rows between one prefix and the next."""
  if len(prefixes) < 2:
    return [(latents, W_dec)]
  if isinstance(latents, Sparse):
    return [(latents.restrict(low, high), W_dec) for low, high in zip((0, *prefixes), prefixes)]
  cuts = list(prefixes[:-1])
  return zip(jnp.split(latents, cuts, -1), jnp.split(W_dec, cuts))
