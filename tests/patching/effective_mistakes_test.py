"""Components, kept sets, values, paths and prompts that make no effective model are refused with an explanation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechjax import harvest
from mechjax.errors import SiteError
from mechjax.patching import (
  Kept,
  PatchingError,
  ablate,
  components_of,
  measure_means,
  nodes_of,
  resample_values,
)
from tests.models import decoders
from tests.patching import ablated
from tests.patching.ablated import EMBED, MASK, ROWS, TOKENS, T, forward, measure, params, parts


@pytest.fixture(autouse=True)
def wide():
  with jax.enable_x64(True):
    yield


@pytest.fixture(scope='module', autouse=True)
def _deep():
  with ablated.deep_decoder():
    yield


def build(keep='z.0', where='last two', **options):
  return ablate(forward('gpt2'), Kept.of(parts('gpt2'), keep), measure('gpt2', where), **options)


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: build(keep=parts('gpt2')[:0]), 'empty node set names nothing'),
    (lambda: build(keep=parts('deep')[-1:]), 'mlp_out.2 is not among the components'),
    (lambda: build(keep=np.ones(3, bool)), r'a kept set is bool \[10\]'),
    (lambda: build(keep=np.ones(10)), r'got float64\[10\]'),
    (lambda: Kept.of(parts('gpt2')[:0], []), 'there are no components'),
    (lambda: Kept.of(parts('gpt2') + parts('gpt2'), []), 'two of the components at .* overlap'),
    (lambda: Kept.of(parts('gpt2'), []) | Kept.of(parts('deep'), []), 'of different components'),
    (lambda: build(positions=[-3]), 'no mean value at position -3'),
    (lambda: build(positions=[0]), 'position 0 is counted from the beginning'),
    (lambda: build(positions=[-1, -1]), 'name a position twice'),
    (lambda: build(positions=[]), 'should be negative integers'),
    (lambda: build(positions=[-1.0]), 'should be negative integers'),
    (lambda: build(positions=[[-1, -2], [-1]]), 'prompt 1 has 1 positions, and prompt 0 has 2'),
    (lambda: build(positions=ROWS), r'positions differ between prompts, \[-1, -3\] in prompt 0'),
    (lambda: build(where='every', positions=ROWS), 'positions differ between prompts'),
    (lambda: build(where='rows', positions=ROWS[:, :1]), 'of 2 positions of each prompt'),
    (lambda: build(where='rows', positions=[-1, -2]), 'of 2 positions of each prompt'),
    (lambda: measure('gpt2', 'last two').at(None), 'not of every position'),
    (lambda: build(paths=[('mlp_out.1', 'mlp_norm.0')]), 'mlp_out.1 does not lie below mlp_norm.0'),
    (lambda: build(paths=[('mlp_out.0', 'resid_mid.1')]), "unknown receiver of a path 'resid_mid'"),
    (lambda: build(paths=[([], 'mlp_norm.1')]), 'the path to mlp_norm.1 has no sender'),
    (lambda: build(paths=[(np.ones(2, bool), 'mlp_norm.1')]), r'a kept set is bool \[10\]'),
  ],
)
def test_sets_positions_and_paths_that_have_no_meaning_are_refused(make, message):
  with pytest.raises(PatchingError, match=message):
    make()


def test_values_of_another_model_are_refused():
  kept = Kept.of(parts('deep'), 'z.0')
  with pytest.raises(PatchingError, match='there are no values for z'):
    ablate(forward('deep'), kept, measure('gpt2'))
  narrow = dataclasses.replace(
    measure('gpt2'), values={k: v[..., :3] for k, v in measure('gpt2').values.items()}
  )
  with pytest.raises(PatchingError, match=r"'z' has the shape \[4, 3\] .* \[4, 6\] was expected"):
    ablate(forward('gpt2'), Kept.of(parts('gpt2'), 'z.0'), narrow)
  with pytest.raises(PatchingError, match='this model has no site z'):
    ablate(forward('gpt2'), kept, measure('deep'))(params('gpt2'), TOKENS)
  with pytest.raises(PatchingError, match='values must be of the class AblationValues'):
    ablate(forward('gpt2'), Kept.of(parts('gpt2'), 'z.0'), measure('gpt2').values, positions=[-1])
  with pytest.raises(PatchingError, match='kept must be of the class Kept'):
    ablate(forward('gpt2'), 'z.0', measure('gpt2'))


def test_patterns_that_select_nothing_are_refused():
  for keep in ('z.5', 'mlp_oot', ''):
    with pytest.raises(SiteError):
      build(keep=keep)
  model = build(paths=[('mlp_out.0', 'mlp_norm.7')])
  for run in (model, harvest.reap(model, sites='logits')):
    with pytest.raises(SiteError, match='mlp_norm'):
      run(params('gpt2'), TOKENS)
  with pytest.raises(SiteError):
    build(paths=[('mlp_out.7', 'mlp_norm.1')])


@pytest.mark.parametrize(
  ('model', 'mask', 'message'),
  [
    ({'where': 'rows'}, MASK[:2], 'positions or values of 4 prompts, and 2 prompts'),
    ({}, MASK[:, :1] | np.zeros(T, bool), None),
    ({}, np.arange(T) < np.array([[6], [1], [5], [6]]), 'prompt 1 has 1 tokens, and position -2'),
    ({}, MASK[:, ::-1], 'padding before or between its tokens, and the model takes no mask'),
    ({}, MASK.astype(int), 'the mask is int64 of shape'),
    ({}, MASK & (np.arange(4) != 2)[:, None], 'prompt 2 has no token'),
  ],
)
def test_prompts_that_do_not_fit_are_refused_before_anything_runs(model, mask, message):
  tokens = TOKENS[: len(mask)]
  made = build(**model)
  if message is None:  # a whole mask
    assert made(params('gpt2'), tokens, mask=mask).shape == (4, T, decoders.V)
    return
  for run in (made, harvest.reap(made, sites='logits')):
    with pytest.raises(PatchingError, match=message):
      run(params('gpt2'), tokens, mask=mask)


def test_longer_prompts_than_those_of_the_means_are_refused():
  means = measure_means(forward('gpt2'), params('gpt2'), TOKENS[:, :4], parts('gpt2'))
  model = ablate(forward('gpt2'), Kept.of(parts('gpt2'), 'z.0'), means)
  with pytest.raises(PatchingError, match='prompt 0 has 6 tokens, and there are values for 4'):
    model(params('gpt2'), TOKENS, mask=MASK)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'tokens': TOKENS[:1]}, 'there is one prompt'),
    ({'mask': MASK, 'positions': [-5]}, 'prompt 1 has 4 tokens, and position -5 was requested'),
    ({'positions': ROWS[:2]}, 'positions of 2 prompts, and 4 prompts'),
    ({'mask': MASK[:, ::-1]}, 'the model takes no mask'),
    ({'batch': 0}, 'batch is 0'),
    ({'tokens': TOKENS[0]}, 'are not prompts'),
    ({'forward': decoders.language_model('gpt2')}, 'not a function'),
    ({'params': jax.tree.map(lambda x: x * np.nan, decoders.params('gpt2'))}, 'NaN or infinity'),
  ],
)
def test_a_data_set_that_has_no_mean_is_refused(options, message):
  given = {'forward': forward('gpt2'), 'params': params('gpt2'), 'tokens': TOKENS, **options}
  leading = [given.pop(name) for name in ('forward', 'params', 'tokens')]
  with pytest.raises(PatchingError, match=message):
    measure_means(*leading, parts('gpt2'), **given)


def test_prompts_of_different_lengths_are_not_resampled_at_every_position():
  with pytest.raises(PatchingError, match='prompt 1 has 4 tokens, others have 6'):
    measure('gpt2', make=resample_values)
  with pytest.raises(PatchingError, match='seed is -1'):
    measure('gpt2', 'rows', make=resample_values, seed=-1)


def test_traced_prompts_have_no_mean():
  with pytest.raises(PatchingError, match='the prompts are traced'):
    jax.jit(lambda t: measure_means(forward('gpt2'), params('gpt2'), t, parts('gpt2')))(TOKENS)


def test_a_model_without_the_sites_of_components_is_refused():
  def tagged(*names):
    def run(params, tokens):
      x = jnp.asarray(params)[tokens]
      for name in names:
        x = x + harvest.sow(jnp.tanh(x), name=name)
      return x

    return harvest.sites_of(run, EMBED, TOKENS)

  with pytest.raises(PatchingError, match=r"(?s)no site 'z'.*hint: heads=False"):
    components_of(tagged('attn_out', 'mlp_out'))
  assert len(components_of(tagged('attn_out', 'mlp_out'), heads=False)) == 2
  with pytest.raises(PatchingError, match='no components'):
    components_of(tagged('resid_post'))


@pytest.mark.parametrize(
  ('pattern', 'options', 'message'),
  [
    ('z.0', {'positions': [-1]}, 'is a node of one position'),
    ('attn_probs.0', {'positions': 'together'}, "'attn_probs' with axes 'BNTS' is not a component"),
    ('k.0', {'positions': 'together'}, "'k' with axes 'BSKH' is not a component"),
  ],
)
def test_nodes_that_are_not_whole_along_positions_are_refused(pattern, options, message):
  infos = harvest.sites_of(forward('gpt2'), params('gpt2'), TOKENS)
  with pytest.raises(PatchingError, match=message):
    Kept.of(nodes_of(infos, pattern, **options), [])
