"""Facts that a model knows: where they are looked up, and where they are read. README.md has commands and results."""
