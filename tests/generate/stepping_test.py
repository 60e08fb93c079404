"""Loops over the sites of each step, against generation with the same plants."""

import numpy as np
import pytest

from mechjax import errors
from mechjax.generate import Sampling, Steps
from tests.generate.small import PROMPTS, generated, model
from tests.models import decoders

READ = 'resid_post.0, k.1, attn_probs.0, logits'


def steps_of(name, n=4, sites=READ, prompts=PROMPTS, **options):
  return Steps(model(name), decoders.params(name), prompts, n, sites, **options)


def test_a_loop_over_a_step_shows_what_is_read_of_it():
  out = generated('gemma', 3, sites=READ)
  steps = steps_of('gemma', 3)
  for step, run in steps:
    np.testing.assert_array_equal(step.tokens, out.tokens[:, : step.index])
    np.testing.assert_array_equal(step.positions, out.positions[step.index])
    assert step.prompt_length.tolist() == [5, 2, 4]
    seen = {f'{name}' if layer is None else f'{name}.{layer}': x for layer, name, x in run}
    assert {*seen} == {*out.reads[step.index]}
    for site, value in seen.items():
      np.testing.assert_allclose(
        value, out.reads[step.index][site], rtol=0, atol=3e-5, err_msg=site
      )
  np.testing.assert_array_equal(steps.result.tokens, out.tokens)
  np.testing.assert_allclose(steps.result.log_probs, out.log_probs, atol=1e-4)


@pytest.mark.parametrize('prompts', [PROMPTS, [[5, 3, 8], [2, 7, 0]]])
def test_modified_values_do_what_plants_do(prompts):
  edits = {'resid_post.0': lambda x: x.at[..., :3].multiply(-2), 'k.1': lambda k: 1.5 * k}
  out = generated('mistral', 4, prompts, plants=edits)
  steps = steps_of('mistral', sites=[*edits], prompts=prompts)
  for _, run in steps:
    for layer, name, value in run:
      run.modified_value = edits[f'{name}.{layer}'](value)
  np.testing.assert_array_equal(steps.result.tokens, out.tokens)
  np.testing.assert_allclose(steps.result.log_probs, out.log_probs, atol=1e-4)
  assert (out.tokens != generated('mistral', 4, prompts).tokens).any()


def test_a_run_that_is_not_looped_over_runs_unmodified_and_sampling_is_that_of_generate():
  options = {'sampling': Sampling(1.0, frequency_penalty=0.5), 'seed': 3, 'stop': [1]}
  out = generated('gpt2', 6, **options)
  steps = steps_of('gpt2', 6, 'logits', **options)
  for _ in steps:
    pass
  np.testing.assert_array_equal(steps.result.tokens, out.tokens)
  np.testing.assert_array_equal(steps.result.lengths, out.lengths)


def test_a_loop_that_is_left_early_ends_the_generation_with_an_error():
  steps = steps_of('gpt2', sites='embed, logits')
  both = iter(steps)
  for index in range(2):
    _, run = next(both)
    for _, name, _ in run:
      if index == 1 and name == 'embed':
        break
  with pytest.raises(errors.RunError, match=r'(?s)step 1 has no logits.*left before its end'):
    next(both)
  assert steps.result.tokens.shape == (3, 1)


def test_what_has_no_steps_is_refused():
  with pytest.raises(errors.SiteError, match='resid_pots'):
    steps_of('gpt2', sites='resid_pots')
  steps = steps_of('gpt2', 1, 'logits')
  with pytest.raises(errors.MechjaxError, match='no token'):
    _ = steps.result
  assert len(list(steps)) == 1
  with pytest.raises(errors.MechjaxError, match='iterated before'):
    iter(steps)
