"""Tables of what a model knows and where it is read: relations, direct effects, readings by layer."""

from __future__ import annotations

import itertools
from typing import Any

from experiments.facts.cells import Table, give, give_pair, give_share

# --- relations ------------------------------------------------------------------------------------------------


def tabulate_relations(part: dict[str, Any]) -> Table:
  """Shares of right answers."""
  rows = []
  for (name, shots), shot in itertools.product(
    part['relations'].items(), ('one-shot', 'zero-shot')
  ):
    one = shots[shot]
    share = [give_share(one.get(k)) for k in ('top', 'among', 'kept')]
    rows.append([
      f'{name}, {shot}', str(one['n']), str(one['left_out']), *share, give(one.get('chance')), give(one.get('p')),
    ])  # fmt: skip
  return Table(
    'Right answers',
    'Right on top of the whole vocabulary; right among the answers of the relation; probability over the limit; each '
    'with a 95 % Wilson interval. Chance: share right among the answers if they were dealt to other subjects. Left '
    'out: answers of several tokens.',
    ['relation', 'n', 'left out', 'on top', 'among answers', 'kept', 'chance', 'mean p'],
    rows,
    'share of the facts',
  )


def tabulate_groups(part: dict[str, Any]) -> Table:
  """Athletes by group, and the guesses."""
  sport = part['sport']
  over = ', '.join(f'{name} {share:.3f}' for name, share in sport['unknown'].items())
  widths = ', '.join(f'{n} of {w}' for w, n in sport['widths'].items())
  return Table(
    'Athletes by group',
    f'Names by tokens: {widths}. Of the two-token names {sport["kept"]} are kept and {sport["dropped"]} dropped. Of '
    f'{sport["made_up"]} made-up names of the same parts, the share over the limit is {over}, so that '
    f'{sport["guesses"]:.1f} kept names would be expected if the model knew no name.',
    ['group', 'n', 'right among the sports', 'kept'],
    [
      [name, str(one['n']), give_share(one['among']), give_share(one['kept'])]
      for name, one in sport['groups'].items()
    ],
    'share of the names, one-shot',
  )


# --- extract --------------------------------------------------------------------------------------------------


def tabulate_direct(part: dict[str, Any]) -> Table:
  """The largest direct effects."""
  layer, head = part['head']
  kinds = '; '.join(f'{a} against {b} {give(v, e)}' for a, b, v, e in part['classes'])
  return Table(
    'Direct effects at the last position',
    f'Change of logit(right sport) - logit(other sport) when the output of one head or MLP is that of an athlete of '
    f'the other sport, through the final norm alone; {part["pairs"]} pairs of all sports, exactly on '
    f'{part["exact_pairs"]}. The metric is {part["clean"]:.2f} before and {part["other"]:.2f} after the other name. '
    f'Head {layer}.{head} by sport: {kinds}.',
    ['head or MLP', 'first order', 'exact'],
    [[name, give(*rest[:2]), give(*rest[2:])] for name, *rest in part['senders']],
    'logits, with standard errors over pairs',
  )


def tabulate_chain(part: dict[str, Any]) -> Table:
  """The largest effects on the value vectors of the best head."""
  chain, (layer, head) = part['chain'], part['head']
  order = sorted(range(len(chain['labels'])), key=lambda i: -abs(chain['effects'][i]))[:12]
  seen = part['attention']
  places = '; '.join(
    f'from the {where}: beginning {one["beginning"]:.2f}, name '
    f'{" ".join(f"{x:.2f}" for x in one["name"])}, others {one["others"]:.2f}'
    for where, one in seen.items()
  )
  return Table(
    f'From the name through the values of head {layer}.{head}',
    f'First-order effects of heads and MLPs at the last token of the name on the same metric through the value vectors '
    f'of head {layer}.{head} there; their sum is {chain["total"]:.2f}. Attention of the head {places}.',
    ['head or MLP', 'effect'],
    [[chain['labels'][i], give(chain['effects'][i], chain['errors'][i], 3)] for i in order],
    'logits, with standard errors over pairs',
  )


# --- lookup ---------------------------------------------------------------------------------------------------


def tabulate_curves(part: dict[str, Any]) -> Table:
  """Accuracy by layer of each condition."""
  curves = {name: one for name, one in part['curves'].items() if name != 'embeddings'}
  deepest = max(len(one['mean']) for one in curves.values())
  first = part['curves']['embeddings']
  rows = [['embeddings', give(first['mean'][0], first['error'][0]), *[''] * (len(curves) - 1)]]
  for layer in range(deepest):
    cells = [
      give(one['mean'][layer], one['error'][layer]) if layer < len(one['mean']) else ''
      for one in curves.values()
    ]
    rows.append([str(layer), *cells])
  shuffled = ', '.join(
    f'{name} {give(max(one["shuffled"]["mean"]), max(one["shuffled"]["sd"]))}'
    for name, one in part['curves'].items()
    if 'shuffled' in one
  )
  layer, head = part['head']
  return Table(
    'Accuracy of the sport by layer',
    f'Read after each layer at the last token of the name by the weights of head {layer}.{head} (or the head that a '
    f'half chose), of {part["names"]} names. Head, centring and means of ablations come from one random half, the '
    f'accuracy from the other. With shuffled sports, the largest over layers: {shuffled}.',
    ['layer', *curves],
    rows,
    'share of names, with errors over halves',
  )


def tabulate_name_groups(part: dict[str, Any]) -> Table:
  """Accuracy of groups of names."""
  groups = part['groups']
  return Table(
    'Accuracy by group of names',
    'Read from the name alone after some layers. A name is kept if the model is sure of the right sport, so that its '
    'reading is right almost by choice; the dropped ones and all together show how far it carries. Names that chose or '
    'centred in a half are not measured in it.',
    ['group', 'n', *(f'layer {layer}' for layer in groups['shown'])],
    [
      [name, str(one['n']), *(give(one['mean'][i], one['error'][i]) for i in groups['shown'])]
      for name, one in groups['rows'].items()
    ],
    'share of names, with binomial standard errors',
  )


def tabulate_components(part: dict[str, Any]) -> Table:
  """Accuracy without single components."""
  intact = part['components']['intact']
  sweeps = {name: one for name, one in part['components'].items() if name != 'intact'}
  n = len(next(iter(sweeps.values()))['mean'])
  return Table(
    'Accuracy without components',
    f'Read from the name alone before the head, with components at the last token of the name replaced by their means. '
    f'Intact: {give(intact["mean"], intact["error"])}.',
    ['layer', *sweeps],
    [
      [str(k), *(give(one['mean'][k], one['error'][k]) for one in sweeps.values())]
      for k in range(n)
    ],
    'share of names, with errors over halves',
  )


def tabulate_heads(part: dict[str, Any]) -> Table:
  """Heads as readers."""
  heads = part['heads']
  shuffled = heads['shuffled']
  worst = [max(row[place] for row in shuffled) for place in (0, 1)]
  early, own = (
    f'{give(heads["best"]["mean"][i], heads["best"]["error"][i])} (median head {heads["median"][i]:.2f}, largest of '
    f'any head with shuffled sports {worst[i]:.2f})'
    for i in (0, 1)
  )
  return Table(
    'All heads as readers of the name alone',
    f'The head that one half chooses by its own accuracy has, on the other half, {early} after lookup and {own} at its '
    f'own input.',
    ['head', 'after lookup: choosing half', 'other half', 'own input: choosing half', 'other half'],
    [
      [row[0], give(row[1]), give(row[2], row[3]), give(row[4]), give(row[5], row[6])]
      for row in heads['rows']
    ],
    'share of names, with errors over halves',
  )


def tabulate_trained(part: dict[str, Any]) -> Table:
  """Trained probes by layer, and their causal check."""
  trained = part['trained']
  causal = {row[0]: row[1:] for row in trained['causal']}
  layers = ['embedding', *map(str, range(len(trained['prompt']['mean']) - 1))]
  rows = []
  for i, layer in enumerate(layers):
    cells = [
      give(trained[where][f'{kind}'][i], trained[where][f'{kind}_error'][i])
      for where in ('prompt', 'name alone')
      for kind in ('mean', 'shuffled')
    ]
    known = causal.get(i - 1)
    rows.append(
      [
        layer,
        *cells,
        *([give(*known[:2]), give(*known[2:4]), give(*known[4:])] if known else ['', '', '']),
      ]
    )
  return Table(
    'Trained probes',
    'Multinomial logistic regression on x / rms(x), trained on 80 % of the names and measured on 20 %, in random '
    'divisions, with shuffled sports as control. Subspace: share of the effect of a whole patch of the stream at the '
    'name that a patch of the span of the probe has, with the orthogonal rest and a random subspace of the same size.',
    ['layer', 'prompt', 'shuffled', 'name alone', 'shuffled', 'subspace', 'rest', 'random'],
    rows,
    'share of names, with errors over divisions; shares of an effect, with errors over pairs',
  )


def tabulate_paths(part: dict[str, Any]) -> Table:
  """Paths between MLPs."""
  paths = part['paths']
  kinds = ('probe', 'accuracy', 'loss', 'kl')
  rows = [
    [name, *(give_pair(paths[kind][name], 3) for kind in kinds)] for name in ('intact', 'effective')
  ]
  for i, j in itertools.product(range(paths['mlps']), repeat=2):
    if paths['probe']['paths'][i][j] is not None:
      rows.append(
        [f'MLP {i} to MLP {j}', *(give_pair(paths[kind]['paths'][i][j], 3) for kind in kinds)]
      )
  return Table(
    'Paths between MLPs',
    f'In the effective model, one path at the last token of the name is replaced by its mean. The reading is taken '
    f'before the head from the name alone; accuracy among the sports, loss and KL are those of the whole model after '
    f'{paths["names"]} prompts. KL of a path is from the effective model, KL of the effective one from the intact one.',
    ['ablated', 'reading', 'accuracy', 'loss', 'KL'],
    rows,
    'share of names and nats; errors over halves for the reading, over names for the others',
  )
