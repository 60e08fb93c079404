"""The one exception of this package: prompt pairs, nodes and metrics that do not go together.

It stands on the floor of the science because nothing below can raise it. Like every `MechjaxError` it says what
happened, where, the likely cause and the hint.
"""

from mechjax.errors import MechjaxError


class PatchingError(MechjaxError, ValueError):
  """Prompt pairs, nodes, metrics or results that do not go together."""
