"""The machine room: everything that knows staged programs (jaxprs), and nothing that knows why somebody wants one.

`harvest`, `forward` and `stacking` are its clients. They decide what is read, replaced, stepped through or put under
a scan; here is how a program is staged, walked, evaluated and compared.

  tag            `sow`: the mark on a value
  primitives     the one table of primitives that hold programs
  program        a staged function and the sows in it
  staging        from a function to a program, with `callables` (models) and `sharing` (programs of equal structure)
  cells, interpreter, rules, bundles   evaluating a program again, with something done at its sows
  batching       what vmap does to a sow in a loop or a branch
  line           a program written out as one line of operations
  structure      when two parts of a program are equal
  reach, repeats   sows that nothing depends on, names that are sown twice
"""
