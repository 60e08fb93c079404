"""Results of finished steps, in an output directory that belongs to one choice of settings.

Every step has a file and a key: everything that its result depends on besides the settings of the directory. A file
with another key is computed again, so that the results of another choice are never taken for those of this one.

    saved = Saved(outputs.claim('out/facts', settings, FactsError), print)
    saved.arrays('scores', key=[0, 3], compute=lambda: {'scores': measure()})
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mechjax import files
from mechjax.errors import MechjaxError


@dataclasses.dataclass(frozen=True)
class Saved:
  """Files of finished steps.

  Attributes:
    out: their directory.
    log: called with the name of each step that is computed.
    error: class of the error for a damaged file.
  """

  out: Path
  log: Callable[[str], Any] = print
  error: type[MechjaxError] = MechjaxError

  def arrays(
    self, name: str, key: Any, compute: Callable[[], Mapping[str, Any]]
  ) -> dict[str, np.ndarray]:
    """Arrays of a step, from its file or computed."""
    path, key = self.out / f'{name}.npz', json.dumps(key)
    if path.exists():
      found = files.read_npz(path, self.error)
      if 'key' not in found:
        raise self.error(f'{path} has no key: it is not a step of an experiment', hint='remove it')
      if found.pop('key').item() == key:
        return found
    self.log(name)
    computed = {k: np.asarray(v) for k, v in compute().items()}
    with files.whole(path) as file:
      np.savez(file, key=np.array(key), **computed)  # type: ignore[arg-type]
    return computed

  def json(self, name: str, key: Any, compute: Callable[[], Any]) -> Any:
    """Plain values of a step, from its file or computed."""
    path, key = self.out / f'{name}.json', json.loads(json.dumps(key))
    if path.exists():
      found = files.read_json(path, self.error)
      if not isinstance(found, dict) or not {'key', 'value'} <= found.keys():
        raise self.error(f'{path} has no key: it is not a step of an experiment', hint='remove it')
      if found['key'] == key:
        return found['value']
    self.log(name)
    value = json.loads(json.dumps(compute()))
    files.write_json(path, {'key': key, 'value': value})
    return value
