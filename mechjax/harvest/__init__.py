"""Reading and writing tagged values inside a JAX program.

A model is a function, and a function hides its intermediate values. `sow` tags them without changing the function; a
harvest then turns `f(x)` into a function that also returns the tagged values (`reap`), or that uses others in their
place (`plant`), or both. Because the result is again a plain JAX function, every JAX transformation still applies to
it: jit, grad, vmap, sharding.

    def model(x):
      for i, w in enumerate(weights):
        with sites.layer(i):
          x = x + harvest.sow(jnp.tanh(x @ w), name='mlp_out')
      return x

    acts = harvest.reap(model, sites='mlp_out.{0,2}')(x)         acts['mlp_out.2']
    y = harvest.plant(model)({'mlp_out.1': jnp.zeros_like(x)}, x)

How it works. The machinery is in `mechjax.programs`: the function is staged to a jaxpr with the tags in it, and staged
again when something that it reads has changed (`mechjax.watching`); the jaxpr is walked so that every tag is known by
name, layer, shape and source line. Here the request is resolved against that list (`selecting`, `reads`, `writes`,
`plans`), and the jaxpr is evaluated again by ONE interpreter that acts at the tags and nowhere else. `gradients` and
`subgraph` are clients of the same machinery. The semantics of tags, modes and names are those of Oryx
(oryx.core.interpreters.harvest), whose last release cannot run on current JAX.

Sharp edges.
  - The derivative goes outside: jax.grad(plant(f)), jax.grad(call_and_reap(f), has_aux=True). A harvest
    outside a derivative sees the program that JAX left of it; a tag that was removed as dead code is an error.
  - Under vmap a sown value that does not depend on the mapped argument has no batch axis.
  - A changed value inside a jax.custom_jvp or custom_vjp function voids its custom rule.
  - Sows in the rules of a custom_vjp are seen only if the derivative is taken inside the harvest. A value that only
    the rule of a custom_jvp sows is read as a constant of the rule: its own tangent is zero.
  - jax.lax.map(batch_size=n) is a scan over the full batches, whose iterations are the layers; a remainder is
    computed outside of it and is the site without a layer: acts[sites.Site(name)].
"""

from mechjax.harvest.absence import absent
from mechjax.harvest.activations import Activations
from mechjax.harvest.api import call_and_reap, harvest, plant, reap
from mechjax.harvest.gradients import value_and_grad_at
from mechjax.harvest.listing import SiteInfo, sites_of
from mechjax.harvest.oryx import install_as_oryx
from mechjax.harvest.positioned import Positioned, mask_to_positions
from mechjax.harvest.subgraph import Subgraph, subgraph
from mechjax.harvest.writes import At, Masked
from mechjax.programs.tag import TAG, is_wanted, nest, sow, sow_cond, sow_p

__all__ = [
  'TAG',
  'Activations',
  'At',
  'Masked',
  'Positioned',
  'SiteInfo',
  'Subgraph',
  'absent',
  'call_and_reap',
  'harvest',
  'install_as_oryx',
  'is_wanted',
  'mask_to_positions',
  'nest',
  'plant',
  'reap',
  'sites_of',
  'sow',
  'sow_cond',
  'sow_p',
  'subgraph',
  'value_and_grad_at',
]
