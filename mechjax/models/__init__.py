"""Language models: weights, a forward pass, a tokenizer and sites, held as one object.

`language_model` is the object and how to load one, `tokenizers` turns text into tokens and back,
and each further module drives one code base: `tunix` for google-tunix's nnx classes.
"""
