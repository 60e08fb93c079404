"""A transformer block in NumPy, one equation for each canonical site: the truth for upstream tests.

Each equation takes the values of the sites before it and returns its own. With the values of a harvest in
place of "the values before", they verify every site from its neighbours; with the values that they returned
themselves, they are a forward pass that shares no code with the one under test.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping

import numpy as np

from mechjax import sites

MASKED = -2.3819763e38


def silu(x):
  return x / (1 + np.exp(-x))


def gelu(x):
  return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def softmax(x):
  e = np.exp(x - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def soft_cap(x, cap):
  return x if cap is None else cap * np.tanh(x / cap)


def rotate(x_BxTxNxH, base, stretch=1.0):
  """Rotary positions 0, 1, …, the two halves of a head being the two axes of the plane."""
  T, J = x_BxTxNxH.shape[1], x_BxTxNxH.shape[-1] // 2
  angle_TxJ = np.outer(np.arange(T) / stretch, float(base) ** (-np.arange(J) / J))
  turned = (x_BxTxNxH[..., :J] + 1j * x_BxTxNxH[..., J:]) * np.exp(1j * angle_TxJ)[:, None]
  return np.concatenate([turned.real, turned.imag], -1)


@dataclasses.dataclass(frozen=True)
class Block:
  """Weights and constants of one block.

  The gain of a norm is what it multiplies by. q, k, v: [heads, D, H], their biases [heads, H]; o:
  [N, H, D]; gate, up: [D, F]; down: [F, D]. `query_scale` multiplies q before the dot product, `score_scale` after it.
  """

  attn_gain: np.ndarray
  q: np.ndarray
  k: np.ndarray
  v: np.ndarray
  o: np.ndarray
  mlp_gain: np.ndarray
  gate: np.ndarray
  up: np.ndarray
  down: np.ndarray
  activation: Callable
  q_bias: np.ndarray | None = None
  k_bias: np.ndarray | None = None
  v_bias: np.ndarray | None = None
  query_gain: np.ndarray | None = None
  key_gain: np.ndarray | None = None
  post_attn_gain: np.ndarray | None = None
  post_mlp_gain: np.ndarray | None = None
  query_scale: float = 1.0
  score_scale: float = 1.0
  rope_base: float = 10_000.0
  rope_stretch: float = 1.0
  cap: float | None = None
  window: int | None = None
  masked: float = MASKED
  eps: float = 1e-6
  has_raw: bool = True

  def norm(self, x, gain):
    if gain is None:
      return x
    return gain * x / np.sqrt((x**2).mean(-1, keepdims=True) + self.eps)

  def heads(self, x_BxTxD, name):
    bias = getattr(self, f'{name}_bias')
    out = np.einsum('btd,ndh->btnh', x_BxTxD, getattr(self, name))
    return out if bias is None else out + bias

  def per_query_head(self, x_BxSxKxH):
    return np.repeat(x_BxSxKxH, len(self.q) // len(self.k), axis=2)

  def names(self) -> list[str]:
    """Canonical names of the sites of a layer, in the order of a forward pass."""
    absent = () if self.has_raw and self.post_attn_gain is not None else sites.POST_NORM
    return [name for name in list(sites.CANONICAL)[1:-2] if name not in absent]

  def visible_TxT(self, T):
    causal = np.tri(T, dtype=bool)
    return causal if self.window is None else causal & ~np.tri(T, k=-self.window, dtype=bool)


def _attn_scores(b: Block, at: Mapping):
  scores = np.einsum('btnh,bsnh->bnts', at['q'], b.per_query_head(at['k'])) * b.score_scale
  return np.where(b.visible_TxT(scores.shape[-1]), soft_cap(scores, b.cap), b.masked)


def _positioned(b: Block, x, gain):
  return rotate(b.norm(x, gain), b.rope_base, b.rope_stretch)


EQUATIONS: dict[str, Callable[[Block, Mapping], np.ndarray]] = {
  'attn_norm': lambda b, at: b.norm(at['resid_pre'], b.attn_gain),
  'q': lambda b, at: _positioned(b, b.heads(at['attn_norm'], 'q'), b.query_gain) * b.query_scale,
  'k': lambda b, at: _positioned(b, b.heads(at['attn_norm'], 'k'), b.key_gain),
  'v': lambda b, at: b.heads(at['attn_norm'], 'v'),
  'attn_scores': _attn_scores,
  'attn_probs': lambda b, at: softmax(at['attn_scores']),
  'z': lambda b, at: np.einsum('bnts,bsnh->btnh', at['attn_probs'], b.per_query_head(at['v'])),
  'attn_raw': lambda b, at: np.einsum('btnh,nhd->btd', at['z'], b.o),
  'attn_out': lambda b, at: b.norm(EQUATIONS['attn_raw'](b, at), b.post_attn_gain),
  'resid_mid': lambda b, at: at['resid_pre'] + at['attn_out'],
  'mlp_norm': lambda b, at: b.norm(at['resid_mid'], b.mlp_gain),
  'mlp_pre': lambda b, at: at['mlp_norm'] @ b.gate,
  'mlp_post': lambda b, at: b.activation(at['mlp_pre']) * (at['mlp_norm'] @ b.up),
  'mlp_raw': lambda b, at: at['mlp_post'] @ b.down,
  'mlp_out': lambda b, at: b.norm(EQUATIONS['mlp_raw'](b, at), b.post_mlp_gain),
  'resid_post': lambda b, at: at['resid_mid'] + at['mlp_out'],
}


@dataclasses.dataclass(frozen=True)
class Model:
  """A whole model: embedding [V, D] and its factor, blocks, final gain, head [D, V], final cap."""

  embedding: np.ndarray
  embedding_scale: float
  blocks: list[Block]
  final_gain: np.ndarray
  head: np.ndarray
  final_cap: float | None = None

  def logits(self, tokens) -> np.ndarray:
    """Logits [B, T, V] of tokens [B, T]."""
    x = self.embedding[np.asarray(tokens)] * self.embedding_scale
    for block in self.blocks:
      values = {'resid_pre': x}
      for name, equation in EQUATIONS.items():
        values[name] = equation(block, values)
      x = values['resid_post']
    return self.read(self.blocks[-1].norm(x, self.final_gain))

  def read(self, final_norm) -> np.ndarray:
    """Logits of the normalised residual stream."""
    return soft_cap(final_norm.astype(self.head.dtype) @ self.head, self.final_cap)

  def check(self, acts, tokens) -> None:
    """Asserts that every site of a harvest follows from the sites before it."""
    expected = {'embed': self.embedding[np.asarray(tokens)] * self.embedding_scale}
    last = f'resid_post.{len(self.blocks) - 1}'
    expected['final_norm'] = self.blocks[-1].norm(_at(acts, last), self.final_gain)
    expected['logits'] = self.read(_at(acts, 'final_norm'))
    for i, block in enumerate(self.blocks):
      names = block.names()
      at = {name: _at(acts, f'{name}.{i}') for name in names}
      expected[f'resid_pre.{i}'] = _at(acts, f'resid_post.{i - 1}' if i else 'embed')
      expected |= {f'{name}.{i}': EQUATIONS[name](block, at) for name in names[1:]}
    assert {str(site) for site in acts} == set(expected)
    for site, value in expected.items():
      size = np.abs(np.where(value < -1e29, 0, value)).max()
      np.testing.assert_allclose(
        np.asarray(acts[site]), value, rtol=2e-5, atol=2e-5 * size, err_msg=site
      )


def _at(acts, site: str) -> np.ndarray:
  return np.asarray(acts[site], np.float64)
