"""Damaged files, and arrays that are missing, doubled or not finite: each is an error that names the array."""

import io
import random
import warnings
import zipfile

import numpy as np
import pytest

from mechjax.errors import MechjaxError, WeightsError
from mechjax.sae.formats import load
from tests.sae.formats.cases import changed, published
from tests.sae.plain import D, M


@pytest.mark.parametrize(
  'format', ['gemma_scope', 'gemma_scope_2', 'sae_lens', 'dictionary_learning']
)
def test_a_truncated_or_damaged_file_is_an_error_and_never_a_crash(format, tmp_path):
  weights = published(tmp_path / 'out', format)
  whole = weights.read_bytes()
  r = random.Random(0)
  for _ in range(30):
    weights.write_bytes(whole[: r.randrange(len(whole))])
    with pytest.raises(MechjaxError):
      load(tmp_path / 'out')
  for _ in range(80):
    damaged = bytearray(whole)
    for _ in range(r.randint(1, 4)):
      damaged[r.randrange(len(damaged))] = r.randrange(256)
    weights.write_bytes(damaged)
    try:
      sae, params = load(tmp_path / 'out')
    except MechjaxError:
      continue
    assert params['W_enc'].shape == (sae.d_in, sae.width) == (D, M)


def test_an_npz_of_objects_and_a_zip_that_unfolds_into_too_much_are_refused(tmp_path):
  np.savez(tmp_path / 'params.npz', W_enc=np.array([{}], dtype=object))
  with pytest.raises(WeightsError, match='objects'):
    load(tmp_path)
  np.savez_compressed(tmp_path / 'params.npz', W_enc=np.zeros(1_000_000))
  with pytest.raises(WeightsError, match='claims to hold'):
    load(tmp_path)
  header = io.BytesIO()
  np.lib.format.write_array_header_1_0(
    header, {'descr': '<f4', 'fortran_order': False, 'shape': (1 << 50,)}
  )
  with zipfile.ZipFile(tmp_path / 'params.npz', 'w') as archive:
    archive.writestr('W_enc.npy', header.getvalue() + bytes(16))
  with pytest.raises(WeightsError, match='damaged header'):
    load(tmp_path)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'threshold': None}, 'threshold'),
    ({'extra': np.zeros(3, np.float32)}, 'extra'),
    ({'b_enc': np.zeros(M + 1, np.float32)}, r'b_enc is float32 \(17,\)'),
    ({'b_dec': np.full(D, np.nan, np.float32)}, 'NaN'),
    ({'b_dec': np.zeros(D, np.int32)}, 'int32'),
    ({'W_dec': np.zeros((M, 2, D), np.float32)}, 'across several layers'),
    ({'scaling_factor': np.full(M, 2.0)}, 'scaling_factor'),
    ({'scaling_factor': np.ones(M)}, None),
  ],
)
def test_another_set_of_tensors_is_an_error_that_names_the_tensor(change, message, tmp_path):
  weights = published(tmp_path / 'out', 'gemma_scope')
  with np.load(weights) as file:
    arrays = {k: v for k, v in {**file, **change}.items() if v is not None}
  np.savez(weights, **arrays)
  if message is None:
    load(tmp_path / 'out')
  else:
    with pytest.raises(WeightsError, match=message):
      load(tmp_path / 'out')


def test_one_array_twice_in_an_npz_is_refused(tmp_path):
  path = published(tmp_path / 'out', 'gemma_scope')
  with zipfile.ZipFile(path) as archive:
    members = {name: archive.read(name) for name in archive.namelist()}
  for name in ('b_enc.npy', 'b_enc'):
    with warnings.catch_warnings(), zipfile.ZipFile(path, 'w') as archive:
      warnings.simplefilter('ignore')
      for member, content in [*members.items(), (name, members['b_dec.npy'])]:
        archive.writestr(member, content)
    with pytest.raises(WeightsError, match="holds 'b_enc' 2 times"):
      load(path)
  with zipfile.ZipFile(path, 'w') as archive:
    for member, content in [*members.items(), ('w_enc.npy', members['W_enc.npy'])]:
      archive.writestr(member, content)
  with pytest.raises(WeightsError, match='holds W_enc under two names'):
    load(path)


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.parametrize('name', ['W_enc', 'b_dec', 'threshold'])
def test_a_number_that_is_not_finite_in_float32_is_refused_by_the_name_of_its_array(
  name, value, tmp_path
):
  def change(arrays):
    arrays[name] = arrays[name].astype(np.float64)
    arrays[name].flat[3] = value

  with pytest.raises(WeightsError, match=f'{name} holds NaN or infinity'):
    load(changed(tmp_path, change))


def test_a_bias_that_only_overflows_in_our_convention_is_refused(tmp_path):
  path = changed(tmp_path, lambda arrays: arrays['b_dec'].fill(3e38))
  with pytest.raises(WeightsError, match='b_enc holds numbers that are too large for float32'):
    load(path)
