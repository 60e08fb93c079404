"""A tiny decoder whose MLPs are ReLU, its MLPs as transcoders, and settings of the experiment on attribution graphs."""

import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.circuits.settings import Settings
from mechjax import sae
from mechjax.models import ours
from mechjax.models.language_model import LanguageModel
from mechjax.models.tokenizers import Tokenizer
from tests.models import decoders

BOS, EOS, L, D, F, V = 1, 2, 2, 16, 20, decoders.V
CONFIG = dataclasses.replace(decoders.CONFIGS['gpt2'], activation='relu')
SITES = [f'mlp_norm.{n}' for n in range(L)]


def split(text):
  """A token for each word."""
  return [4 + sum(map(ord, word)) % 27 for word in re.findall(r'\w+', text)]


def join(ids):
  return ''.join(f' {i}' for i in ids)


@functools.cache
def tiny(name='tiny'):
  tokenizer = Tokenizer(split, join, V, BOS, EOS)
  return LanguageModel(name, ours.forward(decoders.params('gpt2'), CONFIG), tokenizer)


def exact(layer):
  """The MLP of a layer as a transcoder."""
  w = jax.tree.map(lambda x: x[layer], tiny().params['layers']['mlp'])
  one = sae.ReLU(d_in=D, d_out=D, width=F, sparsity=1e-3)
  params = {'W_enc': w['up'], 'b_enc': w['up_bias'], 'W_dec': w['down'], 'b_dec': w['down_bias']}
  assert {k: v.shape for k, v in params.items()} == {
    k: v.shape for k, v in one.init(jax.random.key(0)).items()
  }
  return one, params


def random_skip(layer):
  """A skip transcoder with random parameters."""
  one = sae.TopK(d_in=D, d_out=D, width=24, k=4, skip=True)
  random = np.random.default_rng(layer)
  shapes = one.init(jax.random.key(0)).items()
  return one, {n: jnp.asarray(0.3 * random.standard_normal(x.shape), 'float32') for n, x in shapes}


def save_set(place, make, layers=range(L), **about):
  for n in layers:
    metadata = {'model_name': 'tiny', 'hook_name': SITES[n], 'hook_name_out': f'mlp_out.{n}'}
    sae.save(place / SITES[n], *make(n), format='mechjax', about=metadata | about)
  return str(place)


def save_cross_layer(place, n_layers=L, **about):
  """A cross-layer transcoder that is the MLPs: its latents write to their own layer alone."""
  one = sae.CrossLayerJumpReLU(n_layers=n_layers, d_in=D, d_out=D, width=F, sparsity=1e-3)
  params = {n: jnp.zeros_like(x) for n, x in one.init(jax.random.key(0)).items()}
  params['log_threshold'] = jnp.full((n_layers, F), -30.0)
  for n in range(n_layers):
    own = exact(n % L)[1]
    for name in ('W_enc', 'b_enc', 'b_dec'):
      params[name] = params[name].at[n].set(own[name])
    params[f'W_dec_{n}'] = params[f'W_dec_{n}'].at[:, 0].set(own['W_dec'])
  sae.save(place, one, params, format='mechjax', about={'model_name': 'tiny'} | about)
  return str(place)


def write_home(place):
  """Fills a directory with a text, prompts and dictionaries."""
  random = np.random.default_rng(0)
  words = [''.join(random.choice([*'abcdefgh'], 4)) for _ in range(300)]
  (place / 'text.txt').write_text(' '.join(words))
  (place / 'prompts.txt').write_text('one two three four\tfive\n\nsix seven: eight nine\n')
  save_set(place / 'exact', exact)
  save_set(place / 'skip', random_skip)
  save_cross_layer(place / 'clt')
  return place


def make_settings(home, out, **changes):
  given: dict[str, Any] = {
    'model': 'tiny', 'dictionaries': tuple(str(home / n) for n in ('exact', 'skip', 'clt')) + ('neurons',),
    'prompts': str(home / 'prompts.txt'), 'text': str(home / 'text.txt'), 'context': 12, 'tokens': 60, 'contexts': 0,
    'top': 5, 'rows': 400, 'removed': 4, 'controls': 5, 'batch': 2, 'row_batch': 16, 'out': str(out),
    'keep_nodes': 0.8, 'outputs': 3,
  }  # fmt: skip
  return Settings(**(given | changes))
