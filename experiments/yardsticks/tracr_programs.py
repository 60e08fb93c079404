"""Compiled programs: models whose every variable is known, since a compiler placed it.

Tracr compiles a program in RASP to the weights of a transformer, in which each variable has directions of its own in
the residual stream: one for each value of a categorical variable, one for a number (Lindner et al. 2023,
arXiv 2301.05062). So a harvest of the residual stream has to equal the variables that the program's own interpreter
computes, and any method that finds variables can be tested on it:

    with patches.tracr.PATCHER:
      compiled = compile_program('histogram', ('a', 'b', 'c'), length=5)
      read_variables(compiled, [['a', 'b', 'a', 'c', 'a']])         {variable: (in the stream, computed)}

Needs `tracr-pypi` and dm-haiku (extra `flax-models`).

Sharp edges: the compiler adds a beginning token, so that position i of a text is column i + 1. Directions for the
compiler's own intermediate steps have no variable in the program and are not compared.

Letters: B texts, T positions, D width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mechjax import extras, harvest
from mechjax.errors import YardstickError, unknown

BEGIN = 'BOS'
Words = Sequence[str]


@dataclasses.dataclass(frozen=True)
class Program:
  """A program in RASP, and the same function in Python.

  Attributes:
    source: makes the program.
    truth: the output for a text.
  """

  source: Callable[[], Any]
  truth: Callable[[Words], list[Any]]


def _import(module: str) -> Any:
  return extras.require(f'tracr.{module}', 'flax-models')


def _lib() -> Any:
  return _import('compiler.lib')


def _fraction() -> Any:
  rasp = _import('rasp.rasp')
  return _lib().make_frac_prevs(rasp.numerical(rasp.tokens == 'a').named('is_a'))


PROGRAMS = {
  'reverse': Program(
    lambda: _lib().make_reverse(_import('rasp.rasp').tokens),
    lambda words: [*words][::-1],
  ),
  'histogram': Program(
    lambda: _lib().make_hist(), lambda words: [[*words].count(word) for word in words]
  ),
  'fraction': Program(
    _fraction, lambda words: [[*words[: i + 1]].count('a') / (i + 1) for i in range(len(words))]
  ),
}
"""Programs by name: the text backwards, how often each word occurs, and the share of 'a' so far."""


@dataclasses.dataclass(frozen=True, eq=False)
class CompiledProgram:
  """A compiled program.

  Attributes:
    name: key of `PROGRAMS`.
    forward: (params, tokens) -> output of the model, with sows if the patch is installed.
    params: weights.
    labels: variable of each direction of the residual stream: 'name:value', or 'name' for a number.
    variables: function from a text to the values of each variable of the program, by name.
    vocabulary: the words.
    length: largest number of words.
    assembled: tracr's own object.
  """

  name: str
  forward: Callable[..., Any]
  params: Any
  labels: tuple[str, ...]
  variables: dict[str, Callable[[Words], Sequence[Any]]]
  vocabulary: tuple[str, ...]
  length: int
  assembled: Any

  def encode(self, texts: Sequence[Words]) -> Int[Array, 'B T']:
    """Token ids of texts of one length, with the beginning token.

    Raises:
      YardstickError: no texts, texts of several lengths or too many words, or an unknown word.
    """
    lengths = {len(text) for text in texts}
    if len(lengths) != 1 or not 0 < max(lengths) <= self.length:
      raise YardstickError(
        f'texts of {sorted(lengths)} words; expected one length of 1 to {self.length}',
        cause=f'{max(lengths, default=0)} words for a program of {self.length}',
      )
    for word in (word for text in texts for word in text):
      if word not in self.vocabulary:
        raise YardstickError(f'the word {word!r} is not one of {self.vocabulary}')
    encoder = self.assembled.input_encoder
    return jnp.array([encoder.encode([BEGIN, *text]) for text in texts], jnp.int32)

  def run(self, texts: Sequence[Words]) -> list[list[Any]]:
    """Outputs at the words of each text."""
    found = np.asarray(self.forward(self.params, self.encode(texts)).unembedded_output)
    encoder = self.assembled.output_encoder
    rows = [row[1:].tolist() for row in found]
    return [encoder.decode(row) if encoder else row for row in rows]


def compile_program(name: str, vocabulary: Sequence[str], length: int) -> CompiledProgram:
  """Compiles a program.

  Args:
    name: key of `PROGRAMS`.
    vocabulary: words, among them 'a' for 'fraction'.
    length: largest number of words.

  Raises:
    YardstickError: an unknown program, fewer than two words, or no length.
    MissingExtraError: tracr is not installed.
  """
  if name not in PROGRAMS:
    raise unknown(YardstickError, 'program', name, PROGRAMS)
  if len({*vocabulary}) < 2 or length < 1:
    raise YardstickError(f'vocabulary={vocabulary!r:.100}, length={length!r}; expected two words')
  compiling = _import('compiler.compiling')
  graphs = _import('compiler.rasp_to_graph')
  rasp = _import('rasp.rasp')
  program = PROGRAMS[name].source()
  model = compiling.compile_rasp_to_model(
    program, vocab={*vocabulary}, max_seq_len=length, compiler_bos=BEGIN
  )
  graph = graphs.extract_rasp_graph(program).graph
  every = [node['EXPR'] for _, node in graph.nodes(data=True)]
  variables = {s.label: s for s in [*every, rasp.tokens, rasp.indices] if isinstance(s, rasp.SOp)}
  labels = tuple(model.residual_labels)
  words = tuple(vocabulary)
  return CompiledProgram(name, model.forward, model.params, labels, variables, words, length, model)


def read_variables(
  compiled: CompiledProgram, texts: Sequence[Words]
) -> dict[str, tuple[Float[np.ndarray, 'B T n'], Float[np.ndarray, 'B T n']]]:
  """The variables of a program in its residual stream after the last layer, and as its interpreter computes them.

  Args:
    compiled: the program; the patch of tracr has to be installed.
    texts: texts of one length.

  Returns:
    For each variable the directions of its values [B, T, values] (one for a number), and what they have to be: a
    one-hot vector, or the number. Positions are those of the words.
  """
  tokens = compiled.encode(texts)
  acts = harvest.reap(compiled.forward, sites='resid_post')(compiled.params, tokens)
  last = np.asarray(acts.stack('resid_post')[-1])[:, 1:]
  found = {}
  for name, variable in compiled.variables.items():
    columns, values = _find_columns(compiled.labels, name)
    if columns:
      computed = [[*variable([*text])] for text in texts]
      expected = np.array([[_expect(x, values) for x in row] for row in computed], np.float64)
      found[name] = last[..., columns].astype(np.float64), expected
  return found


def _find_columns(labels: Sequence[str], name: str) -> tuple[list[int], list[str] | None]:
  """Directions of a variable, and the value that each stands for; None for a number."""
  if name in labels:
    return [labels.index(name)], None
  prefix = f'{name}:'
  columns = [i for i, label in enumerate(labels) if label.startswith(prefix)]
  return columns, [labels[i].removeprefix(prefix) for i in columns]


def _expect(value: Any, values: list[str] | None) -> list[float]:
  """One-hot vector of a value, or the number itself."""
  if values is None:
    return [float(value)]
  return [float(str(value) == v) for v in values]
