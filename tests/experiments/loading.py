"""Experiments on a tiny decoder: the model that `mechjax.load` gives them."""

import contextlib
import functools

import mechjax


@contextlib.contextmanager
def replaced(load):
  """Lets `mechjax.load` call another function, once for each choice of arguments."""
  kept = mechjax.load
  mechjax.load = functools.cache(load)  # type: ignore[assignment]
  try:
    yield
  finally:
    mechjax.load = kept
