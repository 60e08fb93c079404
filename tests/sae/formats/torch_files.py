"""Files as torch.save writes them, and the tensors that dictionary-learning keeps in them."""

import json
import struct
import zipfile

import numpy as np

from tests.sae.plain import M

KINDS = {'<f4': 'FloatStorage', '<f8': 'DoubleStorage', '<i4': 'IntStorage', '<i8': 'LongStorage'}


class Program:
  """Writes the pickle of a dict of tensors, as torch.save does, one instruction after another."""

  def __init__(self):
    self.bytes = b'\x80\x02'

  def name(self, module, name):
    self.bytes += f'c{module}\n{name}\n'.encode()
    return self

  def text(self, text):
    self.bytes += b'X' + struct.pack('<I', len(text)) + text.encode()
    return self

  def number(self, n):
    self.bytes += b'J' + struct.pack('<i', n)
    return self

  def numbers(self, *ns):
    self.bytes += b'('
    for n in ns:
      self.number(n)
    self.bytes += b't'
    return self

  def raw(self, code):
    self.bytes += code
    return self

  def tensor(self, key, array, shape=None, strides=None, offset=0):
    strides = [s // array.itemsize for s in array.strides] if strides is None else strides
    self.name('torch._utils', '_rebuild_tensor_v2').raw(b'((').text('storage')
    self.name('torch', KINDS[array.dtype.str]).text(str(key)).text('cpu').number(array.size)
    self.raw(b'tQ').number(offset).numbers(*(array.shape if shape is None else shape))
    return self.numbers(*strides).raw(b'\x89').name('collections', 'OrderedDict').raw(b')RtR')

  def dict(self, arrays):
    self.raw(b'}(')
    for key, (name, array) in enumerate(arrays.items()):
      self.text(name).tensor(key, array)
    return self.raw(b'u.')


def torch_file(path, program, arrays, order=b'little'):
  path.parent.mkdir(parents=True, exist_ok=True)
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('archive/data.pkl', program)
    archive.writestr('archive/byteorder', order)
    for key, array in enumerate(arrays.values()):
      archive.writestr(f'archive/data/{key}', array.tobytes())


def learned(directory, kind, arrays):
  arrays = {name: np.asarray(value, order='C') for name, value in arrays.items()}
  torch_file(directory / 'ae.pt', Program().dict(arrays).bytes, arrays)
  (directory / 'config.json').write_text(json.dumps({'trainer': {'dict_class': kind}}))


def linear(p):
  return {'encoder.weight': p['W_enc'].T, 'decoder.weight': p['W_dec'].T}


def as_learned(name, p):
  """The class of dictionary-learning, its tensors, and the multiple of b_dec that its encoder does not subtract."""
  k = {'k': np.int32(3)}
  match name:
    case 'relu':
      return 'AutoEncoder', linear(p) | {'encoder.bias': p['b_enc'], 'bias': p['b_dec']}, 0
    case 'relu of x':
      return (
        'AutoEncoderNew',
        linear(p) | {'encoder.bias': p['b_enc'], 'decoder.bias': p['b_dec']},
        1,
      )
    case 'gated':
      vectors = {'decoder_bias': p['b_dec'], 'gate_bias': p['b_gate'], 'mag_bias': p['b_mag']}
      return 'GatedAutoEncoder', linear(p) | vectors | {'r_mag': p['r_mag']}, 0
    case 'topk':
      vectors = {'encoder.bias': p['b_enc'], 'b_dec': p['b_dec'], 'threshold': np.float32(-1)}
      return 'AutoEncoderTopK', linear(p) | vectors | k, 0
    case 'batch_topk':
      vectors = {'encoder.bias': p['b_enc'], 'b_dec': p['b_dec'], 'threshold': p['threshold']}
      return 'BatchTopKSAE', linear(p) | vectors | k, 0
    case 'matryoshka':
      return 'MatryoshkaBatchTopKSAE', p | k | {'group_sizes': np.array([2, 5, M - 7])}, 0
  vectors = {'threshold': np.exp(p['log_threshold'])}
  return 'JumpReluAutoEncoder', {k: v for k, v in p.items() if k != 'log_threshold'} | vectors, 1
