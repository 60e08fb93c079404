"""Sparse codes of a fixed dictionary without its encoder: inference-time optimisation.

An encoder is one linear map and a threshold, and has to guess which latents reconstruct an activation best. A pursuit
searches for them, one latent at a time, with the decoder alone (Smith 2024, "Inference-time optimisation of sparse
dictionaries"; docs/methods.md, section 4.9):

    pursuit = Pursuit(k=32, method='gradient')                     'matching', 'orthogonal'
    code = pursuit.code(W_dec, x - b_dec)                          Sparse [B, 32]
    codes = pursuit.sweep(W_dec, x - b_dec, (4, 8, 16, 32))        {k: Sparse}, at the cost of the largest
    ito = Pursued(sae, pursuit)                                    an architecture: evaluate it like any other

`choice` selects the next latent, `matching`, `gradient` and `orthogonal` the coefficients of the chosen ones,
`active_set` has the loop, `pursuit` the settings. `truncated` cuts an encoder to its k largest contributions, which is
the baseline of every comparison at equal L0. `itda` builds dictionaries whose directions are activations.
"""

from mechjax.sae.pursuit.itda import ActivationDictionary
from mechjax.sae.pursuit.pursued import Pursued
from mechjax.sae.pursuit.pursuit import METHODS, Pursuit
from mechjax.sae.pursuit.truncated import Truncated

__all__ = ['METHODS', 'ActivationDictionary', 'Pursued', 'Pursuit', 'Truncated']
