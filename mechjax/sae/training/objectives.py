"""The protocol of a loss other than the dictionary's own, such as one that runs a model on reconstructions.

    Trainer(ensembles, optimisation, objective=EndToEnd(...))

`observe` is computed once in a step, and `loss` for each dictionary. `end_to_end` has an implementation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax

from mechjax.sae.architectures import Architecture, LossOutput, Params
from mechjax.sae.architectures.base import HParams
from mechjax.sae.training.ensembles import Ensemble

Batch = Mapping[str, jax.Array]
"""Activations by site, [B, D]; with an `Objective` the arrays that it reads."""


class Objective(Protocol):
  """A loss other than the dictionary's own, which may need a model; `end_to_end` has one."""

  @property
  def keys(self) -> tuple[str, ...]:
    """Names of the arrays of a batch."""

  @property
  def arrays(self) -> Any:
    """Arrays that do not change, passed to every step."""

  @property
  def functions(self) -> tuple[Callable, ...]:
    """Functions of the user that it calls; a step is compiled again when they have changed."""

  def check(self, ensembles: Mapping[str, Ensemble]) -> None:
    """Raises SAEError if ensembles cannot be trained by it."""

  def observe(self, arrays: Any, batch: Batch) -> tuple[dict[str, jax.Array], Any]:
    """Activations by site, [B, D], and anything that `loss` needs; computed once for all dictionaries."""

  def loss(
    self,
    sae: Architecture,
    observed: Any,
    params: Params,
    x: jax.Array,
    y: jax.Array | None,
    hparams: HParams,
    dead: jax.Array,
  ) -> tuple[jax.Array, LossOutput]:
    """The loss of a dictionary; arguments as in `Architecture.loss`."""
