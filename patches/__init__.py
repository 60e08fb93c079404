"""One file per upstream package and family of models: where its sites are, and nothing else.

A patch is a declaration, readable beside the upstream file it names. `from patches import tunix`
in a checkout and `from mechjax import patches` after installation mean the same files, and must
mean the same module objects too: two copies of one patch would each instrument the upstream and
tag everything twice. So when mechjax is installed, the name `patches` becomes an alias of
`mechjax.patches`.

Sharp edge: becoming an alias imports every patch. They only declare, so this costs milliseconds and
imports no upstream package.
"""

import importlib.util
import pkgutil
import sys
from typing import TYPE_CHECKING

from mechjax import lazy

if not TYPE_CHECKING:
  __getattr__, __dir__ = lazy.package(__name__)


def _become_an_alias() -> None:
  package = importlib.import_module('mechjax.patches')
  for module in pkgutil.iter_modules(package.__path__):
    submodule = importlib.import_module(f'mechjax.patches.{module.name}')
    sys.modules[f'patches.{module.name}'] = submodule
  sys.modules['patches'] = package


if __name__ == 'patches' and importlib.util.find_spec('mechjax.patches') is not None:
  _become_an_alias()
