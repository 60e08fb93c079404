"""Weights: sources of files, their formats, and the parameter names of each code base.

`fetch` and `hub` find or download files. `gguf`, `safetensors` (with `shards`) and `orbax` read
them tensor by tensor. `upstream` maps tensors to the parameters of upstream codes; tables
(`huggingface_tables`, `llama_cpp`, in the format of `layouts`) map them to those of the decoder:
`matching` compares a table with a file, and `loading` reads the file into stacked, sharded arrays.
`huggingface` and `orbax` also write. No module here depends on how a model computes.
"""

from typing import TYPE_CHECKING

from mechjax import lazy

if not TYPE_CHECKING:
  __getattr__, __dir__ = lazy.package(__name__)
