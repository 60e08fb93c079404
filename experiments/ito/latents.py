"""Latents of a pursuit and of the encoder, one by one, at the same number of steps as the encoder has latents.

Two questions (Smith 2024): does a pursuit give a latent the activation that its encoder gives it, and do both choose
the same latents of a token? The answers are given by strength, because weak activations are the doubtful ones:

    correlation by rank    Pearson correlation over tokens of both activations of the encoder's latent of each rank
    kept by rank           fraction of tokens on which the pursuit too has the encoder's latent of each rank
    one latent             both activations on every token where one of them is positive

Rank 1 is the encoder's largest contribution f_i |d_i| to a token.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from experiments.ito.candidates import choose_subjects
from experiments.ito.settings import Settings
from mechjax import harvest, precision, sites
from mechjax.eval_sae.subjects import Subject, Subjects
from mechjax.sae.pursuit import Pursuit


@dataclasses.dataclass(frozen=True)
class Agreement:
  """Activations of an encoder and of gradient pursuit.

  Attributes:
    dictionary: name of the dictionary.
    k: number of steps, the encoder's L0 rounded.
    tokens: number of tokens.
    kept_by_rank: fraction of tokens on which the pursuit has the encoder's latent of each rank, [k].
    correlation_by_rank: correlation of both activations over tokens, [k].
    latent: number of the latent of the example, the one that is active on most tokens up to a tenth of them.
    both: its two activations, encoder and pursuit, on every token where one is positive, [n, 2].
    correlation: correlation of the two activations of each latent over all tokens, one per latent with ten tokens.
  """

  dictionary: str
  k: int
  tokens: int
  kept_by_rank: np.ndarray
  correlation_by_rank: np.ndarray
  latent: int
  both: np.ndarray
  correlation: np.ndarray


def compare_latents(settings: Settings, subjects: Subjects) -> Agreement:
  """Compares the latents of one dictionary on the held-out tokens.

  Args:
    settings: settings; `latents_of` names the dictionary.
    subjects: the run.
  """
  chosen = choose_subjects(settings, subjects)
  names = {s.name: s for s in chosen}
  subject = names.get(settings.latents_of) or chosen[len(chosen) // 2]
  x_BxD = _activations(settings, subjects)
  f_BxM = np.asarray(jax.jit(subject.sae.encode)(subject.params, x_BxD))
  k = max(1, round(float((f_BxM > 0).sum(1).mean())))
  bias = jnp.asarray(subject.params['b_dec'])
  code = Pursuit(k=k).code(jnp.asarray(subject.params['W_dec']), x_BxD - bias)
  return agreement(
    f'{subject.kind} {subject.setting}', _lengths(subject), f_BxM, np.asarray(code.to_dense()), k
  )


def agreement(
  dictionary: str, length_M: np.ndarray, f_BxM: np.ndarray, g_BxM: np.ndarray, k: int
) -> Agreement:
  """Compares activations of an encoder, `f`, with those of a pursuit, `g`.

  Args:
    dictionary: name of the dictionary.
    length_M: lengths of its decoder rows.
    f_BxM: activations of the encoder.
    g_BxM: activations of the pursuit.
    k: number of ranks.
  """
  order_BxA = np.argsort(-f_BxM * length_M, 1, kind='stable')[:, :k]
  own_BxA, other_BxA = (np.take_along_axis(a, order_BxA, 1) for a in (f_BxM, g_BxM))
  active_BxA = own_BxA > 0
  shared = (other_BxA > 0) & active_BxA
  n_A = np.maximum(active_BxA.sum(0), 1)
  by_rank = [_correlation(own_BxA[a, i], other_BxA[a, i]) for i, a in enumerate(active_BxA.T)]
  firings_M = ((f_BxM > 0) | (g_BxM > 0)).sum(0)
  frequent = np.where(firings_M <= len(f_BxM) // 10, firings_M, 0)
  latent = int(frequent.argmax())
  some = (f_BxM[:, latent] > 0) | (g_BxM[:, latent] > 0)
  both = np.stack([f_BxM[some, latent], g_BxM[some, latent]], 1)
  counted = np.flatnonzero(firings_M >= 10)
  each = np.array([_correlation(f_BxM[:, i], g_BxM[:, i]) for i in counted])
  return Agreement(
    dictionary, k, len(f_BxM), shared.sum(0) / n_A, np.array(by_rank), latent, both, each
  )


def _activations(settings: Settings, subjects: Subjects) -> jax.Array:
  """Activations of the held-out tokens that count, [B, D]."""
  site, model = sites.parse(subjects.site), subjects.model
  read = jax.jit(harvest.reap(model.truncate_at(site), sites=[site]))
  parts = []
  for tokens, kept in subjects.iter_batches(settings.tokens, settings.batch):
    x = np.asarray(precision.wide(read(model.params, tokens)[site]))
    parts.append(x[kept & (np.linalg.norm(x, axis=-1) <= subjects.limit)])
  return jnp.asarray(np.concatenate(parts))


def _lengths(subject: Subject) -> np.ndarray:
  return np.linalg.norm(np.asarray(subject.params['W_dec']), axis=1)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
  """Pearson's correlation; NaN where a side does not vary."""
  a, b = (np.asarray(x, float) - np.mean(x, dtype=float) if len(x) else x for x in (a, b))
  length = np.sqrt(np.sum(np.square(a)) * np.sum(np.square(b)))
  return float(np.sum(a * b) / length) if length > 0 else np.nan
