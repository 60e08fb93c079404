"""Methods: ways of guessing which nodes matter, each as the search that it leads to, and what it spends.

A method is judged by the exact patches it saves, so what it costs itself belongs to the bill. One unit serves all: a
forward pass of one prompt pair. This is the one place that says what is worth how many (docs/methods.md, section 2.4,
has the reasons):

    a forward pass, whatever is patched in it                          1
    a backward pass                                                    2
    AtP: two forward passes and a backward one                         4
    the QK fix: the attention once more, counted as a whole pass     + 1    where there are query or key nodes
    GradDrop: every layer dropped in turn, L/2 backward passes       + L
    a set of nodes patched as one                                      1
    the exact sweep of N nodes                                         N

Passes that begin in the middle, and logits that are never computed, make each of these cheaper and change no count:
`seconds` says what the clock says.

Subsampling, blocks and the hierarchy need no gradient but joint patches, and more of them always help. So that they
can be compared, each is given the same number, `Question.joint`: subsampling as so many random subsets, with a tenth
of the nodes in each; blocks as so many blocks of neighbours; the hierarchy as so many halves (a few more, because
it is asked for several at a time), after which the sets that are left are walked a node at a time, largest effect
first. None of them therefore ever spends more than N + joint.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence

import numpy as np

from experiments.tasks import Task
from mechjax.models.language_model import LanguageModel
from mechjax.patching import Effects, Metric, NodeSet, SubsetPatching, baselines, terms, verify
from mechjax.patching.atp_star import AtPStar
from mechjax.patching.baselines import Patch, Search

AT_ONCE = 32
"""Subset patches that are run side by side."""


@dataclasses.dataclass(frozen=True, eq=False)
class Question:
  """What every method is asked: which of the nodes matter for a task.

  Attributes:
    model: the model.
    task: made for it.
    nodes: N nodes.
    mode: one of 'noising' and 'denoising'.
    budget: bytes that a method may use besides parameters and prompts.
    joint: joint patches that a search without gradients may spend.
    seed: of everything random.
  """

  model: LanguageModel
  task: Task
  nodes: NodeSet
  mode: str
  budget: int
  joint: int
  seed: int

  @functools.cached_property
  def metric(self) -> Metric:
    return self.task.metric()

  @functools.cached_property
  def patch(self) -> Patch:
    """Patches sets of nodes as one."""
    model = self.model
    sweep = SubsetPatching(
      model.apply,
      self.nodes,
      self.mode,
      self.budget,
      max_batch=AT_ONCE,
      forward_from=model.forward_from,
    )
    return sweep(model.params, self.task.pairs, self.metric)


@dataclasses.dataclass(frozen=True, eq=False)
class MethodResult:
  """What a method made of a question.

  Attributes:
    name: of the method.
    search: the order in which it would have nodes patched, and what has been spent by then.
    scores: by which it ranks them, [N].
    spent: forward passes per pair behind the ranking.
    seconds: that the ranking took, all pairs together, compilation left out.
    effects: what it holds for the effects, if it estimates them.
  """

  name: str
  search: Search
  scores: np.ndarray
  spent: float
  seconds: float
  effects: Effects | None = None

  @property
  def estimate(self) -> Effects:
    """The effects, of a method that estimates them."""
    assert self.effects is not None, f'{self.name} estimates no effects'
    return self.effects


def gradient(question: Question, *, qk_fix: bool, graddrop: bool) -> MethodResult:
  """AtP with none, one or both of its fixes."""
  model, nodes = question.model, question.nodes
  method = AtPStar(
    model.apply, nodes, question.mode, qk_fix, graddrop, budget=question.budget, seed=question.seed
  )
  run = lambda: method(model.params, question.task.pairs, question.metric)  # noqa: E731
  run()  # compiles
  effects, seconds = _time_call(run)
  spent = passes(question, qk_fix=qk_fix, graddrop=graddrop)
  scores = effects.contribution()
  return MethodResult(method.name, Search.by(scores, spent), scores, spent, seconds, effects)


def passes(question: Question, *, qk_fix: bool, graddrop: bool) -> float:
  """What `gradient` costs, in forward passes per pair."""
  return 4 + (qk_fix and has_attention(question)) + graddrop * question.model.n_layers


def has_attention(question: Question) -> bool:
  """Whether there are queries or keys among the nodes, for the QK fix to fix."""
  return any(grid.name in terms.FIXED for _, grid in question.nodes.grids_in_use())


def random_order(question: Question) -> MethodResult:
  """Nodes as they come."""
  search = baselines.random_order(len(question.nodes), question.seed)
  return MethodResult('random order', search, -search.place, 0, 0.0)


def joint(
  question: Question, name: str, search: Callable[[Question, Patch], Search]
) -> MethodResult:
  """A search by joint patches."""
  spent = 0
  patch = question.patch  # compiled before the clock runs

  def count(members: np.ndarray) -> np.ndarray:
    nonlocal spent
    spent += len(members)
    return patch(members)

  found, seconds = _time_call(lambda: search(question, count))
  return MethodResult(name, found, -found.place, spent, seconds)


def _subsampling(question: Question, patch: Patch) -> Search:
  n, seed = len(question.nodes), question.seed
  return verify.sample_subsets(patch, n, subsets=question.joint, seed=seed, batch=AT_ONCE).search()


def _blocks(question: Question, patch: Patch) -> Search:
  n = len(question.nodes)
  return baselines.blocks(patch, n, -(-n // question.joint), batch=AT_ONCE)


def _hierarchical(question: Question, patch: Patch) -> Search:
  n = len(question.nodes)
  return baselines.hierarchical(patch, n, joint=question.joint, at_once=AT_ONCE // 2)


def _time_call(run: Callable) -> tuple:
  start = time.perf_counter()
  out = run()
  return out, time.perf_counter() - start


METHODS: dict[str, Callable[[Question], MethodResult]] = {
  'atp': functools.partial(gradient, qk_fix=False, graddrop=False),
  'atp_qk': functools.partial(gradient, qk_fix=True, graddrop=False),
  'atp_graddrop': functools.partial(gradient, qk_fix=False, graddrop=True),
  'atp_star': functools.partial(gradient, qk_fix=True, graddrop=True),
  'random': random_order,
  'subsampling': functools.partial(joint, name='subsampling', search=_subsampling),
  'blocks': functools.partial(joint, name='blocks', search=_blocks),
  'hierarchical': functools.partial(joint, name='hierarchical', search=_hierarchical),
}

WITHOUT_FIX = {'atp_qk': 'atp', 'atp_star': 'atp_graddrop'}
"""What a method comes to where there are no queries or keys for the QK fix."""


def drop_duplicates(question: Question, names: Sequence[str]) -> list[str]:
  """Keys of `METHODS`, without those that come to another of them for these nodes."""
  return [n for n in names if has_attention(question) or WITHOUT_FIX.get(n) not in names]
