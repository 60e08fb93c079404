"""Data of the pictures of the study, which are drawn twice: as PNG and on the page."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.neurons.tables import name_neuron, scale_norms

LIMITS = (-0.5, 1.0)
"""Shares outside of these are drawn at them: the share of a small effect is noise."""


def clip_share(values: Any) -> np.ndarray:
  """Shares within `LIMITS`; a share that does not exist is 0."""
  return np.nan_to_num(np.array(values, float)).clip(*LIMITS)


def list_clouds(results: dict[str, Any]) -> dict[str, tuple[str, dict[str, Any]]]:
  """Text and arguments of `shaded.points` of each cloud of neurons, keyed by its title."""
  e, w = results['effects'], results['weights']
  share, frequency = clip_share(e['share']), clip_share(e['frequency_share'])
  variance = np.array(w['logit_variance']) / np.median(w['logit_variance'])
  norms, entropy, kl = scale_norms(results), np.array(e['entropy']), np.array(e['kl'])
  names = [name_neuron(results, i) for i in e['neurons']]
  mark = lambda kind: {i: names[i] for i in results['chosen'][kind][:6]}  # noqa: E731
  bounds = f'shares below {LIMITS[0]:g} are drawn there'
  return {
    'Length and logit variance': (
      f'Confidence neurons are at the lower right: long vectors that hardly change the order of the logits. The shade '
      f'is the share of the effect that the final norm mediates; {bounds}.',
      _keep(
        norms > 0, xs=norms, ys=variance, shades=share, names=names, marked=mark('norm'), log='xy',
        xlabel='norm·sd / median', ylabel='logit variance / median', shade='share of the norm', span=(0.0, 0.6),
      ),
    ),
    'Norm-mediated share and null-space fraction': (
      f'Both are high in a confidence neuron; the shade is the mean absolute change of the entropy; {bounds}.',
      _keep(
        np.isfinite(entropy), xs=np.array(w['rho']), ys=share, shades=entropy, names=names, marked=mark('norm'),
        log='', xlabel='rho, share of the vector in the null space', ylabel='norm-mediated share of the effect',
        shade='|dH|, nats', span=(0.0, _end(entropy)),
      ),
    ),
    'KL to the unigram distribution and frequency-mediated share': (
      f'Token-frequency neurons are at the upper right; the shade is the absolute cosine of their logits with the '
      f'direction of frequency; {bounds}.',
      _keep(
        kl > 0, xs=frequency, ys=kl, shades=np.abs(w['frequency_cosine']), names=names, marked=mark('frequency'),
        log='y', xlabel='frequency-mediated share of the effect', ylabel='|dKL(p || P)|, nats',
        shade='|cosine with v|', span=(0.0, _end(np.abs(w['frequency_cosine']))),
      ),
    ),
  }  # fmt: skip


def list_curves(results: dict[str, Any]) -> dict[str, tuple[str, dict[str, Any]]]:
  """Text and arguments of `curves.lines` of each chart over repeated sequences, keyed by its title."""
  one = results['repeated']
  at = np.array(one['columns'])
  n = len(one['neurons']) // 2 or 1
  shown = at >= 1  # the first token has activations of its own
  half = results['settings']['half']
  xlabel = f'position; the repetition begins at {half}'
  scaled = {
    name_neuron(results, i): (at[shown], np.array(one['activations'][k])[shown] / (one['sd'][k] or 1.0))
    for k, i in enumerate(one['neurons'][:n])
  }  # fmt: skip
  own = {name: (at[shown], np.array(one[name])[shown]) for name in ('entropy', 'loss')}
  return {
    'Entropy and loss over the repeated sequence': (
      'Means over sequences at each position.',
      {'curves': own, 'xlabel': xlabel, 'ylabel': 'nats', 'linear': 'xy'},
    ),
    'Activations over the repeated sequence': (
      'Means over sequences, in standard deviations of the neuron.',
      {'curves': scaled, 'xlabel': xlabel, 'ylabel': 'activation / sd', 'linear': 'xy'},
    ),
  }


def list_bars(results: dict[str, Any]) -> dict[str, tuple[str, list[str], list[float], str]]:
  """Text, labels, lengths and unit of each chart of bars, keyed by its title."""
  one, heads = results['repeated'], results['heads']
  n = len(one['neurons']) // 2 or 1
  labels = [
    name_neuron(results, i) + (' (random)' if k >= n else '') for k, i in enumerate(one['neurons'])
  ]
  total = one['entropy_second']['value']
  return {
    'Entropy under clip ablation': (
      f'Change of the mean entropy of the second half, which is {total:.3f} nats, with one neuron clipped.',
      labels, one['clipped_entropy']['value'], 'change of the entropy, nats',
    ),
    'Entropy without an induction head': (
      f'Change of the mean entropy of the second half, which is {heads["plain_entropy"]:.3f} nats on these sequences, '
      f'with one head attending to the first token.',
      [f'head {layer}.{head}' for layer, head in heads['heads']], heads['entropy']['value'],
      'change of the entropy, nats',
    ),
  }  # fmt: skip


def _end(values: np.ndarray) -> float:
  """Strong end of a shade: the value of the fifth of a thousand largest."""
  return float(f'{np.quantile(values, 0.995):.1g}') or 1.0


def _keep(
  some: np.ndarray, *, names: list[str], marked: dict[int, str], **given: Any
) -> dict[str, Any]:
  """Arguments of a cloud without the points that have no place."""
  kept = np.flatnonzero(some)
  at = {int(i): n for n, i in enumerate(kept)}
  arrays = {name: np.asarray(given.pop(name))[kept] for name in ('xs', 'ys', 'shades')}
  return {
    **arrays, **given, 'notes': [names[i] for i in kept],
    'marked': {at[i]: name for i, name in marked.items() if i in at},
  }  # fmt: skip
