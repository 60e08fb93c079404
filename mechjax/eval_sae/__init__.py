"""Evaluation of dictionaries, from a run or published, from the command line: tables, figures and dashboards.

`python -m mechjax.eval_sae`, or `mechjax-eval-sae`.
"""

import runpy

__all__ = ['program']


def program() -> None:
  """Runs `python -m mechjax.eval_sae`, for the console script."""
  runpy.run_module(__name__, run_name='__main__', alter_sys=True)
