"""The tables of the study: heads and rows of text, from the plain results."""

from __future__ import annotations

from typing import Any

import numpy as np

Table = tuple[list[str], list[list[str]]]


def list_tables(results: dict[str, Any]) -> dict[str, tuple[str, Table]]:
  """All tables with an explanation, keyed by their titles."""
  tokens, settings = results['tokens'], results['settings']
  counted = f'{tokens["effects"]:,} tokens of {tokens["contexts"]} contexts'
  return {
    'Neurons by norm-mediated effect': (
      f'Mean ablation on {counted}; norm-mediated is total less direct. Means in nats with one standard error over '
      f'contexts. norm·sd and logit variance are multiples of the median neuron. The last rows are '
      f'{settings["controls"]} random neurons.',
      tabulate_norm(results),
    ),
    'Null-space fraction and controls': (
      f'rho of the output vectors in the {results["weights"]["k"]} directions with the least singular values; '
      f'the same vectors after a random rotation, and with their entries shuffled. A random vector has '
      f'{results["weights"]["chance"]:.3f} (root mean square).',
      tabulate_rho(results),
    ),
    'Neurons by frequency-mediated effect': (
      f'The effect that is gone when the logits keep their component along the direction of token frequency. Text: '
      f'counts of {tokens["counted"]:,} tokens. Model: its own mean prediction, whose log-probabilities correlate with '
      f'those of the text by {results["own"]["correlation"]:.3f}.',
      tabulate_frequency(results),
    ),
    'Clipped neurons on repeated text': (
      describe_repeated(results),
      tabulate_clipped(results),
    ),
    'Induction heads switched off': (
      f'Attention rows of the second half one-hot at the first token, on {settings["head_sequences"]} sequences. '
      f'Changes of means over the second half, with one standard error over sequences; activations in standard '
      f'deviations of the neuron.',
      tabulate_heads(results),
    ),
  }


def describe_repeated(results: dict[str, Any]) -> str:
  """Entropy and loss of the two halves, as a sentence."""
  one = results['repeated']
  halves = (
    f'{name} half: entropy {_pair(one[f"entropy_{key}"])}, loss {_pair(one[f"loss_{key}"])}'
    for name, key in (('First', 'first'), ('second', 'second'))
  )
  return (
    f'{results["settings"]["sequences"]} sequences of {results["settings"]["half"]} tokens, repeated. '
    f'{"; ".join(halves)} nats. A clipped neuron stays on its side of its mean over the first half. Changes of means '
    f'over the second half, with one standard error over sequences. The lower rows are random neurons.'
  )


def name_neuron(results: dict[str, Any], i: int) -> str:
  """Layer and number of a neuron."""
  return f'{results["last_layer"]}.{i}'


def tabulate_norm(results: dict[str, Any]) -> Table:
  """Neurons with the largest norm-mediated effects, and random ones."""
  e, w = results['effects'], results['weights']
  scaled = scale_norms(results)
  variance = np.array(w['logit_variance']) / np.median(w['logit_variance'])
  nested = ['MLP norm frozen'] if 'mlp_frozen' in e else []
  heads = [
    'neuron', 'rho', 'norm·sd', 'logit variance', 'total', *nested, 'direct', 'norm-mediated', 'share',
    *(['share of the MLP norm'] if nested else []), 'abs dH', 'dH', 'argmax changes',
  ]  # fmt: skip

  def row(i: int) -> list[str]:
    return [
      f'{w["rho"][i]:.2f}', f'{scaled[i]:.2f}', f'{variance[i]:.2f}', _of(e, 'total', i),
      *([_of(e, 'mlp_frozen', i)] if nested else []), _of(e, 'direct', i), _of(e, 'mediated', i),
      _of(e, 'share', i, 2), *([_of(e, 'mlp_share', i, 2)] if nested else []), _of(e, 'entropy', i),
      _of(e, 'entropy_change', i), f'{100 * e["changed"][i]:.1f} %',
    ]  # fmt: skip

  rows = [[name_neuron(results, i), *row(i)] for i in results['chosen']['norm']]
  random = results['chosen']['random']
  numbers = [
    w['rho'], scaled, variance, e['total'], *([e['mlp_frozen']] if nested else []), e['direct'], e['mediated'],
    e['share'], *([e['mlp_share']] if nested else []), e['entropy'], e['entropy_change'], 100 * np.array(e['changed']),
  ]  # fmt: skip
  return heads, rows + _summarise(random, numbers)


def tabulate_rho(results: dict[str, Any]) -> Table:
  """Quantiles of rho, of the vectors and of the controls."""
  w = results['weights']
  named = {'neurons': 'rho', 'rotated': 'rho_rotated', 'shuffled': 'rho_shuffled'}
  rows = [
    [name, *(f'{np.quantile(w[key], q):.3f}' for q in (0.5, 0.95, 0.99, 1.0))]
    for name, key in named.items()
  ]
  return ['vectors', 'median', '95 %', '99 %', 'largest'], rows


def tabulate_frequency(results: dict[str, Any]) -> Table:
  """Neurons with the largest frequency-mediated effects, by both distributions, and random ones."""
  e, w, own = results['effects'], results['weights'], results['own']
  at = {i: n for n, i in enumerate(own['neurons'])}
  heads = [
    'neuron', 'cosine with v', 'total', 'frequency-mediated', 'share', 'abs dKL', 'dKL', 'share (model)',
    'abs dKL (model)',
  ]  # fmt: skip
  rows = [
    [
      name_neuron(results, i), f'{w["frequency_cosine"][i]:.2f}', _of(e, 'total', i), _of(e, 'frequency_mediated', i),
      _of(e, 'frequency_share', i, 2), _of(e, 'kl', i), _of(e, 'kl_change', i),
      _of(own, 'frequency_share', at[i], 2), _of(own, 'kl', at[i]),
    ]
    for i in results['chosen']['frequency']
  ]  # fmt: skip
  random = results['chosen']['random']
  inside = [at[i] for i in random]
  numbers = [
    np.array(w['frequency_cosine'])[random], *(np.array(e[k], float)[random] for k in (
      'total', 'frequency_mediated', 'frequency_share', 'kl', 'kl_change')),
    *(np.array(own[k], float)[inside] for k in ('frequency_share', 'kl')),
  ]  # fmt: skip
  return heads, rows + _summarise([*range(len(random))], numbers)


def tabulate_clipped(results: dict[str, Any]) -> Table:
  """Changes of entropy and loss by each clipped neuron."""
  one = results['repeated']
  rows = [
    [
      name_neuron(results, i), 'upper' if one['rises'][n] else 'lower', f'{one["bounds"][n]:.2f}',
      f'{one["sd"][n]:.2f}', _of(one['clipped_entropy'], 'value', n), _of(one['clipped_loss'], 'value', n),
    ]
    for n, i in enumerate(one['neurons'])
  ]  # fmt: skip
  return ['neuron', 'bound', 'at', 'sd', 'entropy', 'loss'], rows


def tabulate_heads(results: dict[str, Any]) -> Table:
  """Induction scores, and changes by each head that is switched off."""
  one, sd = results['heads'], results['repeated']['sd']
  n = len(one['neurons']) // 2 or 1
  names = [name_neuron(results, i) for i in one['neurons'][:n]]
  rows = []
  for k, (layer, head) in enumerate(one['heads']):
    scaled = [
      _show(one['activations']['value'][k][j] / (sd[j] or np.nan), one['activations']['se'][k][j], sd[j])
      for j in range(n)
    ]  # fmt: skip
    score = _show(one['scores'][layer][head], one['scores_se'][layer][head], 1, 2)
    changes = [_of(one['entropy'], 'value', k), _of(one['loss'], 'value', k)]
    rows.append([f'{layer}.{head}', score, *changes, *scaled])
  return ['head', 'induction score', 'entropy', 'loss', *names], rows


def scale_norms(results: dict[str, Any]) -> np.ndarray:
  """Norm times standard deviation of the activation, as a multiple of the median."""
  found = np.array(results['weights']['norm']) * np.array(results['sd'])
  return found / np.median(found)


def _summarise(chosen: list[int], numbers: list[Any]) -> list[list[str]]:
  """Median, least and largest of some neurons."""
  columns = [np.array(x, float)[chosen] for x in numbers]
  return [
    [f'{len(chosen)} random, {name}', *(f'{f(x):.3f}' for x in columns)]
    for name, f in (('median', np.nanmedian), ('least', np.nanmin), ('largest', np.nanmax))
  ]


def _of(values: dict[str, Any], name: str, i: int, digits: int = 4) -> str:
  """A number with its standard error."""
  error = values['se'] if name == 'value' else values[f'{name}_se']
  return _show(values[name][i], error[i], 1, digits)


def _show(value: float | None, error: float | None, unit: float, digits: int = 3) -> str:
  if value is None or not np.isfinite(value):
    return ''
  shown = f'{value:.{digits}f}'
  return shown if error is None else f'{shown} ± {error / (unit or np.nan):.{digits}f}'


def _pair(one: dict[str, Any]) -> str:
  return _show(one['value'], one['se'], 1)
