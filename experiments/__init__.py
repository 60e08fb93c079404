"""Experiments: one question per file, with a short absl main, run as `python -m experiments.NAME`."""
