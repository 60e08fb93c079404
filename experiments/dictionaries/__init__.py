"""Studies of dictionaries of one model: end to end, over models, over seeds and layers, and in their errors."""
