"""Steering towards a concept: success in rollouts against the loss on unrelated text, for several methods."""
