"""The annotations of attributions, decompositions, lenses and graphs as data hold for every public function."""

import jax
import numpy as np
import pytest

from mechjax.circuits import lens
from tests import typed
from tests.circuits import (
  attention_test,
  composition_test,
  decomposition_test,
  lens_test,
  models,
  neuronpedia_test,
  recursion_test,
)

pytestmark = pytest.mark.slow
ROOMS = tuple(
  f'mechjax.circuits.{name}'
  for name in (
    'array_checks', 'attention', 'composition', 'decomposition', 'graph_data', 'graph_export', 'lens', 'neuronpedia',
    'part_writes', 'recursion',
  )
)  # fmt: skip

JSON = (
  'mechjax.circuits.graph_data',
  'mechjax.circuits.graph_export',
  'mechjax.circuits.neuronpedia',
)


@pytest.fixture(autouse=True)
def wide():
  with jax.enable_x64(True):
    yield


@pytest.fixture(scope='module')
def calls():
  with typed.checked(*ROOMS) as calls:
    yield calls


def attribute_latents():
  attention_test.test_a_padded_row_has_the_table_of_its_text_alone('right')
  attention_test.test_a_source_is_lost_with_its_value_vector_under_the_frozen_pattern('qwen')
  attention_test.test_a_direction_reads_the_stream_at_the_source()
  attention_test.test_a_row_of_zeros_has_no_shares()
  attention_test.test_every_architecture_with_an_encoder_is_attributed('gated')


def decompose():
  decomposition_test.weights.cache_clear()
  decomposition_test.test_the_books_are_complete('gpt2')
  decomposition_test.test_heads_and_neurons_are_read_out_as_in_numpy('gemma')
  decomposition_test.test_results_of_heads_sum_to_the_output_of_the_attention('gpt2')
  composition_test.test_the_largest_pairs_come_first()


def read_lenses():
  lens_test.test_the_last_layer_is_the_model()
  found = lens_test.fit('gpt2', positions=np.array([4, 2]))
  assert found.transport(lens_test.streams('gpt2')[:2]).shape == (2, 2, 9, 16)
  assert lens.read_lens(lens_test.streams('gpt2'), lens_test.unembed('gpt2'), 4, k=1).targets == 4


def follow_and_write(tmp_path):
  recursion_test.test_the_children_of_every_node_sum_to_it('gpt2', 3)
  recursion_test.test_a_graph_as_data_has_the_same_sums_influences_and_shares()
  neuronpedia_test.test_a_graph_is_read_as_it_was_written(tmp_path)
  neuronpedia_test.test_the_json_of_a_latent_has_its_contexts_and_effects()
  neuronpedia_test.test_influence_in_a_file_is_cumulative()


@pytest.mark.parametrize(
  'step', [attribute_latents, decompose, read_lenses], ids=lambda f: f.__name__
)
def test_annotations_hold(calls, step):
  assert models.TOKENS.shape == (2, 9)
  step()


def test_annotations_of_graphs_hold(calls, tmp_path):
  follow_and_write(tmp_path)


def test_every_public_function_was_called(calls):
  known = {'mechjax.circuits.graph_data.read_supernodes'}  # of files, by the page's tests
  assert calls.missing() - known == set()


@pytest.mark.parametrize('room', [room for room in ROOMS if room not in JSON])
def test_few_public_annotations_say_any(room):
  share, vague = typed.vague_share(room)
  assert share < 0.05, '\n'.join(vague)
