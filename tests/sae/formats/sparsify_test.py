"""Files of sparsify, made by hand from arrays: read as the function that sparsify computes, and written back."""

import dataclasses
import json

import numpy as np
import pytest

from mechjax.errors import WeightsError
from mechjax.sae import ReLU, SAEError, TopK
from mechjax.sae.formats import load, read_metadata, save
from mechjax.weights.safetensors_writing import save as save_safetensors
from tests.sae.formats.cases import rewritten, same, single
from tests.sae.plain import SAES, D, K, M

RUN = {'model': 'EleutherAI/pythia-160m', 'dataset': 'some/texts', 'ctx_len': 2049}


def publish(home, hookpoint='layers.5', skip=False, run=RUN, width=M, **config):
  """A directory of sparsify with random arrays; returns it and the arrays."""
  r = np.random.default_rng(3)
  arrays = {
    'encoder.weight': r.normal(size=(width, D)),
    'encoder.bias': r.normal(size=width),
    'W_dec': r.normal(size=(width, D)),
    'b_dec': r.normal(size=D),
  } | ({'W_skip': r.normal(size=(D, D))} if skip else {})
  arrays = {name: x.astype(np.float32) for name, x in arrays.items()}
  place = home / 'run' / hookpoint
  place.mkdir(parents=True)
  save_safetensors(place / 'sae.safetensors', arrays)
  words = {'activation': 'topk', 'num_latents': width, 'k': K, 'd_in': D, 'normalize_decoder': True}
  (place / 'cfg.json').write_text(json.dumps(words | {'skip_connection': skip} | config))
  if run:
    (home / 'run' / 'config.json').write_text(json.dumps(run))
  return place, {name: x.astype(float) for name, x in arrays.items()}


def compute(arrays, x, transcode):
  """Latents and outputs, in NumPy, token by token."""
  f = np.zeros((len(x), M))
  seen = x if transcode else x - arrays['b_dec']
  z = np.maximum(seen @ arrays['encoder.weight'].T + arrays['encoder.bias'], 0)
  for row, values in enumerate(z):
    chosen = np.argsort(-values)[:K]
    f[row, chosen] = values[chosen]
  out = f @ arrays['W_dec'] + arrays['b_dec']
  return f, out + x @ arrays['W_skip'].T if 'W_skip' in arrays else out


def compute_ours(sae, params, x):
  x = x.astype(np.float32)
  f = sae.encode(params, x)
  return f, sae.decode(params, f, x)


@pytest.mark.parametrize(
  ('config', 'run', 'asked', 'transcoder', 'sees_x'),
  [
    ({}, RUN, False, False, False),
    ({'transcode': False}, {}, False, False, False),
    ({'transcode': True}, RUN, False, True, True),
    ({}, RUN | {'transcode': True}, False, True, False),
    ({}, {}, True, True, False),
    ({'skip_connection': True, 'transcode': True}, RUN, False, True, True),
    ({'skip_connection': True}, {}, False, True, False),
  ],
)
def test_a_file_is_read_as_the_function_that_sparsify_computes(
  config, run, asked, transcoder, sees_x, tmp_path
):
  place, arrays = publish(tmp_path, skip=config.get('skip_connection', False), run=run, **config)
  sae, params = load(place, transcoder=asked)
  assert (type(sae), sae.k, sae.d_in, sae.width) == (TopK, K, D, M)
  assert (sae.d_out, sae.skip) == (D if transcoder else None, 'W_skip' in arrays)
  x = np.random.default_rng(4).normal(size=(20, D))
  same(compute_ours(sae, params, x), compute(arrays, x, sees_x))
  by_file = load(place / 'sae.safetensors', transcoder=asked)
  assert by_file.sae == sae


def test_the_width_may_be_stated_as_an_expansion_factor(tmp_path):
  place, _ = publish(tmp_path, width=3 * D, num_latents=0, expansion_factor=3)
  assert load(place).sae.width == 3 * D
  rewritten(place / 'cfg.json', expansion_factor=2)
  with pytest.raises(WeightsError, match=f'not floats of shape .{2 * D}, {D}.'):
    load(place)


@pytest.mark.parametrize(
  ('hookpoint', 'config', 'reads', 'writes', 'other'),
  [
    ('layers.5', {'transcode': False}, 'resid_post.5', None, 'resid_post.4'),
    ('layers.5.mlp', {'transcode': False}, 'mlp_out.5', None, 'mlp_norm.5'),
    ('layers.5.mlp', {}, 'mlp_norm.5', None, 'mlp_out.6'),  # the files do not state which end
    ('layers.5.mlp', {'transcode': True}, 'mlp_norm.5', 'mlp_out.5', 'mlp_norm.4'),
    ('gpt_neox.layers.5.attention', {}, 'attn_out.5', None, 'mlp_out.5'),
    ('embed_tokens', {}, 'embed', None, 'resid_post.0'),
  ],
)
def test_the_hookpoint_and_the_training_are_kept_and_checked(
  hookpoint, config, reads, writes, other, tmp_path
):
  place, _ = publish(tmp_path, hookpoint, **config)
  found = read_metadata(place)
  assert (found.model_name, found.dataset_path, found.context_size) == tuple(RUN.values())
  end = {None: '', True: '.input', False: '.output'}[config.get('transcode')]
  target = f'{hookpoint}.output' if writes else None
  assert (found.hook_name, found.hook_name_out) == (f'{hookpoint}{end}', target)
  assert load(place).sae.provenance == found
  found.check(reads, writes, model='pythia-160m')
  with pytest.raises(
    SAEError, match=f'site {other}, and the dictionary was trained on {hookpoint}'
  ):
    found.check(other, writes)
  with pytest.raises(SAEError, match="model 'pythia-70m'"):
    found.check(reads, writes, model='pythia-70m')
  moved = tmp_path / 'elsewhere'
  place.rename(moved)
  assert read_metadata(moved).hook_name is None  # the name of any directory is not a hook


@pytest.mark.parametrize(('d_out', 'skip'), [(None, False), (D, False), (D, True)])
def test_what_is_written_is_read_back_and_has_the_layout_of_the_format(d_out, skip, tmp_path):
  sae = dataclasses.replace(SAES['topk'], d_out=d_out, skip=skip)
  params, x = single(sae)
  about = {'model_name': 'gpt2', 'hook_name': 'resid_post.1'}
  save(tmp_path / 'out', sae, params, format='sparsify', about=about)
  loaded = load(tmp_path / 'out')
  assert (loaded.sae.d_out, loaded.sae.skip, loaded.sae.k) == (d_out, skip, sae.k)
  assert (loaded.metadata.model_name, loaded.metadata.hook_name) == ('gpt2', 'resid_post.1')
  for name, value in params.items():
    np.testing.assert_array_equal(loaded.params[name], value)
  same(compute_ours(*loaded, x), compute_ours(sae, params, x))
  words = json.loads((tmp_path / 'out' / 'cfg.json').read_text())
  assert words['transcode'] is (d_out is not None)
  assert words['num_latents'] == M


def test_what_the_format_cannot_hold_is_not_written(tmp_path):
  relu, wide = SAES['relu'], dataclasses.replace(SAES['topk'], d_out=D + 1)
  for sae in (relu, wide):
    with pytest.raises(SAEError, match=f'no place for a {type(sae).__name__}'):
      save(tmp_path / 'out', sae, single(sae)[0], format='sparsify')
  assert isinstance(relu, ReLU)
  assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'activation': 'groupmax'}, "activation='groupmax'"),
    ({'signed': True}, 'signed=true'),
    ({'skip_connection': True}, 'states skip_connection=True'),
    ({'k': M + 1}, 'k='),
    ({'k': None}, "no 'k'"),
    ({'d_in': D + 1}, 'not floats of shape'),
    ({'transcode': 'no'}, 'true or false'),
  ],
)
def test_files_that_do_not_fit_together_are_refused(changes, message, tmp_path):
  place, _ = publish(tmp_path)
  rewritten(place / 'cfg.json', **changes)
  with pytest.raises(WeightsError, match=message):
    load(place)


def test_a_directory_without_its_config_is_refused(tmp_path):
  place, _ = publish(tmp_path)
  (place / 'cfg.json').unlink()
  with pytest.raises(WeightsError, match=r'no cfg\.json'):
    load(place)
