"""Dictionaries to write and read, their outputs, and files of every format with one of them."""

import dataclasses
import json

import numpy as np
import pytest

from mechjax.sae import BatchTopK
from mechjax.sae.formats import save
from tests.sae import plain
from tests.sae.formats.torch_files import as_learned, learned
from tests.sae.plain import SAES, D, E

AUTOENCODERS = {name: sae for name, sae in SAES.items() if name != 'topk_dense'}
TRANSCODERS = {
  f'{name} {"skip " * skip}transcoder': dataclasses.replace(sae, d_out=E, skip=skip)
  for name, sae in AUTOENCODERS.items()
  for skip in (False, True)
}
ALL = AUTOENCODERS | TRANSCODERS
each_format = pytest.mark.parametrize('format', ['gemma_scope', 'gemma_scope_2', 'sae_lens'])


def single(sae, seed=0):
  """Float32 parameters and inputs, of NumPy: nothing here has to be compiled."""
  r = np.random.default_rng(seed)
  return plain.scattered(sae, r), r.standard_normal((24, D)).astype(np.float32)


def outputs(sae, params, x):
  """Latents and reconstructions, float64, by the equations."""
  p = {name: np.asarray(value, float) for name, value in params.items()}
  x = np.asarray(x, float)
  f = plain.latents(sae, p, x)[0]
  if isinstance(sae, BatchTopK):  # the plain twin has the latents that are active in training
    z = plain.encoder(sae, p, x) + p['b_enc']
    f = np.maximum(z, 0) * (z > p['threshold'])
  return f, plain.decode(sae, p, f, x)


def same(found, expected, rtol=2e-5):
  for a, b in zip(found, expected):
    np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-5)


def rewritten(path, **changes):
  """A config with other settings; None leaves one out."""
  words = json.loads(path.read_text()) | changes
  path.write_text(json.dumps({k: v for k, v in words.items() if v is not None}))


def published(directory, format):
  sae = SAES['jumprelu']
  params, _ = single(sae)
  if format == 'dictionary_learning':
    kind, arrays, _ = as_learned('jumprelu', params)
    learned(directory, kind, arrays)
  else:
    save(directory, sae, params, format=format)
  return max(directory.iterdir(), key=lambda path: path.stat().st_size)


def changed(tmp_path, change):
  """An .npz of Gemma Scope whose arrays a function has changed."""
  path = published(tmp_path / 'out', 'gemma_scope')
  with np.load(path) as found:
    arrays = dict(found)
  change(arrays)
  np.savez(path, **arrays)
  return path
