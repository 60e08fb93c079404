"""Files of PyTorch: tensors are read, and a pickle that does anything else is refused and does not run."""

import pickle

import numpy as np
import pytest

from mechjax.errors import WeightsError
from mechjax.sae.formats import torch_zip
from tests.sae.formats.torch_files import Program, torch_file


def refused(tmp_path, program, message, arrays=None):
  path = tmp_path / 'x' / 'ae.pt'
  torch_file(path, program, {'a': np.zeros(4, np.float32)} if arrays is None else arrays)
  with pytest.raises(WeightsError, match=message) as error:
    torch_zip.read(path)
  assert str(path) in str(error.value)


@pytest.mark.parametrize('protocol', range(5))
def test_a_pickle_that_runs_code_is_refused_and_does_not_run(protocol, tmp_path):
  class Evil:
    def __reduce__(self):
      return (open, (str(tmp_path / 'ran'), 'w'))

  refused(tmp_path, pickle.dumps({'W_enc': Evil()}, protocol), 'pickle (calls|holds)')
  assert not (tmp_path / 'ran').exists()


@pytest.mark.parametrize(
  ('program', 'message'),
  [
    (Program().name('os', 'system').raw(b'(').text('true').raw(b'tR.'), "'os'.'system'"),
    (Program().raw(b'(').text('true').raw(b'ios\nsystem\n.'), 'instruction INST'),
    (Program().name('torch', 'load').raw(b')\x81.'), 'NEWOBJ'),
    (Program().name('torch._utils', '_rebuild_tensor_v2').raw(b')R.'), '_rebuild_tensor_v2'),
    (Program().text('collections').text('OrderedDict').raw(b'\x93)R.'), '^((?!os).)*not|damaged'),
    (Program().raw(b'}('), 'damaged'),
    (Program().raw(b'u.'), 'damaged'),
    (Program().raw(b'h\x05.'), 'damaged'),
    (Program().raw(b'}}b.'), None),
    (Program().raw(b')}b.'), 'attributes'),
    (Program().raw(b'}').number(1).number(1).raw(b's.'), 'string keys'),
    (Program().raw(b'}').text('a').number(1).raw(b's.'), 'something else than a tensor'),
    (Program().number(1).raw(b'.'), 'does not describe a dict'),
    (Program().raw(b'('), 'damaged'),
    (Program().raw(b'(' * 50_000 + b't' * 50_000 + b'.'), 'dict'),
    (Program().raw(b'\x8a\x01\x01' + b'0.'), 'POP'),
    (
      Program().raw(b'(').text('storage').name('os', 'x').text('0').text('').number(1).raw(b'tQ.'),
      'storage',
    ),
  ],
)
def test_every_other_use_of_the_machine_is_refused(program, message, tmp_path):
  if message is None or b'OrderedDict' in program.bytes:
    torch_file(tmp_path / 'x' / 'ae.pt', program.bytes, {})
    assert torch_zip.read(tmp_path / 'x' / 'ae.pt') == {}
  else:
    refused(tmp_path, program.bytes, message)


@pytest.mark.parametrize(
  ('shape', 'strides', 'offset'),
  [((5,), (1,), 0), ((4,), (1,), 1), ((2, 2), (3, 1), 0), ((1 << 30,), (0,), 0), ((2,), (1,), -1)],
)
def test_a_tensor_outside_of_its_bytes_is_refused(shape, strides, offset, tmp_path):
  array = np.zeros(4, np.float32)
  program = Program().raw(b'}').text('a').tensor(0, array, shape, strides, offset).raw(b's.').bytes
  refused(tmp_path, program, 'does not lie within|impossible|describes tensors of')
  refused(
    tmp_path, program, 'does not lie within|impossible|describes tensors of', {'a': array[:3]}
  )


def test_many_tensors_of_the_same_bytes_are_refused(tmp_path):
  program = Program().raw(b'}(')
  for i in range(40):
    program.text(f'a{i}').tensor(0, np.zeros(4096, np.float32))
  refused(
    tmp_path, program.raw(b'u.').bytes, 'share their bytes', {'a': np.zeros(4096, np.float32)}
  )


def test_views_are_read_as_pytorch_lays_them_out(tmp_path):
  array = np.arange(12, dtype=np.float32)
  program = Program().raw(b'}').text('a').tensor(0, array, (3, 2), (1, 4), 2).raw(b's.').bytes
  torch_file(tmp_path / 'ae.pt', program, {'a': array})
  np.testing.assert_array_equal(torch_zip.read(tmp_path / 'ae.pt')['a'], [[2, 6], [3, 7], [4, 8]])


def test_another_byte_order_and_a_file_before_pytorch_1_6_are_refused(tmp_path):
  torch_file(tmp_path / 'big.pt', Program().dict({}).bytes, {}, b'big')
  with pytest.raises(WeightsError, match='byte order'):
    torch_zip.read(tmp_path / 'big.pt')
  (tmp_path / 'old.pt').write_bytes(pickle.dumps({'a': 1}, 2))
  with pytest.raises(WeightsError, match='not a zip file'):
    torch_zip.read(tmp_path / 'old.pt')


@pytest.mark.truth
@pytest.mark.parametrize('parameters', [False, True])
def test_what_pytorch_writes_is_read(parameters, tmp_path):
  import torch  # there where tests of this mark are run

  layer = torch.nn.Linear(3, 5)
  layer.register_buffer('k', torch.tensor(7, dtype=torch.int32))
  layer.register_buffer('halves', torch.arange(6).to(torch.bfloat16).reshape(2, 3).T)
  layer.register_buffer('rows', torch.arange(20.0).reshape(4, 5)[1:3, ::2])
  layer.register_buffer('empty', torch.zeros(0, 3))
  state = dict(layer.named_parameters()) if parameters else layer.state_dict()
  torch.save(state, tmp_path / 'ae.pt')
  found = torch_zip.read(tmp_path / 'ae.pt')
  assert {*found} == {*state}
  for name, value in state.items():
    np.testing.assert_array_equal(found[name].astype(float), value.detach().to(torch.float64))
