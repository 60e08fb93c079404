"""A patch that is installed or removed between two generations is seen by the next one, although programs are kept."""

import importlib
import textwrap

import jax.numpy as jnp
import numpy as np
import pytest

from mechjax import generate, harvest
from mechjax.patcher import Patcher

TABLE = jnp.asarray(np.random.default_rng(0).permutation(49).reshape(7, 7), jnp.float32)
PROMPT = [[2, 5]]


@pytest.fixture
def upstream(tmp_path, monkeypatch):
  """A model of pairs of tokens in a module of its own, and a patch that turns its logits around."""
  source = """
    def score(logits):
      shown = logits
      return shown
  """
  (tmp_path / 'upstream_of_generation.py').write_text(textwrap.dedent(source))
  monkeypatch.syspath_prepend(tmp_path)
  module = importlib.import_module('upstream_of_generation')

  def step(params, tokens, mask, cache):
    del mask
    return harvest.sow(module.score(params[tokens]), name='logits'), cache

  model = generate.Model(step, lambda params, rows, slots: jnp.zeros((rows, slots)))
  return model, Patcher(module.__name__, {'score': ['shown = logits', 'shown = -logits']})


def by_hand(sign, n=4):
  tokens = [PROMPT[0][-1]]
  for _ in range(n):
    tokens.append(int((sign * TABLE[tokens[-1]]).argmax()))
  return tokens[1:]


def in_steps(model):
  steps = generate.Steps(model, TABLE, PROMPT, 4, 'logits')
  for step, run in steps:
    if step.index % 2:  # runs with stops and runs without
      for _ in run:
        pass
  return steps.result.tokens[0].tolist()


WAYS = {
  'generate': lambda model: generate.generate(model, TABLE, PROMPT, 4).tokens[0].tolist(),
  'plants': lambda model: (
    generate.generate(model, TABLE, PROMPT, 4, plants={'logits': lambda x: 2 * x})
    .tokens[0]
    .tolist()
  ),
  'stream': lambda model: list(generate.stream(model, TABLE, PROMPT[0], 4)),
  'steps': in_steps,
}


@pytest.mark.parametrize('way', WAYS)
def test_the_next_generation_runs_the_code_as_it_is(upstream, way):
  model, patcher = upstream
  run = WAYS[way]
  assert run(model) == by_hand(1)
  with patcher:
    assert run(model) == by_hand(-1)
  assert run(model) == by_hand(1)
