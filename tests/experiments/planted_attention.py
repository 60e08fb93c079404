"""Dictionaries, a text and settings of the study of attention dictionaries on the decoder with planted heads."""

import numpy as np

from experiments.attention_sae.settings import Settings
from mechjax import sae
from tests.experiments import planted_induction as planted


def write_dictionaries(home):
  """Two dictionaries on disk: one that names its site, and one that does not."""
  one, params = planted.make_dictionary()
  about = {'model_name': 'planted', 'hook_name': 'z.1'}
  sae.save(home / 'a', one, params, format='sae_lens', about=about)
  topk = sae.TopK(d_in=one.d_in, width=one.width, k=4)
  sae.save(home / 'b', topk, params, format='mechjax')
  return str(home / 'a'), str(home / 'b')


def write_text(path):
  random = np.random.default_rng(0)
  path.write_text(' '.join(random.choice(planted.WORDS[1:], 900)))
  return str(path)


def make_settings(text, places, out, **changes):
  given = {
    'model': 'planted', 'text': text, 'dictionaries': (places[0], f'z.0={places[1]}'), 'tokens': 500, 'context': 16,
    'top': 3, 'peaks': 10, 'min_peaks': 2, 'shuffles': 60, 'sequences': 12, 'half': 9, 'induction': 1, 'prefixes': 3,
    'prefix_texts': 10, 'prefix_length': 14, 'prompts': 6, 'preface': 'Long day.', 'rows': 4, 'batch': 4, 'pairs': 8,
    'out': str(out),
  }  # fmt: skip
  return Settings(**(given | changes))
