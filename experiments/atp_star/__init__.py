"""AtP* against the truth, on tasks that a small model can do; see README.md for the results."""
