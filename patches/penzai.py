"""penzai 0.2.5: its Llama-like models (Llama, Mistral, Gemma) and GPT-NeoX, as a list or a LayerStack.

A penzai model is data: a tree of small generic layers, most of them chained by `Sequential`. So most
sites are not lines of some block but places in a chain, and the patch adds three calls to the loop of
the chain, `tag_input`, `tag_output` and `tag_chain_output`, which look at the neighbouring layers. The
values read and planted are upstream's NamedArrays, so every value knows its axes: 'seq', 'embedding',
'heads' or 'head_groups' and 'query_heads', 'projection', 'kv_seq', 'neurons'.

    resid_pre, resid_post   input and output of a TransformerBlock
    attn_out, mlp_out       output of a chain with an attention, of a chain with a feed-forward
    z, mlp_pre              output of an einsum before W_O, of a linear layer before the activation
    embed, final_norm       input of the first block, and output of the layer after the last block

GPT-NeoX has no resid_mid, because its halves are parallel, and Gemma 2 has no attn_raw and no mlp_raw, because its
post-norms are layers of the same chains. q carries the factor 1/√H of the scores.
With `KVCachingTransformerLM`, k and v are the values that this call's dot product receives, cached
positions included; a changed k or v is used but not written back.

Sharp edge: a model that was rewired (`pz.select`) has the sites that its chains still show.
"""

from contextlib import nullcontext

from mechjax import harvest, sites
from mechjax.patcher import Patcher, Patchers


def _is(layer, *names):
  """Whether a class of the layer has one of these names; patches do not import upstream packages."""
  return any(cls.__name__ in names for cls in type(layer).__mro__)


def _is_attention(layer):
  return _is(layer, 'Attention', 'KVCachingAttention')


def _is_linear(layer):
  return _is(layer, 'Linear', 'Affine')


def _is_stream(layer):
  return _is(layer, 'TransformerBlock', 'LayerStack')


def _neighbours(chain, i):
  """The layers before and after the i-th layer of a chain; None at its ends."""
  layers = chain.sublayers
  return (layers[i - 1] if i else None), (layers[i + 1] if i + 1 < len(layers) else None)


def number_layer(chain, i):
  """Numbers the i-th layer of a chain if it is a block. In a LayerStack the scan counts."""
  blocks = [j for j, layer in enumerate(chain.sublayers) if _is(layer, 'TransformerBlock')]
  return sites.layer(blocks.index(i)) if i in blocks else nullcontext()


def tag_input(chain, i, value):
  """Tags the input of the i-th layer of a chain."""
  layer, (before, after) = chain.sublayers[i], _neighbours(chain, i)
  if _is(chain, 'TransformerBlock') and before is None:
    return harvest.sow(value, name='resid_pre')
  if _is_attention(layer):
    return harvest.sow(value, name='attn_norm')
  if _is(layer, 'TransformerFeedForward'):
    return harvest.sow(value, name='mlp_norm')
  if _is(layer, 'Elementwise') and _is_linear(before):
    return harvest.sow(value, name='mlp_pre')
  if _is(chain, 'TransformerFeedForward') and after is None:
    return harvest.sow(value, name='mlp_post')
  return value


def tag_output(chain, i, value):
  """Tags the output of the i-th layer of a chain."""
  layer, (before, after) = chain.sublayers[i], _neighbours(chain, i)
  if _is(layer, 'NamedEinsum') and _is_linear(after):
    return harvest.sow(value, name='z')
  if _is_stream(after) and not _is_stream(layer):
    return harvest.sow(value, name='embed')
  if _is_stream(before) and not _is_stream(layer):
    return harvest.sow(value, name='final_norm')
  return value


def tag_chain_output(chain, value):
  """Tags the output of a chain."""
  if _is(chain, 'TransformerBlock'):
    return harvest.sow(value, name='resid_post')
  if any(_is_attention(layer) for layer in chain.sublayers):
    return harvest.sow(value, name='attn_out')
  if any(_is(layer, 'TransformerFeedForward') for layer in chain.sublayers):
    return harvest.sow(value, name='mlp_out')
  return value


def tag_between_halves(residual, value):
  """Tags the residual stream after the half of a block that holds the attention."""
  if any(_is_attention(layer) for layer in getattr(residual.delta, 'sublayers', ())):
    return harvest.sow(value, name='resid_mid')
  return value


def tag_scores(axes, value):
  """Tags the input of a softmax over keys."""
  return harvest.sow(value, name='attn_scores') if axes == 'kv_seq' else value


NAMES = {
  'harvest': harvest,
  'number_layer': number_layer,
  'tag_input': tag_input,
  'tag_output': tag_output,
  'tag_chain_output': tag_chain_output,
  'tag_between_halves': tag_between_halves,
  'tag_scores': tag_scores,
}

_CHAIN = [
  (
    'value = layer(value, **side_inputs)',
    """
    with number_layer(self, i):
      value = tag_output(self, i, layer(tag_input(self, i, value), **side_inputs))
    """,
  ),
  ('return value', 'return tag_chain_output(self, value)'),
]


def _attention(key, value):
  """Rules of an attention whose keys and values have these names."""
  attn = f'attn = self.query_key_to_attn((query, {key}), **side_inputs)'
  return [
    (
      attn,
      f"""
      query = harvest.sow(query, name='q')
      {key} = harvest.sow({key}, name='k')
      {value} = harvest.sow({value}, name='v')
      {attn.replace('attn =', 'attn = harvest.sow(')}, name='attn_probs')
      """,
    )
  ]


def _patcher(module, members):
  return Patcher(f'penzai.{module}', members, checked=('penzai', ['0.2.5']), names=NAMES)


PATCHER = Patchers(
  _patcher('nn.grouping', {'Sequential.__call__': _CHAIN, 'NamedGroup.__call__': _CHAIN}),
  _patcher(
    'nn.combinators',
    {
      'Residual.__call__': [
        ('return delta_value + value', 'return tag_between_halves(self, delta_value + value)')
      ]
    },
  ),
  _patcher(
    'nn.attention',
    {
      'Attention.__call__': _attention('key', 'value'),
      'KVCachingAttention.__call__': _attention('new_key_cache', 'new_value_cache'),
    },
  ),
  _patcher(
    'nn.basic_ops',
    {'Softmax.__call__': [('inputs.untag($$axes)', 'tag_scores(self.axes, inputs).untag($$axes)')]},
  ),
  _patcher(
    'models.transformer.model_parts',
    {
      'TransformerLM.__call__': [
        ('self.body($$inputs)', "harvest.sow(self.body($$inputs), name='logits')")
      ]
    },
  ),
  _patcher(
    'models.transformer.sampling_mode',
    {
      'KVCachingTransformerLM.__call__': [
        ('self.body($$inputs)', "harvest.sow(self.body($$inputs), name='logits')")
      ]
    },
  ),
)
