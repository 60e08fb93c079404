"""Effective models with cut paths equal NumPy forwards in which only the receivers read replaced outputs."""

import jax
import numpy as np
import pytest

from mechjax import harvest
from mechjax.patching import Kept, ablate, nodes_of
from tests.models import decoders
from tests.patching import ablated, plain
from tests.patching.ablated import (
  LENGTHS,
  MASK,
  TOKENS,
  by_mean,
  check,
  columns,
  forward,
  measure,
  params,
  parts,
  values,
)


@pytest.fixture(autouse=True)
def wide():
  with jax.enable_x64(True):
    yield


@pytest.fixture(scope='module', autouse=True)
def _deep():
  with ablated.deep_decoder():
    yield


def cut_by_hand(name, where, kept, paths):
  """Logits if receivers read a stream with the senders' outputs replaced: an edit of the norm's input."""
  config = decoders.CONFIGS[name]
  tree = jax.tree.map(lambda x: np.asarray(x, np.float64), decoders.params(name))
  seen = {}
  base = {site: by_mean(where, site, name) for site in ('mlp_out.0', 'mlp_out.1', 'attn_out.0')}

  def edit(site, value):
    stem, _, layer = site.partition('.')
    if stem in ('z', 'mlp_out'):
      new, value = by_mean(where, site, name), value.copy()
      for row in range(len(LENGTHS)):
        for number, t in columns(where, row):
          if not kept(site, None):
            value[row, t] = new(row, number, t)
    senders = [sender for sender, receiver in paths if receiver == site]
    if senders:
      stream = f'resid_post.{config.n_layers - 1}'
      scale = tree['final_norm']
      if stem != 'final_norm':
        kind = stem.partition('_')[0]
        stream = (
          f'resid_mid.{layer}'
          if f'resid_mid.{layer}' in seen and kind == 'mlp'
          else f'resid_pre.{layer}'
        )
        scale = jax.tree.map(lambda x: x[int(layer)], tree['layers'][stem])
      x, value = seen[stream].copy(), value.copy()
      for sender in senders:
        for row in range(len(LENGTHS)):
          for number, t in columns(where, row):
            x[row, t] += base[sender](row, number, t) - seen[sender][row, t]
      changed = decoders._norm(config, x, scale)
      for row in range(len(LENGTHS)):
        for _, t in columns(where, row):
          value[row, t] = changed[row, t]
    seen[site] = value
    return value

  return plain.logits(name, TOKENS, edit)


PATHS = {
  'one': [('mlp_out.0', 'mlp_norm.1')],
  'to attention and the end': [('mlp_out.0', 'attn_norm.1'), ('mlp_out.1', 'final_norm')],
  'two that follow': [('mlp_out.0', 'mlp_norm.1'), ('mlp_out.1', 'mlp_norm.2')],
  'two of one': [('mlp_out.0', 'mlp_norm.2'), ('mlp_out.1', 'mlp_norm.2')],
}


@pytest.mark.parametrize(
  ('name', 'paths', 'where'),
  [
    ('gpt2', 'one', 'every'),
    ('neox', 'one', 'rows'),
    ('gemma', 'one', 'last two'),
    ('gemma', 'to attention and the end', 'every'),
    ('deep', 'two that follow', 'rows'),
    ('deep', 'two of one', 'every'),
  ],
)
def test_an_ablated_path_changes_what_its_receiver_reads_and_nothing_else(name, paths, where):
  kept = lambda site, head: site != 'z.1'  # noqa: E731
  means = measure(name, where)
  model = ablate(forward(name), Kept.all_but(parts(name), 'z.1'), means, paths=PATHS[paths])
  expected = cut_by_hand(name, where, kept, PATHS[paths])
  check(model(params(name), TOKENS, mask=MASK), expected)
  without = cut_by_hand(name, where, kept, [])
  assert np.abs(expected - without)[MASK].max() > 1e-3


def test_a_head_sends_through_the_norm_after_its_attention():
  """The truth is two passes by hand: the first with all other components held."""
  name, where = 'gemma', 'last two'
  head = nodes_of(
    harvest.sites_of(forward(name), params(name), TOKENS), 'z.0', heads=[1], positions='together'
  )
  model = ablate(
    forward(name), Kept.of(parts(name), '*'), measure(name, where), paths=[(head, 'mlp_norm.1')]
  )
  new = by_mean(where, 'z.0', name)
  first = {}

  def hold(site, value):
    if site.partition('.')[0] in ('z', 'mlp_out'):
      value = values(name)[site].copy()
    for row in range(len(LENGTHS)) if site == 'z.0' else ():
      for number, t in columns(where, row):
        value[row, t, 1] = new(row, number, t)[1]
    first[site] = value
    return value

  def second(site, value):
    return first[site] if site == 'mlp_norm.1' else value

  plain.logits(name, TOKENS, hold)
  check(model(params(name), TOKENS, mask=MASK), plain.logits(name, TOKENS, second))


def test_a_path_leaves_the_sites_of_one_pass():
  name = 'gpt2'
  model = ablate(
    forward(name), Kept.of(parts(name), '*'), measure(name), paths=[('mlp_out.0', 'mlp_norm.1')]
  )
  acts = harvest.reap(model, sites='*')(params(name), TOKENS, mask=MASK)
  own = values(name)
  assert set(acts) == set(own)
  for site in ('resid_mid.1', 'mlp_out.0', 'z.1'):
    np.testing.assert_allclose(acts[site], own[site], atol=1e-9)
  assert np.abs(acts['mlp_norm.1'] - own['mlp_norm.1'])[MASK].max() > 1e-2
