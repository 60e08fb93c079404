"""Every metric by its definition, in NumPy: the model's gradient by finite differences, its losses token by token."""

from typing import Any

import numpy as np

from tests.sae import plain
from tests.sae.evaluation.toy import M, T, by_hand


def log_probs(logits):
  logits = logits - logits.max(-1, keepdims=True)
  return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def losses(p, tokens, kept, change=None):
  """The loss of each prediction, and its log-probabilities."""
  lp = log_probs(by_hand(p, tokens, change)[0])
  at = [(b, t) for b in range(len(tokens)) for t in range(T - 1) if kept[b, t] and kept[b, t + 1]]
  return np.array([-lp[b, t, tokens[b, t + 1]] for b, t in at]), [lp[b, t] for b, t in at]


def where(kept, new):
  return lambda value: np.where(kept[..., None], new(value), value)


def said(sae, own, x):
  k = getattr(sae, 'k', None)
  f = plain.latents(sae, own, x.reshape(-1, x.shape[-1]), k)[0].reshape(*x.shape[:-1], M)
  return f, plain.decode(sae, own, f, x)


def gradient(p, tokens, kept, site, h=1e-5):
  """d(sum of losses) / d(value at a site), by central differences."""
  value = by_hand(p, tokens)[1][site]
  result = np.zeros_like(value)
  for index in np.ndindex(value.shape):
    step = np.zeros_like(value)
    step[index] = h
    up, down = (
      losses(p, tokens, kept, {site: lambda v, s=s: v + s})[0].sum() for s in (step, -step)
    )
    result[index] = (up - down) / (2 * h)
  return result


def uniformity(f, own, g):
  ratios = []
  for f_M, g_E in zip(f, g):
    a = np.abs(f_M * (own['W_dec'] @ g_E))
    if a.sum() > 0:
      share = a[a > 0] / a.sum()
      ratios.append(np.exp(-(share * np.log(share)).sum()) / len(share))
  return np.mean(ratios)


def expected(p, own, saes, targets, tokens, kept):
  """All metrics of dictionaries whose sites are given in the order of the forward pass."""
  _, seen = by_hand(p, tokens)
  result: dict[str, Any] = {'sites': {}}
  change: dict[str, Any] = {}
  for site, sae in saes.items():
    at = targets.get(site, site)
    x, y = seen[site][kept], seen[at][kept]
    f, y_hat = said(sae, own[site], x)
    result['sites'][site] = {
      'tokens': len(x),
      'l0': (f > 0).sum(1).mean(),
      'fvu': ((y - y_hat) ** 2).sum() / ((y - y.mean(0)) ** 2).sum(),
      'dead_fraction': np.mean([not (f[:, i] > 0).any() for i in range(M)]),
      'shrinkage': (y_hat**2).sum() / (y * y_hat).sum(),
      'uniformity': uniformity(f, own[site], gradient(p, tokens, kept, at)[kept]),
      'density': (f > 0).mean(0),
    }
    if at == site:
      change[at] = where(kept, lambda v, s=sae, o=own[site]: said(s, o, v)[1])
    else:
      read = by_hand(p, tokens, change)[1][site]
      change[at] = where(kept, lambda v, s=sae, o=own[site], r=read: said(s, o, r)[1])
  means = {targets.get(s, s): seen[targets.get(s, s)][kept].mean(0) for s in saes}
  zero = {at: where(kept, np.zeros_like) for at in means}
  mean = {at: where(kept, lambda v, m=m: np.broadcast_to(m, v.shape)) for at, m in means.items()}
  base, lp = losses(p, tokens, kept)
  spliced, lp_spliced = losses(p, tokens, kept, change)
  loss_zero, loss_mean = (losses(p, tokens, kept, c)[0].mean() for c in (zero, mean))
  return result | {
    'predicted': len(base),
    'loss': base.mean(),
    'loss_spliced': spliced.mean(),
    'loss_zero': loss_zero,
    'loss_mean': loss_mean,
    'delta_loss': spliced.mean() - base.mean(),
    'recovered_zero': (loss_zero - spliced.mean()) / (loss_zero - base.mean()),
    'recovered_mean': (loss_mean - spliced.mean()) / (loss_mean - base.mean()),
    'kl': np.mean([(np.exp(a) * (a - b)).sum() for a, b in zip(lp, lp_spliced)]),
  }


def compare(found, wanted, rtol=2e-4, atol=2e-5):
  metrics = found.metrics()
  assert metrics.pop('splice_drift') < 1e-5
  both = metrics.pop('sites'), wanted.pop('sites')
  assert {*metrics} == {*wanted}
  for name, value in wanted.items():
    np.testing.assert_allclose(metrics[name], value, rtol, atol, err_msg=name)
  for site, values in both[1].items():
    density = values.pop('density')
    np.testing.assert_allclose(found.sites[site].density, density, rtol=1e-12)
    assert {*both[0][site]} == {*values}
    for name, value in values.items():
      np.testing.assert_allclose(both[0][site][name], value, rtol, atol, err_msg=f'{site} {name}')


def flat(found):
  metrics = found.metrics()
  drift = metrics.pop('splice_drift')
  own = {f'{s} {k}': v for s, values in metrics.pop('sites').items() for k, v in values.items()}
  return metrics | own, drift
