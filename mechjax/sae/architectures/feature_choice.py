"""Feature choice: each latent is active on a fixed number of tokens of a batch, so that no latent can be dead.

TopK gives each token a budget of latents. Here each LATENT has a budget of tokens (Ayonrinde 2024, "Adaptive Sparse
Allocation with Mutual Choice & Feature Choice Sparse Autoencoders", arXiv 2411.02124):

    z = (x - b_dec) @ W_enc + b_enc                                               [B, M]
    training    f = z * S,  S_bi = 1 if z_bi is among the m_i largest of latent i in the batch
    budgets     sum_i m_i = B k, and m_i proportional to (i + zipf_beta)^(-zipf_alpha), from 1 to B
    inference   f = z * H(z - threshold_i),  threshold_i = running mean of the smallest activation of latent i
    L = |x - x_hat|^2

zipf_alpha = 0 gives all latents the same budget; otherwise the first latents are the frequent ones (`ops.zipf`, which
also fits alpha and beta to measured densities). `budgets` states them one by one. The budget of a token is free, which
is the mirror image of TopK; a single budget for all pairs of tokens and latents is MUTUAL CHOICE, and that is
`BatchTopK`, which also has that name. A file holds the `JumpReLU` with these thresholds.

Activations in training are z without a ReLU, so the gradient also reaches a latent that is negative on all tokens.

Sharp edges: a batch must consist of shuffled tokens, and have at least M / k of them. Before training all thresholds
are 0 and `encode` is a ReLU. A latent whose smallest activation is negative has a threshold of 0. The loss is that of a
batch, so a batch of another size is another loss.

Ties. In training a budget is exact: of equal activations the tokens that come first in the batch are taken. At
inference the threshold decides alone, z > threshold, for each token without its neighbours: equal activations are
active together or not at all, one equal to the threshold is not active, the order of the tokens has no effect, and the
share of tokens on which a latent is active is m_i / B only on average.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from mechjax.errors import SAEError
from mechjax.sae.architectures.base import Architecture, HParams, Params
from mechjax.sae.architectures.batch_topk import running_mean
from mechjax.sae.architectures.jumprelu import JumpReLU, with_threshold
from mechjax.sae.architectures.losses import LossOutput
from mechjax.sae.architectures.totals import total_loss
from mechjax.sae.checks import check_field, check_number, check_whole
from mechjax.sae.ops.columns import largest_of_columns
from mechjax.sae.ops.sparse import Sparse
from mechjax.sae.ops.straight_through import above
from mechjax.sae.ops.zipf import whole_budgets, zipf_weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureChoice(Architecture):
  """Latents with a budget of tokens each.

  Attributes:
    k: number of active latents of a token on average; can be traced.
    zipf_alpha: exponent of the budgets; 0 for equal budgets.
    zipf_beta: shift of the ranks, above -1.
    budgets: number of tokens of each latent in a batch, which must sum to B k; empty for those of Zipf's law.
    decay: decay of the running means of the thresholds, per step.
    blocked: whether latents are selected in blocks; not on several devices.
  """

  TRACED = ('k',)
  PER_LATENT = {'b_enc': 0.0, 'threshold': 0.0}  # noqa: RUF012
  OBSERVED = ('threshold',)

  k: int
  zipf_alpha: float = 0.0
  zipf_beta: float = 0.0
  budgets: tuple[int, ...] = ()
  decay: float = 0.99
  blocked: bool = True

  def __post_init__(self) -> None:
    super().__post_init__()
    check_whole(self, 'k')
    check_number(self, 'decay', 'zipf_alpha', 'zipf_beta')
    check_field(self, 'k', 1 <= self.k <= self.width, f'from 1 to width={self.width}')
    check_field(self, 'decay', 0 <= self.decay < 1, 'in [0, 1)')
    check_field(self, 'zipf_alpha', self.zipf_alpha >= 0, 'at least 0')
    check_field(self, 'zipf_beta', self.zipf_beta > -1, 'above -1')
    object.__setattr__(self, 'budgets', tuple(self.budgets))  # a file has a list
    valid = len(self.budgets) in (0, self.width)
    valid = valid and all(type(m) is int and m >= 1 for m in self.budgets)
    expected = f'{self.width} whole numbers from 1, one for each latent, or ()'
    check_field(self, 'budgets', valid, expected)

  def hparams(self, **values: ArrayLike | Sequence[float]) -> dict[str, jax.Array]:
    found = np.asarray(values.get('k', self.k))
    if self.budgets and (found != self.k).any():
      raise SAEError(
        f'traced k={values["k"]} for a FeatureChoice with budgets for k={self.k}',
        hint='budgets=(), or one dictionary for each k',
      )
    return super().hparams(**values)

  def check_batch(self, n_tokens: int) -> None:
    total = n_tokens * self.k
    if self.budgets and (sum(self.budgets) != total or max(self.budgets) > n_tokens):
      raise SAEError(
        f'budgets that sum to {sum(self.budgets)}, the largest {max(self.budgets)}, for a batch of '
        f'{n_tokens} tokens with k={self.k}',
        cause=f'budgets sum to {n_tokens} * {self.k} = {total}, and none is larger than the batch',
      )
    if total < self.width:
      raise SAEError(
        f'a batch of {n_tokens} tokens with k={self.k} has {total} activations for {self.width} latents',
        cause='the budget of every latent is at least one token',
        hint=f'a batch of at least {-(-self.width // self.k)} tokens, or a larger k',
      )

  def token_budgets(self, n_tokens: int, k: ArrayLike | None = None) -> jax.Array:
    """Number of tokens of each latent in a batch, int32 [M]; the sum is n_tokens * k.

    Args:
      n_tokens: B.
      k: number of active latents of a token on average, if it is not that of the settings; may be traced.

    Raises:
      SAEError: the batch is too small, or of another size than the budgets.
    """
    self.check_batch(n_tokens)
    if self.budgets:
      return jnp.asarray(self.budgets, jnp.int32)
    weights = zipf_weights(self.width, self.zipf_alpha, self.zipf_beta)
    return whole_budgets(weights, n_tokens * jnp.asarray(self.k if k is None else k), n_tokens)

  def encode(self, params: Params, x: jax.Array) -> jax.Array:
    z = self.pre_activations(params, x)
    return above(z, params['threshold'])

  def loss(
    self,
    params: Params,
    x: jax.Array,
    y: jax.Array | None = None,
    hparams: HParams | None = None,
    dead: jax.Array | None = None,
  ) -> tuple[jax.Array, LossOutput]:
    self._check_tokens(x)
    budgets = self.token_budgets(len(x), self.hparam(hparams, 'k', jnp.int32))
    z = self.pre_activations(params, x)
    f = jnp.where(largest_of_columns(z, budgets, self.blocked), z, 0)
    reconstruction, error = self.reconstruction_loss(params, f, x, y)
    parts = {'reconstruction': reconstruction, 'sparsity': jnp.zeros((), error.dtype)}
    return total_loss(self, params, parts, f, error, lambda: z, dead)

  def observe(self, params: Params, latents: jax.Array | Sparse) -> Params:
    f = latents.to_dense() if isinstance(latents, Sparse) else latents
    smallest = jnp.min(jnp.where(f != 0, f, jnp.inf), 0)
    found = running_mean(params['threshold'], jnp.maximum(smallest, 0), self.decay)
    return params | {'threshold': found}

  def as_jumprelu(self, params: Params) -> tuple[JumpReLU, Params]:
    return with_threshold(self, params, params['threshold'])

  def for_inference(self, params: Params) -> tuple[Architecture, Params]:
    return self.as_jumprelu(params)

  def as_shardable(self) -> FeatureChoice:
    return dataclasses.replace(self, blocked=False)
