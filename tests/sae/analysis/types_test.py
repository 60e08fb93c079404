"""The annotations of the analyses hold for every public function."""

import jax.numpy as jnp
import pytest

from tests import typed
from tests.sae.analysis import (
  dark_matter_test,
  error_losses_test,
  geometry_test,
  matching_test,
  normal_equations_test,
  prediction_test,
  stability_test,
  tracking_test,
)

pytestmark = pytest.mark.slow
ROOM = 'mechjax.sae.analysis'
STEPS = (
  dark_matter_test.test_every_number_equals_its_definition,
  dark_matter_test.test_a_transcoder_is_measured_against_its_targets,
  dark_matter_test.test_masks_leave_out_the_first_tokens_and_the_long_ones,
  error_losses_test.test_a_map_that_is_the_whole_error_restores_the_model,
  geometry_test.test_the_identity_dictionary_has_neurons_for_latents,
  geometry_test.test_the_planted_direction_is_found_in_both_seeds,
  matching_test.test_a_composition_is_the_product_of_the_permutation_matrices,
  matching_test.test_paths_follow_the_partners_and_end_with_the_first_bad_step,
  normal_equations_test.test_token_means_equal_the_means_of_the_other_blocks,
  prediction_test.test_every_fvu_is_that_of_its_definition_however_the_tokens_are_split,
  stability_test.test_planted_latents_are_shared_and_no_others,
  stability_test.test_both_cosines_must_exceed_the_minimum,
  stability_test.test_pairs_of_seeds_give_a_mean_and_a_jackknife_error,
  tracking_test.test_drift_is_the_cosine_to_the_last_checkpoint_and_to_the_next,
  tracking_test.test_a_planted_feature_forms_at_the_checkpoint_where_it_is_planted,
)


def test_the_annotations_of_every_public_function_hold():
  with typed.checked(ROOM) as calls:
    for step in STEPS:
      step()
    normal_equations_test.test_fits_and_errors_equal_those_of_least_squares_on_the_data('scaled')
    matching_test.test_a_copy_in_another_order_is_matched_exactly('jumprelu')
    matching_test.test_folding_does_not_depend_on_the_units_of_the_latents('jumprelu')
    dark_matter_test.test_a_dictionary_is_measured_as_its_reconstructions_are('jumprelu')
    error_losses_test.LINEAR(
      jnp.ones((2, error_losses_test.D))
    )  # the losses may be compiled already
  assert calls.missing() == set()


def test_few_public_annotations_say_any():
  share, vague = typed.vague_share(ROOM)
  assert share < 0.1, '\n'.join(vague)
