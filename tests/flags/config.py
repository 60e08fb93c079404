"""A config with a field of every kind, and the same as a command line states it."""

import dataclasses
import enum
from pathlib import Path
from typing import Any, Literal

from absl import flags as absl_flags

from mechjax.flags import define


class Way(enum.Enum):
  FORTH = 1
  BACK = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimisation:
  """Settings of the training.

  Attributes:
    steps: how many.
    learning_rate: of Adam, once it
      is warm: and not before.
  """

  steps: int = 1_000
  learning_rate: float = 3e-4

  def __post_init__(self):
    if self.steps < 1:
      raise ArithmeticError(f'steps={self.steps} should be positive')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Base:
  """Fields of all configs.

  Attributes:
    seed: of everything random.

  Raises:
    Nothing: ever.
  """

  seed: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Base):
  """A run.

  Attributes:
    site: where.
    widths: of the dictionaries.
    optimisation: not explained in help.
    fresh: begin anew.
    shuffled: in random order.
    kind: of dictionary.
    way: in which direction.
    out: a directory.
    note: to be kept.
    span: a name, and how much.
    ways: one after the other.
    sure: whether it is known.

  Attributes of something else:
    site: wrong.
  """

  site: str
  widths: tuple[int, ...] = (16, 32)
  optimisation: Optimisation = Optimisation()
  fresh: bool = False
  shuffled: bool = True
  kind: Literal['relu', 'topk', 2] = 'relu'
  way: Way = Way.FORTH
  out: Path = Path('out')
  note: str | None = None
  span: tuple[str, float] | None = None
  ways: tuple[Way, ...] = ()
  sure: bool | None = None


def parsed(*arguments: str, config_class: Any = Config, defaults: Any = None):
  values = absl_flags.FlagValues()
  handle = define(config_class, defaults, values)
  assert values(['program', *arguments]) == ['program']
  return handle.value()


SAID = Config(
  site='mlp_out.3', widths=(1000,), span=('a', 1.0), out=Path('x'), way=Way.BACK,
  optimisation=Optimisation(steps=20_000),
)  # fmt: skip
