"""Settings of a measurement, checked before a model is loaded.

A run takes from minutes to hours, so an unknown name is refused in the first second, with a list of the known ones.

    Settings(nodes='neurons', layers='2,14,27', positions='last', methods=('atp', 'random'))
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from experiments.atp_star.methods import METHODS
from mechjax import errors, flags
from mechjax.patching import PatchingError

NODES = {'heads': 'q, k, v, z', 'layers': 'attn_out, mlp_out', 'neurons': 'mlp_post'}
POSITIONS = ('reached', 'each', 'last', 'together')
MODES = ('noising', 'denoising')


@dataclasses.dataclass(frozen=True)
class Settings:
  """Settings of a measurement.

  Attributes:
    nodes: key of `NODES`: 'heads' (queries, keys, values and outputs), 'layers' (outputs of attention and MLP) or
      'neurons'.
    layers: layers, as in a site pattern: '2,14,27' or '0..3'; '' for all.
    positions: one node for each position that the change reaches ('reached'), for 'each' position, for the 'last'
      alone, or one node for all positions 'together'.
    mode: 'noising' or 'denoising'.
    methods: keys of `METHODS`.
    ks: the K for which the cost of verified recall is reported.
    joint: joint patches that each search without gradients may spend; None for a tenth of the nodes, at least 20.
    verify: passes that the bounds on missed nodes may spend, for each method with a gradient: half for checks of nodes
      drawn at random, half for random subsets; 0 for no bounds.
    budget: bytes that a sweep may use besides parameters and prompts.
    seed: seed of all random numbers.
  """

  nodes: str = 'heads'
  layers: str = ''
  positions: str = 'reached'
  mode: str = flags.with_former_name('noising', 'how')
  methods: tuple[str, ...] = tuple(METHODS)
  ks: tuple[int, ...] = (10, 30, 100)
  joint: int | None = None
  verify: int = 0
  budget: int = 2**30
  seed: int = 0

  def __post_init__(self) -> None:
    _check_known('set of nodes', self.nodes, NODES)
    _check_known('choice of positions', self.positions, POSITIONS)
    _check_known('mode', self.mode, MODES)
    for name in self.methods:
      _check_known('method', name, METHODS)
    if not self.methods or not self.ks:
      raise PatchingError(f'methods {list(self.methods)} and ks {list(self.ks)} ask for nothing')
    if min(self.ks) < 1 or list(self.ks) != sorted(set(self.ks)):
      raise PatchingError(f'ks {list(self.ks)} must be positive and increasing')
    for name, minimum in (('joint', 20), ('verify', 40)):
      if (number := getattr(self, name)) and number < minimum:
        raise PatchingError(
          f'{name} is {number}', cause='too few subsets to compare', hint=f'{minimum} or more'
        )
    if self.nodes == 'neurons' and not self.layers:
      raise PatchingError(
        'the neurons of all layers are too many for an exact sweep', hint="layers='2,14,27'"
      )


def _check_known(what: str, name: str, known: Iterable[str]) -> None:
  if name not in known:
    raise errors.unknown(PatchingError, what, name, known)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
  """Flags of the program: a model, a task, and the settings of the measurement.

  Attributes:
    model: name or path of a model.
    code: code base that computes the forward pass.
    task: key of `tasks.TASKS`.
    templates: keys of the task's templates; positions are comparable only within one template; by default the first.
    pairs: number of prompt pairs.
    settings: settings of the measurement.
    out: directory for all output files.
  """

  model: str = 'smollm2-135m'
  code: str = 'decoder'
  task: str = 'ioi'
  templates: tuple[str, ...] = ()
  pairs: int = 8
  settings: Settings = Settings()
  out: str = 'out'
