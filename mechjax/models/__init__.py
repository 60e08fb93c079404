"""Language models: weights, a forward pass, a tokenizer and sites, held as one object.

`language_model` is that object and `load` makes one; `tokenizers` turns texts and chats (`chat`) into tokens and
back, `prompts` makes batches of them, and `tokenizer_files` reads vocabularies: `byte_level` for byte-level BPE,
`greedy` for SentencePiece. A forward pass has one of two sources:

    upstream code    `tunix`, `transformers`, `penzai` and `gemma` each drive one code base; `shipped`
                     holds the code that they share
    our own          `decoder`, one scan over layers, described by `config`, for the families in
                     `families`; `ours` loads files into it
"""

from typing import TYPE_CHECKING

from mechjax import lazy

if not TYPE_CHECKING:
  __getattr__, __dir__ = lazy.package(__name__)
