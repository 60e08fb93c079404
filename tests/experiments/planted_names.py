"""A decoder with planted heads that answers with a name, and settings of the experiment on yardsticks."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.yardsticks.settings import Settings
from mechjax.models import ours
from mechjax.models.language_model import LanguageModel
from tests.experiments import planted_induction as planted

SITE = 'resid_post.1'


def make_model():
  """The planted decoder with another pair of heads: the logit of the name that occurs once is raised by 4.

  Head 2 of layer 1 raises the logit of every name by 4 for each time that it occurs, and head 3 lowers that of the
  name after a comma by 8. Both act at the word ' to', so that the stream there is a sum over the two names.
  """
  tree, at = planted.make_params(), planted.WORDS.index
  attn, names = tree['layers']['attn'], np.arange(1, 1 + len(planted.NAMES))
  attn['o'][1, 2, names, 2 * planted.V + names] += 18
  attn['q'][1, at('to'), 3, 6] += 40
  attn['k'][1, :, 1, 6] = 0
  attn['k'][1, planted.V + at(','), 1, 6] = 1
  attn['o'][1, 3, names, 2 * planted.V + names] -= 8
  forward = ours.forward(jax.tree.map(jnp.asarray, tree), planted.CONFIG)
  return LanguageModel('planted', forward, planted.TOKENIZER)


MODEL = make_model()


def make_settings(out, dictionary=None, **changes):
  given = {
    'model': 'planted', 'dictionaries': (dictionary,) if dictionary else (), 'site': SITE, 'names': 7, 'prompts': 80,
    'ks': (1, 2), 'active': 4, 'words': 10, 'min_words': 8, 'splits': 2, 'parts': ('ioi', 'categories'),
    'toy_features': 4, 'toy_width': 3, 'toy_density': (0.3,), 'toy_latents': (5,), 'toy_sparsity': (0.1, 0.4),
    'toy_instances': 2, 'toy_steps': 40, 'batch': 16, 'out': str(out),
  }  # fmt: skip
  return Settings(**(given | changes))
