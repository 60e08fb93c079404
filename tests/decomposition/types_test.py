"""The annotations of decompositions hold for every public function."""

import jax
import numpy as np
import pytest

from mechjax.decomposition import lens
from tests import typed
from tests.circuits import models
from tests.decomposition import (
  attention_test,
  composition_test,
  direct_logits_test,
  lens_test,
)

pytestmark = pytest.mark.slow
ROOM = 'mechjax.decomposition'


@pytest.fixture(autouse=True)
def wide():
  with jax.enable_x64(True):
    yield


@pytest.fixture(scope='module')
def calls():
  with typed.checked(ROOM) as calls:
    yield calls


def attribute_latents():
  attention_test.test_a_padded_row_has_the_table_of_its_text_alone('right')
  attention_test.test_a_source_is_lost_with_its_value_vector_under_the_frozen_pattern('qwen')
  attention_test.test_a_direction_reads_the_stream_at_the_source()
  attention_test.test_a_row_of_zeros_has_no_shares()
  attention_test.test_every_architecture_with_an_encoder_is_attributed('gated')


def decompose():
  direct_logits_test.weights.cache_clear()
  direct_logits_test.test_the_books_are_complete('gpt2')
  direct_logits_test.test_heads_and_neurons_are_read_out_as_in_numpy('gemma')
  direct_logits_test.test_results_of_heads_sum_to_the_output_of_the_attention('gpt2')
  composition_test.test_the_largest_pairs_come_first()


def read_lenses():
  lens_test.test_the_last_layer_is_the_model()
  found = lens_test.fit('gpt2', positions=np.array([4, 2]))
  assert found.transport(lens_test.streams('gpt2')[:2]).shape == (2, 2, 9, 16)
  assert lens.read_lens(lens_test.streams('gpt2'), lens_test.unembed('gpt2'), 4, k=1).targets == 4


@pytest.mark.parametrize(
  'step', [attribute_latents, decompose, read_lenses], ids=lambda f: f.__name__
)
def test_annotations_hold(calls, step):
  assert models.TOKENS.shape == (2, 9)
  step()


def test_every_public_function_was_called(calls):
  assert calls.missing() == set()


def test_few_public_annotations_say_any():
  share, vague = typed.vague_share(ROOM)
  assert share < 0.05, '\n'.join(vague)
