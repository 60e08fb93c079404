"""The annotations of recursions and graphs as data hold for every public function."""

import jax
import pytest

from tests import typed
from tests.circuits import neuronpedia_test, recursion_test

pytestmark = pytest.mark.slow
ROOMS = tuple(
  f'mechjax.circuits.{name}'
  for name in ('graph_data', 'graph_export', 'neuronpedia', 'neuronpedia_features', 'recursion')
)


@pytest.fixture(autouse=True)
def wide():
  with jax.enable_x64(True):
    yield


@pytest.fixture(scope='module')
def calls():
  with typed.checked(*ROOMS) as calls:
    yield calls


def test_annotations_hold(calls, tmp_path):
  recursion_test.test_the_children_of_every_node_sum_to_it('gpt2', 3)
  recursion_test.test_a_graph_as_data_has_the_same_sums_influences_and_shares()
  neuronpedia_test.test_a_graph_is_read_as_it_was_written(tmp_path)
  neuronpedia_test.test_the_json_of_a_latent_has_its_contexts_and_effects()
  neuronpedia_test.test_influence_in_a_file_is_cumulative()
  neuronpedia_test.test_files_of_latents_are_found_by_the_number_of_their_node(tmp_path)


def test_every_public_function_was_called(calls):
  known = {'mechjax.circuits.graph_data.read_supernodes'}  # of files, by the page's tests
  assert calls.missing() - known == set()


def test_few_public_annotations_say_any():
  share, vague = typed.vague_share('mechjax.circuits.recursion')  # the others handle JSON
  assert share < 0.05, '\n'.join(vague)
