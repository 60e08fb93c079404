"""Dictionaries of attention outputs: roles of heads, induction latents, and latents that matter for IOI."""
