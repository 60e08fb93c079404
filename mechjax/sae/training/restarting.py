"""A new training that begins with the dictionaries of another one, for fine-tuning.

    state = restart(trainer, finished.ensembles)

Parameters and the counters of dead latents are taken over; the optimiser, its schedules and the number of the step
begin anew, because the new training has its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from mechjax.errors import SAEError
from mechjax.sae.training.state import Members, State
from mechjax.sae.training.step import Trainer


def restart(trainer: Trainer, ensembles: Mapping[str, Members]) -> State:
  """The first state of a training of dictionaries that are trained already.

  Args:
    trainer: the new training.
    ensembles: members of each ensemble of the earlier one, by name, as in its `State`.

  Raises:
    SAEError: other ensembles, or parameters of other shapes.
  """
  state = trainer.init()
  if {*ensembles} != {*state.ensembles}:
    raise SAEError(
      f'a training of {sorted(state.ensembles)} begins with {sorted(ensembles)}',
      hint='ensembles of the same names',
    )
  begun = {name: _begin(name, new, ensembles[name]) for name, new in state.ensembles.items()}
  begun = jax.tree.map(jnp.copy, begun)  # a step deletes the arrays of the state before it
  return jax.device_put(dataclasses.replace(state, ensembles=begun), trainer.shardings)


def _begin(name: str, new: Members, trained: Members) -> Members:
  wanted, found = (
    {key: np.shape(x) for key, x in m.params.items()} | {'latents': m.tokens_since_fired.shape}
    for m in (new, trained)
  )
  if found != wanted:
    raise SAEError(
      f'{name!r} has parameters of shapes {found}, not {wanted}',
      cause='another architecture or width, or another number of members',
    )
  return dataclasses.replace(
    new, params=dict(trained.params), tokens_since_fired=trained.tokens_since_fired
  )
