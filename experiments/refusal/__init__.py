"""A behaviour in one direction of the residual stream, with controls; see README.md for the results."""
