"""A dictionary whose latents are tokens of the planted model, and a provider that understands their explanations."""

import functools
import re
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments.autointerp.settings import Settings
from mechjax import sae
from mechjax.models import ours
from mechjax.models.language_model import LanguageModel
from mechjax.models.tokenizers import Tokenizer
from mechjax.providers import LossRequest, Scripted, TableRequest, TextRequest
from tests.experiments import planted_dictionaries as planted

KNOWN, OTHER = re.compile(r'w([0-9]|[12][0-9])'), 24
MARKED = re.compile(r'(?:\{\{|⟦)(.*?)(?:\}\}|⟧)')
SITE, WIDTH = 'resid_post.0', 6
TOKENS = tuple(range(4, 4 + WIDTH))
"""Token of each latent."""
TINY: dict[str, Any] = {
  'model': 'planted', 'context': 16, 'tokens': 4000, 'rows': 16, 'window': 8, 'latents': 4, 'min_contexts': 20,
  'shown': 6, 'shown_inactive': 3, 'active': 6, 'inactive': 6, 'hard': 3, 'simulated': 4, 'rounds': 3,
  'simulator': 'planted',
}  # fmt: skip


@functools.cache
def model(name='planted'):
  """The planted model, whose tokenizer reads any word: those of the vocabulary as they are, others as one token."""
  tokenizer = Tokenizer(
    lambda text: [int(word[1:]) if KNOWN.fullmatch(word) else OTHER for word in re.findall(r'\w+', text)],
    lambda ids: ''.join(f' w{i}' for i in ids), planted.V, planted.BOS, planted.EOS,
  )  # fmt: skip
  return LanguageModel(name, ours.forward(planted.planted_params(), planted.CONFIG), tokenizer)


def write_home(place):
  """Fills a directory with a text and the dictionary."""
  ids = np.random.default_rng(0).integers(4, planted.FIRST_OTHER, 6000)
  (place / 'text.txt').write_text(' '.join(f'w{i}' for i in ids))
  x = planted.embeddings()[4 : planted.FIRST_OTHER]
  readers = np.linalg.pinv(x)[:, np.array(TOKENS) - 4]
  z = x @ readers
  own = z[np.array(TOKENS) - 4, np.arange(WIDTH)]
  others = np.array([np.delete(z[:, i], t - 4).max() for i, t in enumerate(TOKENS)])
  assert (own > others + 0.1).all()
  rows = readers.T / np.linalg.norm(readers.T, axis=1, keepdims=True)
  arrays = {
    'W_enc': readers,
    'W_dec': rows,
    'b_enc': -(own + others) / 2,
    'b_dec': np.zeros(x.shape[1]),
  }
  params = {name: jnp.asarray(a, jnp.float32) for name, a in arrays.items()}
  one = sae.ReLU(d_in=x.shape[1], width=WIDTH, sparsity=0.0)
  about = {'model_name': 'planted', 'hook_name': SITE}
  sae.save(place / 'dictionary', one, params, format='sae_lens', about=about)
  return place


def make_settings(home, out, **changes):
  given = {'dictionary': str(home / 'dictionary'), 'text': str(home / 'text.txt'), 'out': str(out)}
  return Settings(**TINY | given | changes)


def answer(request):
  """Explains by the marked token, and takes an explanation for the token that it names."""
  last = (
    request.messages[-1].content
    if request.messages[-1].role == 'user'
    else request.messages[-2].content
  )
  if isinstance(request, TextRequest):
    (word,) = {*re.findall(r'w\d+', ' '.join(MARKED.findall(last)))}
    return f'[EXPLANATION]: the token {word}'
  (word, *_) = re.findall(r'w\d+|any text', last.partition('\n')[0])
  if isinstance(request, TableRequest):
    active = [bool(re.search(rf'\b{word}\b', piece)) for piece in request.pieces]
    return np.where(np.array(active)[:, None], np.eye(10)[9], np.eye(10)[0]) * 0.9
  if isinstance(request, LossRequest):
    return 1.0 if re.search(rf'\b{word}\b', request.text) else 2.0
  if len(request.answers) == 5:
    return [0.2] * 5
  ((_, marks, text),) = re.findall(r'\A(Pattern:.*)\n(?:(Marks:.*)\n)?(Text:.*)', last)
  seen = re.findall(r'w\d+', ' '.join(MARKED.findall(text)) if marks else text)
  return [0.8, 0.1] if word in seen else [0.1, 0.8]


class Counted:
  """A provider of a function, with the requests that it was asked, and an interruption after some of them.

  All have one identity, as a model has that fails at times, so that they share the file of replies.
  """

  def __init__(self, function=answer, stop_after=None):
    self.function, self.stop_after, self.asked = function, stop_after, []

  def _call(self, request):
    if self.stop_after is not None and len(self.asked) >= self.stop_after:
      raise KeyboardInterrupt
    self.asked.append(request)
    return self.function(request)

  def make(self, model):
    """The provider in place of `Local`."""
    return Scripted(self._call, identity='scripted')
