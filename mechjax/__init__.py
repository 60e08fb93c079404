"""mechjax: read, change and differentiate any value inside an existing JAX model.

All names load on first use, `mechjax.sae` as well as `mechjax.load`, so that `import mechjax` is quick and a patch
can be declared without importing a model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mechjax import lazy

if TYPE_CHECKING:
  from mechjax import (
    autointerp,
    circuits,
    decomposition,
    errors,
    facts,
    flags,
    forward,
    generate,
    harvest,
    models,
    neurons,
    patcher,
    patching,
    probing,
    providers,
    sae,
    sites,
    stacking,
    steering,
    viz,
    weights,
    yardsticks,
  )
  from mechjax.forward import iterate
  from mechjax.models.load import load
  from mechjax.patcher import Patcher
else:
  __getattr__, __dir__ = lazy.package(
    __name__,
    {
      'Patcher': 'mechjax.patcher',
      'iterate': 'mechjax.forward',
      'load': 'mechjax.models.load',
    },
  )

__all__ = [
  'Patcher',
  'autointerp',
  'circuits',
  'decomposition',
  'errors',
  'facts',
  'flags',
  'forward',
  'generate',
  'harvest',
  'iterate',
  'load',
  'models',
  'neurons',
  'patcher',
  'patching',
  'probing',
  'providers',
  'sae',
  'sites',
  'stacking',
  'steering',
  'viz',
  'weights',
  'yardsticks',
]
__version__ = '0.1.0'
