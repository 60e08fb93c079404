"""TransformerLens's names select the values that they have in TransformerLens, and others are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechjax import harvest, sites
from mechjax.errors import SiteError
from mechjax.models import decoder
from mechjax.models.config import Config
from tests.truth import hooked

pytestmark = pytest.mark.truth

D, N, H, F, V, L, T = 24, 3, 8, 40, 31, 2, 7
SIZES = {'n_layers': L, 'd_model': D, 'n_heads': N, 'd_head': H, 'd_mlp': F}
LEARNED = Config(
  **SIZES, n_kv_heads=N, n_vocab=V, n_positions=16, norm='layer', positions='learned', activation='gelu', gated=False,
  qkv_bias=True, o_bias=True, mlp_bias=True, unembed_bias=True,
)  # fmt: skip
ROTARY = Config(**SIZES, n_kv_heads=N, n_vocab=V, norm='rms', qkv_bias=True, o_bias=True)
REFUSED = [
  'hook_embed',
  'blocks.0.ln1.hook_normalized',
  'blocks.1.ln2.hook_normalized',
  'ln_final.hook_normalized',
]


def theirs(config, params):
  """The same model in TransformerLens."""
  from transformer_lens import HookedTransformer, HookedTransformerConfig

  model = HookedTransformer(HookedTransformerConfig(**hooked.settings(config)))
  hooked.load(model, hooked.renamed(config, params))
  return model


def scattered(config):
  """Parameters that all differ from their initial values: gains, biases."""
  params = decoder.init(jax.random.key(0), config)
  leaves, tree = jax.tree.flatten(params)
  r = np.random.default_rng(0)
  noise = [0.2 * r.standard_normal(x.shape).astype(np.float32) for x in leaves]
  return jax.tree.unflatten(tree, [x + n for x, n in zip(leaves, noise)])


@pytest.mark.parametrize('config', [LEARNED, ROTARY], ids=['learned', 'rotary'])
def test_every_name_that_is_taken_has_the_value_of_transformer_lens(config):
  import torch

  params = scattered(config)
  model = theirs(config, params)
  tokens = np.random.default_rng(1).integers(0, V, (2, T))
  with torch.no_grad():
    _, cache = model.run_with_cache(torch.tensor(tokens))
  hooks = []
  for hook in cache:
    try:
      sites.parse(hook)
      hooks.append(hook)
    except SiteError:
      pass
  hooks = [h for h in hooks if h.startswith('blocks.')]
  assert len(hooks) >= 11 * L
  found = harvest.reap(decoder.forward, sites=hooks)(params, jnp.asarray(tokens), config)
  for hook in hooks:
    want, got = cache[hook].numpy(), np.asarray(found[str(sites.parse(hook))])
    seen = np.isfinite(want) & (want > -1e4)  # masked scores are as low as each code likes
    np.testing.assert_allclose(got[seen], want[seen], rtol=1e-4, atol=1e-4, err_msg=hook)
  everything = harvest.reap(decoder.forward)(params, jnp.asarray(tokens), config)
  for hook in REFUSED if config is LEARNED else REFUSED[1:]:
    with pytest.raises(SiteError) as error:
      sites.parse(hook)
    site = error.value.hint.split("'")[1]
    assert np.abs(np.asarray(everything[site]) - cache[hook].numpy()).max() > 0.01, hook
