"""SmolLM2 in google-tunix's Qwen2: the patch changes nothing, and the model is a language model.

That every site of it is what its name says is tested with the other code bases, in load_test; the
small models of this code base are in tunix_families_test.
"""

import functools
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
from tests.upstream import comparing

pytestmark = [pytest.mark.upstream, pytest.mark.optimised]

PER_LAYER = [n for n in list(sites.CANONICAL)[1:-2] if n not in sites.POST_NORM]
TEXT = 'When Mary and John went to the store, John gave a drink to'


@pytest.fixture(scope='module')
def tokens(smollm2):
  return smollm2.tokens(TEXT)


# --- the patch changes nothing


@pytest.fixture(scope='module')
def unpatched_apply(smollm2):
  """`apply` of upstream's file as it lies on the disk, executed under another name."""
  shape = names.llama_shape(GGUFFile(fetch.path_of('smollm2-135m')))
  with pytest.MonkeyPatch.context() as patch:
    module = comparing.executed_again('tunix.models.qwen2.model', patch)
    patch.setitem(sys.modules, 'tunix.models.qwen2.model', module)
    patch.setattr(tunix.shipped, 'patch', lambda name: NoPatch)
    upstream = functools.partial(tunix._apply, *tunix._qwen2(shape))
    yield tunix.shipped._Apply(
      upstream, shape.n_vocab
    )  # as precise, and as particular about ids, as ours


class NoPatch:
  class PATCHER:
    install = staticmethod(lambda: None)


def test_patched_logits_equal_unpatched_ones_bit_for_bit(smollm2, unpatched_apply, tokens):
  expected = jax.jit(unpatched_apply)(smollm2.params, tokens)
  np.testing.assert_array_equal(smollm2(tokens), expected)


def test_the_patched_program_is_the_unpatched_program(smollm2, unpatched_apply, tokens):
  """The same optimised HLO, names of scopes and source lines taken out."""

  program = lambda apply: optimised_hlo(apply, smollm2.params, tokens)  # noqa: E731
  assert program(smollm2.apply) == program(unpatched_apply)


# --- the model is the right model


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


def test_every_site_reaches_the_result_and_planting_leaves_no_trace(smollm2, tokens):
  """The gradient at each site of a late layer, by a delta added there, is finite and not zero."""
  before = np.asarray(smollm2(tokens))
  chosen = {name: f'{name}.28' for name in PER_LAYER}
  chosen |= {name: name for name in ('final_norm', 'logits')}
  planted = harvest.plant(smollm2.apply)
  acts = harvest.reap(smollm2, sites='*')(tokens)

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
