"""Pictures of results, as small pieces that an experiment combines.

`charts`, `curves` and `cloud` draw on matplotlib axes, for PNG files and papers; `page` writes self-contained HTML, to
inspect closely and to send to a colleague. They take plain numbers and strings, know nothing about models, and show
tokens through `tokens`, so that a blank or a line break is visible. `patching` and `searches` combine them for the
results of `mechjax.patching`: heat maps and ranked nodes; costs of searches, and estimates against the truth. `steered`
shows the tokens that an edit of `mechjax.steering` changes. `attention`, `direct_effects`, `composition`, `lens` and
`graph` are pictures and pages of `mechjax.circuits`.
"""

from typing import TYPE_CHECKING

from mechjax import lazy

if not TYPE_CHECKING:
  __getattr__, __dir__ = lazy.package(__name__)
