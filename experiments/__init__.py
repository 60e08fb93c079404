"""Experiments: one question a file, absl main kept short, run as `python -m experiments.NAME`."""
