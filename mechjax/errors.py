"""All exceptions of mechjax, and the error for a name that is not known.

    MechjaxError
      SiteError            ValueError     a site that does not exist, or a name that cannot be read as one
      HarvestError         ValueError     a tagged program that cannot be read or written as asked
      RunError             RuntimeError   a run used in an order that has no meaning
      PatchError           ValueError     a pattern that does not apply to the upstream code it was written for
        MatchError                        a rule that did not match as many times as it states
      StackingError        ValueError     layers that do not fit into one scan
      WeightsError         ValueError     a weights file that is damaged, of an unknown kind, or not the one asked for
      FetchError           OSError        a file that cannot be downloaded (and is not cached) or uploaded
      MissingExtraError    ImportError    an optional library that is not installed
      FlagsError           ValueError     a dataclass that cannot become flags, or a config that does not describe one
      PatchingError        ValueError     prompt pairs, nodes, metrics or results that do not fit together
      SAEError             ValueError     a dictionary, its settings and its data that do not fit together
      SteeringError        ValueError     vectors, edits, prompts and settings of steering that do not fit together
      ProbingError         ValueError     probes, examples and settings of probing that do not fit together
      FactsError           ValueError     names, facts, tables and settings of measurements that do not fit together
      NeuronError          ValueError     weights, activations and tokens of neurons that do not fit together
      CircuitError         ValueError     models, dictionaries, graphs and parts of sums that do not fit together
      YardstickError       ValueError     activations, attributes and edits of a yardstick that do not fit together
      ProviderError        ValueError     requests to a language model, settings and replies that do not fit together
      InterpretationError  ValueError     examples, explanations and scores of features that do not fit together

Researchers publish what this library prints, so an error is a feature: it says WHAT happened (with the offending
value), WHERE (site, layer, file, line), the LIKELY CAUSE and a HINT. Every error that is raised on purpose is a
`MechjaxError` with these four parts as attributes, so that a notebook can show them and a test can read them. Each
class also derives from the builtin exception in the table, so `except ValueError` keeps working.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MechjaxError(Exception):
  """Base of all errors raised on purpose.

  Attributes:
    what: the problem, with the offending value.
    where: site, layer, file and line; None if the call itself is the place.
    cause: the likely cause; None if `what` states it already.
    hint: a way to fix the problem.
  """

  def __init__(
    self,
    what: str,
    *,
    where: str | None = None,
    cause: str | None = None,
    hint: str | None = None,
  ):
    self.what, self.where, self.cause, self.hint = what, where, cause, hint
    parts = [what]
    if where:
      parts.append(f'  where: {where}')
    if cause:
      parts.append(f'  likely cause: {cause}')
    if hint:
      parts.append(f'  hint: {hint}')
    super().__init__('\n'.join(parts))

  def __reduce__(self):
    parts = (type(self), self.what, self.where, self.cause, self.hint)
    return _rebuild, parts, self.__dict__


def _rebuild(cls, what, where, cause, hint):
  return cls(what, where=where, cause=cause, hint=hint)


class SiteError(MechjaxError, ValueError):
  """A site that does not exist, or a name that cannot be read as one."""


class HarvestError(MechjaxError, ValueError):
  """A tagged program that cannot be read or written as asked."""


class RunError(MechjaxError, RuntimeError):
  """A run (an iterated forward pass) used in an order that has no meaning."""


class PatchError(MechjaxError, ValueError):
  """A pattern that does not apply to the upstream code it was written for."""


class MatchError(PatchError):
  """A rule that did not match as many times as it states.

  Attributes:
    matches: number of matches.
  """

  def __init__(self, *args, matches: int = 0, **kwargs):
    super().__init__(*args, **kwargs)
    self.matches = matches


class StackingError(MechjaxError, ValueError):
  """Layers that do not fit into one scan."""


class WeightsError(MechjaxError, ValueError):
  """A weights file that is damaged, of an unknown kind, or not the one that was asked for."""


class FetchError(MechjaxError, OSError):
  """A file that cannot be downloaded, and is not cached, or that a hub does not accept."""


class MissingExtraError(MechjaxError, ImportError):
  """An optional library that is not installed; the hint names the extra."""


class FlagsError(MechjaxError, ValueError):
  """A dataclass that cannot become flags, or a file or text that does not describe one."""


class PatchingError(MechjaxError, ValueError):
  """Prompt pairs, nodes, metrics or results that do not fit together."""


class SAEError(MechjaxError, ValueError):
  """A dictionary, its settings and its data that do not fit together."""


class SteeringError(MechjaxError, ValueError):
  """Vectors, edits, prompts and settings of steering that do not fit together."""


class ProbingError(MechjaxError, ValueError):
  """Probes, examples and settings of probing that do not fit together, or a fit that has not converged."""


class FactsError(MechjaxError, ValueError):
  """Names, facts, tables and settings of measurements that do not fit together."""


class NeuronError(MechjaxError, ValueError):
  """Weights, activations and tokens of neurons that do not fit together."""


class CircuitError(MechjaxError, ValueError):
  """A model that cannot be frozen; dictionaries, nodes, graphs or parts of a sum that do not fit together."""


class YardstickError(MechjaxError, ValueError):
  """Activations, attributes, dictionaries and edits of a yardstick that do not fit together."""


class ProviderError(MechjaxError, ValueError):
  """Requests to a language model, settings and replies that do not fit together."""


class InterpretationError(MechjaxError, ValueError):
  """Examples, explanations and scores of features that do not fit together."""


def unknown(
  error: type[MechjaxError],
  what: str,
  name: object,
  known: Iterable[str],
  *,
  where: str | None = None,
  cause: str | None = None,
) -> MechjaxError:
  """The error for a name that is not among those that are known.

  Args:
    error: class of the error.
    what: the kind of thing that is named, for example 'architecture'.
    name: the name that was given.
    known: the names that exist.
    where, cause: as in `MechjaxError`.

  Returns:
    An error that lists the nearest of the known names, or all of them if none is near.
  """
  names = [*known]
  near = nearest(str(name), names)
  hint = f'did you mean {" or ".join(map(repr, near))}?' if near else f'known: {", ".join(names)}'
  return error(f'unknown {what} {name!r:.100}', where=where, cause=cause, hint=hint)


def nearest(name: str, candidates: Iterable[str], n: int = 5) -> list[str]:
  """The `n` candidates most like `name`, best first, for "did you mean" lines."""
  names = sorted(set(candidates))
  close = difflib.get_close_matches(name, names, n=n, cutoff=0.5)
  return close or [c for c in names if name in c or c in name][:n]
