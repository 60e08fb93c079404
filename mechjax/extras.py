"""Optional libraries, imported when they are needed.

Reading activations needs JAX; reading a GGUF file, drawing a picture or running an upstream model
needs more. Those libraries are extras of the package, and a module that needs one calls `require`
inside the function that uses it, so that importing mechjax stays quick and a missing library is
reported in one clear line instead of by an ImportError without context.

No message says to install mechjax by its name: mechjax is not on a package index, so a package of
another author with that name would be installed.

Sharp edge: only the absence of the library itself is reported as a missing extra. A library that is
installed and fails while importing raises its own error.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from mechjax import errors


def require(module: str, extra: str) -> ModuleType:
  """Imports an optional library.

  Args:
    module: dotted name of the module.
    extra: the extra of mechjax that includes it.

  Returns:
    The module.

  Raises:
    MissingExtraError: the library is not installed.
  """
  try:
    return importlib.import_module(module)
  except ModuleNotFoundError as e:
    if e.name is None or e.name.split('.')[0] != module.split('.')[0]:
      raise
    raise errors.MissingExtraError(
      f'{module!r} is not installed',
      cause=f'it belongs to the optional extra {extra!r}',
      hint=f"in a checkout of mechjax, pip install -e '.[{extra}]'; from a wheel, its file instead of the dot",
    ) from e
