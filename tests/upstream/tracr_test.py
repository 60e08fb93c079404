"""tracr: the patch changes nothing, sites are what their names say, and residuals are the program's own variables."""

import functools
import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.yardsticks import tracr_programs
from mechjax import harvest
from mechjax.errors import YardstickError
from mechjax.yardsticks import fit_codes
from patches import tracr
from tests.upstream.equations import softmax

pytestmark = pytest.mark.tracr
VOCABULARY, LENGTH = ('a', 'b', 'c'), 4
PROGRAMS = [*tracr_programs.PROGRAMS]


@pytest.fixture(scope='module', autouse=True)
def patched():
  plain = {name: make(name)[0].run(SENTENCES) for name in PROGRAMS}
  make.cache_clear()
  with tracr.PATCHER:
    yield plain
  make.cache_clear()


@functools.cache
def make(name):
  """A compiled program, and the same function in Python."""
  return tracr_programs.compile_program(name, VOCABULARY, LENGTH), tracr_programs.PROGRAMS[
    name
  ].truth


SENTENCES = [list(words) for words in itertools.product(VOCABULARY, repeat=LENGTH)]


@pytest.mark.parametrize('name', PROGRAMS)
def test_the_patch_changes_no_output_and_the_program_computes_what_it_says(name, patched):
  compiled, program = make(name)
  found = compiled.run(SENTENCES)
  assert found == patched[name]
  for words, answer in zip(SENTENCES, found):
    for got, expected in zip(answer, program(words), strict=True):
      assert got == pytest.approx(expected) if isinstance(got, float) else got == expected


@pytest.mark.parametrize('name', PROGRAMS)
def test_sites_fit_together(name):
  compiled, _ = make(name)
  tokens = compiled.encode(SENTENCES[:5])
  acts = harvest.reap(compiled.forward, sites='*')(compiled.params, tokens)
  for layer in range(len(acts.layers('resid_post'))):
    before = acts['embed'] if not layer else acts[f'resid_post.{layer - 1}']
    np.testing.assert_allclose(acts[f'resid_mid.{layer}'], before + acts[f'attn_out.{layer}'])
    np.testing.assert_allclose(
      acts[f'resid_post.{layer}'], acts[f'resid_mid.{layer}'] + acts[f'mlp_out.{layer}']
    )
    np.testing.assert_allclose(
      acts[f'attn_probs.{layer}'], softmax(acts[f'attn_scores.{layer}']), atol=1e-6
    )
    z = jnp.einsum('bnts,bsnh->btnh', acts[f'attn_probs.{layer}'], acts[f'v.{layer}'])
    np.testing.assert_allclose(acts[f'z.{layer}'], z, atol=1e-5)


@pytest.mark.parametrize('name', PROGRAMS)
def test_the_residual_stream_is_the_variables_of_the_program(name):
  compiled, _ = make(name)
  values = tracr_programs.read_variables(compiled, SENTENCES)
  assert len(values) >= 3
  for label, (found, expected) in values.items():
    np.testing.assert_allclose(found, expected, atol=1e-4, err_msg=label)


def test_supervised_codes_of_a_program_are_its_own_directions():
  compiled, _ = make('histogram')
  tokens = compiled.encode(SENTENCES)
  last = harvest.reap(compiled.forward, sites='resid_post')(compiled.params, tokens)
  acts = np.asarray(last.stack('resid_post')[-1])[:, 1:].reshape(-1, len(compiled.labels))
  words = np.array(SENTENCES).ravel()
  places = np.tile(np.arange(LENGTH), len(SENTENCES))
  counts = np.array([[s.count(w) for w in s] for s in SENTENCES]).ravel()
  attributes = {'word': words, 'place': places, 'count': counts}
  codes = fit_codes(acts, attributes)
  assert codes.share_explained(acts, attributes) == pytest.approx(1, abs=1e-4)
  columns = [i for i, label in enumerate(compiled.labels) if label.startswith('tokens:')]
  i = codes.coding.features.index(('word',))
  found = codes.vectors[codes.coding.columns[i]][:, columns]
  order = [compiled.labels[c].removeprefix('tokens:') for c in columns]
  kept = [order.index(word) for word in VOCABULARY]
  differences = found[:, kept] - found[:1, kept]
  np.testing.assert_allclose(differences, np.eye(3) - np.eye(3)[:1], atol=1e-4)


def test_an_unknown_program_or_word_is_refused():
  with pytest.raises(YardstickError, match="unknown program 'histogramm'"):
    tracr_programs.compile_program('histogramm', VOCABULARY, LENGTH)
  with pytest.raises(YardstickError, match="the word 'z'"):
    make('histogram')[0].encode([['a', 'z']])
  with pytest.raises(YardstickError, match='5 words'):
    make('histogram')[0].encode([['a'] * 5])
