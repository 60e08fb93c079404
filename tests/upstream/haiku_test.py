"""hk.MultiHeadAttention: the patch changes nothing, and every site is what its name says."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechjax import harvest, sites
from patches import haiku
from tests.upstream import differences
from tests.upstream.equations import softmax

pytestmark = pytest.mark.haiku

B, T, D, N, E, L = 2, 5, 6, 3, 4, 2
NAMES = ['q', 'k', 'v', 'attn_scores', 'attn_probs', 'z', 'attn_out']
X = np.random.default_rng(0).standard_normal((B, T, D)).astype('float32')
CAUSAL = np.tri(T, dtype=bool)[None, None]


def forward(x, transform=lambda f: f):
  """Two layers of attention in a residual stream, numbered by the reader's own loop."""
  hk = importlib.import_module('haiku')
  for i in range(L):
    attend = hk.MultiHeadAttention(N, E, model_size=D, w_init=hk.initializers.RandomNormal())
    with sites.layer(i):
      x = x + transform(lambda y, attend=attend: attend(y, y, y, CAUSAL))(x)
  return x


@functools.cache
def transformed(transform=lambda f: f):
  hk = importlib.import_module('haiku')
  return hk.without_apply_rng(hk.transform(functools.partial(forward, transform=transform)))


@functools.cache
def params():
  return transformed().init(jax.random.key(0), X)


def lowered():
  return jax.jit(lambda p, x: transformed().apply(p, x)).lower(params(), X).as_text()


@pytest.fixture(scope='module', autouse=True)
def plain():
  """The program before the patch, which is there from then on."""
  assert not haiku.PATCHER.installed
  program = lowered()
  with haiku.PATCHER:
    yield program


def metric(p, x):
  return jnp.tanh(transformed().apply(p, x))[0, -1].sum()


@pytest.fixture(scope='module')
def read(plain):
  return harvest.value_and_grad_at(metric, sites='*')(params(), X)


def test_the_patched_program_is_the_unpatched_program(plain):
  assert lowered() == plain


def test_every_site_of_an_attention_is_tagged_in_order(read):
  assert list(read[1]) == [f'{name}.{i}' for i in range(L) for name in NAMES]


def test_every_site_follows_from_its_neighbours(read):
  acts, x = read[1], X
  for i in range(L):
    at = {name: np.asarray(acts[f'{name}.{i}']) for name in NAMES}
    where = 'multi_head_attention' + (f'_{i}' if i else '')

    def linear(y, name, where=where):
      return y @ params()[f'{where}/{name}']['w'] + params()[f'{where}/{name}']['b']

    expected = {
      name: linear(x, full).reshape(B, T, N, E)
      for name, full in (('q', 'query'), ('k', 'key'), ('v', 'value'))
    }
    scores = np.einsum('btne,bsne->bnts', at['q'], at['k']) / np.sqrt(E)
    expected['attn_scores'] = np.where(CAUSAL, scores, -1e30)
    expected['attn_probs'] = softmax(at['attn_scores'])
    expected['z'] = np.einsum('bnts,bsne->btne', at['attn_probs'], at['v'])
    expected['attn_out'] = linear(at['z'].reshape(B, T, -1), 'linear')
    for name, value in expected.items():
      np.testing.assert_allclose(at[name], value, rtol=1e-4, atol=1e-5, err_msg=f'{name}.{i}')
    x = x + at['attn_out']


def test_gradients_at_sites_equal_finite_differences(read):
  differences.check(metric, read[2], (params(), X))


def test_rematerialised_blocks_have_the_same_layer_numbers(read):
  f = transformed(importlib.import_module('haiku').remat).apply
  found = harvest.reap(lambda p, x: f(p, x), sites='*')(params(), X)
  assert list(found) == list(read[1])
  for site, value in found.items():
    np.testing.assert_allclose(value, read[1][site], rtol=1e-4, atol=1e-5)


def test_the_scan_of_a_layer_stack_counts_the_layers(read):
  hk = importlib.import_module('haiku')

  def stacked(x):
    def block(x):
      attend = hk.MultiHeadAttention(N, E, model_size=D, w_init=hk.initializers.RandomNormal())
      return x + attend(x, x, x, CAUSAL)

    return hk.experimental.layer_stack(L)(block)(x)

  f = hk.without_apply_rng(hk.transform(stacked))
  layers = [
    {
      k.split('/')[-1]: v
      for k, v in params().items()
      if k.startswith(f'multi_head_attention{end}/')
    }
    for end in ('', '_1')
  ]
  names = jax.eval_shape(f.init, jax.random.key(0), X)
  both = {
    k: jax.tree.map(lambda *a: jnp.stack(a), *(p[k.split('/')[-1]] for p in layers)) for k in names
  }
  found = harvest.reap(f.apply, sites='*')(both, X)
  assert set(found) == set(read[1])
  for site, value in found.items():
    np.testing.assert_allclose(value, read[1][site], rtol=1e-4, atol=1e-5)


def test_two_attentions_without_layers_are_refused_with_a_mend():
  hk = importlib.import_module('haiku')

  def twice(x):
    for _ in range(2):
      x = hk.MultiHeadAttention(N, E, model_size=D, w_init=hk.initializers.RandomNormal())(x, x, x)
    return x

  f = hk.without_apply_rng(hk.transform(twice))
  p = jax.eval_shape(f.init, jax.random.key(0), X)
  p = jax.tree.map(lambda s: jnp.ones(s.shape), p)
  with pytest.raises(ValueError, match=r'sown twice(.|\n)*sites\.layer'):
    harvest.reap(f.apply, sites='q')(p, X)
