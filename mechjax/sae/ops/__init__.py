"""Array operations that all architectures share.

`matmul` has matrix products whose operands can be rounded, `sparse` the products of a few active latents,
`straight_through` the derivatives of a threshold, `unit_rows` decoder rows of length one.
"""
