"""The tables of each part, from the plain results alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from experiments.facts.cells import Table, give, give_pair, give_share

Results = dict[str, Any]


def make_tables(name: str, part: Results) -> list[Table]:
  """Tables of one part."""
  return [make(part) for make in MAKERS[name]]


def tabulate_task(part: Results) -> Table:
  """Answers of the model to the prompts as they are."""
  fitted, edited = part['prompts']
  every = [one.get('recovery', {}) for one in part['codes'].values()]
  recovery: Results = next((found for found in every if 'clean' in found), {})
  ability = part['ability']
  return Table(
    'The indirect object: answers of the model',
    f'{fitted} prompts fit codes and choose latents, {edited} others are edited. LD: logit of io minus that of s. '
    f'Shares of prompts with 95 % intervals.',
    ['prompts', 'io above s', 'io likeliest', 'LD', 'LD, mean in place of the activation'],
    [
      [
        str(edited), give_share(ability['above_other']), give_share(ability['top']),
        give(recovery.get('clean')), give(recovery.get('ablated')),
      ]
    ],
    'shares of prompts, logits',
  )  # fmt: skip


def tabulate_recovery(part: Results) -> Table:
  """Sufficiency and necessity of reconstructions, and of readable latents alone."""
  every = (*part['codes'].items(), *part['dictionaries'].items())
  rows = [[name, *_give_recovery(one.get('recovery', one))] for name, one in every]
  rows += [
    [f'{name}, {one["readable"]["n"]} readable', *_give_recovery(one['readable']['recovery'])]
    for name, one in part['dictionaries'].items()
  ]
  return Table(
    'Sufficiency and necessity',
    'Share of LD that is left with the reconstruction in place of the activation, and share that is lost without it. '
    'Readable: all other latents at their means.',
    ['reconstruction', 'sufficiency', 'necessity'],
    rows,
    '± one standard error over prompts',
  )


def tabulate_edits(part: Results) -> Table:
  """Answers after edits of one attribute."""
  changes = [*part['unedited']]
  rows = [
    ['no edit', '', *_give_edits(part['unedited'], changes), ''],
    ['true activation', '', *_give_edits(part['patched'], changes), ''],
  ]
  for name, one in part['codes'].items():
    if 'edits' in one:
      rows.append([name, '', *_give_edits(one['edits'], changes), ''])
  for name, one in part['dictionaries'].items():
    for kind in ('oracle', 'f1'):
      for k in one['edits']['io'][kind]:
        found = {change: one['edits'][change][kind][k] for change in changes}
        weight = found['io']['weight']
        cells = [*_give_edits(found, changes), give_pair(weight) if weight else '']
        rows.append([f'{name}, {kind}', k, *cells])
  return Table(
    'Answers after a change of one attribute',
    'Share of prompts whose likeliest token is that after the true activation of the changed prompt, and, for io, the '
    'new name. k latents are set, chosen by an oracle or by F1; their weight is their share of the reconstruction.',
    ['edit', 'k', *changes, 'io: new name', 'weight (io)'],
    rows,
    'shares of prompts with 95 % intervals; weight ± one standard error',
  )


def tabulate_attributes(part: Results) -> Table:
  """Attributes that latents show."""
  rows = [
    [
      f'{name}, {row["feature"]}', give(row['variance']), give_pair(row['f1']),
      str(row['interpretable']), ', '.join(row['hidden_by']),
    ]
    for name, one in part['dictionaries'].items()
    for row in one['attributes']
  ]  # fmt: skip
  return Table(
    'Attributes that latents show',
    'Size of the supervised codes as a share of the variance; F1 of the latent that is best on the first half, mean '
    'and standard error over values; latents with an F1 above the threshold on the first half; larger attributes that '
    'have such latents, if this one has none.',
    ['dictionary, attribute', 'size of codes', 'F1 of the best', 'readable latents', 'hidden by'],
    rows,
    'F1 on the second half of the prompts',
  )


def tabulate_dictionaries(part: Results) -> Table:
  """Sizes and errors of dictionaries and codes."""
  rows = [
    [
      name, str(one['latents']), give_pair(one['l0'], 1), give_pair(one['fvu'], 3),
      f'{one["parts_of_pos"][0]}, {give_share(one["parts_of_pos"][1])}', one['place'],
    ]
    for name, one in part['dictionaries'].items()
  ]  # fmt: skip
  rows += [
    [name, '', '', give_pair(one['fvu'], 3), '', '']
    for name, one in part['codes'].items()
    if 'fvu' in one
  ]
  return Table(
    'Dictionaries at this token',
    'L0 and FVU of the second half of the prompts. Number of latents that together cover the first half of the prompts '
    'with io first, and the share of the second half that they cover.',
    ['dictionary', 'latents', 'L0', 'FVU', 'latents for pos', 'place'],
    rows,
    '± one standard error over prompts; share with its 95 % interval',
  )


def tabulate_categories(part: Results) -> Table:
  """AUC of each basis by number of columns."""
  rows = [[name, *(give_pair(x, 3) for x in values)] for name, values in part['sparse'].items()]
  rows += [
    [f'{name.replace("_", " ")}, all dimensions', *[give_pair(values[0], 3)] * len(part['ks'])]
    for name, values in part['dense'].items()
  ]
  counts = part['categories'].values()
  return Table(
    f'Categories of words: AUC of {len(counts)} categories',
    f'{sum(counts)} words. Probes on the k best columns, mean over categories on held-out words ± one standard error '
    'over splits, which share words.',
    ['basis', *(f'k = {k}' for k in part['ks'])],
    rows,
    'area under the ROC curve',
  )


def tabulate_knowledge(part: Results) -> Table:
  """Shares of right answers to each question about cities."""
  rows = [[name, give_share(share), str(share[1])] for name, share in part['known'].items()]
  return Table(
    'Cities: answers that the model knows',
    f'Likeliest of all answers to the question. All three are right for {part["kept"]} cities, which are edited.',
    ['question', 'right', 'cities'],
    rows,
    'shares of cities with 95 % intervals',
  )


def tabulate_cities(part: Results) -> Table:
  """Cause, isolation and disentanglement of every kind of edit."""
  rows = [
    [f'{kind}, {name}', give_share(one['cause']), give_pair(one['isolation']), give_pair(one['score']),
     str(one['cause'][1])]
    for kind, of_names in part['edits'].items()
    for name, one in of_names.items()
  ]  # fmt: skip
  return Table(
    'Cities: edits of one attribute',
    'Cause: the answer is that of the other city. Isolation: answers to the other two questions stay. Disentanglement: '
    'their mean. Errors are for independent pairs; cities occur in several pairs, so that they are too small.',
    ['edit, attribute', 'cause', 'isolation', 'disentanglement', 'pairs'],
    rows,
    'cause with its 95 % interval; others ± one standard error',
  )


def tabulate_toys(part: Results) -> Table:
  """Toy models of superposition."""
  shape = part['superposition']
  rows = [
    [give(p, digits=3), *(give_pair(shape[name][i]) for name in ('represented', 'dimensions'))]
    for i, p in enumerate(part['density'])
  ]
  return Table(
    'Toy models of superposition',
    'Share of features with a direction, and dimensions of each of these, by the probability that a feature is active.',
    ['density', 'features with a direction', 'dimensions of each'],
    rows,
    '± one standard error over models',
  )


def tabulate_matches(part: Results) -> Table:
  """MMCS and L0 of the dictionaries of toy models."""
  rows = [
    [
      f'{n} latents, density {p:g}', give_pair(part['random'][n][i][0]),
      *(
        f'{give_pair(value)} (L0 {give(l0[0], digits=1)})'
        for value, l0 in zip(values[i], part['l0'][n][i])
      ),
    ]
    for n, values in part['mmcs'].items()
    for i, p in enumerate(part['density'])
  ]  # fmt: skip
  return Table(
    'Toy models: dictionaries of their hidden activations',
    'Mean over true features of the largest cosine with a row (MMCS), and L0, by the sparsity coefficient.',
    ['dictionary', 'random rows', *(f'sparsity {s:g}' for s in part['sparsity'])],
    rows,
    'cosine, ± one standard error over models',
  )


def tabulate_programs(part: Results) -> Table:
  """The residual streams of compiled programs against their interpreter."""
  rows = [
    [name, str(one['width']), give(one['right']), str(len(one['variables'])),
     f'{max(one["variables"].values()):.1e}', give(one['explained'], digits=4)]
    for name, one in part.items()
  ]  # fmt: skip
  return Table(
    'Compiled programs',
    'All texts of four words over three: share of right outputs; largest difference between the residual stream and '
    'variables that the interpreter computes; share of the variance that codes of word, place and output explain.',
    ['program', 'width', 'right outputs', 'variables', 'largest difference', 'explained'],
    rows,
    'all texts, so that there are no errors of sampling',
  )


def _give_recovery(found: Results) -> list[str]:
  if 'reason' in found:
    return [found['reason'], '']
  return [give_pair(found['sufficiency']), give_pair(found['necessity'])]


def _give_edits(found: Results, changes: list[str]) -> list[str]:
  shares = [give_share(found[change]['as_patched']) for change in changes]
  return [*shares, give_share(found['io']['as_expected'])]


MAKERS: dict[str, tuple[Callable[[Results], Table], ...]] = {
  'ioi': (
    tabulate_task,
    tabulate_recovery,
    tabulate_edits,
    tabulate_attributes,
    tabulate_dictionaries,
  ),
  'categories': (tabulate_categories,),
  'cities': (tabulate_knowledge, tabulate_cities),
  'toys': (tabulate_toys, tabulate_matches),
  'tracr': (tabulate_programs,),
}
"""Tables of each part."""
