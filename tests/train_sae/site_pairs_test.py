"""Pairs of input and output sites that patterns select."""

import pytest

from mechjax.errors import SAEError, SiteError
from mechjax.sites import Site
from mechjax.train_sae.site_pairs import SitePair, is_pattern, pair_sites

SITES = [
  Site(name, (layer,)) for layer in range(3) for name in ('mlp_norm', 'mlp_out', 'resid_post')
] + [Site('logits')]


def pairs(site, target=None):
  return pair_sites(site, target, lambda: SITES)


def test_the_name_of_one_site_needs_no_list_of_sites():
  def refuse():
    raise AssertionError

  assert pair_sites('resid_post.77', None, refuse) == [SitePair('resid_post.77')]
  assert pair_sites('mlp_norm.0', 'mlp_out.1', refuse) == [SitePair('mlp_norm.0', 'mlp_out.1')]


@pytest.mark.parametrize(
  ('text', 'expected'),
  [
    ('mlp_norm.3', False),
    ('blocks.3.hook_mlp_out', False),
    (None, False),
    ('mlp_norm.*', True),
    ('mlp_norm.{0,2}', True),
    ('mlp_norm.0,mlp_norm.1', True),
    ('mlp_norm.-1', True),
  ],
)
def test_patterns_are_told_from_names(text, expected):
  assert is_pattern(text) == expected


def test_each_input_has_the_output_of_its_layer_whatever_the_order_of_the_patterns():
  assert pairs('mlp_norm.*', 'mlp_out.*') == [
    SitePair(f'mlp_norm.{n}', f'mlp_out.{n}') for n in range(3)
  ]
  assert pairs('mlp_norm.2,mlp_norm.0', 'mlp_out.0,mlp_out.2') == [
    SitePair('mlp_norm.0', 'mlp_out.0'),
    SitePair('mlp_norm.2', 'mlp_out.2'),
  ]
  assert pairs('resid_post.{1..2}') == [SitePair('resid_post.1'), SitePair('resid_post.2')]


@pytest.mark.parametrize(
  ('site', 'target', 'error', 'says'),
  [
    ('mlp_nrom.*', 'mlp_out.*', SiteError, 'mlp_nrom'),
    ('mlp_norm.*', 'nothing.*', SiteError, 'nothing'),
    ('mlp_norm.*', 'mlp_out.{0,1}', SAEError, 'selects 3 sites .* selects 2'),
    ('mlp_norm.{0,1}', 'mlp_out.{1,2}', SAEError, r'no target on the layer of mlp_norm\.0'),
    ('mlp_norm.*', 'mlp_out.0', SAEError, 'selects 3 sites .* selects 1'),
    ('*.{0,1}', '*.{1,2}', SAEError, r'several sites of one layer: mlp_norm\.0, mlp_out\.0'),
  ],
)
def test_patterns_that_do_not_make_pairs_are_errors(site, target, error, says):
  with pytest.raises(error, match=says):
    pairs(site, target)
