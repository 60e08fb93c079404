"""Flags from a config: a frozen dataclass is the command line of a program.

A program has one description of its settings, the dataclass that its code takes. Its fields are the flags, their types
determine the values of a flag, the `Attributes:` of its docstring explain them in `--help`, and its `__post_init__`
checks them, so that nothing is written down twice and a notebook that builds the config runs the same checks.

    if __name__ == '__main__':
      config = flags.define(Config)
      app.run(lambda argv: train(config.value()))

    python -m mechjax.train_sae --site=resid_post.15 --steps=10_000 --learning_rate=3e-4 --config=base.toml

A field that is a dataclass itself is flattened: `Config.optimisation.learning_rate` is `--learning_rate`. Two fields of
one name are an error when flags are defined, so a flag never has two meanings and names stay short.

`--config` reads a file of TOML or JSON that mirrors the dataclass, with a table for each dataclass inside. Flags that
are given take precedence over the file, and the file over defaults. `as_json` writes such a file:
`--config=run/config.json` repeats a run, and `differences` lists the fields in which another run differs from it.

    bool       --x, --nox, --x=true           tuple      --x=1,2,3 (--x= for an empty one)
    int        --x=10_000                     Literal    one of its values
    float      --x=3e-4                       Enum       the name of a member
    str, Path  --x=text                       T | None   --x=none, else as T

Files: `kinds` for the values of one field, `leaves` for the fields of a dataclass, `config_files` for files,
`defining` for absl.

Sharp edges: read the config and not `FLAGS.x`, which ignores the file. Flags belong to a program and not to a module:
define them where the program starts, or two programs imported by one test share one `--seed`. TOML has no null; where a
field may be None, write the text 'none'. Paths are relative to the working directory, also those in a file. A string
with a comma cannot be a member of a tuple on the command line, but it can in a file.
"""

from mechjax.errors import FlagsError
from mechjax.flags.config_files import as_json, differences, from_json
from mechjax.flags.defining import Handle, define
from mechjax.flags.leaves import with_former_name

__all__ = [
  'FlagsError',
  'Handle',
  'as_json',
  'define',
  'differences',
  'from_json',
  'with_former_name',
]
