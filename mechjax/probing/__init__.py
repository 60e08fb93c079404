"""Probing: which facts a model knows, where they are looked up, and which computation finds them."""
