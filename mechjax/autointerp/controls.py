"""Control of explanations: each latent gets the explanation of another latent.

A score of an explanation contains much that any fluent text about text would score. The explanation of another latent
of the same explainer measures that part: a score is evidence only as far as it is above the shuffled one.

    shuffled = shuffle(explanations, seed=0)
    shuffled.explanations[17, 'highlights']       Explanation of latent 3
    shuffled.reasons                              {(5, 'highlights'): 'it has no explanation'}

`derange(latents, seed)` gives the same exchange for other things, such as token tables. A random order of the latents
is closed to one ring, in which each gets what belongs to the next: so no latent keeps its own, and every latent's is
used once. The exchange depends on the set of latents and the seed, and not on the order in which they are given.

Sharp edge. Two latents may have explanations with the same text; that is a fact about the explainer, and stays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np

from mechjax.autointerp.record import Explanation
from mechjax.errors import InterpretationError


@dataclasses.dataclass(frozen=True)
class Shuffled:
  """Explanations of other latents.

  Attributes:
    explanations: the explanation of another latent, by the latent that gets it and the method.
    reasons: reason why a latent and method get none.
  """

  explanations: Mapping[tuple[int, str], Explanation]
  reasons: Mapping[tuple[int, str], str]


def shuffle(explanations: Iterable[Explanation], seed: int = 0) -> Shuffled:
  """Gives each latent the explanation of another one by the same method.

  Args:
    explanations: explanations of latents, by any methods.
    seed: seed of the exchange.

  Raises:
    InterpretationError: there are no explanations, or two of one latent by one method.
  """
  known: dict[tuple[int, str], Explanation] = {}
  for one in explanations:
    if (one.latent, one.method) in known:
      raise InterpretationError(f'two explanations of latent {one.latent} by {one.method!r}')
    known[one.latent, one.method] = one
  if not known:
    raise InterpretationError('there are no explanations to exchange')
  exchanged: dict[tuple[int, str], Explanation] = {}
  reasons = {key: 'it has no explanation' for key, one in known.items() if one.text is None}
  for method in dict.fromkeys(method for _, method in known):
    own = [latent for latent, name in known if name == method and (latent, name) not in reasons]
    if len(own) == 1:
      reasons[own[0], method] = f'no other latent has an explanation by {method!r}'
    elif own:
      others = derange(own, seed)
      exchanged |= {(latent, method): known[others[latent], method] for latent in own}
  return Shuffled(exchanged, reasons)


def derange(latents: Iterable[int], seed: int = 0) -> dict[int, int]:
  """Assigns another latent to each latent, each one once.

  Args:
    latents: different numbers of latents, at least two.
    seed: seed of the exchange.

  Raises:
    InterpretationError: fewer than two latents, or a latent twice.
  """
  listed = sorted(latents)
  if len(listed) < 2 or len({*listed}) < len(listed):
    raise InterpretationError(
      f'an exchange between the latents {listed[:5]}', hint='at least two, each of them once'
    )
  ring = np.random.default_rng(seed % 2**63).permutation(len(listed))
  return {listed[own]: listed[other] for own, other in zip(ring, np.roll(ring, -1))}
