"""Methods: estimates of which nodes matter, each as the search that it leads to, with its cost.

A method is judged by the exact patches it saves, so its own cost counts too. The unit of all costs is a forward pass of
one prompt pair. The costs are defined here and nowhere else (docs/methods.md, section 2.4, has the reasons):

    a forward pass, whatever is patched in it                          1
    a backward pass                                                    2
    AtP: two forward passes and a backward one                         4
    the QK fix: the attention once more, counted as a whole pass     + 1    where there are query or key nodes
    GradDrop: one layer dropped at a time, L/2 backward passes       + L
    a set of nodes patched jointly                                     1
    the exact sweep of N nodes                                         N

Passes that begin in the middle, and logits that are never computed, make each of these cheaper but change no count;
`seconds` is measured time.

Subsampling, blocks and the hierarchy need joint patches instead of gradients, and more of them always help. To make
them comparable, each has the same number, `Question.joint`: subsampling uses that many random subsets, with a tenth
of the nodes in each; blocks that many blocks of neighbours; the hierarchy that many halves (a few more, because
several are patched at a time), after which the nodes of the sets that are left are patched one by one, largest effect
first. So none of them spends more than N + joint.
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
"""Number of subset patches that run side by side."""


@dataclasses.dataclass(frozen=True, eq=False)
class Question:
  """The question for every method: which of the nodes matter for a task.

  Attributes:
    model: the model.
    task: a task made for it.
    nodes: N nodes.
    mode: 'noising' or 'denoising'.
    budget: bytes that a method may use besides parameters and prompts.
    joint: joint patches that a search without gradients may spend.
    seed: seed of all random numbers.
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
    """Patches sets of nodes jointly."""
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
  """Answer of a method to a question.

  Attributes:
    name: name of the method.
    search: the order in which it proposes to patch the nodes, and the passes spent at each.
    scores: scores that it ranks the nodes by, [N].
    spent: cost of the ranking, in forward passes per pair.
    seconds: time of the ranking for all pairs together, without compilation.
    effects: its estimates of the effects; None if it has no estimates.
  """

  name: str
  search: Search
  scores: np.ndarray
  spent: float
  seconds: float
  effects: Effects | None = None

  @property
  def estimate(self) -> Effects:
    """Estimated effects, of a method that estimates them."""
    assert self.effects is not None, f'{self.name} estimates no effects'
    return self.effects


def gradient(question: Question, *, qk_fix: bool, graddrop: bool) -> MethodResult:
  """AtP without fixes, or with one or both of them."""
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
  """Cost of `gradient`, in forward passes per pair."""
  return 4 + (qk_fix and has_attention(question)) + graddrop * question.model.n_layers


def has_attention(question: Question) -> bool:
  """Whether there are queries or keys among the nodes, to which the QK fix applies."""
  return any(grid.name in terms.FIXED for _, grid in question.nodes.grids_in_use())


def random_order(question: Question) -> MethodResult:
  """Nodes in random order."""
  search = baselines.random_order(len(question.nodes), question.seed)
  return MethodResult('random order', search, -search.place, 0, 0.0)


def joint(
  question: Question, name: str, search: Callable[[Question, Patch], Search]
) -> MethodResult:
  """Result of a search by joint patches."""
  spent = 0
  patch = question.patch  # compiles before the measured time begins

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
"""Equivalent of each method if there are no queries or keys for the QK fix."""


def drop_duplicates(question: Question, names: Sequence[str]) -> list[str]:
  """Removes keys of `METHODS` that are equivalent to another given key for these nodes."""
  return [n for n in names if has_attention(question) or WITHOUT_FIX.get(n) not in names]
