"""Reading and writing what is tagged inside a JAX program.

A model is a function, and a function hides its intermediate values. `sow` tags them without changing the
function; a harvest then turns `f(x)` into a function that also returns the tagged values (`reap`), or that
uses others in their place (`plant`), or both. Because the result is again a plain JAX function, everything
JAX does still works around it: jit it, differentiate it, vmap it, shard it.

    def model(x):
      for i, w in enumerate(weights):
        with sites.layer(i):
          x = x + harvest.sow(jnp.tanh(x @ w), name='mlp_out')
      return x

    acts = harvest.reap(model, sites='mlp_out.{0,2}')(x)         acts['mlp_out.2']
    y = harvest.plant(model)({'mlp_out.1': jnp.zeros_like(x)}, x)

How it works. The machine room is `mechjax.programs`: the function is staged to a jaxpr with the tags in it, and staged
again when something that it reads has changed (`mechjax.watching`); the jaxpr is walked so that every tag is known by
name, layer, shape and source line. Here the request is resolved against that list (`selecting`, `reads`, `writes`,
`plans`), and the jaxpr is evaluated again by ONE interpreter that does something at the tags and nothing anywhere else.
`gradients` and `subgraph` are clients of the same machinery. The semantics of tags, modes and names are those of Oryx
(oryx.core.interpreters.harvest), whose last release cannot run on current JAX.

Sharp edges.
  - The derivative goes outside: jax.grad(plant(f)), jax.grad(call_and_reap(f), has_aux=True). A harvest
    outside a derivative sees what JAX left of it; what was removed as dead code is an error.
  - Under vmap a sown value that does not depend on the mapped argument has no batch axis.
  - A changed value inside a jax.custom_jvp or custom_vjp function makes its custom rule void.
  - Sows in the rules of a custom_vjp are seen only where the derivative is taken inside the harvest. What
    the rule of a custom_jvp alone sows is read as a constant of the rule: its own tangent is zero.
  - jax.lax.map(batch_size=n) is a scan over the full batches, whose iterations are the layers; a rest is
    computed outside of it and is the site without a layer: acts[sites.Site(name)].
"""

from mechjax.harvest.absence import absent
from mechjax.harvest.activations import Activations
from mechjax.harvest.api import call_and_reap, harvest, plant, reap
from mechjax.harvest.gradients import value_and_grad_at
from mechjax.harvest.listing import SiteInfo, sites_of
from mechjax.harvest.oryx import install_as_oryx
from mechjax.harvest.subgraph import Subgraph, subgraph
from mechjax.harvest.writes import At, Masked
from mechjax.programs.tag import TAG, nest, sow, sow_cond, sow_p

__all__ = [
  'TAG',
  'Activations',
  'At',
  'Masked',
  'SiteInfo',
  'Subgraph',
  'absent',
  'call_and_reap',
  'harvest',
  'install_as_oryx',
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
