"""Evaluating dictionaries: of a training, or published ones; tables, pictures and dashboards."""
