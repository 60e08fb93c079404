"""Weights: where the files come from, what is in them, and what each code base calls it.

`fetch` and `hub` find or download files. `gguf`, `safetensors` (with `shards`) and `orbax` read
them tensor by tensor. For upstream codes `upstream` says which tensor is which
parameter; for the decoder tables do (`huggingface_tables`, `llama_cpp`, read by `layouts`), which
`matching` holds against a file and `loading` follows into stacked, sharded arrays. `huggingface`
and `orbax` write as well. Nothing in here knows how a model computes.
"""

from typing import TYPE_CHECKING

from mechjax import lazy

if not TYPE_CHECKING:
  __getattr__, __dir__ = lazy.package(__name__)
