"""Neuronpedia's JSON of features, with their explanations and scores.

    write_explained(features, 'graphs', explanations, scores, scan='gemma-3-270m-skip', layer=3, pieces=pieces,
                    transcoder='ours/skip', explainer='qwen2.5-coder-0.5b', simulator='qwen2.5-coder-0.5b')

The files are those of `mechjax.circuits.neuronpedia_features`, which its `read_latents` and circuit-tracer's front end
read, with one more field: 'explanations', as Neuronpedia's records of features have it. Names of files are numbers, so
no text of a model is ever a path.

Sharp edges: that format has no place for a control or an undefined score. So only scores of a latent's own explanation
are listed, and its controls are in the 'jsonDetails' of each score; undefined scores, explanations that are missing and
scores without an explanation are left out. `exporting.write_json` keeps everything.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mechjax.autointerp.record import Explanation, Score
from mechjax.circuits.neuronpedia_features import describe_latent, write_records
from mechjax.errors import InterpretationError
from mechjax.sae.features import Features

PREFIX = 'mechjax_'
"""Begins the names of our explainers and scorers, which Neuronpedia does not know."""


def write_explained(
  features: Features,
  directory: str | os.PathLike[str],
  explanations: Iterable[Explanation],
  scores: Iterable[Score],
  *,
  scan: str,
  layer: int,
  pieces: Sequence[str],
  transcoder: str,
  explainer: str,
  simulator: str,
) -> list[Path]:
  """Writes a file for each latent of the features, next to the graphs of a directory.

  Args:
    features: from `mechjax.sae.features.collect`.
    directory: directory of the graphs, which is made if it does not exist.
    explanations: explanations of these latents.
    scores: scores of these latents.
    scan: name of the model, as in `mechjax.circuits.neuronpedia.write_graph`.
    layer: layer of the dictionary.
    pieces: the text of each token of the vocabulary.
    transcoder: name of the dictionary.
    explainer: name of the model that wrote the explanations.
    simulator: name of the model that scored them.

  Returns:
    The paths.

  Raises:
    InterpretationError: an explanation or a score of a latent without features; nothing is written then.
    CircuitError: as for `mechjax.circuits.neuronpedia_features.write_latents`.
  """
  texts, found = [*explanations], [*scores]
  known = {*features.latents.tolist()}
  for latent in [*(one.latent for one in texts), *(one.latent for one in found)]:
    if latent not in known:
      raise InterpretationError(
        f'latent {latent} has no features', cause='features of other latents'
      )
  records = {
    latent: describe_latent(features, latent, pieces, transcoder=transcoder)
    | {'explanations': describe_explanations(latent, texts, found, explainer, simulator)}
    for latent in sorted(known)
  }
  return write_records(records, directory, scan=scan, layer=layer)


def describe_explanations(
  latent: int,
  explanations: Iterable[Explanation],
  scores: Iterable[Score],
  explainer: str,
  simulator: str,
) -> list[dict[str, Any]]:
  """Explanations of one latent as in Neuronpedia's record of a feature.

  Args:
    latent: number of the latent.
    explanations: explanations, also of other latents.
    scores: scores, also of other latents.
    explainer: name of the model that wrote the explanations.
    simulator: name of the model that scored them.
  """
  own = [score for score in scores if score.latent == latent]
  return [
    {
      'index': str(int(latent)),
      'description': one.text,
      'typeName': PREFIX + one.method,
      'explanationModelName': explainer,
      'scores': [
        _describe_score(score, own, simulator)
        for score in own
        if score.method == one.method and score.control == 'own' and not math.isnan(score.value)
      ],
    }
    for one in explanations
    if one.latent == latent and one.text is not None
  ]


def _describe_score(score: Score, others: Sequence[Score], simulator: str) -> dict[str, Any]:
  controls = {
    other.control: float(other.value)
    for other in others
    if other.scorer == score.scorer
    and other.control != 'own'
    and (other.method == score.method or other.control != 'shuffled')
    and math.isfinite(other.value)
  }
  details = {'n': int(score.n), 'n_failed': int(score.n_failed), 'controls': controls}
  return {
    'value': float(score.value),
    'explanationScoreTypeName': PREFIX + score.scorer,
    'explanationScoreModelName': simulator,
    'jsonDetails': json.dumps(details),
  }
