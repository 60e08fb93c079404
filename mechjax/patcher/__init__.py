"""Instrumenting code that we did not write, without forking it.

A model to be studied lives in an upstream package. A fork of it is out of date within weeks, a
monkey patch copies whole functions and drifts in silence, and hooks on module calls see inputs and
outputs but not the values between them. A researcher needs to state only little: in this method,
this sum is the residual stream. So a patch states just that, as a pair of code before and code after, and
everything else stays as upstream wrote it.

    from mechjax.patcher import Patcher
    PATCHER = Patcher('some.module', {'Block.__call__': [('x += mlp_out', 'x += tag(mlp_out)')]},
                      names={'tag': tag})
    with PATCHER:
      …

From a rule to running code, one file for each step:

    patterns    rules: Python source with holes, `$one` and `$$many`
    matching    compares a rule with upstream's syntax tree
    rewriting   replaces the matches; a rule must match as often as it states, else it is an error
    layout, rendering   the patched text: one to read, one whose lines are numbered as upstream's
    composing   all patches of a module together, compiled under upstream's file name
    live, defining   patches a module that is already imported: objects stay, their code is exchanged
    hook        patches a module while it is imported
    drift, check   error messages when upstream has changed, and a check that finds out beforehand
    patcher     `Patcher` and `Patchers`, all that a patch file needs; a table of the two modes

Importing this package or a file of patches changes nothing; only `install` does. Nothing here knows
about JAX, and this has one sharp edge: for a function and arguments that it has seen, `jax.jit` keeps
the program that it traced before a patch was installed or uninstalled. Install first, or call
`jax.clear_caches()`.
"""

from mechjax.patcher.patcher import Patcher, Patchers

__all__ = ['Patcher', 'Patchers']
