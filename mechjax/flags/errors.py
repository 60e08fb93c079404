"""The one exception of this package.

Like every `MechjaxError` it says what happened, where, the likely cause and the hint. What absl finds on the command
line itself, such as a flag that does not exist, and what a config says about its own values are left as they are.
"""

from mechjax.errors import MechjaxError


class FlagsError(MechjaxError, ValueError):
  """A dataclass that cannot be made into flags, or a file or text that does not describe one."""
