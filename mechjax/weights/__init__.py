"""Weights: where the files come from, what is in them, and what each code base calls it.

`fetch` finds or downloads a file and proves that it is the right one, `gguf` reads it tensor by
tensor, `names` says which tensor is which parameter of a given implementation, and in which
layout. Nothing in here knows how a model computes.
"""
