"""Mistakes in requests, plants and results are refused with the value, the place and a way out."""

import jax.numpy as jnp
import pytest

from mechjax import forward, harvest, sites
from mechjax.errors import HarvestError, MechjaxError, SiteError
from tests.models.decoders import TOKENS, V, language_model

MODEL = language_model('neox')
ACTS = harvest.reap(MODEL, sites='mlp_out')(TOKENS)


@pytest.mark.parametrize('name', ['mlp_oot', 'mlp_out.0', 'pattern'])
def test_names_that_were_not_requested_are_refused(name):
  for call in (ACTS.stack, ACTS.layers):
    with pytest.raises(SiteError, match='mlp_out'):
      call(name)


def test_activations_are_a_mapping():
  assert 'mlp_out.1' in ACTS
  assert 'mlp_out.9' not in ACTS
  assert ACTS.get('mlp_oot') is None
  assert ACTS.get('mlp_out.1') is not None


def test_a_function_of_another_shape_is_named_by_its_site():
  plants = {'mlp_out.0': jnp.zeros_like, 'attn_out.1': lambda v: v[:, -1]}
  with pytest.raises(HarvestError, match=r"'attn_out.1' returned shape \(2, 16\)"):
    harvest.plant(MODEL)(plants, TOKENS)


def test_a_modified_value_of_another_kind_is_refused_with_a_hint_that_holds():
  for wrong in (0, harvest.Masked(0, True)):
    run = forward.iterate(MODEL, 'mlp_out.0')(TOKENS)
    next(run)
    with pytest.raises(HarvestError, match=r'zeros_like\(value\)'):
      run.modified_value = wrong
    run.close()


@pytest.mark.parametrize(
  ('pattern', 'hint'),
  [
    ('logits.0', "write 'logits'"),
    ('resid_post.{1..0}', 'write {0..1}'),
    ('blocks.0.*', r"write '\*.0'"),
    ('RESID_POST.0', 'resid_post'),
  ],
)
def test_a_pattern_that_selects_nothing_says_what_to_write(pattern, hint):
  with pytest.raises(SiteError, match=hint):
    sites.select(pattern, MODEL.sites())


def test_calls_of_a_model_without_a_token_or_with_another_width_are_refused():
  for empty in (jnp.zeros((1, 0), int), jnp.zeros((0, 9), int)):
    for call in (MODEL, harvest.reap(MODEL)):
      with pytest.raises(MechjaxError, match='no token'):
        call(empty)
  with pytest.raises(MechjaxError, match=r'\[\.\.\., 16\]'):
    MODEL.unembed(jnp.zeros((2, 15)))
  with pytest.raises(MechjaxError, match=r'stop=2\.5'):
    MODEL.generate([[1, 2]], 2, stop=2.5)
  with pytest.raises(HarvestError, match='a dict'):
    MODEL.generate([[1, 2]], 2, stop=(), plants=['mlp_out'])
  assert MODEL(TOKENS).shape[-1] == V
