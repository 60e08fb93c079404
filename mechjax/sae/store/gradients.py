"""Gradients at sites, as further activations of a store: `grad:resid_post.15`.

A dictionary that is guided by the model (`GradientTopK`) needs with each activation the derivative of the model's loss
with respect to it. Both are read in one pass and stored alike:

    Harvester(model.apply, model.params, ['resid_post.15', 'grad:resid_post.15'], contexts)

The loss is the SUM of the next-token losses of all positions of a context, in nats, so a gradient does not depend on
the batch. It is that of planting: everything after the site is recomputed.

Sharp edges: the function must return logits [B, T, V]; one that ends at a site (`LanguageModel.truncate_at`) has none.
The gradient at the last position of a context is zero, because no prediction that counts depends on it. Lengths of
gradients vary a hundredfold between tokens, so they have no maximum (`scales`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from mechjax import harvest, sites
from mechjax.errors import SAEError
from mechjax.logits import log_probs, next_token_loss

PREFIX = 'grad:'


def is_gradient(site: str) -> bool:
  """Whether a name stands for the gradient at a site."""
  return site.startswith(PREFIX)


def read_with_gradients(
  forward: Callable[[Any, jax.Array], jax.Array],
  wanted: Iterable[str],
  params: Any,
  tokens: jax.Array,
) -> dict[str, jax.Array]:
  """Activations and gradients of a batch, by name.

  Args:
    forward: (params, tokens) -> logits, with sows.
    wanted: names of sites, some with `PREFIX`.
    params: parameters of the model.
    tokens: int [B, T].

  Raises:
    SAEError: the function does not return logits.
    SiteError: a site is not in the model.
  """
  plain = {name: sites.parse(name.removeprefix(PREFIX)) for name in wanted}

  def loss(params: Any, tokens: jax.Array) -> jax.Array:
    logits = forward(params, tokens)
    shape = jnp.shape(logits)
    if (
      len(shape) != 3
      or shape[:2] != tokens.shape
      or not jnp.issubdtype(jnp.result_type(logits), jnp.floating)
    ):
      raise SAEError(
        f'a result of shape {shape} where logits are expected, for tokens of shape {tokens.shape}',
        cause='gradients need the loss of the whole model',
        hint='Harvester(model.apply, ...)',
      )
    return jnp.sum(next_token_loss(log_probs(logits[:, :-1]), tokens[:, 1:]))

  differentiated = {site for name, site in plain.items() if is_gradient(name)}
  both = harvest.value_and_grad_at(loss, sites=sorted(map(str, differentiated)))
  _, values, gradients = both(params, tokens)
  others = {site for site in plain.values() if site not in differentiated}
  rest = harvest.reap(forward, sites=sorted(map(str, others)))(params, tokens) if others else values
  found = {}
  for name, site in plain.items():
    source = gradients if is_gradient(name) else values if site in differentiated else rest
    found[name] = source[site]
  return found
