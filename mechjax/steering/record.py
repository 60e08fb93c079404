"""A steering vector with all that it takes to use it again: its sites, its positions, its model.

An array in a file says neither where it belongs nor which model it came from, and one of the right width is added
anywhere without an error. A record keeps them together, and `edit` makes the edit that was meant:

    record = SteeringVector({'resid_pre.12': V}, where=first(3), model=fingerprints.of_weights(model.params))
    files.save('wedding.safetensors', record)
    files.load('wedding.safetensors').edit(model=fingerprints.of_weights(model.params)).plants(4.0)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Array, Float

from mechjax import sites
from mechjax.errors import SteeringError
from mechjax.steering.checks import check_vector
from mechjax.steering.edits import Add, Edit, Together
from mechjax.steering.where import Where


@dataclasses.dataclass(frozen=True, eq=False)
class SteeringVector:
  """Vectors at sites, and what is known about them.

  Attributes:
    vectors: [D], or [n, D] for n positions, keyed by the site, such as 'resid_pre.12'.
    where: positions that are meant; None if it is not known.
    model: fingerprint of the weights (`fingerprints.of_weights`), or a name of the model; '' if it is not known.
    about: further texts by name, such as the prompts.

  Raises:
    SteeringError: no vector, one with NaN or of zeros, a pattern in place of a site, or entries that are not texts.
  """

  vectors: Mapping[str, Float[Array | np.ndarray, '*n D']]
  where: Where | None = None
  model: str = ''
  about: Mapping[str, str] = dataclasses.field(default_factory=dict)

  def __post_init__(self) -> None:
    if not self.vectors:
      raise SteeringError('a record without a vector', hint="SteeringVector({'resid_pre.12': V})")
    for site, vector in self.vectors.items():
      sites.parse(site)  # its own error names the site
      check_vector(f'the vector at {site}', vector, (1, 2))
    texts = {'model': self.model, **self.about}
    if not all(isinstance(x, str) for pair in texts.items() for x in pair):
      raise SteeringError(f'model and about are texts, got {texts!r:.200}')

  def edit(self, where: Where | None = None, model: str | None = None) -> Edit:
    """The edit that adds the vectors.

    Args:
      where: positions, in place of those of the record.
      model: fingerprint of the model that is edited, to be compared with that of the record; None to omit this.

    Raises:
      SteeringError: no positions are known, or the vectors come from another model.
    """
    chosen = self.where if where is None else where
    if chosen is None:
      raise SteeringError(
        f'the record of {[*self.vectors]} does not state the positions',
        hint='edit(where=everywhere)',
      )
    if model is not None and self.model and model != self.model:
      raise SteeringError(
        f'vectors of the model {self.model!r} for the model {model!r}',
        cause='other weights, or the same weights in another dtype or layout',
      )
    edits = [Add(site, vector, where=chosen) for site, vector in self.vectors.items()]
    return edits[0] if len(edits) == 1 else Together(edits)
