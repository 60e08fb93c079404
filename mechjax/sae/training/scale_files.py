"""File of the normalisation constants of a run, `scales.npz`: of each site its scale, mean and limit.

write_scales(home / 'scales.npz', store.measure(rows))
read_scales(home / 'scales.npz', ['resid_post.15'])['resid_post.15'].scale
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mechjax import files
from mechjax.errors import SAEError
from mechjax.sae.store import Scale


def write_scales(path: Path, scales: Mapping[str, Scale]) -> None:
  """Writes the constants of some sites."""
  arrays: dict[str, Any] = {}
  for site, scale in scales.items():
    arrays |= {f'{site}/{f.name}': getattr(scale, f.name) for f in dataclasses.fields(scale)}
  with files.whole(path) as file:
    np.savez(file, **arrays)


def read_scales(path: Path, sites: Iterable[str]) -> dict[str, Scale]:
  """Reads the constants of some sites.

  Raises:
    SAEError: the file does not have a site.
  """
  with np.load(path, allow_pickle=False) as arrays:
    if missing := [site for site in sites if f'{site}/scale' not in arrays]:
      known = sorted({name.rpartition('/')[0] for name in arrays})
      raise SAEError(f'{path} has no scale of {missing}', where=f'it has those of {known}')
    return {
      site: Scale(
        float(arrays[f'{site}/scale']), arrays[f'{site}/mean'], float(arrays[f'{site}/limit'])
      )
      for site in sites
    }
