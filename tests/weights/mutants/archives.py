"""Dictionaries in an .npz, by the members of its zip."""

import dataclasses
import io
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from tests.weights.mutants.judge import Change

D, M = 256, 4096


@dataclasses.dataclass
class Parts:
  """Members in order: name, header of the array, bytes."""

  members: list[list[Any]]

  def write(self, path: Path) -> None:
    with warnings.catch_warnings(), zipfile.ZipFile(path, 'w') as archive:
      warnings.simplefilter('ignore')  # of a name that is there already
      for name, header, data in self.members:
        archive.writestr(f'{name}.npy', header + data)


def right() -> Parts:
  """A JumpReLU dictionary of Gemma Scope."""
  r = np.random.default_rng(0)
  shapes = {'W_enc': (D, M), 'W_dec': (M, D), 'b_enc': (M,), 'b_dec': (D,), 'threshold': (M,)}
  arrays = {n: np.abs(r.normal(size=s)).astype(np.float32) for n, s in shapes.items()}
  return Parts([[n, header(a.dtype.str, a.shape), a.tobytes()] for n, a in arrays.items()])


def header(descr: Any, shape: Any, fortran: Any = False) -> bytes:
  out = io.BytesIO()
  text = f"{{'descr': {descr!r}, 'fortran_order': {fortran!r}, 'shape': {shape!r}, }}"
  text += ' ' * (-(len(text) + 11) % 64) + '\n'
  out.write(b'\x93NUMPY\x01\x00' + len(text).to_bytes(2, 'little') + text.encode())
  return out.getvalue()


def change_values(r: Any, p: Parts) -> Change:
  """Changes numbers of an array; a value that is not a number must be rejected."""
  member = p.members[r.integers(len(p.members))]
  values = np.frombuffer(member[2], np.float32).copy()
  odd = [float('nan'), float('inf'), -float('inf'), 0.0, -1.0, 3e38]
  new = odd[r.integers(len(odd))]
  values[r.integers(len(values))] = new
  member[2] = values.tobytes()
  return Change(f'{member[0]} holds {new}', plausible=bool(np.isfinite(new)), weights=True)


def change_member(r: Any, p: Parts) -> Change:
  i, j = (int(r.integers(len(p.members))) for _ in range(2))
  member, other = p.members[i], p.members[j]
  mode = ['drop', 'repeat', 'rename', 'swap', 'add', 'empty', 'scalar', 'capital'][r.integers(8)]
  plausible = False
  if mode == 'drop':
    del p.members[i]
  elif mode == 'repeat':
    second = list(member)
    second[2] = bytes(len(member[2])) if r.integers(2) else member[2]
    p.members.insert(j, second)
  elif mode == 'rename':
    member[0] = [member[0] + 's', '', member[0].lower(), '../x', other[0]][r.integers(5)]
    plausible = member[0].lower() == member[0]
  elif mode == 'swap':
    member[0], other[0] = other[0], member[0]
    plausible = len(member[2]) == len(other[2]) and member[1] == other[1]
  elif mode == 'add':
    p.members.insert(j, ['more', member[1], member[2]])
  elif mode == 'empty':
    member[2] = b''
  elif mode == 'scalar':
    member[1], member[2] = header('<f4', ()), member[2][:4]
    plausible = member[0] == 'threshold'  # one for all latents
  else:
    p.members.append([f'w{member[0][1:]}' if member[0].startswith('W') else member[0], *member[1:]])
  return Change(f'{mode} {member[0]} {other[0]}', plausible, weights=plausible)


def change_header(r: Any, p: Parts) -> Change:
  member = p.members[r.integers(len(p.members))]
  n = len(member[2]) // 4
  shape = {'W_enc': (D, M), 'W_dec': (M, D)}.get(member[0], (n,))
  mode = ['descr', 'shape', 'fortran', 'bytes', 'version'][r.integers(5)]
  plausible = False
  if mode == 'descr':
    odd = [
      '<f8',
      '<f2',
      '>f4',
      '<i4',
      '|O',
      '|S4',
      [('a', '<f4')],
      5,
      '',
      '<u4',
      '<c8',
      'V4',
      '<m8',
    ]
    descr = odd[r.integers(len(odd))]
    member[1] = header(descr, shape)
    plausible = descr == '>f4'  # every byte order is a number
  elif mode == 'shape':
    odd = [
      shape[::-1],
      (*shape, 1),
      (n + 1,),
      (-1,),
      (2**62, 4),
      (),
      (n,),
      'x',
      None,
      (4.0,),
      [n],
      (True,) * 3,
      (0,),
    ]
    new = odd[r.integers(len(odd))]
    member[1] = header('<f4', new)
    plausible = new == shape
  elif mode == 'fortran':
    order = [True, 'x', 1, None][r.integers(4)]
    member[1] = header('<f4', shape, order)
    plausible = order is True
  else:
    changed = bytearray(member[1])
    at = int(r.integers(8)) if mode == 'version' else int(r.integers(len(changed)))
    changed[at] = int(r.integers(256))
    member[1] = bytes(changed)
    plausible = b'>f4' in member[1]  # one letter spells another header
  return Change(f'{mode} of {member[0]}: {member[1][10:90]!r}', plausible, weights=plausible)


CHANGES = [change_values, change_member, change_header]
