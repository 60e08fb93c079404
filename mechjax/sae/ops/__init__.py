"""Array operations that all architectures share.

`matmul` is a matrix product whose operands may be rounded, `sparse` the products of a few active latents,
`straight_through` the derivatives of a threshold, `unit_rows` decoder rows of length one.
"""
