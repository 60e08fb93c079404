"""Gemma Scope: JumpReLU dictionaries as five arrays.

    layer_20/width_16k/average_l0_71/params.npz                       Gemma Scope: W_enc W_dec b_enc b_dec threshold
    resid_post/layer_22_width_65k_l0_medium/params.safetensors        Gemma Scope 2: w_enc w_dec b_enc b_dec threshold

(Lieberum et al. 2024, "Gemma Scope", and its tutorial.) W_enc is [D, M], W_dec [M, E]; Gemma Scope 2 has the skip of a
transcoder as `affine_skip_connection` [D, E], and sometimes a `config.json` next to it. The encoder takes x and not
x - b_dec; reading and writing convert the biases (`conventions`). Activations are not normalised: a dictionary that was
trained on normalised ones is folded before it is written.

Every dictionary that selects its latents by thresholds can be expressed: ReLU, Gated and BatchTopK become JumpReLUs,
and are read as such. TopK cannot.

Sharp edges: the arrays do not distinguish a transcoder from an autoencoder when D = E. As functions of x they are the
same; the target is another site only if a `config.json` names two sites, or if the caller of `load` says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mechjax import files
from mechjax.errors import SAEError, WeightsError
from mechjax.sae.architectures import Architecture, JumpReLU, Params
from mechjax.sae.formats import archives, conventions
from mechjax.sae.formats.conventions import Arrays
from mechjax.weights.json_files import read_sibling
from mechjax.weights.safetensors import SafetensorsFile
from mechjax.weights.safetensors_writing import save as save_safetensors
from mechjax.weights.values import Values

NPZ, SAFETENSORS, CONFIG = 'params.npz', 'params.safetensors', 'config.json'
_SKIP = 'affine_skip_connection'


def read_npz(path: Path, transcoder: bool) -> tuple[JumpReLU, Params]:
  """Reads a dictionary of Gemma Scope.

  Args:
    path: path of `params.npz`.
    transcoder: whether its output site is not its input site.

  Raises:
    WeightsError: the file is damaged or holds something else.
  """
  # Some releases write w_enc instead of W_enc.
  found = _rename(path, archives.read_npz(path))
  return _dictionary(path, conventions.drop_unit_scaling(path, found), transcoder)


def read_safetensors(path: Path, transcoder: bool) -> tuple[JumpReLU, Params]:
  """Reads a dictionary of Gemma Scope 2; arguments and errors as `read_npz`."""
  file = SafetensorsFile(path)
  found = _rename(path, {name: file.read(name) for name in file.tensors})
  s = Values(read_sibling(path, CONFIG), f'{path.with_name(CONFIG)}')
  return _dictionary(path, found, transcoder or _ends(s))


def write_npz(directory: Path, sae: Architecture, params: Params, about: Mapping[str, Any]) -> None:
  """Writes `params.npz` into a directory.

  Raises:
    SAEError: the format cannot express the dictionary, or has no place for `about`.
  """
  if sae.skip or about:
    what = f'{sorted(about)}' if about else 'a skip'
    raise SAEError(f'an .npz of Gemma Scope has no place for {what}', hint="format='gemma_scope_2'")
  _check_target_is_stated(sae, False, "format='gemma_scope_2' with the two sites in about=")
  with (directory / NPZ).open('wb') as file:
    np.savez(file, **_arrays(sae, params))  # type: ignore[arg-type]


def write_safetensors(
  directory: Path, sae: Architecture, params: Params, about: Mapping[str, Any]
) -> None:
  """Writes `params.safetensors` and `config.json` into a directory.

  Raises:
    SAEError: the format cannot express the dictionary.
  """
  for key, value in about.items():
    if key.startswith('hf_hook_point') and not isinstance(value, str):
      raise SAEError(f'about has {key}={value!r:.100}; it should be the name of a hook')
  _check_target_is_stated(
    sae,
    _ends(Values(dict(about), 'about')),
    "about={'hf_hook_point_in': ..., 'hf_hook_point_out': ...}, which differ",
  )
  named = {_name_in_file(name): value for name, value in _arrays(sae, params).items()}
  save_safetensors(directory / SAFETENSORS, named)
  own = {'architecture': 'jump_relu', 'affine_connection': sae.skip}
  files.write_json(directory / CONFIG, {**about, **own})


def _arrays(sae: Architecture, params: Params) -> Arrays:
  jumprelu, arrays = conventions.thresholds(sae, params)
  return (
    arrays if jumprelu.d_out is not None else conventions.check_finite(conventions.uncentre(arrays))
  )


def _ends(s: Values) -> bool:
  """Whether a config names two sites."""
  ends = [s.string(f'hf_hook_point_{end}', None) for end in ('in', 'out')]
  return ends[1] is not None and ends[0] != ends[1]


def _check_target_is_stated(sae: Architecture, stated: bool, hint: str) -> None:
  """Checks that a transcoder would not be read as an autoencoder."""
  if sae.d_out == sae.d_in and not sae.skip and not stated:
    raise SAEError(
      f'd_in={sae.d_in}, d_out={sae.d_out}, and the file would state that it is an autoencoder',
      cause='the arrays of both are the same, so only the sites in the config distinguish them',
      hint=hint,
    )


def _dictionary(path: Path, found: Arrays, transcoder: bool) -> tuple[JumpReLU, Params]:
  D, M, E = conventions.sizes(path, found, 'W_enc', 'W_dec')
  skip = 'W_skip' in found
  shapes: dict[str, tuple[int, ...]] = {
    'W_enc': (D, M),
    'W_dec': (M, E),
    'b_enc': (M,),
    'b_dec': (E,),
    'threshold': (M,),
  }
  arrays = conventions.check_arrays(path, found, shapes | ({'W_skip': (D, E)} if skip else {}))
  elsewhere = transcoder or skip or D != E
  sae = JumpReLU(d_in=D, width=M, d_out=E if elsewhere else None, skip=skip, sparsity=0.0)
  return sae, conventions.jumprelu(arrays if elsewhere else conventions.centre(arrays))


def _rename(path: Path, found: Arrays) -> Arrays:
  """Renames the arrays as in the first release."""
  new: Arrays = {}
  for name, value in found.items():
    ours = 'W_skip' if name == _SKIP else f'W{name[1:]}' if name.startswith('w_') else name
    if ours in new:
      raise WeightsError(f'{path} holds {ours} under two names')
    new[ours] = value
  return new


def _name_in_file(name: str) -> str:
  return _SKIP if name == 'W_skip' else name.lower()
