"""Files of steering vectors: what is written is read again, by us and by the libraries of the formats."""

import gguf
import numpy as np
import pytest
import safetensors

from mechjax import errors
from mechjax.errors import SteeringError
from mechjax.steering import (
  Add,
  SteeringVector,
  Together,
  everywhere,
  files,
  first,
  generated,
  last,
  mask,
)
from mechjax.weights import safetensors_writing

R = np.random.default_rng(0)
V = R.standard_normal((3, 8))


def test_safetensors_keep_everything(tmp_path):
  path = tmp_path / 'deep' / 'a.safetensors'
  record = SteeringVector(
    {'resid_pre.12': V, 'resid_post.3': V.astype(np.float32)},
    where=first(3),
    model='abc',
    about={'plus': 'weddings <é>', 'minus': ''},
  )
  files.save(path, record)
  found = files.load(path)
  assert {*found.vectors} == {*record.vectors}
  for site, vector in record.vectors.items():
    np.testing.assert_array_equal(found.vectors[site], vector)
    assert found.vectors[site].dtype == vector.dtype
  assert (found.where, found.model, found.about) == (record.where, record.model, record.about)


def test_safetensors_are_read_by_the_library_of_the_format(tmp_path):
  files.save(tmp_path / 'a.safetensors', SteeringVector({'resid_pre.1': V[0]}, last(1) | generated))
  with safetensors.safe_open(str(tmp_path / 'a.safetensors'), 'np') as file:
    np.testing.assert_array_equal(file.get_tensor('resid_pre.1'), V[0])
    assert file.metadata()['where'] == 'last(1) | generated'


def test_control_vectors_have_the_layers_of_llama_cpp(tmp_path):
  """`direction.l` is added after layer l, which is what the next layer reads."""
  path = tmp_path / 'a.gguf'
  record = SteeringVector(
    {'resid_post.1': V[0], 'resid_pre.3': V[1]}, everywhere, 'qwen2', {'plus': 'war'}
  )
  files.save(path, record)
  theirs = gguf.GGUFReader(path)
  tensors = {t.name: np.asarray(t.data) for t in theirs.tensors}
  assert {*tensors} == {'direction.1', 'direction.2'}
  np.testing.assert_array_equal(tensors['direction.1'], V[0].astype(np.float32))
  np.testing.assert_array_equal(tensors['direction.2'], V[1].astype(np.float32))
  assert theirs.get_field('general.architecture').contents() == 'controlvector'
  assert theirs.get_field('controlvector.model_hint').contents() == 'qwen2'
  assert theirs.get_field('controlvector.layer_count').contents() == 2
  found = files.load(path)
  assert {*found.vectors} == {'resid_post.1', 'resid_post.2'}
  np.testing.assert_array_equal(found.vectors['resid_post.2'], V[1].astype(np.float32))
  assert (found.where, found.model, found.about) == (everywhere, 'qwen2', {'plus': 'war'})


def test_control_vectors_of_other_programs_are_read(tmp_path):
  writer = gguf.GGUFWriter(str(tmp_path / 'theirs.gguf'), 'controlvector')
  writer.add_string('controlvector.model_hint', 'llama')
  writer.add_int32('controlvector.layer_count', 2)
  for layer in (5, 12):
    writer.add_tensor(f'direction.{layer}', V[layer % 3].astype(np.float32))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  found = files.load(tmp_path / 'theirs.gguf')
  assert {*found.vectors} == {'resid_post.5', 'resid_post.12'}
  np.testing.assert_array_equal(found.vectors['resid_post.5'], V[2].astype(np.float32))


@pytest.mark.parametrize(
  ('vectors', 'where', 'message'),
  [
    ({'resid_post.0': V[0]}, everywhere, 'no place in a control vector'),
    ({'resid_pre.1': V[0]}, everywhere, 'no place in a control vector'),
    ({'mlp_out.4': V[0]}, everywhere, 'no place in a control vector'),
    ({'resid_post.4': V}, None, r'not the only \[D\]'),
    ({'resid_post.4': V[0], 'resid_pre.5': V[1]}, everywhere, r'not the only \[D\]'),
    ({'resid_post.4': V[0], 'resid_post.5': V[1, :4]}, everywhere, r'widths \[4, 8\]'),
    ({'resid_post.4': V[0]}, last(1) | generated, 'added everywhere'),
    ({'resid_post.4': np.float64(V[0]) * 1e60}, everywhere, 'float32 does not hold'),
    ({'resid_post.4': np.float64(V[0]) * 1e-60}, everywhere, 'float32 does not hold'),
  ],
)
@pytest.mark.filterwarnings('ignore:overflow encountered in cast')
def test_what_a_control_vector_cannot_express_is_refused(vectors, where, message, tmp_path):
  with pytest.raises(SteeringError, match=message):
    files.save(tmp_path / 'a.gguf', SteeringVector(vectors, where))
  assert not [*tmp_path.iterdir()]


def test_files_of_another_kind_are_refused(tmp_path):
  safetensors_writing.save(tmp_path / 'model.safetensors', {'layers.0.weight': V})
  with pytest.raises(SteeringError, match=r'layers\.0\.weight'):
    files.load(tmp_path / 'model.safetensors')
  writer = gguf.GGUFWriter(str(tmp_path / 'model.gguf'), 'llama')
  writer.add_tensor('token_embd.weight', V.astype(np.float32))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  with pytest.raises(SteeringError, match="its architecture is 'llama'"):
    files.load(tmp_path / 'model.gguf')
  for path in ('a.npz', 'a.pt', 'a'):
    with pytest.raises(SteeringError, match='ending'):
      files.load(tmp_path / path)
    with pytest.raises(SteeringError, match='ending'):
      files.save(tmp_path / path, SteeringVector({'resid_post.1': V[0]}))
  (tmp_path / 'a.safetensors').write_bytes(b'12345678')
  with pytest.raises(errors.WeightsError):
    files.load(tmp_path / 'a.safetensors')


def test_positions_given_by_an_array_are_not_written(tmp_path):
  record = SteeringVector({'resid_pre.1': V[0]}, mask(np.ones((2, 3), bool)))
  with pytest.raises(SteeringError, match='cannot be written'):
    files.save(tmp_path / 'a.safetensors', record)


def test_a_record_makes_the_edit_that_was_meant():
  record = SteeringVector({'resid_pre.12': V}, first(3), 'abc')
  edit = record.edit(model='abc')
  assert isinstance(edit, Add)
  assert (edit.site, edit.where) == ('resid_pre.12', first(3))
  assert record.edit(where=last(3)).where == last(3)
  both = SteeringVector({'resid_pre.1': V[0], 'resid_pre.2': V[1]}, everywhere).edit()
  assert isinstance(both, Together)
  assert {*both.plants()} == {'resid_pre.1', 'resid_pre.2'}
  with pytest.raises(SteeringError, match="'abc' for the model 'xyz'"):
    record.edit(model='xyz')
  with pytest.raises(SteeringError, match='does not state the positions'):
    SteeringVector({'resid_pre.1': V[0]}).edit()


@pytest.mark.parametrize(
  ('vectors', 'options'),
  [
    ({}, {}),
    ({'resid_pre.1': np.full(4, np.nan)}, {}),
    ({'resid_pre.1': np.zeros(4)}, {}),
    ({'resid_pre.1': V[0]}, {'about': {'n': 3}}),
    ({'resid_pre.1': V[0]}, {'model': None}),
  ],
)
def test_records_without_a_meaning_are_refused(vectors, options):
  with pytest.raises(SteeringError):
    SteeringVector(vectors, **options)
  with pytest.raises(errors.SiteError):
    SteeringVector({'resid_pre.*': V[0]})
