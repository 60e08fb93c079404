"""Small decoders of every family, their frozen runs, and the frozen decoder written out as the truth.

`plain` is a decoder of the same parameters in which patterns and norms are constants: it shares no code with the
engine, reads the parameters themselves, and is differentiated by JAX."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from mechjax import harvest, sae
from mechjax.circuits import Frozen, Maps, Neurons, Replacement
from mechjax.models import decoder
from tests.models import decoders

D, M, K_ACTIVE = 16, 24, 4
TOKENS = decoders.TOKENS


@functools.cache
def forward(name):
  config = decoders.CONFIGS[name]

  def run(params, tokens, mask=None):
    return decoder.forward(params, tokens, config, segments=mask)

  return run


@functools.cache
def transcoder(layer, skip=True):
  """A skip transcoder with random parameters."""
  tc = sae.TopK(d_in=D, d_out=D, width=M, k=K_ACTIVE, skip=skip)
  random = np.random.default_rng(layer)
  shapes = {name: x.shape for name, x in tc.init(jax.random.key(0)).items()}
  return tc, {n: jnp.asarray(0.4 * random.standard_normal(s), 'float32') for n, s in shapes.items()}


def transcoders(layers=(0, 1), skip=True):
  return Replacement({f'mlp_norm.{l}': transcoder(l, skip) for l in layers})


REPLACED = {
  'skip transcoders': transcoders,
  'one transcoder': lambda: transcoders((1,), skip=False),
  'nothing': lambda: Replacement({}),
  'neurons': Neurons,
  'some neurons': lambda: Neurons(top=5),
}


@functools.cache
def maps(name, dtype='float64'):
  has_mlp = bool(decoders.CONFIGS[name].d_mlp)
  return Maps.of(forward(name), decoders.params(name, dtype), TOKENS, neurons=has_mlp)


@functools.cache
def frozen(name, replaced='skip transcoders', dtype='float64'):
  """The run of the first prompt."""
  params = decoders.params(name, dtype)
  return Frozen.of(forward(name), params, TOKENS[:1], REPLACED[replaced](), maps=maps(name, dtype))


def norm(config, p, x, of):
  """A norm of `x` with the denominator that it has at `of`."""
  if p is None:
    return x
  centre = (lambda y: y - y.mean(-1, keepdims=True)) if config.norm == 'layer' else (lambda y: y)
  size = jnp.sqrt(jnp.mean(centre(of) ** 2, -1, keepdims=True) + config.norm_eps)
  return centre(x) / size * (p['scale'] + config.norm_offset) + p.get('bias', 0.0)


@functools.cache
def acts(name):
  """Values of the run, from a plain harvest."""
  run = harvest.reap(forward(name), sites='*')
  return run(decoders.params(name, 'float64'), TOKENS[:1])


def plain(name, embed, writes, stop):
  """The residual stream [T, D] from embeddings and what is added after each attention, up to level `stop`."""
  config, values = decoders.CONFIGS[name], acts(name)
  tree, x, group = decoders.params(name, 'float64'), embed, config.n_heads // config.n_kv_heads
  for l in range(config.n_layers):
    if stop == 2 * l:
      return x
    p = jax.tree.map(lambda a, l=l: a[l], tree['layers'])
    at = lambda site, l=l: values[f'{site}.{l}'][0]  # noqa: E731
    h = norm(config, p['attn_norm'], x, at('resid_pre'))
    v = jnp.einsum('td,dkh->tkh', h, p['attn']['v']) + p['attn'].get('v_bias', 0.0)
    z = jnp.einsum('nts,snh->tnh', at('attn_probs'), jnp.repeat(v, group, axis=1))
    out = jnp.einsum('tnh,nhd->td', z, p['attn']['o']) + p['attn'].get('o_bias', 0.0)
    post = p.get('attn_post_norm')
    out = out if post is None else norm(config, post, out, at('attn_raw'))
    x = x + out
    if stop == 2 * l + 1:
      return x
    x = x + writes[l]
  return x
