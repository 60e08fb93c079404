"""Circuits in features."""
