"""The result of loading a changed file, and the one list of changes that cannot be detected.

Undetectable changes are:
  - a number of a weight, if the file has no checksum (GGUF, safetensors), or if the checksum was computed again;
  - a setting without a trace in a tensor (epsilon, rotary base, window, cap, flag), replaced by another value of its
    type that some model could have, or left out if the format has a default;
  - a tensor declared as another kind of the same size (F16, BF16), or one that has exchanged its name with another of
    its shape;
  - a token, score, kind of token, merge or special token replaced by another valid one.
"""

import dataclasses
import math
from typing import Any

from mechjax.models.config import Config
from mechjax.sae import TopK

# Fields of a Config that shapes of tensors do not determine.
FREE = {
  'norm_eps', 'rope_base', 'rope_local_base', 'rope_scale', 'rope_scaling', 'rope_fraction', 'activation',
  'attn_softcap', 'logit_softcap', 'window', 'local', 'query_scale', 'tied',
}  # fmt: skip

# Fields that are whole numbers or flags, of decoders and of dictionaries.
PLAIN = {
  field.name: {'int': int, 'bool': bool}[field.type]
  for described in (Config, TopK)
  for field in dataclasses.fields(described)
  if field.type in ('int', 'bool')
}


@dataclasses.dataclass(frozen=True)
class Change:
  """One change of a file.

  Attributes:
    what: in words, for the report.
    plausible: it makes a file that an honest writer could have written of another model.
    weights: it may have touched the numbers of weights, or what they are stored as.
  """

  what: str
  plausible: bool = False
  weights: bool = False


@dataclasses.dataclass(frozen=True)
class Seen:
  """A loaded model: everything that decides the result of its computation.

  Attributes:
    config: fields of its description.
    weights: name to dtype, shape and a digest of the numbers.
    tokens: ids of some texts, texts of ids, special ids.
  """

  config: dict[str, Any]
  weights: dict[str, Any]
  tokens: tuple[Any, ...] = ()


def verdict(change: Change, right: Seen, found: Seen) -> str:
  """'equal', 'undetectable', or what is wrong."""
  if odd := insane(found):
    return f'accepted {odd}'
  if found == right:
    return 'equal'
  fields = {k for k in right.config if right.config[k] != found.config.get(k)}
  if not fields <= FREE:
    return f'accepted with other {sorted(fields - FREE)}'
  if found.weights != right.weights and not change.weights:
    return 'accepted with other weights'
  if change.plausible or change.weights or fields or found.tokens != right.tokens:
    return 'undetectable'
  return 'equal'


def insane(found: Seen) -> str:
  """A value that no model can have, whatever its cause."""
  for name, value in found.config.items():
    if isinstance(value, float) and not math.isfinite(value):
      return f'{name}={value}'
    if name in PLAIN and type(value) is not PLAIN[name]:
      return f'{name}={value!r}'
  return ''
