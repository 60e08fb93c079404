"""Sparse codes without an encoder, on the dictionaries of `experiments/train_sae`."""
