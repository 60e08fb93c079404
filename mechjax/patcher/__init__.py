"""Instrumenting code that we did not write, without forking it.

A model to be studied lives in somebody else's package. A fork of it is out of date within weeks, a
monkey patch copies whole functions and drifts in silence, and hooks on module calls see inputs and
outputs but not what lies between. What a researcher wants to say is small: in this method, this sum
is the residual stream. So a patch says just that, as a pair of code before and code after, and
everything else stays upstream's.

    from mechjax.patcher import Patcher
    PATCHER = Patcher('some.module', {'Block.__call__': [('x += mlp_out', 'x += tag(mlp_out)')]},
                      names={'tag': tag})
    with PATCHER:
      …

From a rule to running code, one file for each step:

    patterns    what a rule says: Python source with holes, `$one` and `$$many`
    matching    comparing it with upstream's syntax tree
    rewriting   putting the replacement there; a rule matches as often as it says, or it is an error
    layout, rendering   the patched text: one to read, one whose lines are numbered as upstream's
    composing   all patches of a module together, compiled under upstream's file name
    live, defining   into a module that is imported: objects stay, what they run is exchanged
    hook        into a module as it is imported
    drift, check   what to say when upstream has moved on, and finding out before it matters
    patcher     `Patcher` and `Patchers`, all that a patch file needs; a table of what holds when

Importing this package or a file of patches changes nothing; only `install` does. Nothing here knows
about JAX, and one consequence is sharp: `jax.jit` keeps the program it traced before a patch came
or went, for a function and arguments it has seen. Install first, or call `jax.clear_caches()`.
"""

from mechjax.patcher.patcher import Patcher, Patchers

__all__ = ['Patcher', 'Patchers']
