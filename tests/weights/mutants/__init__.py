"""Slightly wrong files, and whether the readers detect them.

A reader that was only tested with right files has been tested for half of its work. Here a right file of each format is
changed in one place, by structure and not only by bytes: values of another type, keys dropped or written twice, arrays
that are short, tensors moved, reshaped, renamed. The result of loading is one of three:

    refused          a MechjaxError, in time and in little memory
    equal            the change makes no difference to parameters, config or tokenizer
    undetectable     another model, as an honest file could describe it

Anything else is a failure. `judge` has the complete list of undetectable changes.

    python -m tests.weights.mutants --mutants 3000         all formats, with memory and time
"""
