"""Comparisons that the tests of several upstreams share."""

import importlib.util
import sys

import jax
import numpy as np


def metric_of(f):
  """(params, tokens) -> the mean of the logits of `f` under fixed random weights."""

  def metric(params, tokens):
    logits = f(params, tokens)
    weights = np.random.default_rng(2).standard_normal(logits.shape)
    return (logits * weights.astype(np.float32)).mean()

  return metric


def executed_again(name, monkeypatch):
  """An imported module's file as it lies on the disk, unpatched, executed under another name."""
  spec = importlib.util.spec_from_file_location(f'{name}_unpatched', sys.modules[name].__file__)
  assert spec is not None
  assert spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  monkeypatch.setitem(sys.modules, spec.name, module)
  spec.loader.exec_module(module)
  return module


def same(acts, others):
  """Asserts that two harvests have the same sites, in the same order, with the same values."""
  assert list(acts) == list(others)
  for site in acts:
    np.testing.assert_allclose(others[site], acts[site], rtol=1e-4, atol=1e-5, err_msg=site)


def same_cached(acts, found, start, stop):
  """Asserts that a cached pass over positions `start` to `stop` has the values of the whole pass."""
  assert list(found) == list(acts)
  for site, whole in acts.items():
    value = found[site]
    if site.startswith(('k.', 'v.')):
      value, whole = value[:, :stop], whole[:, :stop]
    elif site.startswith(('attn_scores', 'attn_probs')):
      value, whole = value[..., :stop], whole[:, :, start:stop, :stop]
    else:
      whole = whole[:, start:stop]
    np.testing.assert_allclose(value, whole, rtol=1e-4, atol=1e-4, err_msg=site)


def drawn(shapes):
  """Random parameters for a tree of shapes, large enough that every site matters."""
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda s: (0.4 * rng.standard_normal(s.shape)).astype(np.float32), shapes)
