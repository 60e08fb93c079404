"""The card next to a dictionary: readable by a hub, with figures, settings and a licence line, and nothing assumed."""

import numpy as np
import pytest
import yaml

from mechjax.sae import CrossLayerJumpReLU, SAEError
from mechjax.sae.formats import load, save, save_set
from tests.sae.formats.cases import TRANSCODERS, single
from tests.sae.plain import SAES, D, K, M

ABOUT = {'model_name': 'google/gemma-2-2b', 'hook_name': 'resid_post.3', 'context_size': 128}


def parse(path):
  """Settings for hubs, and tables and lines of a card."""
  _, head, body = path.read_text().split('---\n', 2)
  rows = [line.strip('| ').split(' | ') for line in body.splitlines() if line.startswith('| ')]
  return yaml.safe_load(head), {row[0]: row[1] for row in rows}, body


@pytest.mark.parametrize('format', ['sae_lens', 'sparsify', 'mechjax'])
def test_a_card_states_settings_figures_source_and_licence(format, tmp_path):
  sae = SAES['topk']
  figures = {'L0': np.float32(2.5), 'FVU': 0.125}
  save(
    tmp_path / 'out', sae, single(sae)[0],
    format=format, about=ABOUT, figures=figures, licence='Apache-2.0',
  )  # fmt: skip
  head, rows, body = parse(tmp_path / 'out' / 'README.md')
  assert head['license'] == 'apache-2.0'
  assert head['library_name'] == 'mechjax'
  assert head['base_model'] == 'google/gemma-2-2b'
  assert '# TopK dictionary of google/gemma-2-2b, resid_post.3\n' in body
  wanted = {'d_in': f'{D}', 'width': f'{M}', 'k': f'{K}', 'model': 'google/gemma-2-2b', 'L0': '2.5'}
  assert {name: rows[name] for name in wanted} == wanted
  assert (rows['FVU'], rows['tokens of a context']) == ('0.125', '128')
  assert body.endswith('## Licence\n\nApache-2.0\n')
  assert load(tmp_path / 'out').sae == sae


def test_a_licence_is_never_assumed_and_a_card_exists_without_any_metadata(tmp_path):
  sae = SAES['jumprelu']
  save(tmp_path / 'out', sae, single(sae)[0], format='gemma_scope')
  head, rows, body = parse(tmp_path / 'out' / 'README.md')
  assert 'license' not in head
  assert 'base_model' not in head
  assert '# JumpReLU dictionary\n' in body
  assert 'Figures' not in body
  assert 'Not stated. Ask the authors' in body
  assert rows['file format'] == 'gemma_scope'


def test_a_loaded_dictionary_that_is_saved_again_keeps_its_source_on_the_card(tmp_path):
  sae = SAES['jumprelu']
  save(tmp_path / 'first', sae, single(sae)[0], format='sae_lens', about=ABOUT)
  loaded = load(tmp_path / 'first')
  save(tmp_path / 'second', loaded.sae, loaded.params, format='gemma_scope')
  assert parse(tmp_path / 'second' / 'README.md')[1]['model'] == 'google/gemma-2-2b'


def test_sets_and_cross_layer_transcoders_have_cards(tmp_path):
  one = TRANSCODERS['relu transcoder']
  hooks = {'feature_input_hook': 'mlp.hook_in', 'feature_output_hook': 'hook_mlp_out'}
  pairs = {n: (one, single(one)[0]) for n in range(2)}
  save_set(tmp_path / 'set', pairs, about={**ABOUT, **hooks}, figures={'FVU': 0.5}, licence='mit')
  head, rows, body = parse(tmp_path / 'set' / 'README.md')
  assert (head['license'], rows['FVU']) == ('mit', '0.5')
  assert '# 2 transcoders, one a layer' in body
  assert 'load_set' in body
  clt = CrossLayerJumpReLU(n_layers=2, d_in=D, d_out=D, width=M, sparsity=0.0)
  params = {name: np.zeros(a.shape, np.float32) for name, a in clt.init(_key()).items()}
  save(tmp_path / 'clt', clt, params, format='mechjax')
  assert parse(tmp_path / 'clt' / 'README.md')[1]['n_layers'] == '2'


def _key():
  import jax

  return jax.random.key(0)


def test_texts_of_others_do_not_break_the_card(tmp_path):
  sae = SAES['relu']
  about = {'model_name': 'a"b/c: |x\n---\nlicense: mit', 'hook_name': 'a | b\nc'}
  save(tmp_path / 'out', sae, single(sae)[0], format='sae_lens', about=about)
  head, rows, _ = parse(tmp_path / 'out' / 'README.md')
  assert 'license' not in head
  assert rows['reads'] == 'a b c'


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    ({'figures': {'FVU': np.nan}}, "'FVU': nan"),
    ({'figures': {'FVU': '0.1'}}, "'FVU': '0.1'"),
    ({'figures': {1: 0.1}}, '1: 0.1'),
    ({'licence': 'see the website'}, "licence='see the website'"),
    ({'licence': ''}, "licence=''"),
  ],
)
def test_a_card_that_would_be_wrong_is_refused_before_anything_is_written(given, message, tmp_path):
  sae = SAES['relu']
  with pytest.raises(SAEError, match=message):
    save(tmp_path / 'out', sae, single(sae)[0], format='sae_lens', **given)
  assert not [*tmp_path.iterdir()]
