"""A fingerprint of code distinguishes functions by what they compute, and is equal if one is defined again."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from mechjax import fingerprints


class Scaled:
  """A metric as an object."""

  def __init__(self, factor):
    self.factor = factor

  def __call__(self, logits):
    return self.factor * logits.sum()


class Shifted(Scaled):
  def __call__(self, logits):
    return self.factor + logits.sum()


def closing_over(x):
  return lambda logits: logits.sum() * x


def reading(settings):
  return lambda logits: logits.sum() * settings['factor']


MAKERS = {
  'a number in a closure': (closing_over, 2.0, 3.0),
  'an array in a closure': (lambda x: closing_over(np.array([x])), 2.0, 3.0),
  'an array of JAX in a closure': (lambda x: closing_over(jnp.array([x])), 2.0, 3.0),
  'a dict in a closure': (lambda x: reading({'factor': x}), 2.0, 3.0),
  'a set in a closure': (lambda x: closing_over({x}), 2.0, 3.0),
  'an object in a closure': (lambda x: closing_over(Scaled(x)), 2.0, 3.0),
  'an object that is called': (Scaled, 2.0, 3.0),
  'the class of an object that is called': (lambda cls: cls(2.0), Scaled, Shifted),
  'a partial': (lambda x: functools.partial(closing_over, x=x), 2.0, 3.0),
  'a method': (lambda x: Scaled(x).__call__, 2.0, 3.0),
}


@pytest.mark.parametrize(('make', 'value', 'other'), MAKERS.values(), ids=MAKERS)
def test_functions_are_told_apart_by_what_they_hold(make, value, other):
  assert fingerprints.of_code(make(value)) == fingerprints.of_code(make(value))
  assert fingerprints.of_code(make(value)) != fingerprints.of_code(make(other))


def test_an_object_that_holds_itself_has_an_end():
  circle = Scaled(2.0)
  circle.me = circle
  assert fingerprints.of_code(circle) != fingerprints.of_code(Scaled(2.0))
