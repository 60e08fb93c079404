"""One file per upstream package and family of models: the places of its sites, and nothing else.

A patch is a declaration that can be read next to the upstream file it names. `from patches import
tunix` in a checkout and `from mechjax import patches` after installation refer to the same files, and
must give the same module objects too: two copies of one patch would each instrument the upstream
package and tag everything twice. So when mechjax is installed, the name `patches` becomes an alias of
`mechjax.patches`.

Sharp edge: becoming an alias imports every patch. They are only declarations, so this costs
milliseconds and imports no upstream package.
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
