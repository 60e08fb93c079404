"""Sets of nodes whose effects add up, so that every contribution is known."""

import hypothesis
import numpy as np

FEW = hypothesis.settings(max_examples=40, deadline=None)


def normal(*shape, seed=0):
  return np.random.default_rng(seed).standard_normal(shape)


class Additive:
  """A set of nodes has the sum of their effects [N, B], and noise; `members` keeps what was patched."""

  def __init__(self, effects, noise=0.0, seed=0):
    self.effects, self.noise = np.asarray(effects, float).reshape(len(effects), -1), noise
    self.members, self.returned = [], []
    self.random = np.random.default_rng(seed)

  def __call__(self, members):
    assert members.dtype == bool
    assert members.shape[1] == len(self.effects)
    sums = members @ self.effects
    self.members += list(members)
    self.returned += list(sums + self.noise * self.random.standard_normal(sums.shape))
    return np.array(self.returned[-len(members) :])


def additive(effects, noise=0.0):
  """Like `Additive`, without memory of calls."""
  random = np.random.default_rng(0)
  effects = effects.reshape(len(effects), -1)
  return lambda members: (
    members @ effects + noise * random.standard_normal((len(members), effects.shape[1]))
  )
