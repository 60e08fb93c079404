"""Neurons of the last layer that set confidence, and those that follow token frequency."""
