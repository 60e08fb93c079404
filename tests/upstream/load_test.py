"""SmolLM2 in tunix, transformers, penzai and our decoder: the same weights, other code, the same model.

The independent truth is the equations in NumPy, fed with the tensors of the file in their own
layout, so that neither a name map nor the undone permutation is trusted. Every site is compared
with it, and the logits within 5e-4, so that any two of the code bases agree within 1e-3.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mechjax
from mechjax import harvest, sites
from mechjax.errors import MechjaxError, MissingExtraError, WeightsError
from mechjax.models import gemma
from mechjax.models import penzai as loader
from mechjax.weights import fetch, names
from mechjax.weights.gguf import GGUFFile
from patches import penzai, transformers_flax
from tests.upstream import equations
from tests.upstream.penzai_test import array
from tests.weights.names_test import written

pytestmark = pytest.mark.slow
TEXT = 'When Mary and John went to the store, John gave a drink to'
MARKS = {'tunix': 'upstream', 'transformers': 'transformers', 'penzai': 'penzai'}
CODES = ['decoder']
CODES += [pytest.param(code, marks=getattr(pytest.mark, mark)) for code, mark in MARKS.items()]


@pytest.fixture(scope='module', params=CODES)
def code(request):
  return request.param


@pytest.fixture(scope='module')
def model(code, request):
  """The model; its patches go with it, because other tests compare with unpatched code."""
  if code == 'tunix':
    yield request.getfixturevalue('smollm2')
    return
  yield mechjax.load('smollm2-135m', code=code)
  patchers = {
    'decoder': (),
    'transformers': (transformers_flax.LLAMA, transformers_flax.LLAMA_CORRECTIONS),
    'penzai': (penzai.PATCHER,),
  }
  for patcher in patchers[code]:
    patcher.uninstall()


# What the dot product and the softmax see differs where the factor 1/sqrt(H) and the mask come in.
CONSTANTS = {
  'decoder': lambda factor: {'score_scale': factor, 'masked': -1e30},
  'tunix': lambda factor: {'score_scale': factor},
  'transformers': lambda factor: {
    'score_scale': factor,
    'masked': float(np.finfo(np.float32).min),
  },
  'penzai': lambda factor: {'query_scale': factor},
}


@pytest.fixture(scope='module')
def truth(code):
  """A llama from the equations, weights read and rotary rows put in order without a name map."""
  file = GGUFFile(fetch.path_of('smollm2-135m'))
  shape = names.llama_shape(file)

  def heads(name, n, rotary):
    w = file.read(name).reshape(n, -1, shape.d_model).transpose(0, 2, 1)
    return np.concatenate([w[..., 0::2], w[..., 1::2]], -1) if rotary else w

  def block(i):
    def read(name):
      return file.read(f'blk.{i}.{name}.weight')

    N, K = shape.n_heads, shape.n_kv_heads
    return equations.Block(
      attn_gain=read('attn_norm'),
      q=heads(f'blk.{i}.attn_q.weight', N, rotary=True),
      k=heads(f'blk.{i}.attn_k.weight', K, rotary=True),
      v=heads(f'blk.{i}.attn_v.weight', K, rotary=False),
      o=read('attn_output').T.reshape(N, -1, shape.d_model),
      mlp_gain=read('ffn_norm'),
      gate=read('ffn_gate').T,
      up=read('ffn_up').T,
      down=read('ffn_down').T,
      activation=equations.silu,
      **CONSTANTS[code](shape.d_head**-0.5),
      rope_base=shape.rope_base,
      eps=shape.norm_eps,
    )

  embedding = file.read('token_embd.weight')
  blocks = [block(i) for i in range(shape.n_layers)]
  return equations.Model(embedding, 1.0, blocks, file.read('output_norm.weight'), embedding.T)


def test_logits_equal_an_independent_forward_pass(model, truth):
  tokens = model.tokens(TEXT)
  np.testing.assert_allclose(model(tokens), truth.logits(tokens), atol=5e-4)


def test_every_canonical_site_is_tagged_in_the_order_it_is_met(model):
  per_layer = [n for n in list(sites.CANONICAL)[1:-2] if n not in sites.POST_NORM]
  layers = [f'{name}.{i}' for i in range(model.n_layers) for name in per_layer]
  assert [str(site) for site in model.sites()] == ['embed', *layers, 'final_norm', 'logits']


@pytest.fixture(scope='module')
def acts(model):
  """The values of every site."""
  return harvest.reap(model, sites='*')(model.tokens(TEXT))


def test_every_site_follows_from_its_neighbours(model, acts, code, truth):
  if code == 'penzai':
    acts = {site: array(value) for site, value in acts.items()}
  truth.check(acts, model.tokens(TEXT))


def test_what_the_head_reads_at_the_last_layer_is_the_logits(model, acts):
  (residual,) = jax.tree.leaves(acts['resid_post.29'])
  logits = model(model.tokens(TEXT))
  np.testing.assert_allclose(model.unembed(residual), logits, rtol=1e-4, atol=1e-4)
  assert model.unembed(residual[0, -1]).shape == (49152,)


def test_a_changed_site_changes_the_answer_and_leaves_no_trace(model):
  tokens = model.tokens('The capital of France is')
  before = np.asarray(model(tokens))
  assert model.text(int(before[0, -1].argmax())) == ' Paris'
  zero = {f'attn_out.{i}': lambda v: jax.tree.map(jnp.zeros_like, v) for i in range(10, 30)}
  ablated = harvest.plant(model)(zero, tokens)
  assert model.text(int(ablated[0, -1].argmax())) != ' Paris'
  np.testing.assert_array_equal(model(tokens), before)


def test_code_that_this_python_is_too_old_for_says_so(monkeypatch):
  monkeypatch.setattr(sys, 'version_info', (3, 11, 7))
  with pytest.raises(MissingExtraError, match=r"(?s)3\.12.*code='tunix'"):
    gemma._transformer(None)


@pytest.mark.penzai
def test_penzai_refuses_heads_that_are_not_grouped(tmp_path):
  with pytest.raises(WeightsError, match='1 key-value heads'):
    loader.forward(written(tmp_path))


def test_a_masked_batch_gives_every_row_the_logits_that_it_has_alone(model, code):
  """SmolLM2's own padding id, 2, also occurs in texts, so no code may guess."""
  rows = [model.tokens(text)[0] for text in (TEXT, 'The capital of France is')]
  width = max(map(len, rows))
  for side in ('right', 'left'):
    pads = [(width - len(row), 0) if side == 'left' else (0, width - len(row)) for row in rows]
    tokens = jnp.stack([jnp.pad(r, p, constant_values=2) for r, p in zip(rows, pads)])
    mask = np.stack([np.pad(np.ones(len(r), bool), p) for r, p in zip(rows, pads)])
    if code == 'penzai' and side == 'left':
      with pytest.raises(MechjaxError, match='does not support padding'):
        model(tokens, mask)
      continue
    logits = model(tokens, mask)
    for i, row in enumerate(rows):
      np.testing.assert_allclose(logits[i][mask[i]], model(row[None])[0], atol=1e-3)
