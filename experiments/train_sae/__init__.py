"""Training sparse autoencoders and transcoders from a command line; README.md has what came out."""

from experiments.train_sae.settings import Data, Dictionaries, Machine, Settings

__all__ = ['Data', 'Dictionaries', 'Machine', 'Settings']
