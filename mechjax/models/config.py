"""The description of a decoder: one frozen dataclass for every family, checked when it is made.

GPT-2, Pythia, Llama, Qwen, Mistral and Gemma are one computation with switches. The switches are defined here, each
with its meaning, so that the equations in `decoder` can be read without knowing the families, and a family
(`families`) is a value and not a class. The description is hashable: it is a static argument of `jax.jit`, and two
equal descriptions share a compilation.

Letters in shapes: L layers, V vocabulary, D model, N query heads, K key-value heads, H head, F neurons, P positions.

Sharp edges: a description does not hold a dtype; parameters have their own. A combination that no family has is
allowed wherever the equations are defined for it.
"""

from __future__ import annotations

import dataclasses
import math

from mechjax import errors

NORMS = ('rms', 'layer', 'none')
POSITIONS = ('rotary', 'learned', 'none')
ACTIVATIONS = ('gelu', 'gelu_tanh', 'silu', 'relu')


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
  """Scaling of the rotary wavelengths in Llama 3.1 and later.

  Attributes:
    factor: multiplies the longest wavelengths.
    low_frequency: wavelengths over `original_length / low_frequency` are multiplied by `factor`.
    high_frequency: wavelengths under `original_length / high_frequency` stay; those in between are interpolated.
    original_length: number of positions that the model was first trained on.
  """

  factor: float
  low_frequency: float
  high_frequency: float
  original_length: int

  def __post_init__(self) -> None:
    ordered = 0 < self.low_frequency < self.high_frequency < math.inf
    if not ordered or not 1 <= self.factor < math.inf or self.original_length < 1:
      raise errors.MechjaxError(
        f'{self} does not describe a scaling',
        hint='use 0 < low_frequency < high_frequency, factor >= 1 and original_length >= 1',
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """The description of a decoder.

  Attributes:
    n_layers: L.
    d_model: D, the width of the residual stream.
    n_heads: N, query heads.
    n_kv_heads: K, key-value heads; query head n reads key-value head n // (N/K).
    d_head: H.
    d_mlp: F; 0 for a model of attention alone.
    n_vocab: V, the number of rows of the embedding.
    n_positions: P, rows of the table of learned positions; 0 without learned positions.
    norm: 'rms', 'layer' (mean removed, with a bias) or 'none'.
    norm_eps: added to the variance.
    norm_offset: added to every norm's scale: 1 for files that store scales around zero, such as Gemma's.
    positions: 'rotary', 'learned' (added to the embedding) or 'none'.
    rope_base: base of the rotary wavelengths.
    rope_local_base: the same in local layers; None if it is the same as in global layers.
    rope_fraction: fraction of a head that is rotated; the rest is unchanged.
    rope_scale: divisor of the positions, except in local layers that have a base of their own.
    rope_scaling: Llama 3's scaling of the wavelengths.
    activation: 'gelu' (exact), 'gelu_tanh' (approximated), 'silu' or 'relu'.
    gated: whether the neurons are activation(gate) * up instead of activation(up).
    parallel: whether attention and MLP read the same residual stream, as in GPT-NeoX.
    qk_norm: whether queries and keys pass through an RMS norm per head, before rotary.
    qkv_bias: whether queries, keys and values have biases.
    o_bias: whether the output of the attention has a bias.
    mlp_bias: whether the matrices of the MLP have biases.
    post_norms: whether the outputs of attention and MLP are normalised before they are added, as in Gemma 2.
    tied: whether the unembedding is the embedding.
    final_norm: whether there is a norm before the unembedding.
    unembed_bias: whether the logits have a bias.
    attn_softcap: c in c * tanh(scores / c); None for no cap.
    attn_sinks: whether each head has a sink: a score of nothing, learned, which takes its share of the probabilities.
    logit_softcap: c for logits.
    window: number of positions that a local layer sees, the token's own included; None without local layers.
    local: whether each layer is local, L booleans; empty if all are global.
    embed_scale: factor of the token embeddings.
    query_scale: factor of the attention scores; None for H ** -0.5.

  Raises:
    MechjaxError: if the values do not describe a decoder; the message holds the value.
  """

  n_layers: int
  d_model: int
  n_heads: int
  n_kv_heads: int
  d_head: int
  d_mlp: int
  n_vocab: int
  n_positions: int = 0
  norm: str = 'rms'
  norm_eps: float = 1e-5
  norm_offset: float = 0.0
  positions: str = 'rotary'
  rope_base: float = 10_000.0
  rope_local_base: float | None = None
  rope_fraction: float = 1.0
  rope_scale: float = 1.0
  rope_scaling: Llama3Scaling | None = None
  activation: str = 'silu'
  gated: bool = True
  parallel: bool = False
  qk_norm: bool = False
  qkv_bias: bool = False
  o_bias: bool = False
  mlp_bias: bool = False
  post_norms: bool = False
  tied: bool = False
  final_norm: bool = True
  unembed_bias: bool = False
  attn_softcap: float | None = None
  attn_sinks: bool = False
  logit_softcap: float | None = None
  window: int | None = None
  local: tuple[bool, ...] = ()
  embed_scale: float = 1.0
  query_scale: float | None = None

  def __post_init__(self) -> None:
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      self._check(not isinstance(value, float) or math.isfinite(value), field.name, 'finite')
    for name in ('n_layers', 'd_model', 'n_heads', 'n_kv_heads', 'd_head', 'n_vocab'):
      self._check(getattr(self, name) >= 1, name, 'at least 1')
    for name, minimum in (('d_mlp', 0), ('n_positions', 0), ('norm_eps', 0.0)):
      self._check(getattr(self, name) >= minimum, name, f'at least {minimum}')
    self._check(self.n_heads % self.n_kv_heads == 0, 'n_kv_heads', f'a divisor of {self.n_heads}')
    self._check(self.norm in NORMS, 'norm', f'one of {NORMS}')
    self._check(self.activation in ACTIVATIONS, 'activation', f'one of {ACTIVATIONS}')
    for name in ('attn_softcap', 'logit_softcap', 'query_scale', 'window'):
      value = getattr(self, name)
      self._check(value is None or value > 0, name, 'positive, or None')
    self._check_positions()
    self._check_layers()

  def _check_positions(self) -> None:
    self._check(self.positions in POSITIONS, 'positions', f'one of {POSITIONS}')
    learned = self.positions == 'learned'
    wanted = 'over 0' if learned else '0 without learned positions'
    self._check(learned == (self.n_positions > 0), 'n_positions', wanted)
    self._check(0 < self.rope_fraction <= 1, 'rope_fraction', 'in (0, 1]')
    self._check(self.rope_scale > 0, 'rope_scale', 'positive')
    self._check(self.rope_base > 0, 'rope_base', 'positive')
    if self.positions == 'rotary':
      self._check(self.d_rotary % 2 == 0, 'rope_fraction', f'such that {self.d_rotary} is even')

  def _check_layers(self) -> None:
    self._check(len(self.local) in (0, self.n_layers), 'local', f'of length {self.n_layers}, or ()')
    self._check(not any(self.local) or self.window is not None, 'window', 'given for local layers')
    if self.d_mlp == 0:
      for name in ('gated', 'parallel', 'mlp_bias'):
        self._check(not getattr(self, name), name, 'False without an MLP')
    if self.norm == 'none':
      for name in ('post_norms', 'final_norm'):
        self._check(not getattr(self, name), name, "False with norm='none'")
    if self.tied:
      self._check(not self.unembed_bias, 'unembed_bias', 'False where the embedding is tied')

  def _check(self, is_good: bool, name: str, wanted: str) -> None:
    if not is_good:
      raise errors.MechjaxError(f'{name}={getattr(self, name)!r} should be {wanted}')

  @property
  def d_rotary(self) -> int:
    """Number of dimensions of a head that are rotated."""
    return int(self.d_head * self.rope_fraction)

  @property
  def score_scale(self) -> float:
    """Factor of the dot products of queries and keys."""
    return self.d_head**-0.5 if self.query_scale is None else self.query_scale
