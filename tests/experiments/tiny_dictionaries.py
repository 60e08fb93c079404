"""Dictionaries, texts and settings of the studies of dictionaries on the planted model."""

from typing import Any

import jax
import jax.numpy as jnp

from experiments.dictionaries import study, subject
from experiments.dictionaries.settings import Settings
from experiments.saved import Saved
from mechjax import sae
from tests.experiments import planted_dictionaries as planted

D, SITE = planted.D, 'resid_post.0'
TINY: dict[str, Any] = {
  'model': 'planted', 'context': 16, 'layer': 0, 'layers': 2, 'tokens': 4000, 'held_out': 1600, 'evaluated': 640,
  'latents': 24, 'levels': (1, 2), 'k': 2, 'steps': 200, 'batch': 128, 'rate': 5e-3, 'seeds': 2,
  'tuned_tokens': 12_800, 'tuned_rate': 2e-3, 'later': (1,), 'model_steps': 2, 'model_tokens': 2000, 'alpha': 0.0,
  'sparsities': (0.1, 0.4, 1.2),
}  # fmt: skip


def save_dictionary(place, one, params, **about):
  metadata = {'model_name': 'planted', 'hook_name': SITE}
  sae.save(place, one, params, format='mechjax', about=metadata | about)
  return str(place)


def shrinking():
  """A dictionary that returns seven tenths of every activation: its error is linear."""
  both = jnp.concatenate([jnp.eye(D), -jnp.eye(D)])
  one = sae.ReLU(d_in=D, width=2 * D, sparsity=0.0)
  zeros = one.init(jax.random.key(0))
  params = {name: jnp.zeros_like(x) for name, x in zeros.items()}
  return one, params | {'W_enc': both.T, 'W_dec': 0.7 * both}


def write_home(place):
  """Fills a directory with two texts and a dictionary."""
  planted.write_text(place / 'text.txt', 4, planted.FIRST_OTHER, 9000, 0)
  planted.write_text(place / 'other.txt', 14, planted.V, 4000, 1)
  save_dictionary(place / 'shrinking', *shrinking())
  return place


def make_settings(home, out, **changes):
  texts = {'text': str(home / 'text.txt'), 'other_text': str(home / 'other.txt')}
  return Settings(**TINY | texts | {'out': str(out)} | changes)


def make_study(settings, out):
  out.mkdir(exist_ok=True)
  return study.Study(
    settings, subject.prepare(settings, planted.model()), Saved(out, lambda name: None)
  )
