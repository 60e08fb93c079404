"""The vocabulary of sites: a printed site parses back to itself, and a pattern selects the sites of a brute force."""

import itertools
import re

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechjax import sites
from mechjax.errors import SiteError
from mechjax.sites import Site

L = 4
MODEL = [
  Site('embed'),
  *(Site(name, (i,)) for i in range(L) for name in ('attn_out', 'mlp_pre', 'mlp_out')),
  *(Site('expert', (i, j)) for i in range(2) for j in range(3)),
  Site('logits'),
]
NAMES = list(dict.fromkeys(s.name for s in MODEL))


def selected(patterns, available=MODEL):
  return [str(s) for s in sites.select(patterns, available)]


# --- writing and reading ----------------------------------------------------------------------------------

_names = st.from_regex(r'[a-z][a-z_0-9]*(/[a-z][a-z_0-9]*)?(\.[a-z_]+)?', fullmatch=True)
_paths = st.lists(st.integers(0, 200), max_size=3).map(tuple)


@given(_names, _paths)
def test_what_is_printed_is_parsed_back(name, path):
  site = Site(name, path)
  assert sites.parse(str(site)) == site
  assert sites.parse(site) is site
  assert sites.select(str(site), [site]) == [site]


@pytest.mark.parametrize(
  ('site', 'layer'), [('logits', None), ('mlp_out.5', 5), ('expert.1.2', (1, 2))]
)
def test_the_layer_is_none_a_number_or_a_tuple(site, layer):
  assert sites.parse(site).layer == layer


@pytest.mark.parametrize('pattern', ['mlp_out.*', '*.5', 'mlp_out.{1,2}', 'mlp_*', 'mlp_out.-1'])
def test_a_pattern_is_not_one_site(pattern):
  with pytest.raises(SiteError, match='pattern where one site is expected'):
    sites.parse(pattern)


def test_sites_sort_by_name_and_then_by_layer_as_numbers():
  shuffled = [Site('b'), Site('a', (10,)), Site('a', (9,))]
  assert [str(s) for s in sorted(shuffled)] == ['a.9', 'a.10', 'b']


# --- selecting --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  ('pattern', 'want'),
  [
    ('logits', ['logits']),
    ('mlp_out', [f'mlp_out.{i}' for i in range(L)]),
    ('mlp_out.*', [f'mlp_out.{i}' for i in range(L)]),
    ('mlp_out.2', ['mlp_out.2']),
    ('mlp_out.{0,3}', ['mlp_out.0', 'mlp_out.3']),
    ('mlp_out.{3,0}', ['mlp_out.0', 'mlp_out.3']),
    ('mlp_out.{1..2}', ['mlp_out.1', 'mlp_out.2']),
    ('mlp_out.{0, 2..3}', ['mlp_out.0', 'mlp_out.2', 'mlp_out.3']),
    ('mlp_out.-1', ['mlp_out.3']),
    ('mlp_out.{-2..-1}', ['mlp_out.2', 'mlp_out.3']),
    ('*.2', ['attn_out.2', 'mlp_pre.2', 'mlp_out.2']),
    ('mlp_*.0', ['mlp_pre.0', 'mlp_out.0']),
    ('{attn,mlp}_out.1', ['attn_out.1', 'mlp_out.1']),
    ('?lp_pre.1', ['mlp_pre.1']),
    ('expert.1.*', ['expert.1.0', 'expert.1.1', 'expert.1.2']),
    ('expert.*.-1', ['expert.0.2', 'expert.1.2']),
    ('logits, embed', ['embed', 'logits']),
    (['logits', 'mlp_out.{0,1}', 'mlp_out.1'], ['mlp_out.0', 'mlp_out.1', 'logits']),
    (Site('mlp_out', (1,)), ['mlp_out.1']),
    ([Site('mlp_out', (1,)), 'embed'], ['embed', 'mlp_out.1']),
    ('*', [str(s) for s in MODEL]),
  ],
  ids=str,
)
def test_a_pattern_selects_in_the_order_of_the_model(pattern, want):
  assert selected(pattern) == want


@given(
  st.lists(st.sampled_from(NAMES), min_size=1, unique=True),
  st.lists(st.integers(-L, L - 1), min_size=1, max_size=3),
  st.booleans(),
)
def test_braces_select_what_brute_force_selects(names, layers, ranged):
  low, high = min(i % L for i in layers), max(i % L for i in layers)
  index = f'{{{low}..{high}}}' if ranged else '{' + ','.join(map(str, layers)) + '}'
  wanted = set(range(low, high + 1)) if ranged else {i % L for i in layers}
  pattern = '{' + ','.join(names) + '}.' + index
  if all(Site(name, (i,)) in MODEL for name in names for i in wanted):
    want = [str(s) for s in MODEL if s.name in names and s.path[0] in wanted]
    assert selected(pattern) == want
  else:
    with pytest.raises(SiteError):
      selected(pattern)


@pytest.mark.parametrize(
  ('pattern', 'missing'),
  [
    ('mlp_out.{3,40}', 'mlp_out.40'),
    ('mlp_out.{40,3}', 'mlp_out.40'),
    ('mlp_out.{2..40}', 'mlp_out.2..40'),
    ('mlp_out.{0,2..4}', 'mlp_out.2..4'),
    ('mlp_out.{-40..1}', 'mlp_out.-40..1'),
    ('mlp_out.{1,3..2}', 'mlp_out.3..2'),
    ('mlp_out.{0,-5}', 'mlp_out.-5'),
    ('{mlp_out,mpl_out}.1', 'mpl_out.1'),
    ('{embed,mlp_out}.1', 'embed.1'),
    ('{mlp_out,nothing}', 'nothing'),
    ('expert.{0,1}.{2,3}', 'expert.0.3'),
    ('*.{0,7}', '*.7'),
    ('blocks.{1,9}.hook_mlp_out', 'mlp_out.9'),
  ],
)
def test_an_alternative_in_braces_that_selects_nothing_is_named(pattern, missing):
  with pytest.raises(SiteError, match=re.escape(f'no site matches {missing!r}')) as error:
    selected(f'embed, {pattern}')
  assert pattern in error.value.where


def test_a_range_past_the_last_layer_says_which_layers_there_are():
  with pytest.raises(SiteError) as error:
    selected('mlp_out.{0..5}', [Site('mlp_out', (0,)), Site('mlp_out', (1,)), Site('embed')])
  assert error.value.cause == 'mlp_out has 2 layers, 0 to 1'


@pytest.mark.parametrize('empty', ['', ' ', ',', [''], ['embed', '']])
def test_an_empty_text_is_no_pattern_and_an_empty_list_is_nothing(empty):
  with pytest.raises(SiteError, match='names no site'):
    selected(empty)
  assert selected([]) == []


def test_a_range_may_pass_over_layers_that_have_no_such_site():
  sparse = [*MODEL, Site('attn_probs', (1,)), Site('attn_probs', (3,))]
  assert selected('attn_probs.{0..3}', sparse) == ['attn_probs.1', 'attn_probs.3']


@pytest.mark.parametrize(
  'index', ['[1-3]', '[13]', '[1,3]', '{1..}', '{1,,2}', '{}', '{1-3}', '1..3']
)
def test_layers_written_in_another_way_are_refused_with_ours(index):
  for select in (selected, lambda pattern: sites.matches(pattern, Site('mlp_out', (1,)))):
    with pytest.raises(SiteError, match=re.escape(f'{index!r} is not a choice')) as error:
      select(f'mlp_out.{index}')
    assert '{1..3}' in error.value.hint


def test_the_last_layer_is_that_of_its_own_name():
  available = [Site('a', (0,)), Site('a', (1,)), Site('b', (0,)), Site('b', (7,))]
  assert selected('*.-1', available) == ['a.1', 'b.7']


def test_a_pattern_matches_a_site_alone():
  assert sites.matches('mlp_*.{1,2}', Site('mlp_out', (2,)))
  assert not sites.matches('mlp_*.{1,2}', Site('mlp_out', (3,)))
  assert not sites.matches('mlp_out.-1', Site('mlp_out', (3,)))  # who knows how many there are
  assert sites.matches('blocks.3.hook_mlp_out', Site('mlp_out', (3,)))
  assert sites.names_layers('mlp_out.*')
  assert not sites.names_layers('mlp_out')


# --- TransformerLens --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  ('hook', 'site'),
  [
    ('blocks.5.hook_resid_pre', 'resid_pre.5'),
    ('blocks.5.attn.hook_rot_q', 'q.5'),
    ('blocks.5.attn.hook_v', 'v.5'),
    ('blocks.5.attn.hook_attn_scores', 'attn_scores.5'),
    ('blocks.5.attn.hook_pattern', 'attn_probs.5'),
    ('blocks.5.attn.hook_z', 'z.5'),
    ('blocks.5.hook_attn_out', 'attn_out.5'),
    ('blocks.5.hook_resid_mid', 'resid_mid.5'),
    ('blocks.5.mlp.hook_pre', 'mlp_pre.5'),
    ('blocks.5.mlp.hook_post', 'mlp_post.5'),
    ('blocks.5.hook_mlp_out', 'mlp_out.5'),
    ('blocks.5.hook_resid_post', 'resid_post.5'),
  ],
)
def test_hook_names_are_read(hook, site):
  assert str(sites.parse(hook)) == site
  name = site.split('.')[0]
  assert name in sites.CANONICAL


def test_hook_names_take_globs():
  assert selected('blocks.*.hook_mlp_out') == selected('mlp_out.*')
  assert selected('blocks.{0,2}.hook_mlp_out, embed') == ['embed', 'mlp_out.0', 'mlp_out.2']


@pytest.mark.parametrize(
  ('hook', 'difference', 'ours'),
  [
    ('blocks.3.attn.hook_q', 'BEFORE rotary', 'q.3'),
    ('blocks.{0,3}.attn.hook_k', 'BEFORE rotary', 'k.{0,3}'),
    ('blocks.3.ln1.hook_normalized', 'BEFORE the gain', 'attn_norm.3'),
    ('blocks.*.ln2.hook_normalized', 'BEFORE the gain', 'mlp_norm.*'),
    ('ln_final.hook_normalized', 'BEFORE the gain', 'final_norm'),
    ('blocks.3.ln2.hook_scale', 'divides by', 'mlp_norm.3'),
    ('hook_embed', 'WITHOUT learned positions', 'embed'),
    ('hook_pos_embed', 'positions alone', 'embed'),
    ('blocks.3.attn.hook_result', 'before W_O', 'z.3'),
    ('blocks.3.hook_mlp_in', 'copy of the residual stream', 'resid_mid.3'),
    ('blocks.3.mlp.hook_pre_linear', 'without the activation', 'mlp_pre.3'),
  ],
)
def test_a_hook_that_means_another_value_is_refused_with_ours(hook, difference, ours):
  for use in (sites.parse, selected, lambda h: sites.matches(h, Site('embed'))):
    with pytest.raises(SiteError, match=difference) as error:
      use(hook)
    assert f'write {ours!r} if' in error.value.hint
  assert (
    str(sites.parse(ours.replace('{0,3}', '0').replace('*', '0'))).split('.')[0] in sites.CANONICAL
  )


def test_a_hook_that_nobody_knows_has_neighbours():
  with pytest.raises(SiteError, match='nearest: hook_mlp_out'):
    sites.parse('blocks.3.hook_mlpout')


# --- errors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  ('pattern', 'cause'),
  [
    ('mpl_out', r'nearest: mlp_out \(4 layers, 0 to 3\)'),
    ('mlp_out.9', 'mlp_out has 4 layers, 0 to 3'),
    ('mlp_out.{7..9}', 'mlp_out has 4 layers, 0 to 3'),
    ('logits.0', 'logits has no layers'),
    ('expert.5', 'expert has 6 layers, 0.0 to 1.2'),
    ('something_else', 'nearest: embed'),
  ],
)
def test_what_selects_nothing_says_what_there_is(pattern, cause):
  with pytest.raises(SiteError, match=re.escape(f'no site matches {pattern!r}')) as error:
    selected(f'embed, {pattern}')
  assert re.search(cause, error.value.cause)


def test_a_program_without_sites_says_that_its_patch_is_missing():
  with pytest.raises(SiteError, match='no sites at all') as error:
    selected('mlp_out', [])
  assert 'install' in error.value.hint


def test_a_number_is_not_a_site():
  with pytest.raises(SiteError, match='got int 3'):
    selected(3)


# --- the layer of what runs -------------------------------------------------------------------------------


def test_layers_nest_and_end_where_they_began():
  assert sites.current_path() == ()
  with sites.layer(1):
    with sites.layer(jnp.int32(2)):  # a concrete number of any kind
      assert sites.current_path() == (1, 2)
    assert sites.current_path() == (1,)
  with pytest.raises(KeyError), sites.layer(3):
    raise KeyError
  assert sites.current_path() == ()


@pytest.mark.parametrize('bad', ['3', 1.5, None], ids=repr)
def test_a_layer_is_a_number(bad):
  with pytest.raises(SiteError, match=f'got {type(bad).__name__}'), sites.layer(bad):
    pass


def test_layers_count_from_0():
  with pytest.raises(SiteError, match='got -1'), sites.layer(-1):
    pass


def test_a_traced_layer_says_that_the_scan_counts():
  def body(x, i):
    with sites.layer(i):
      return x, None

  with pytest.raises(SiteError) as error:
    jax.lax.scan(body, 0.0, jnp.arange(2))
  assert 'iteration of the scan is the layer' in error.value.hint


@pytest.mark.parametrize(
  ('stack', 'marks'),
  [
    ('', ()),
    ('layer:1', (('layer', '1'),)),
    ('outer/layer:1/nest:inner/layer:12', (('layer', '1'), ('nest', 'inner'), ('layer', '12'))),
    ('jvp(layer:1)/vmap(layer:2)', (('layer', '1'), ('layer', '2'))),
    ('jvp(outer/layer:1)', (('layer', '1'),)),
    ('transpose(jvp(layer:1))/jvp(layer:1)', (('layer', '1'),)),
    ('layer:1/layer:1', (('layer', '1'), ('layer', '1'))),
    ('player:1/layer:1x/layer:one/layer:2', (('layer', '2'),)),
  ],
)
def test_the_marks_of_a_name_stack(stack, marks):
  assert sites.scopes_of(stack) == marks


def test_every_canonical_name_is_one_name():
  for a, b in itertools.combinations(sites.CANONICAL, 2):
    assert a != b
  for name, axes in sites.CANONICAL.items():
    assert sites.parse(name) == Site(name)
    assert axes.startswith('[B, ')
