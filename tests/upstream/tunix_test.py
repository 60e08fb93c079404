"""SmolLM2 in google-tunix's Qwen2: the patch changes nothing, and every site is what its name says.

Three independent truths: upstream's file executed without the patch, a NumPy forward pass that
reads the GGUF tensors in their own layout (so that neither the name map nor the undone permutation
is trusted), and each site recomputed from its neighbours.
"""

import functools
import importlib.util
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks.timing import optimised_hlo
from mechjax import harvest, sites
from mechjax.models import tunix
from mechjax.weights import fetch, names
from mechjax.weights.gguf import GGUFFile

pytestmark = pytest.mark.upstream

TEXT = 'When Mary and John went to the store, John gave a drink to'


@pytest.fixture(scope='module')
def tokens(smollm2):
  return smollm2.tokens(TEXT)


@pytest.fixture(scope='module')
def file():
  return GGUFFile(fetch.path_of('smollm2-135m'))


# --- the patch changes nothing


@pytest.fixture(scope='module')
def unpatched_apply(smollm2, file):
  """`apply` of upstream's file as it lies on the disk, executed under another name."""
  upstream = sys.modules['tunix.models.qwen2.model']
  spec = importlib.util.spec_from_file_location('tunix_unpatched', upstream.__file__)
  module = importlib.util.module_from_spec(spec)
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(sys.modules, 'tunix_unpatched', module)
    spec.loader.exec_module(module)
    patch.setitem(sys.modules, 'tunix.models.qwen2.model', module)
    patch.setattr(tunix, '_instrumentation', lambda: _NoPatch)
    yield functools.partial(tunix._apply, *tunix._qwen2(names.llama_shape(file)))


class _NoPatch:
  install = staticmethod(lambda: None)


def test_patched_logits_equal_unpatched_ones_bit_for_bit(smollm2, unpatched_apply, tokens):
  expected = jax.jit(unpatched_apply)(smollm2.params, tokens)
  np.testing.assert_array_equal(smollm2(tokens), expected)


def test_the_patched_program_is_the_unpatched_program(smollm2, unpatched_apply, tokens):
  """The same optimised HLO, names of scopes and source lines taken out."""

  program = lambda apply: optimised_hlo(apply, smollm2.params, tokens)  # noqa: E731
  assert program(smollm2.apply) == program(unpatched_apply)


# --- the model is the right model


def numpy_logits(file: GGUFFile, tokens: np.ndarray) -> np.ndarray:
  """A llama of [T] tokens, from the equations, weights and rotary pairs as GGUF has them."""
  shape = names.llama_shape(file)
  H, T = shape.d_head, len(tokens)
  angle_TxJ = np.outer(np.arange(T), shape.rope_base ** (-np.arange(0, H, 2) / H))

  def norm(x, w):
    return file.read(w) * x / np.sqrt((x**2).mean(-1, keepdims=True) + shape.norm_eps)

  def rotate(x_TxNxH):
    even, odd = x_TxNxH[..., 0::2], x_TxNxH[..., 1::2]
    cos, sin = np.cos(angle_TxJ)[:, None], np.sin(angle_TxJ)[:, None]
    return np.stack([even * cos - odd * sin, even * sin + odd * cos], -1).reshape(x_TxNxH.shape)

  def heads(x, w):
    return (x @ file.read(w).T).reshape(T, -1, H)

  x = file.read('token_embd.weight')[tokens]
  for blk in (f'blk.{i}' for i in range(shape.n_layers)):
    h = norm(x, f'{blk}.attn_norm.weight')
    q, k = (rotate(heads(h, f'{blk}.attn_{s}.weight')) for s in 'qk')
    k, v = (
      np.repeat(y, shape.n_heads // shape.n_kv_heads, axis=1)
      for y in (k, heads(h, f'{blk}.attn_v.weight'))
    )
    scores = np.einsum('tnh,snh->nts', q, k) / np.sqrt(H)
    z = np.einsum('nts,snh->tnh', softmax(np.where(np.tri(T, dtype=bool), scores, -np.inf)), v)
    x = x + z.reshape(T, -1) @ file.read(f'{blk}.attn_output.weight').T
    h = norm(x, f'{blk}.ffn_norm.weight')
    gate, up = (h @ file.read(f'{blk}.ffn_{s}.weight').T for s in ('gate', 'up'))
    x = x + (gate / (1 + np.exp(-gate)) * up) @ file.read(f'{blk}.ffn_down.weight').T
  return norm(x, 'output_norm.weight') @ file.read('token_embd.weight').T


def softmax(x):
  e = np.exp(x - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def test_logits_equal_an_independent_forward_pass(smollm2, file, tokens):
  expected = numpy_logits(file, np.asarray(tokens[0]))
  found = np.asarray(smollm2(tokens)[0])
  assert 10 < np.abs(expected).max() < 100
  np.testing.assert_allclose(found, expected, atol=1e-3)


def test_the_loss_on_english_prose_is_that_of_a_language_model(smollm2):
  prose = pathlib.Path(__file__).parent.parent / 'data' / 'prose.txt'
  tokens = smollm2.tokens(prose.read_text())
  assert 2.5 < smollm2.loss(tokens) < 4.0
  shuffled = np.random.default_rng(0).permutation(np.asarray(tokens[0]))
  assert smollm2.loss(jnp.asarray(shuffled)[None]) > 6.0


def test_paris(smollm2):
  tokens = smollm2.tokens('The capital of France is')
  probs = jnp.exp(smollm2.log_probs(tokens)[0, -1])
  assert smollm2.text(int(probs.argmax())) == ' Paris'
  assert float(probs.max()) == pytest.approx(0.77, abs=0.01)


# --- every site is what its name says


@pytest.fixture(scope='module')
def acts(smollm2, tokens):
  return harvest.reap(smollm2, sites='*')(tokens)


def test_every_canonical_site_is_tagged_in_every_layer(smollm2, acts):
  per_model = {'embed', 'final_norm', 'logits'}
  for name in sites.CANONICAL:
    expected = [None] if name in per_model else list(range(smollm2.n_layers))
    assert acts.layers(name) == expected, name
  assert len(acts) == 3 + 15 * smollm2.n_layers


def test_sites_come_in_the_order_in_which_the_forward_pass_meets_them(smollm2):
  met = [str(site) for site in smollm2.sites()]
  per_layer = list(sites.CANONICAL)[1:-2]
  layers = [f'{name}.{i}' for i in range(smollm2.n_layers) for name in per_layer]
  assert met == ['embed', *layers, 'final_norm', 'logits']


class Neighbours:
  """Each canonical site of one layer, recomputed in NumPy from the sites next to it."""

  def __init__(self, model, acts, tokens, layer: int):
    self.params, self.acts, self.tokens, self.layer = model.params, acts, np.asarray(tokens), layer
    self.weights = model.params['layers'][layer]

  def at(self, name: str) -> np.ndarray:
    return np.asarray(self.acts[f'{name}.{self.layer}'])

  def norm(self, x, w):
    return np.asarray(w) * x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)

  def project(self, w: str, rotated: bool) -> np.ndarray:
    y = np.einsum('btd,dnh->btnh', self.at('attn_norm'), self.weights['attn'][w]['w'])
    if not rotated:
      return y
    T, J = y.shape[1], y.shape[-1] // 2
    turn = np.exp(1j * np.outer(np.arange(T), 1e5 ** (-np.arange(J) / J)))[:, None]
    turned = (y[..., :J] + 1j * y[..., J:]) * turn
    return np.concatenate([turned.real, turned.imag], -1)

  def grouped(self, name: str) -> np.ndarray:
    """Queries or heads [B, T, N, H] as [B, T, K, G, H]."""
    x = self.at(name)
    return x.reshape(*x.shape[:2], 3, 3, -1)

  def linear(self, x: str, w: str) -> np.ndarray:
    return self.at(x) @ np.asarray(self.weights['mlp'][w]['kernel'])

  def resid_pre(self):
    before = 'embed' if self.layer == 0 else f'resid_post.{self.layer - 1}'
    return self.acts[before]

  def attn_norm(self):
    return self.norm(self.at('resid_pre'), self.weights['input_layernorm']['w'])

  def q(self):
    return self.project('q_proj', rotated=True)

  def k(self):
    return self.project('k_proj', rotated=True)

  def v(self):
    return self.project('v_proj', rotated=False)

  def attn_scores(self):
    scores = np.einsum('btkgh,bskh->bkgts', self.grouped('q'), self.at('k')) / 8
    return np.where(np.tri(scores.shape[-1], dtype=bool), scores, -2.3819763e38)

  def attn_probs(self):
    return softmax(self.at('attn_scores'))

  def z(self):
    z = np.einsum('bkgts,bskh->btkgh', self.at('attn_probs'), self.at('v'))
    return z.reshape(self.at('z').shape)

  def attn_out(self):
    return np.einsum('btnh,nhd->btd', self.at('z'), self.weights['attn']['o_proj']['w'])

  def resid_mid(self):
    return self.at('resid_pre') + self.at('attn_out')

  def mlp_norm(self):
    return self.norm(self.at('resid_mid'), self.weights['post_attention_layernorm']['w'])

  def mlp_pre(self):
    return self.linear('mlp_norm', 'gate_proj')

  def mlp_post(self):
    gate = self.at('mlp_pre')
    return gate / (1 + np.exp(-gate)) * self.linear('mlp_norm', 'up_proj')

  def mlp_out(self):
    return self.linear('mlp_post', 'down_proj')

  def resid_post(self):
    return self.at('resid_mid') + self.at('mlp_out')


@pytest.mark.parametrize('name', list(sites.CANONICAL)[1:-2])
def test_a_site_follows_from_its_neighbours(smollm2, acts, tokens, name):
  for layer in range(smollm2.n_layers):
    around = Neighbours(smollm2, acts, tokens, layer)
    found, expected = around.at(name), np.asarray(getattr(around, name)())
    tolerance = 1e-5 * np.abs(np.where(expected < -1e38, 0, expected)).max()
    np.testing.assert_allclose(found, expected, atol=tolerance, rtol=1e-5, err_msg=f'layer {layer}')


def test_the_ends_follow_from_their_neighbours(smollm2, acts, tokens):
  embedding = np.asarray(smollm2.params['embedder']['input_embedding'])
  np.testing.assert_array_equal(acts['embed'], embedding[np.asarray(tokens)])
  last = np.asarray(acts[f'resid_post.{smollm2.n_layers - 1}'])
  normed = last / np.sqrt((last**2).mean(-1, keepdims=True) + 1e-5)
  normed = normed * np.asarray(smollm2.params['final_norm']['w'])
  np.testing.assert_allclose(acts['final_norm'], normed, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(
    acts['logits'], np.asarray(acts['final_norm']) @ embedding.T, atol=1e-3
  )
  np.testing.assert_array_equal(acts['logits'], smollm2(tokens))


def test_every_site_reaches_the_result_and_planting_leaves_no_trace(smollm2, acts, tokens):
  """The gradient at each site of a late layer, by a delta added there, is finite and not zero."""
  before = np.asarray(smollm2(tokens))
  chosen = {name: f'{name}.28' for name in list(sites.CANONICAL)[1:-2]}
  chosen |= {name: name for name in ('final_norm', 'logits')}
  planted = harvest.plant(smollm2.apply)

  def answer(deltas, params):
    plants = {site: (lambda value, d=deltas[site]: value + d) for site in deltas}
    return jax.nn.log_softmax(planted(plants, params, tokens)[0, -1])[before[0, -1].argmax()]

  zeros = {site: jnp.zeros_like(acts[site]) for site in chosen.values()}
  value, gradients = jax.jit(jax.value_and_grad(answer))(zeros, smollm2.params)
  assert float(value) == pytest.approx(float(smollm2.log_probs(tokens)[0, -1].max()), abs=1e-4)
  for site, gradient in gradients.items():
    assert np.isfinite(gradient).all(), site
    assert np.abs(gradient).max() > 0, site
  np.testing.assert_array_equal(smollm2(tokens), before)
