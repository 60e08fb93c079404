"""Names of TransformerLens's hooks, as names of sites.

Most studies of this field name places by these hooks, so `blocks.5.hook_mlp_out` and patterns such as
`blocks.*.attn.hook_z` are accepted wherever a site is. A hook is translated only if it means the value that is tagged
here; one that means another value (before rotary, before the gain of a norm) is an error that states the difference,
because the numbers would be plausible.
"""

from __future__ import annotations

import re

from mechjax.errors import SiteError, nearest

_BLOCK = {
  'hook_resid_pre': 'resid_pre',
  'attn.hook_rot_q': 'q',
  'attn.hook_rot_k': 'k',
  'attn.hook_v': 'v',
  'attn.hook_attn_scores': 'attn_scores',
  'attn.hook_pattern': 'attn_probs',
  'attn.hook_z': 'z',
  'hook_attn_out': 'attn_out',
  'hook_resid_mid': 'resid_mid',
  'mlp.hook_pre': 'mlp_pre',
  'mlp.hook_post': 'mlp_post',
  'hook_mlp_out': 'mlp_out',
  'hook_resid_post': 'resid_post',
}
_WITHOUT_GAIN = (
  'is the value BEFORE the gain (and bias) of the norm in TransformerLens; mechjax tags it after'
)
_BEFORE_ROTARY = 'means the value BEFORE rotary in TransformerLens; mechjax tags it after rotary'
_COPY = 'is in TransformerLens a copy of the residual stream for each head or for the MLP, before the norm'
_SCALE = (
  'is the root mean square that a norm divides by in TransformerLens; mechjax tags its output'
)
# Hooks for a value that is not tagged here: the nearest site of mechjax, and the difference.
_OTHER = {
  'ln1.hook_normalized': ('attn_norm', _WITHOUT_GAIN),
  'ln2.hook_normalized': ('mlp_norm', _WITHOUT_GAIN),
  'ln1.hook_scale': ('attn_norm', _SCALE),
  'ln2.hook_scale': ('mlp_norm', _SCALE),
  'attn.hook_q': ('q', _BEFORE_ROTARY),
  'attn.hook_k': ('k', _BEFORE_ROTARY),
  'attn.hook_result': (
    'z',
    'is what each head adds to the residual stream in TransformerLens; mechjax tags it before W_O',
  ),
  **dict.fromkeys(
    ('hook_attn_in', 'hook_q_input', 'hook_k_input', 'hook_v_input'), ('resid_pre', _COPY)
  ),
  'hook_mlp_in': ('resid_mid', _COPY),
  'mlp.hook_pre_linear': (
    'mlp_pre',
    'is the half of a gated MLP without the activation in TransformerLens; mechjax tags the gate',
  ),
}
_OTHER_TOP = {
  'hook_embed': (
    'embed',
    'is WITHOUT learned positions in TransformerLens; mechjax tags the sum, the same in models without them',
  ),
  'hook_pos_embed': (
    'embed',
    'is the learned positions alone in TransformerLens; mechjax tags their sum with the tokens',
  ),
  'ln_final.hook_normalized': ('final_norm', _WITHOUT_GAIN),
  'ln_final.hook_scale': ('final_norm', _SCALE),
}


def translate(text: str) -> str:
  """Translates the name of a hook, or a pattern of such names, into that of a site; other texts stay as they are.

  Raises:
    SiteError: a hook for a value that is not tagged here, or an unknown hook of a block.
  """
  if text in _OTHER_TOP:
    raise _other_value(text, *_OTHER_TOP[text])
  block = re.fullmatch(r'blocks\.([^.]+|\{[^}]*\})\.(.+)', text)
  if not block:
    return text
  index, hook = block.groups()
  if hook in _BLOCK:
    return f'{_BLOCK[hook]}.{index}'
  if hook in _OTHER:
    name, difference = _OTHER[hook]
    raise _other_value(text, f'{name}.{index}', difference)
  if hook == '*':
    raise SiteError(f'{text!r} is not a site', hint=f"write '*.{index}' for every site of a layer")
  raise SiteError(
    f'{text!r} is not a TransformerLens name that mechjax knows',
    cause=f'nearest: {", ".join(nearest(hook, _BLOCK)) or "none"}',
    hint='use a canonical name, of mechjax.sites.CANONICAL',
  )


def _other_value(hook: str, ours: str, difference: str) -> SiteError:
  return SiteError(
    f'{hook!r} {difference}', hint=f'write {ours!r} if that is the value that you want'
  )
