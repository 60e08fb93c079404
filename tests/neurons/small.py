"""Small decoders of several families in float64, and the effects of their neurons by brute force.

The truth runs the whole model once for each neuron, with its activation planted, and freezes scales in NumPy.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from mechjax import harvest
from mechjax.models import decoder, ours, readers, switches
from mechjax.models.language_model import LanguageModel
from mechjax.neurons import NeuronWrites, Readout, read_last_layer
from tests.models import decoders

V, F, D = decoders.V, decoders.SMALL['d_mlp'], decoders.SMALL['d_model']
GEMMA2 = decoders.CONFIGS['gemma']
CONFIGS: dict[str, decoder.Config] = {
  'llama': decoder.Config(**{**switches.LLAMA, **decoders.SMALL}),
  'gpt2': decoders.CONFIGS['gpt2'],
  'neox': decoders.CONFIGS['neox'],
  'biased': dataclasses.replace(decoders.CONFIGS['gpt2'], tied=False, unembed_bias=True),
  'gemma 3': dataclasses.replace(GEMMA2, logit_softcap=None),
  'gemma 2': GEMMA2,
  'no norm': decoder.Config(
    **{**switches.LLAMA, **decoders.SMALL, 'norm': 'none'}, final_norm=False
  ),
  'no final norm': decoder.Config(**{**switches.GEMMA3, **decoders.SMALL}, final_norm=False),
}
TOKENS = np.random.default_rng(1).integers(0, V, (3, 9))


@functools.cache
def params(name: str) -> Any:
  """Random parameters in NumPy and float64; norms and biases are not the identity."""
  random = np.random.default_rng(0)
  config = CONFIGS[name]

  def fill(path, shape):
    centre = 1 - config.norm_offset if path[-1].key in ('scale', 'q_norm', 'k_norm') else 0
    return centre + 0.3 * random.standard_normal(shape.shape)

  return jax.tree_util.tree_map_with_path(fill, decoder.shapes(config))


def language_model(name: str, tokenizer: Any = None) -> LanguageModel:
  """A whole model of these parameters, in float32."""
  tree = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params(name))
  return LanguageModel(name, ours.forward(tree, CONFIGS[name]), tokenizer)


def forward(name: str):
  """The model as a function of parameters, tokens and mask."""

  def run(params, tokens, mask=None):
    return decoder.forward(params, tokens, CONFIGS[name], segments=mask)

  return run


@dataclasses.dataclass(frozen=True)
class Case:
  """A model with its weights as the package takes them, and its last layer on some tokens, in float64."""

  name: str
  readout: Readout
  writes: NeuronWrites
  layer: Any

  @classmethod
  def of(cls, name: str, first: int = 0) -> 'Case':
    """Makes a case; call it under `jax.enable_x64(True)`."""
    tree, config = params(name), CONFIGS[name]
    readout = Readout.of(**readers.take_readout(tree, config))
    writes = NeuronWrites.of(**readers.take_last_neurons(tree, config))
    return cls(name, readout, writes, read_last_layer(forward(name), tree, TOKENS, first=first))

  @property
  def inputs(self) -> tuple:
    """Arguments of an ablation."""
    return self.layer.x, self.layer.a, self.layer.next_tokens

  @functools.cached_property
  def plain_logits(self) -> np.ndarray:
    """The model's logits of the tokens that count, [B, V]."""
    out = forward(self.name)(params(self.name), jnp.asarray(TOKENS))
    return np.asarray(out)[self.layer.rows, self.layer.columns]

  def live(self, replacement: np.ndarray) -> np.ndarray:
    """Logits [F, B, V] of the whole model with one activation replaced by that of `replacement`, [B, F].

    Row i of a batch is the run with neuron i planted.
    """
    values, mask = np.zeros((F, *TOKENS.shape, F)), np.zeros((F, *TOKENS.shape, F), bool)
    for i in range(F):
      values[i, self.layer.rows, self.layer.columns, i] = replacement[:, i]
      mask[i, self.layer.rows, self.layer.columns, i] = True
    flat = (jnp.asarray(x.reshape(-1, *x.shape[2:])) for x in (values, mask))
    plants = {'mlp_post.1': harvest.Masked(*flat)}
    tokens = jnp.asarray(np.tile(TOKENS, (F, 1)))
    out = np.asarray(harvest.plant(forward(self.name))(plants, params(self.name), tokens))
    return out.reshape(F, *TOKENS.shape, V)[:, self.layer.rows, self.layer.columns]

  def add(self, replacement: np.ndarray) -> np.ndarray:
    """Final stream with the change of each neuron and the norm after the MLP frozen, [F, B, D]."""
    tree, config = params(self.name), CONFIGS[self.name]
    mlp = tree['layers']['mlp']
    h = self.layer.a @ mlp['down'][-1] + (mlp['down_bias'][-1] if config.mlp_bias else 0)
    w = mlp['down'][-1][:, None]
    if config.post_norms:
      rms = np.sqrt((h**2).mean(-1, keepdims=True) + config.norm_eps)
      w = w * (tree['layers']['mlp_post_norm']['scale'][-1] + config.norm_offset) / rms
    return self.layer.x + (replacement - self.layer.a).T[..., None] * w

  def mlp_frozen(self, replacement: np.ndarray) -> np.ndarray:
    """Logits [F, B, V] with only a norm after the MLP frozen, by the model's own unembedding."""
    x = jnp.asarray(self.add(replacement))
    return np.asarray(decoder.unembed(params(self.name), x, CONFIGS[self.name]))

  def direct(self, replacement: np.ndarray) -> np.ndarray:
    """Logits [F, B, V] with the scales of all norms frozen."""
    tree, config = params(self.name), CONFIGS[self.name]
    x, plain = self.add(replacement), self.layer.x
    if config.final_norm:
      if config.norm == 'layer':
        x, plain = (v - v.mean(-1, keepdims=True) for v in (x, plain))
      norm = tree['final_norm']
      scale = np.sqrt((plain**2).mean(-1, keepdims=True) + config.norm_eps)
      x = x / scale * (norm['scale'] + config.norm_offset) + norm.get('bias', 0)
    W_U = tree['embed']['tokens'].T if config.tied else tree['unembed']['kernel']
    out = x @ W_U + (tree['unembed']['bias'] if config.unembed_bias else 0)
    cap = config.logit_softcap
    return out if cap is None else cap * np.tanh(out / cap)

  def loss(self, logits: np.ndarray) -> np.ndarray:
    """Loss of each token, [..., B]."""
    at = ..., np.arange(logits.shape[-2]), self.layer.next_tokens
    return -scipy.special.log_softmax(logits, axis=-1)[at]


def entropy(logits: np.ndarray) -> np.ndarray:
  """Entropy of each prediction, [...]."""
  return scipy.special.entr(scipy.special.softmax(logits, axis=-1)).sum(-1)


def kl(p: np.ndarray, logits: np.ndarray) -> np.ndarray:
  """KL(p || P) of each prediction, [...]."""
  return scipy.special.rel_entr(p, scipy.special.softmax(logits, axis=-1)).sum(-1)


def draw_unigram(seed: int = 5) -> np.ndarray:
  """A distribution of tokens."""
  p = np.random.default_rng(seed).exponential(size=V) + 0.01
  return p / p.sum()
