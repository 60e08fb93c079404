"""Training sparse autoencoders and transcoders from a command line."""

from experiments.train_sae.settings import Data, Dictionaries, Machine, Settings

__all__ = ['Data', 'Dictionaries', 'Machine', 'Settings']
