"""Planted latents, each active on one word, and a provider without a model that follows an explanation to the letter.

The explanation of a latent is its word. Texts contain words of other latents as well, so that a shuffled explanation
predicts something, and the wrong thing.
"""

import json
import re
from collections.abc import Callable, Sequence

import numpy as np

from mechjax.autointerp.record import Excerpt, Explanation, LatentExamples
from mechjax.providers.requests import (
  Answer,
  ChoiceRequest,
  Failed,
  Listener,
  LossRequest,
  Reply,
  Request,
  TableRequest,
)

WORDS = (' why', ' red', ' seven', ' rain')
FILLERS = (' the', ' of', '\n', ' and', ' a', ',', ' to', ' in')
VOCABULARY = (*WORDS, *FILLERS)
W = 12


def make_excerpt(
  rng: np.random.Generator, latent: int, count: int, sequence: int, level: int = 0
) -> Excerpt:
  """Random text in which the word of a latent occurs `count` times."""
  others = [i for i in range(len(VOCABULARY)) if i != latent]
  tokens = rng.choice(others, W)
  tokens[rng.choice(W, count, replace=False)] = latent
  activations = np.where(tokens == latent, 3.0 / 2**level, 0.0).astype(np.float32)
  pieces = tuple(VOCABULARY[i] for i in tokens)
  return Excerpt(sequence, 0, tokens, pieces, activations, level if count else -1)


def make_examples(latent: int, n: int = 12, seed: int = 0) -> LatentExamples:
  """Examples of a planted latent, n of each kind that is scored."""
  rng = np.random.default_rng([seed, latent])
  active = tuple(make_excerpt(rng, latent, 1 + i % 3, 100 + i, level=i % 2) for i in range(n))
  parts = [
    tuple(make_excerpt(rng, latent, 0, start + i) for i in range(n)) for start in (200, 300, 400)
  ]
  return LatentExamples(latent, 3.0, 0.05, (), (), active, *parts)


def explain(latent: int) -> Explanation:
  """The true explanation of a planted latent."""
  return Explanation(latent, 'true', WORDS[latent])


class Follower:
  """Answers as the words of the explanation demand.

  Attributes:
    asked: all requests so far.
    calls: number of calls.
    fails: which requests of a call fail, by their number.
  """

  identity = 'follower'

  def __init__(self, fails: Callable[[int], bool] = lambda i: False):
    self.asked: list[Request] = []
    self.calls = 0
    self.fails = fails

  def __call__(self, requests: Sequence[Request], listener: Listener | None = None) -> list[Reply]:
    self.asked += requests
    self.calls += 1
    return [
      Failed('planned') if self.fails(i) else follow(request) for i, request in enumerate(requests)
    ]


def follow(request: Request) -> Answer:
  """Reply of a model that does what the explanation demands."""
  question = request.messages[-1].content
  match request:
    case TableRequest():
      word = read(question, 'Pattern')
      rows = [
        one_hot(int(request.answers[-1]) * (unescape(p) == word), len(request.answers))
        for p in request.pieces
      ]
      return Answer(probabilities=np.array(rows))
    case ChoiceRequest() if question.startswith('1: '):
      texts = [json.loads(line[3:]) for line in question.splitlines()[:-1]]
      (where,) = [i for i, text in enumerate(texts) if WORDS[int(request.tag[0])] not in text]
      return Answer(probabilities=0.9 * one_hot(where, 5)[None])
    case ChoiceRequest():
      yes = is_right(question)
      return Answer(probabilities=np.array([[0.8, 0.1] if yes else [0.1, 0.8]]))
    case LossRequest():
      word = read(question, 'Description')
      return Answer(loss=3.0 - (word in json.loads(request.text)))
  raise AssertionError(request)


def is_right(question: str) -> bool:
  """Whether a text contains the word of a question, in all of its marks if it has marks."""
  word, text = read(question, 'Pattern'), read(question, 'Text')
  marks = re.search(r'^Marks: (.+) and (.+)$', question, re.MULTILINE)
  if not marks:
    return word in text
  marked = re.findall(f'{re.escape(marks[1])}(.*?){re.escape(marks[2])}', text, re.DOTALL)
  return all(part.replace(word, '') == '' for part in marked)


def read(question: str, name: str) -> str:
  """The JSON string of a line of a question."""
  (found,) = re.findall(f'^{name}: (".*")$', question, re.MULTILINE)
  return json.loads(found)


def unescape(piece: str) -> str:
  """The text of an escaped piece."""
  return json.loads(f'"{piece}"')


def one_hot(i: int, n: int) -> np.ndarray:
  """Certainty of one answer."""
  return np.eye(n)[i]


class WordTable:
  """Token table of a planted latent."""

  def __init__(self, latent: int):
    self.latent = latent

  def predict(self, tokens: np.ndarray) -> np.ndarray:
    """Activation of each token."""
    return np.where(np.asarray(tokens) == self.latent, 3.0, 0.0)


def embed(texts: list[str]) -> np.ndarray:
  """Counts of the words of planted latents, and a constant."""
  return np.array([[text.count(word) for word in WORDS] + [0.1] for text in texts])
