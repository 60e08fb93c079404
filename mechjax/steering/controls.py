"""Random directions as controls.

Adding any long vector, or removing any direction, changes a model somewhat. A result about one direction is a result
only next to directions of the same length that were drawn at random, so every table has rows of them.

Sharp edge: these are uniform over all directions of the space, most of which the stream hardly uses. A harder control
is the difference of means of two sets of prompts that do not differ in the behaviour: `find_candidates` makes it.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Array, Float, Float64

from mechjax.errors import SteeringError
from mechjax.steering.checks import check_vector


def draw_directions(
  direction: Float[np.ndarray | Array, ' D'], n: int, seed: int = 0
) -> Float64[np.ndarray, 'n D']:
  """Draws directions of the length of a given one, uniformly over all directions.

  Args:
    direction: the direction that they are compared with, [D].
    n: number of directions.
    seed: the same seed gives the same directions, and a larger `n` the same first ones.

  Returns:
    float64 [n, D], on the host.

  Raises:
    SteeringError: a direction of zeros, NaN or infinity; less than one direction.
  """
  if n < 1:
    raise SteeringError(f'n={n!r} random directions: at least one is needed')
  check_vector('the direction', direction, (1,))
  length = np.linalg.norm(np.asarray(direction, np.float64))
  drawn = np.random.default_rng(seed).standard_normal((n, len(direction)))
  return drawn * (length / np.linalg.norm(drawn, axis=1, keepdims=True))
