"""Edits of each method, from the same prompts and texts of a concept.

Methods of two kinds are compared, each among themselves. Those of `AT_FIRST` change the first positions of a prompt, as
many as the two prompts of activation addition have, except the token that begins texts: both prompts have it, and it is
an attention sink. Those of `EVERYWHERE` change every position, those of generated tokens included. Each kind has random
directions as a control, with the lengths of the vector of activation addition or of DiffMean.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from experiments.steering.materials import Materials
from mechjax.steering import (
  Add,
  Clamp,
  Edit,
  diff_means,
  difference,
  draw_directions,
  everywhere,
  first,
  of_latents,
  orthonormal_basis,
  reconstruction_difference,
  remove,
  select_pairs,
)
from mechjax.steering.reft import ReftExamples, ReFTr1


def make_edit(method: str, m: Materials) -> Edit:
  """The edit of a method, at coefficient 1."""
  if method in AT_FIRST:
    return Add(m.settings.site, AT_FIRST[method](m), where=first(m.n_positions))
  return EVERYWHERE[method](m)


def pair_vector(m: Materials) -> np.ndarray:
  """Vector of activation addition, [T, D]."""
  return difference(*m.acts)


def projected_vector(m: Materials) -> np.ndarray:
  """The same without the directions of the latents that are strongest at padding."""
  one, params = m.autoencoder
  largest = np.zeros(one.width)
  for acts in m.acts:
    f = np.asarray(one.encode(params, jnp.asarray(acts)))
    largest = np.maximum(largest, f[m.padding].max(0, initial=0))
  latents = np.argsort(-largest, kind='stable')[: m.settings.padding_latents]
  basis = orthonormal_basis(np.asarray(params['W_dec'])[latents])
  return np.asarray(remove(jnp.asarray(pair_vector(m)), basis))


def _random_rows(m: Materials) -> np.ndarray:
  """Random directions with the length of the vector of activation addition at each position."""
  vector, random = pair_vector(m), np.random.default_rng(m.settings.seed)
  drawn = random.standard_normal(vector.shape)
  lengths = np.linalg.norm(vector, axis=1, keepdims=True)
  return drawn / np.linalg.norm(drawn, axis=1, keepdims=True) * lengths


def choose_latent(m: Materials) -> int:
  """The latent whose mean activation differs most between texts with the concept and texts without it."""
  one, params = m.autoencoder
  means = []
  for texts in (m.concept.positive, m.concept.negative):
    acts, counted = m.texts(texts)
    means.append(np.asarray(one.encode(params, jnp.asarray(acts[counted]))).mean(0))
  return int(np.argmax(means[0] - means[1]))


def _strongest(m: Materials) -> tuple[int, np.ndarray]:
  """The chosen latent, and its contribution where it is strongest in texts of the concept, [D]."""
  one, params = m.autoencoder
  acts, counted = m.texts(m.concept.positive)
  rows, latent = acts[counted], choose_latent(m)
  best = np.asarray(one.encode(params, jnp.asarray(rows)))[:, latent].argmax()
  return latent, of_latents(one, params, rows[[best]], [latent])[0]


def _clamp(m: Materials) -> Edit:
  one, params = m.autoencoder
  latent, vector = _strongest(m)
  value = np.linalg.norm(vector) / np.linalg.norm(np.asarray(params['W_dec'])[latent])
  return Clamp(
    m.settings.site, one, params, latent=latent, value=np.float32(value), where=everywhere
  )


def _diff_means(m: Materials) -> np.ndarray:
  """DiffMean at its scale, [D]."""
  (plus, plus_mask), (minus, minus_mask) = map(m.texts, (m.concept.positive, m.concept.negative))
  found = diff_means(plus, minus, plus_mask, minus_mask)
  return found.scale * found.vector


def _reft(m: Materials) -> np.ndarray:
  """ReFT-r1 at the length of DiffMean, [D]: the first half of each text is its prompt, the rest its answer.

  Its own scale, the largest product with a text, may not be positive after a short training.
  """
  tokens, mask = m.pad(m.concept.positive)
  lengths = mask.sum(1)
  half = np.maximum(lengths // 2, _K + 1)  # the first token begins all texts and is skipped
  training = ReFTr1(k=_K, epochs=m.settings.epochs)
  key = jax.random.key(m.settings.seed)
  found = training.fit(
    m.model.apply, m.settings.site, m.model.params, ReftExamples(tokens, mask, half), key
  )
  return found.vector * np.linalg.norm(_diff_means(m))


_K = 3  # half a text of a dozen tokens has no eight


def _after_first(m: Materials, vector: np.ndarray) -> np.ndarray:
  """One vector at all positions of the pair but that of the token that begins texts, [T, D]."""
  rows = np.tile(vector, (m.n_positions, 1))
  rows[0] = 0
  return rows


def _everywhere(m: Materials, vector: np.ndarray) -> Edit:
  return Add(m.settings.site, vector, where=everywhere)


AT_FIRST: dict[str, Callable[[Materials], np.ndarray]] = {
  'actadd': pair_vector,
  'actadd_projected': projected_vector,
  'reconstruction': lambda m: reconstruction_difference(*m.autoencoder, *m.acts),
  'pairs': lambda m: select_pairs(*m.autoencoder, *m.acts),
  'latent': lambda m: _after_first(m, _strongest(m)[1]),
  'diffmean': lambda m: _after_first(m, _diff_means(m)),
  'random': _random_rows,
}
"""Functions that make the vectors [T, D] of the first positions, by method."""

EVERYWHERE: dict[str, Callable[[Materials], Edit]] = {
  'clamp': _clamp,
  'diffmean_everywhere': lambda m: _everywhere(m, _diff_means(m)),
  'reft': lambda m: _everywhere(m, _reft(m)),
  'random_everywhere': lambda m: _everywhere(
    m, draw_directions(_diff_means(m), 1, m.settings.seed)[0]
  ),
}
"""Functions that make the edits of every position, by method."""
