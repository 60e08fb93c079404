"""Automatic interpretation of a dictionary: explanations of latents, their scores, and the controls of these."""
