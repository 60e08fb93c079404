"""Staged programs (jaxprs): staging, walking, evaluating and comparing them, independently of their use.

`harvest`, `forward` and `stacking` are the clients. They decide which values are read or replaced, where a run stops,
and what is put under a scan.

  tag            `sow`: the mark on a value
  primitives     the one table of primitives that hold programs
  program        a staged function and the sows in it
  staging        from a function to a program, with `callables` (models) and `sharing` (programs of equal structure)
  cells, interpreter, rules, derivatives, bundles   evaluate a program again and act at its sows
  batching       what vmap does to a sow in a loop or a branch
  line           a program written out as one line of operations
  structure      equality of programs and of their parts
  reach, repeats   sows that no result depends on, names that are sown twice
"""
