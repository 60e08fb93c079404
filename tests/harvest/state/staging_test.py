"""Weights are inputs of a program: what is staged and compiled once is used again, and freed with its function."""

import concurrent.futures
import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mechjax
from experiments.benchmarks import timing
from mechjax import harvest
from mechjax.programs import staging
from mechjax.programs.program import Program
from tests.harvest.state.ways import TOKENS, WAYS, Head, X, by_iterate, by_reap, tiny


def test_one_function_is_harvested_from_many_threads():
  def f(x):
    return harvest.sow(x, name='a') + 1

  def go(k):
    return harvest.plant(f)({'a': lambda x: x * 0 + k * 1.0}, X)

  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    for k, found in enumerate(pool.map(go, range(40))):
      np.testing.assert_array_equal(found, jnp.full_like(X, k + 1))


def test_weights_of_a_model_are_no_part_of_its_program():
  model = tiny()
  program, inputs = staging.stager(model)((TOKENS,), {})
  assert program.n_captured == 0
  assert len(inputs) == len(jax.tree.leaves(model.params)) + 1
  text = jax.jit(lambda model, t: by_iterate(model, t)).lower(model, TOKENS).as_text()
  biggest = max(map(len, text.splitlines()))
  assert biggest < 4096, 'a constant of weights is one long line'


def test_new_weights_compile_nothing():
  model = tiny()

  def f(tokens):
    return model(tokens)

  for _ in range(2):  # the first change compiles what copies weights
    jax.block_until_ready([way(g, TOKENS) for way in WAYS[:3] for g in (model, f)])
    model.params = jax.block_until_ready(jax.tree.map(lambda v: v + 1, model.params))
  with timing.compilations() as seen:
    jax.block_until_ready([way(g, TOKENS) for way in WAYS[:3] for g in (model, f)])
  assert not seen.count


def test_a_function_made_anew_by_the_same_line_compiles_nothing():
  def step(model, direction):
    f = lambda tokens: model(tokens)  # noqa: E731
    edit = lambda x: x + direction  # noqa: E731
    out = [way(f, TOKENS) for way in WAYS[:3]]
    return jax.block_until_ready([*out, harvest.plant(f)({'resid_post.1': edit}, TOKENS)])

  step(tiny(), jnp.ones(16))
  model, direction = jax.block_until_ready((tiny(), jnp.arange(16.0)))
  with timing.compilations() as seen:
    *_, planted = step(model, direction)
  assert not seen.count
  want = harvest.plant(model)({'resid_post.1': lambda x: x + jnp.arange(16.0)}, TOKENS)
  np.testing.assert_allclose(planted, want, rtol=1e-5, atol=1e-6)


def test_programs_and_what_they_close_over_die_with_their_function():
  def once():
    model = tiny()
    f = lambda tokens: model(tokens)  # noqa: E731
    direction = jnp.ones(16) * 2
    module = Head()
    for way in WAYS:
      way(f, TOKENS)
      way(model, TOKENS)
      way(module, X)
    harvest.plant(model)({'resid_post.1': lambda x: x + direction}, TOKENS)

    def traced(tokens):
      for layer, _, value in (run := mechjax.iterate(f, sites='resid_post')(tokens)):
        run.modified_value = value + layer
      return run.retval

    jax.jit(traced)(TOKENS)
    return [weakref.ref(x) for x in (model, f, direction, model.params['embed']['tokens'], module)]

  once()
  gc.collect()
  before = sum(isinstance(x, Program) for x in gc.get_objects())
  alive = [once() for _ in range(3)]
  gc.collect()
  assert not [r() for refs in alive for r in refs if r() is not None]
  assert sum(isinstance(x, Program) for x in gc.get_objects()) == before


def test_large_weights_that_would_be_compiled_in_are_warned_of(monkeypatch):
  monkeypatch.setattr(staging, 'LARGE', 1000)
  model = tiny()
  with pytest.warns(UserWarning, match='pass the model'):
    jax.jit(lambda tokens: by_iterate(model, tokens))(TOKENS)


def test_a_counter_that_a_function_keeps_does_not_stage_it_again():
  staged = []

  def f(x):
    staged.append(len(staged))
    return harvest.sow(x, name='logits')

  for x in (X, X[:1], X, X[:1], X):
    by_reap(f, x)
  assert staged == [0, 1]
