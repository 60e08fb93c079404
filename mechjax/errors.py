"""The exceptions a user of mechjax can meet.

Researchers publish what this library prints, so an error is a feature: it says WHAT happened (with the
offending value), WHERE (site, layer, file, line), the LIKELY CAUSE and the HINT. Every error raised on
purpose is a `MechjaxError` and carries those four parts as attributes, so that a notebook can show them
and a test can read them. Each class also derives from the builtin exception a caller would expect, so
`except ValueError` keeps working.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MechjaxError(Exception):
  """Base of all errors raised on purpose.

  Attributes:
    what: what happened, with the offending value.
    where: site, layer, file and line; None if the call itself is the place.
    cause: the likely cause; None if `what` says it already.
    hint: what to do about it.
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
    return _rebuild, (type(self), self.what, self.where, self.cause, self.hint)


def _rebuild(cls, what, where, cause, hint):
  return cls(what, where=where, cause=cause, hint=hint)


class SiteError(MechjaxError, ValueError):
  """A site that is not there, or a name that cannot be read as one."""


class HarvestError(MechjaxError, ValueError):
  """A tagged program that cannot be read or written as asked."""


class RunError(MechjaxError, RuntimeError):
  """A run (an iterated forward pass) used in an order that has no meaning."""


class PatchError(MechjaxError, ValueError):
  """A pattern that does not apply to the upstream code it was written for."""


class StackingError(MechjaxError, ValueError):
  """Layers that do not fit into one scan."""


class WeightsError(MechjaxError, ValueError):
  """A weights file that is damaged, of an unknown kind, or not the one that was asked for."""


class FetchError(MechjaxError, OSError):
  """A file that is neither cached nor to be had."""


class MissingExtraError(MechjaxError, ImportError):
  """An optional library that is not installed; the hint names the extra."""


def nearest(name: str, candidates: Iterable[str], n: int = 5) -> list[str]:
  """The `n` candidates most like `name`, best first, for "did you mean" lines."""
  names = sorted(set(candidates))
  close = difflib.get_close_matches(name, names, n=n, cutoff=0.5)
  return close or [c for c in names if name in c or c in name][:n]
