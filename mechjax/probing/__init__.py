"""Probing: which facts a model knows, where they are looked up, and which computation finds them."""

from typing import TYPE_CHECKING

from mechjax import lazy

if not TYPE_CHECKING:
  __getattr__, __dir__ = lazy.package(__name__)
