"""Ways to harvest the logits of a function, and models to harvest."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

import mechjax
from mechjax import harvest
from mechjax.models import ours
from mechjax.models.language_model import LanguageModel
from tests.models import decoders

X = jnp.linspace(-1.0, 1.0, 6).reshape(2, 3)
TOKENS = decoders.TOKENS


def tiny(name='gpt2'):
  params = jax.tree.map(jnp.array, decoders.params(name))
  no_tokenizer: Any = None
  return LanguageModel(name, ours.forward(params, decoders.CONFIGS[name]), no_tokenizer)


def by_reap(f, *args):
  return harvest.reap(f, sites='logits')(*args)['logits']


def by_plant(f, *args):
  return harvest.plant(f)({'logits': lambda x: x}, *args)


def by_iterate(f, *args):
  run = mechjax.iterate(f, sites='logits')(*args)
  ((_, _, value),) = list(run)
  return value


def by_gradient(f, *args):
  def summed(*args):
    return f(*args).sum()

  return harvest.value_and_grad_at(summed, sites='logits')(*args)[1]['logits']


WAYS = [by_reap, by_plant, by_iterate, by_gradient]


class Head(nnx.Module):
  def __init__(self):
    self.dense = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
    self.scale = 2.0

  def __call__(self, x):
    return harvest.sow(self.dense(x) * self.scale, name='logits')
