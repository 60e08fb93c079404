"""Sites that the name of a hook can mean, in the notations in which publishers of dictionaries write it.

    possible_sites('blocks.5.hook_resid_post')          {resid_post.5}                TransformerLens
    possible_sites('resid_post_layer_5')                {resid_post.5}                dictionary-learning
    possible_sites('model.layers.5.output')             {resid_post.5}                Gemma Scope 2
    possible_sites('layers.5.mlp')                      {mlp_norm.5, mlp_raw.5, mlp_out.5}        sparsify

A module of PyTorch has an input and an output, and its name alone does not state which of them a dictionary reads. A
name therefore has a set of possible sites, and it contradicts a given site only if none of them is that site.

Sharp edges: an empty set means that the name is not understood, and contradicts nothing. `resid_pre.l` and
`resid_post.(l - 1)` are the same value, and are equal here. Names of norms differ between model families (the
`post_attention_layernorm` of Llama is before the MLP, that of Gemma after the attention): both sites are possible.
"""

from __future__ import annotations

import re

from mechjax import sites
from mechjax.errors import SiteError

_LAYER = re.compile(
  r'(?:(?:model|transformer|gpt_neox|language_model)\.)*(?:layers|h)\.(\d+)(?:\.(.+?))??(\.input|\.output)?'
)
_LEARNED = re.compile(r'([a-z_]+)_layer_(\d+)')
_ALIASES = {'attention_out': 'attn_out'}
_ATTENTION, _MLP = ('attn_raw', 'attn_out'), ('mlp_raw', 'mlp_out')
# Sites of the input and of the output of a module of a layer; '' is the layer itself.
_MODULES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
  '': (('resid_pre',), ('resid_post',)),
  'input_layernorm': (('resid_pre',), ('attn_norm',)),
  **dict.fromkeys(('self_attn', 'attn', 'attention'), (('attn_norm',), _ATTENTION)),
  **dict.fromkeys(
    ('self_attn.o_proj', 'attn.c_proj', 'attention.dense'), (('z',), _ATTENTION)
  ),
  'post_attention_layernorm': (('resid_mid', 'attn_raw'), ('mlp_norm', 'attn_out')),
  'pre_feedforward_layernorm': (('resid_mid',), ('mlp_norm',)),
  'post_feedforward_layernorm': (('mlp_raw',), ('mlp_out',)),
  'mlp': (('mlp_norm',), _MLP),
  **dict.fromkeys(
    ('mlp.down_proj', 'mlp.c_proj', 'mlp.dense_4h_to_h'), (('mlp_post',), _MLP)
  ),
}  # fmt: skip
_TOP = {'embed_tokens': 'embed', 'model.embed_tokens': 'embed'}


def possible_sites(hook: str) -> frozenset[sites.Site]:
  """Sites that a hook can mean; empty if its name is not understood.

  Args:
    hook: its name, as a publisher writes it.
  """
  if found := _LAYER.fullmatch(hook):
    return frozenset(map(_merge_neighbours, _sites_of_module(*found.groups())))
  if hook.removesuffix('.output') in _TOP:
    return frozenset({sites.Site(_TOP[hook.removesuffix('.output')])})
  if found := _LEARNED.fullmatch(hook):
    name = _ALIASES.get(found[1], found[1])
    hook = f'{name}.{found[2]}' if name in sites.CANONICAL else hook
  try:
    return frozenset({_merge_neighbours(sites.parse(hook))})
  except SiteError:
    return frozenset()


def is_other_site(given: sites.Site, hook: str) -> bool:
  """Whether a hook certainly names another site than the given one; a name without its layer is not certain."""
  wanted = _merge_neighbours(given)
  found = possible_sites(hook)
  return bool(found) and all(_is_other(wanted, one) for one in found)


def suggest(hook: str) -> str:
  """The site that a hook names, as text; the hook itself if several are possible, or none is known."""
  found = possible_sites(hook)
  return f'{next(iter(found))}' if len(found) == 1 else hook


def _is_other(wanted: sites.Site, found: sites.Site) -> bool:
  if found.name not in {*sites.CANONICAL, wanted.name}:
    return False
  return found != wanted and (found.name != wanted.name or len(found.path) == len(wanted.path))


def _sites_of_module(layer: str, module: str | None, end: str | None) -> list[sites.Site]:
  read, written = _MODULES.get(module or '', ((), ()))
  names = {'.input': read, '.output': written}.get(end or '', (*read, *written))
  return [sites.Site(name, (int(layer),)) for name in names]


def _merge_neighbours(site: sites.Site) -> sites.Site:
  """The same site; the output of the layer before in place of the input of a layer, which is the same value."""
  if site.name == 'resid_pre' and len(site.path) == 1 and site.path[0] > 0:
    return sites.Site('resid_post', (site.path[0] - 1,))
  return site
