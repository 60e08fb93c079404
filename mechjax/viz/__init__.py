"""Pictures of what was found, as small pieces that an experiment puts together.

`charts`, `curves` and `cloud` draw on matplotlib axes, for PNG files and papers; `page` writes self-contained HTML, for
looking closely and for sending to a colleague. They take plain numbers and strings, know nothing of models, and show
tokens through `tokens`, so that a blank or a line break can be seen. `patching` and `searches` put them together for
the results of `mechjax.patching`: heat maps and ranked nodes; what searches cost, and estimates against the truth.
"""

from typing import TYPE_CHECKING

from mechjax import lazy

if not TYPE_CHECKING:
  __getattr__, __dir__ = lazy.package(__name__)
