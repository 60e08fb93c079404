"""Tables of early layers: hash and lookup, single neurons, and local processing."""

from __future__ import annotations

from typing import Any

from experiments.facts.cells import Table, give

# --- hashing --------------------------------------------------------------------------------------------------


def tabulate_excess(part: dict[str, Any]) -> Table:
  """Non-linear excess of the probe by layer."""
  excess = part['excess']
  low, high = min(excess['shuffled']), max(excess['shuffled'])
  shares = ('attn_out', 'mlp_out', 'by_layer')
  return Table(
    'Non-linear excess of the reading',
    f'Excess of the AND of first name and surname, over the product of {part["product"][0]} first names and '
    f'{part["product"][1]} surnames ({part["names"]} listed names): median over names of the reading of the right '
    f'sport, with shuffled sports as control. Shares of the excess after the last of these layers: written by '
    f'attention and by the MLP of each layer, with norms frozen; and computed by single neurons, by the increase of '
    f'the excess from their inputs to their output. All neurons together compute '
    f'{give(excess["share"], excess["error"])} (median; permuted weights: {low:.2f} to {high:.2f}). '
    f'{excess["left_out"]} names have no positive excess and no share.',
    [
      'layer', 'right sport', 'shuffled sports', 'written by attention', 'written by the MLP',
      'computed by its neurons',
    ],
    [
      [
        str(i), give(excess['probe'][i], excess['probe_error'][i], 1),
        give(excess['control'][i], excess['control_sd'][i], 1),
        *(give(excess[name][i], excess[f'{name}_error'][i]) for name in shares),
      ]
      for i in range(len(excess['probe']))
    ],
    'score of the normalised stream; medians over names, with errors',
  )  # fmt: skip


def tabulate_early(part: dict[str, Any]) -> Table:
  """Linear structure and familiarity by layer."""
  linear, known = part['linearity'], part['familiarity']
  rows = []
  for i in range(len(known['auc'])):
    cells = []
    for name in ('mlp_out', 'resid_post'):
      draws = [one[i] for one in linear[name]['shuffled']]
      cells += [
        give(linear[name]['mean'][i], linear[name]['error'][i]),
        f'{min(draws):.2f} to {max(draws):.2f}',
      ]
    low, high = (bound[i] for bound in known['shuffled'])
    rows.append([
      str(i), *cells, give(known['ratio'][i]), give(known['auc'][i], known['error'][i]), f'{low:.2f} to {high:.2f}',
    ])  # fmt: skip
  return Table(
    'Linear structure and familiarity',
    f'Index of broken linear structure, 0 kept and 1 broken, with permuted MLP weights as control. Length of the '
    f'output of the MLP at known names over that at {known["unknown"]} made-up ones, and the AUC of telling them '
    f'apart, with permuted labels as control.',
    [
      'layer', 'MLP output', 'permuted weights', 'stream', 'permuted weights', 'length, known / made up', 'AUC',
      'permuted labels',
    ],
    rows,
    'index, ratio and AUC, with standard errors; ranges of controls',
  )  # fmt: skip


def tabulate_sharing(part: dict[str, Any]) -> Table:
  """Correlations of the effects of neurons between facts."""
  one = part['sharing']
  names = [name for name, _ in one['facts']]
  facts = ', '.join(f'{name} {p:.2f}' for name, p in one['facts'])
  exact = one['exact']
  return Table(
    'Neurons shared between facts about one name',
    f'Correlation over neurons of the change of log p(answer) when a neuron has its mean at the name, to first order, '
    f'with neurons permuted within layers as control; and over the {exact["neurons"]} neurons that are largest for '
    f'some fact, exactly. The exact effects have a correlation of {exact["correlation"]:.2f} with those to first '
    f'order. Probability of the answers: {facts}; {one["left_out"]} facts have answers of several tokens.',
    ['facts', 'correlation', 'permuted', 'largest neurons, exact'],
    [
      [
        f'{names[i]}, {names[j]}', give(r, e, 3), f'{low:.3f} to {high:.3f}',
        give(exact['between'][row], exact['error'][row]),
      ]
      for row, ((i, j), r, e, (low, high)) in enumerate(
        zip(one['pairs'], one['correlation'], one['error'], one['shuffled'])
      )
    ],
    'correlation, with standard errors',
  )  # fmt: skip


def tabulate_best(part: dict[str, Any]) -> Table:
  """The neurons that tell a sport best."""
  best = part['best']
  draws = sorted(best['shuffled'])
  return Table(
    'Best neuron of each sport',
    f'AUC of the neuron at the last token of the name that one half of the names chooses, on that half and on the '
    f'other. The best of {best["tries"]:,} tries with shuffled sports over all names has an AUC of '
    f'{draws[len(draws) // 2]:.2f} (median) to {draws[-1]:.2f} (largest of {len(draws)}).',
    ['sport', 'choosing half', 'other half', 'best over all names', 'its AUC there'],
    [
      [
        name, give(one['chosen']), give(one['measured'], one['error']),
        f'L{one["neuron"][0]}N{one["neuron"][1]}', give(one['auc']),
      ]
      for name, one in best['sports'].items()
    ],
    'AUC, with errors over halves',
  )  # fmt: skip


def tabulate_basis(part: dict[str, Any]) -> Table:
  """Kurtosis in the basis of neurons."""
  rows = []
  for name, layers in part['basis'].items():
    for i, one in enumerate(layers):
      rows.append([
        f'{name}, layer {i}', give(one['kurtosis'], one['error']), give(one['rotated'], one['rotated_sd']),
        give(one['top_1'], one['top_1_error'], 3), give(one['next_9'], one['next_9_error'], 3),
      ])  # fmt: skip
  return Table(
    'Privileged basis',
    'Excess kurtosis in the basis of neurons of what each neuron writes to the reading (probe), of differences of '
    'class means (means), and of what each neuron writes to random directions (random); rotated: the same vectors in '
    'random bases. Share of squared length in the largest neuron and in the next nine.',
    ['vectors', 'kurtosis', 'rotated', 'top 1', 'next 9'],
    rows,
    'excess kurtosis, with standard errors over vectors or rotations; shares',
  )


# --- local ----------------------------------------------------------------------------------------------------


def tabulate_local(part: dict[str, Any]) -> Table:
  """Centred cosines by layer and number of tokens."""
  every = part['kinds']['all']
  ks = sorted({0, 1, 2, 4, len(every['median'][0]) - 1} & {*range(len(every['median'][0]))})
  kinds = [name for name in part['kinds'] if name != 'all']
  counts = ', '.join(f'{name} {part["kinds"][name]["count"]}' for name in kinds)
  middle = min(4, len(every['median'][0]) - 1)
  at = lambda one, layer, k: give(one['median'][layer][k], one['error'][layer][k])  # noqa: E731
  rows = [
    [
      str(layer),
      *(at(every, layer, k) for k in ks),
      give(every['shuffled'][layer][middle]),
      *(at(part['kinds'][name], layer, middle) for name in kinds),
    ]
    for layer in range(len(every['median']))
  ]
  return Table(
    'Local processing',
    f'Median centred cosine of the stream at a token with the stream of the same token behind BOS and its last k '
    f'tokens alone, itself included. {every["count"]} tokens ({counts}). Control: another token, k = {middle + 1}. '
    f'By kind: k = {middle + 1}.',
    ['layer', *(f'k = {k + 1}' for k in ks), 'control', *kinds],
    rows,
    'cosine, with standard errors over texts',
  )
