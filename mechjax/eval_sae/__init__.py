"""Evaluating dictionaries, of a training or published ones, from a command line: tables, pictures and dashboards.

`python -m mechjax.eval_sae`, or `mechjax-eval-sae`.
"""

import runpy

__all__ = ['program']


def program() -> None:
  """The program that `python -m mechjax.eval_sae` starts, for the console script."""
  runpy.run_module(__name__, run_name='__main__', alter_sys=True)
