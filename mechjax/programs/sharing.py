"""Sharing of programs: a function that is staged again gets its earlier program, so that nothing is compiled again.

A program holds no weights (the arrays that a function closes over are inputs). So two programs of equal structure, with
their sows on the same lines, are the same program, and everything compiled for one serves the other. Examples are a
function whose closed-over weights were replaced, and the same lambda made anew in every iteration of a loop.

Programs are stored on the functions that they belong to. The table here holds weak references, and only the last
`RECENT` programs are kept alive, so that a loop that makes its function anew finds its previous program.

Sharp edges. A Python number that a function closes over is part of the structure: another value is another program and
is compiled. An array is not part of it.
"""

from __future__ import annotations

import collections
import threading
import weakref
from typing import Any

from mechjax import compat
from mechjax.programs.program import Program
from mechjax.programs.structure import program_key

RECENT = 8

_recent: collections.deque[Program] = collections.deque(maxlen=RECENT)
_lock = threading.RLock()
_known: dict[int, weakref.WeakSet[Program]] = {}


def share(program: Program) -> Program:
  """Finds a live program with the structure of `program`, or returns `program` itself.

  Inside the trace of a caller nothing is compiled here, and the search would cost more than it saves.
  """
  if compat.staging_trace() is not None:
    return program
  with _lock:
    return _share(program)


def _share(program: Program) -> Program:
  outline = _outline(program)
  alike = _known.setdefault(hash(outline), weakref.WeakSet())
  for other in alike:
    if _outline(other) == outline and program_key(other) == program_key(program):
      program = other
      break
  alike.add(program)
  if program in _recent:
    _recent.remove(program)
  _recent.append(program)
  for key in [key for key, programs in _known.items() if not programs]:
    del _known[key]
  return program


def _outline(program: Program) -> Any:
  """Parts of a program that are cheap to compare."""
  jaxpr = program.jaxpr
  sown = tuple((s.tag, s.mode, s.key, s.path, s.backward, s.source) for s in program.sown)
  return (
    program.n_captured,
    tuple(str(v.aval) for v in jaxpr.invars),
    program.out_tree,
    program.differentiating,
    sown,
    tuple(program.dropped),
    program.moved,
    tuple(str(eqn.source_info.name_stack) for eqn in jaxpr.eqns),
  )
