"""Contexts, effects and statistics of features, in the JSON that Neuronpedia and circuit-tracer's front end read.

    found = features.collect(...)                                                of the dictionary of layer 3
    write_latents(found, 'graphs', scan='gemma-3-270m-skip', layer=3, pieces=pieces, transcoder='ours/skip')
    read_latents('graphs', 'gemma-3-270m-skip')[3, 17]                           one record, as it was written

The files are `features/{scan}/{number}.json` next to the graphs with that `scan`. The number is Cantor's of layer and
latent, as in the nodes of a graph.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mechjax import files
from mechjax.circuits.graph_data import read_json
from mechjax.circuits.neuronpedia import check_name, pair
from mechjax.decomposition.array_checks import check_count
from mechjax.errors import CircuitError
from mechjax.sae.features import Features
from mechjax.sae.features.record import EDGES, Examples


def write_latents(
  features: Features,
  directory: str | os.PathLike,
  *,
  scan: str,
  layer: int,
  pieces: Sequence[str],
  transcoder: str,
  latents: Iterable[int] | None = None,
) -> list[Path]:
  """Writes a file for each latent.

  Args:
    features: from `mechjax.sae.features.collect`.
    directory: that of the graphs, which is made if it does not exist.
    scan: as in `neuronpedia.write_graph`.
    layer: layer of the dictionary.
    pieces: the text of each token of the vocabulary.
    transcoder: name of the dictionary.
    latents: numbers of the latents; None for all that were looked at.

  Raises:
    CircuitError: a scan that is not a name, a negative layer, or as in `describe_latent`; nothing is written then.
    SAEError: a latent that was not looked at.
  """
  chosen = features.latents if latents is None else latents
  records = {
    int(i): describe_latent(features, int(i), pieces, transcoder=transcoder) for i in chosen
  }
  return write_records(records, directory, scan=scan, layer=layer)


def write_records(
  records: Mapping[int, Mapping[str, Any]],
  directory: str | os.PathLike,
  *,
  scan: str,
  layer: int,
) -> list[Path]:
  """Writes a file for each record, which may have more fields than those of `describe_latent`.

  Args:
    records: records by latent.
    directory, scan, layer: as in `write_latents`.

  Raises:
    CircuitError: a scan that is not a name, or a negative layer; nothing is written then.
  """
  check_name('scan', scan)
  if layer < 0:
    raise CircuitError(f'layer={layer}', hint='layers count from 0')
  home = Path(directory) / 'features' / scan
  home.mkdir(parents=True, exist_ok=True)
  paths = [home / f'{pair(layer, latent)}.json' for latent in records]
  for path, record in zip(paths, records.values()):
    files.write_json(path, record)
  return paths


def read_latents(directory: str | os.PathLike, scan: str) -> dict[tuple[int, int], dict[str, Any]]:
  """Records of all files of a directory, keyed by layer and latent.

  Raises:
    CircuitError: no such directory, a file of another name, a file that is not such a record, or whose latent is not
      the one that it is named after.
  """
  check_name('scan', scan)
  home = Path(directory) / 'features' / scan
  paths = sorted(home.glob('*.json'))
  if not paths:
    raise CircuitError(f'{home} has no JSON files of features')
  found = {}
  for path in paths:
    if not (path.stem.isascii() and path.stem.isdecimal()):
      raise CircuitError(f'{path} is not named by the number of a feature')
    layer, latent = unpair(int(path.stem))
    record = check_record(read_json(path), str(path))
    if record['index'] != latent:
      raise CircuitError(
        f'{path} holds latent {record["index"]}',
        cause=f'the number {path.stem} is that of latent {latent} of layer {layer}',
      )
    found[layer, latent] = record
  return found


def unpair(number: int) -> tuple[int, int]:
  """Layer and latent of Cantor's number; the inverse of `neuronpedia.pair`.

  Raises:
    CircuitError: a number below 0.
  """
  number = check_count('number', number, 0)
  total = (math.isqrt(8 * number + 1) - 1) // 2
  latent = number - total * (total + 1) // 2
  return total - latent, latent


def describe_latent(
  features: Features, latent: int, pieces: Sequence[str], *, transcoder: str
) -> dict[str, Any]:
  """The JSON of a feature that stands next to a graph.

  Args:
    features: from `mechjax.sae.features.collect`.
    latent: number of a latent among them.
    pieces: the text of each token of the vocabulary.
    transcoder: name of the dictionary.

  Raises:
    CircuitError: a token without a text.
    SAEError: a latent that was not looked at.
  """
  row = features.find_row(latent)
  levels = [
    ('Top activations', _examples(features.top, row, features.top.found[row], pieces)),
    *(
      (f'Level {level}', _examples(features.drawn, row, features.level[row] == level, pieces))
      for level in range(features.n_levels)
    ),
  ]
  shares = [0.0, 0.25, 0.5, 0.75, 1.0]
  quantiles = np.nan_to_num(features.quantiles(shares))[row]
  (filled,) = np.nonzero(features.histogram[row])
  return {
    'transcoder_id': transcoder,
    'index': int(latent),
    'examples_quantiles': [
      {'quantile_name': name, 'examples': examples} for name, examples in levels if examples
    ],
    'top_logits': [_piece(pieces, i) for i in features.promoted.ids[row]],
    'bottom_logits': [_piece(pieces, i) for i in features.suppressed.ids[row]],
    'act_min': float(EDGES[filled[0]]) if filled.size else 0.0,
    'act_max': float(features.maximum[row]),
    'quantile_values': quantiles.tolist(),
    'histogram': features.histogram[row].tolist(),
    'activation_frequency': float(features.density[row]),
  }


def check_record(content: Any, where: str = 'the record') -> dict[str, Any]:
  """A record of a feature, checked.

  Args:
    content: the parsed JSON.
    where: name of its file in messages.

  Raises:
    CircuitError: a field that is missing or of another type; a context whose tokens and activations differ in number.
  """
  if not isinstance(content, dict):
    raise CircuitError(f'{where} holds {type(content).__name__}, not the record of a feature')
  kinds = {'index': int, 'examples_quantiles': list, 'top_logits': list, 'bottom_logits': list}
  for name, kind in kinds.items():
    if not isinstance(content.get(name), kind) or isinstance(content[name], bool):
      raise CircuitError(f'{where} has {name}={content.get(name)!r}, not {kind.__name__}')
  for group in content['examples_quantiles']:
    _check_examples(group, where)
  return content


# --- contexts --------------------------------------------------------------------------------------------------


def _check_examples(group: Any, where: str) -> None:
  if not isinstance(group, Mapping) or not isinstance(group.get('examples'), list):
    raise CircuitError(f'{where} has a group of contexts without a list of examples')
  for n, example in enumerate(group['examples']):
    try:
      lists = [example[name] for name in ('tokens', 'tokens_acts_list')]
      if not all(isinstance(part, list) for part in lists):
        raise TypeError(f'{lists!r:.100} are not lists')
      sizes = len(lists[0]), len(lists[1])
      own = int(example['train_token_ind'])
    except (KeyError, TypeError, ValueError) as e:
      raise CircuitError(
        f'{where} has a context without tokens, activations or its own token',
        where=f'{group.get("quantile_name")}, example {n}',
        cause=f'{type(e).__name__}: {e}',
      ) from e
    if sizes[0] != sizes[1] or not 0 <= own < sizes[0]:
      raise CircuitError(
        f'{where} has a context of {sizes[0]} tokens, {sizes[1]} activations and the own token {own}',
        where=f'{group.get("quantile_name")}, example {n}',
      )


def _examples(
  examples: Examples, row: int, chosen: np.ndarray, pieces: Sequence[str]
) -> list[dict[str, Any]]:
  found = []
  for n in np.flatnonzero(chosen & examples.found[row]):
    tokens = examples.tokens[row, n]
    there = np.flatnonzero(tokens >= 0)
    found.append({
      'tokens': [_piece(pieces, tokens[i]) for i in there],
      'tokens_acts_list': [float(x) for x in examples.activations[row, n, there]],
      'train_token_ind': int(np.searchsorted(there, examples.own)),
      'is_repeated_datapoint': False,
    })  # fmt: skip
  return found


def _piece(pieces: Sequence[str], token: int) -> str:
  if not 0 <= token < len(pieces):
    raise CircuitError(
      f'token {int(token)} has no text among {len(pieces)}',
      cause='the texts come from another tokenizer',
    )
  return pieces[int(token)]
