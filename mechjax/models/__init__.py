"""Language models: weights, a forward pass, a tokenizer and sites, held as one object.

`language_model` is that object and `load` makes one; `tokenizers` turns text into tokens and back,
`greedy` does it for SentencePiece's. Two ways lead to a forward pass:

    somebody else's code   `tunix`, `transformers`, `penzai` and `gemma` each drive one code base,
                           with what they share in `shipped`
    our own                `decoder`, one scan over layers, described by `config`, for the families
                           in `families`; `ours` puts files into it
"""

from typing import TYPE_CHECKING

from mechjax import lazy

if not TYPE_CHECKING:
  __getattr__, __dir__ = lazy.package(__name__)
