"""A dictionary whose latents are found by a pursuit instead of its encoder.

    ito = Pursued(sae, Pursuit(k=32))
    f = ito.encode(params, x)               a pursuit of x - b_dec; the parameters are those of sae
    x_hat = ito.decode(params, f)           as before
    compare({'encoder': (Evaluation(forward, {site: sae}), {site: params}),
             'pursuit': (Evaluation(forward, {site: ito}), {site: params})}, model_params, batches)

It is an architecture, so whatever takes a dictionary takes it. Only W_dec and b_dec are used. An entry `k` of the
parameters, a whole number of steps up to `pursuit.k`, makes the number of steps data, so that one `Evaluation` serves
several L0 with one executable:

    evaluation = Evaluation(forward, {site: Pursued(sae, Pursuit(k=128))})
    compare({f'k {k}': (evaluation, {site: params | {'k': jnp.int32(k)}}) for k in (4, 16, 128)}, ...)

Sharp edges. A transcoder has no pursuit. A pursuit subtracts from the input the directions that it has explained;
those of a transcoder are directions of another site, and its input is not a sum of them. A signed pursuit is refused:
latents count as active where they are positive, in L0, in features and in dashboards.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from mechjax.errors import SAEError
from mechjax.sae.architectures.base import Params
from mechjax.sae.ops.sparse import Sparse
from mechjax.sae.pursuit.pursuit import Pursuit, check_size
from mechjax.sae.pursuit.wrapping import InferenceOnly


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pursued(InferenceOnly):
  """A dictionary with the latents of a pursuit.

  Attributes:
    sae: the dictionary, an autoencoder.
    pursuit: settings of the pursuit, non-negative.

  Raises:
    SAEError: a transcoder, a signed pursuit, or more steps than the dictionary has latents or dimensions.
  """

  pursuit: Pursuit = dataclasses.field(kw_only=False)

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.d_out is not None:
      raise SAEError(
        f'a pursuit of a transcoder with d_in={self.d_in} and d_out={self.d_out}',
        cause='a pursuit reconstructs its input, and the directions of a transcoder are those of its output, '
        'which depends on the input through a model and not as a sum',
        hint='Truncated(sae, k) keeps the k largest contributions of its encoder',
      )
    if not isinstance(self.pursuit, Pursuit):
      raise SAEError(f'pursuit={self.pursuit!r:.100} is not a Pursuit', hint='Pursuit(k=32)')
    if not self.pursuit.nonnegative:
      raise SAEError(
        'a signed pursuit in a dictionary, whose latents are not negative',
        cause='L0, features and dashboards count latents that are positive',
        hint='Pursuit(..., nonnegative=True), or with the rows [W_dec; -W_dec] for both signs',
      )
    check_size(self.pursuit.k, self.width, self.d_in)

  def encode_sparse(self, params: Params, x: jax.Array) -> Sparse:
    W_dec, b_dec = params['W_dec'], params['b_dec']
    if x.shape[-1] != self.d_in or W_dec.shape != (self.width, self.d_in):
      raise SAEError(
        f'activations of shape {x.shape} and W_dec {W_dec.shape} for a dictionary with '
        f'd_in={self.d_in} and width={self.width}'
      )
    x, b_dec = jnp.asarray(x), jnp.asarray(b_dec)
    return self.pursuit.code(W_dec, x - b_dec, params.get('k'))
