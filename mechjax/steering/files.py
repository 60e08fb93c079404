"""Files of steering vectors: safetensors, which keep everything, and control vectors of llama.cpp in GGUF.

    save('wedding.safetensors', record)       vectors by site; positions, model and notes in the header
    save('wedding.gguf', record)              for `llama-cli --control-vector` and repeng
    record = load(path)

A control vector is a GGUF file of the architecture 'controlvector' with a vector `direction.l` [D] in float32 for each
layer, which llama.cpp adds to the stream after layer l, counted from 0, at every position. So `direction.l` is
`resid_post.l`, and `resid_pre.(l + 1)` is written as it. There is no direction for layer 0, and no place for another
vector at each position.

Sharp edges: a control vector is added at all positions, whatever the record states, so that a record of other positions
is refused as GGUF. Layers without a direction are left out, and llama.cpp adds nothing there. The arrays keep their
dtype in safetensors; GGUF has float32.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float

from mechjax import sites
from mechjax.errors import SteeringError
from mechjax.steering import where as where_lib
from mechjax.steering.record import SteeringVector
from mechjax.weights import gguf_writing, safetensors_writing
from mechjax.weights.gguf import GGUFFile
from mechjax.weights.safetensors import SafetensorsFile

KIND = 'mechjax steering vector'
CONTROL = 'controlvector'
_LAYER = re.compile(r'direction\.(\d+)')


def save(path: str | os.PathLike[str], record: SteeringVector) -> None:
  """Writes a record, in the format of the ending of the path.

  Args:
    path: ends in .safetensors or .gguf; an existing file is replaced.
    record: the vectors.

  Raises:
    SteeringError: another ending, positions given by an array, or, as GGUF, sites or positions that a control vector
      does not have.
    WeightsError: a dtype that the format does not have.
    MissingExtraError: GGUF without the library `gguf`.
  """
  target = Path(path)
  if target.suffix == '.safetensors':
    _save_safetensors(target, record)
  elif target.suffix == '.gguf':
    _save_gguf(target, record)
  else:
    raise _unknown(target)


def load(path: str | os.PathLike[str]) -> SteeringVector:
  """Reads a record.

  Args:
    path: a file of `save`, or a control vector of another program.

  Returns:
    The record, with arrays of NumPy. A control vector has the positions `everywhere`, and its hint at a model as
    `model`.

  Raises:
    SteeringError: another ending, or a file of another kind.
    WeightsError: a damaged file.
    MissingExtraError: GGUF without the library `gguf`.
  """
  source = Path(path)
  if source.suffix == '.safetensors':
    return _load_safetensors(source)
  if source.suffix == '.gguf':
    return _load_gguf(source)
  raise _unknown(source)


def _unknown(path: Path) -> SteeringError:
  return SteeringError(
    f'{path} has the ending {path.suffix!r}', hint='steering vectors are .safetensors or .gguf'
  )


# --- safetensors ------------------------------------------------------------------------------------------


def _save_safetensors(path: Path, record: SteeringVector) -> None:
  header = {f'about.{name}': text for name, text in record.about.items()}
  header |= {'kind': KIND, 'model': record.model, 'where': _positions(record)}
  arrays = {site: np.asarray(vector) for site, vector in record.vectors.items()}
  safetensors_writing.save(path, arrays, header)


def _load_safetensors(path: Path) -> SteeringVector:
  file = SafetensorsFile(path)
  if file.metadata.get('kind') != KIND:
    raise SteeringError(
      f'{path} is not a file of steering vectors',
      cause=f'its tensors are {sorted(file.tensors)[:4]}, and its header does not state "{KIND}"',
      hint='SteeringVector({site: array}) makes a record of an array from anywhere',
    )
  about = {
    name.removeprefix('about.'): text
    for name, text in file.metadata.items()
    if name.startswith('about.')
  }
  positions = file.metadata.get('where', '')
  return SteeringVector(
    {site: np.array(file.read(site)) for site in file.tensors},
    where=where_lib.parse(positions) if positions else None,
    model=file.metadata.get('model', ''),
    about=about,
  )


def _positions(record: SteeringVector) -> str:
  """Text of the positions, from which they can be read again."""
  if record.where is None:
    return ''
  text = str(record.where)
  try:
    where_lib.parse(text)
  except SteeringError as e:
    raise SteeringError(
      f'positions {text} cannot be written to a file',
      cause='a mask belongs to the texts of one batch',
      hint='SteeringVector(vectors, where=None), and edit(where=...) after loading',
    ) from e
  return text


# --- control vectors --------------------------------------------------------------------------------------


def _save_gguf(path: Path, record: SteeringVector) -> None:
  if record.where is not None and str(record.where) != str(where_lib.everywhere):
    raise SteeringError(
      f'a control vector is added everywhere, and the record states {record.where}',
      hint='save it as .safetensors; or SteeringVector(vectors, where=everywhere) if that is meant',
    )
  layers: dict[int, Float[np.ndarray, ' D']] = {}
  for site, vector in record.vectors.items():
    layer = _layer_of(site)
    if layer in layers or np.ndim(vector) != 1:
      raise SteeringError(
        f'the vector at {site} of shape {np.shape(vector)} is not the only [D] of its layer',
        hint='one vector for each layer; save others as .safetensors',
      )
    layers[layer] = _narrow(site, np.asarray(vector))
  widths = {len(v) for v in layers.values()}
  if len(widths) > 1:
    raise SteeringError(f'vectors of the widths {sorted(widths)} in one control vector')
  metadata: dict[str, str | int] = {f'{CONTROL}.about.{k}': v for k, v in record.about.items()}
  metadata |= {f'{CONTROL}.model_hint': record.model, f'{CONTROL}.layer_count': len(layers)}
  arrays = {f'direction.{layer}': layers[layer] for layer in sorted(layers)}
  gguf_writing.save(path, arrays, CONTROL, metadata)


def _narrow(site: str, vector: np.ndarray) -> Float[np.ndarray, ' D']:
  """A vector in float32, which the format has."""
  with np.errstate(over='ignore', under='ignore'):
    found = vector.astype(np.float32)
  if not np.isfinite(found).all() or not found.any():
    raise SteeringError(
      f'the vector at {site} has the length {np.linalg.norm(vector):.3g}, which float32 does not hold',
      hint='scale it; or save it as .safetensors, which keeps float64',
    )
  return found


def _layer_of(site: str) -> int:
  """The layer l after which a vector is added, at least 1."""
  parsed = sites.parse(site)
  after = {'resid_post': 0, 'resid_pre': -1}.get(parsed.name)
  layer = None if after is None or len(parsed.path) != 1 else parsed.path[0] + after
  if layer is None or layer < 1:
    raise SteeringError(
      f'{site} has no place in a control vector',
      cause='llama.cpp adds a vector after layer 1 or a later one: resid_post.1, resid_pre.2 and so on',
      hint='save it as .safetensors',
    )
  return layer


def _load_gguf(path: Path) -> SteeringVector:
  file = GGUFFile(path)
  if file.metadata.get('general.architecture') != CONTROL:
    raise SteeringError(
      f'{path} is not a control vector',
      cause=f'its architecture is {file.metadata.get("general.architecture")!r:.100}, not {CONTROL!r}',
    )
  vectors = {}
  for name, info in file.tensors.items():
    match = _LAYER.fullmatch(name)
    if match is None or int(match[1]) < 1 or len(info.shape) != 1:
      raise SteeringError(
        f'{path}: tensor {name!r} of shape {info.shape} is not a direction of a layer from 1 on'
      )
    vectors[f'resid_post.{int(match[1])}'] = np.array(file.read(name))
  return SteeringVector(vectors, where=where_lib.everywhere, **_texts(file.metadata))


def _texts(metadata: Mapping[str, object]) -> dict:
  """The hint at the model, and the notes."""
  about = {
    key.removeprefix(f'{CONTROL}.about.'): str(text)
    for key, text in metadata.items()
    if key.startswith(f'{CONTROL}.about.')
  }
  return {'model': str(metadata.get(f'{CONTROL}.model_hint', '')), 'about': about}
