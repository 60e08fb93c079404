"""The tables of the study, from the plain results."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.attention_sae.induction import PARTS
from experiments.attention_sae.ioi import SETS
from experiments.attention_sae.ioi_prompts import NOISES, ORDERS, PLACES
from experiments.facts.cells import Table, give
from mechjax.viz.tokens import show_blanks


def make_tables(results: dict[str, Any]) -> list[Table]:
  """All tables in order."""
  tables = [tabulate_prefixes(results), tabulate_noise(results)]
  every = results['dictionaries']
  tables += [tabulate_sets(results)]
  for one in every:
    tables += [
      tabulate_roles(results, one), tabulate_latents(one), tabulate_induction(results, one),
      *(tabulate_effects(one, place) for place in PLACES),
    ]  # fmt: skip
  return tables


def find_top_heads(results: dict[str, Any]) -> list[tuple[int, int]]:
  """(layer, head) of the heads that attend most after the longest prefix."""
  last = np.array(results['prefixes']['value'], float)[-1]
  order = np.argsort(-last, axis=None, kind='stable')[: results['settings']['rows']]
  return [(int(l), int(h)) for l, h in zip(*np.unravel_index(order, last.shape))]


def tabulate_prefixes(results: dict[str, Any]) -> Table:
  """Attention of the strongest induction heads by the length of the prefix."""
  value, error = (np.array(results['prefixes'][k], float) for k in ('value', 'se'))
  rows = [
    [f'{l}.{h}', *(give(v, e) for v, e in zip(value[:, l, h], error[:, l, h]))]
    for l, h in find_top_heads(results)
  ]
  n, length = results['settings']['prefix_texts'], results['settings']['prefix_length']
  return Table(
    'Induction score by the length of the repeated prefix',
    f'Mean attention from the last token of a repeated prefix to the token after its first occurrence, over {n} texts '
    f'of {length} different random tokens, ± one standard error over texts. 0 is the control: nothing is repeated.',
    ['head', *map(str, range(len(value)))], rows, 'attention',
  )  # fmt: skip


def tabulate_noise(results: dict[str, Any]) -> Table:
  """Logit differences that are left with noise in the place of clean activations."""
  rows = []
  for site, places in results['noise'].items():
    for place, orders in places.items():
      for order, noises in orders.items():
        left = [_give(noises[name]['left']) for name in NOISES]
        rows.append([f'{site} at {place}, {order}', *left])
  own = {
    f'the prompts themselves, {order}': [_give(one['own'][name]) for name in NOISES]
    for order, one in results['plain'].items()
  }
  rows += [[f'{name}, logits', *cells] for name, cells in own.items()]
  clean = '; '.join(
    f'{order}: {_give(one)}, above 0 on {100 * one["right"]:.0f} %'
    for order, one in results['plain'].items()
  )
  moved = ' '.join(results['settings']['preface'].split())
  return Table(
    'What is left of the logit difference with activations of noise prompts',
    f'Logit of the receiver minus that of the giver. Clean prompts: {clean}. The outputs of all heads of a layer at '
    f'one place come from a noise prompt, in which " and" is {results["settings"]["alongside"]!r} (alongside), the '
    f'names are in the other order (order), the sentence "{moved}" comes first (moved), or all words are those of '
    f'another prompt (words). Shares of the clean difference; the last rows are the differences after the noise '
    f'prompts themselves, for the same answers. ± one standard error over {results["settings"]["prompts"]} prompts.',
    ['site, place and order', *NOISES], rows, 'shares of the logit difference, and logits',
  )  # fmt: skip


def tabulate_sets(results: dict[str, Any]) -> Table:
  """All active latents, the error and the whole activation removed at a place."""
  rows = []
  for one in results['dictionaries']:
    for place, found in one['places'].items():
      for order, part in found['orders'].items():
        largest = [max(map(abs, part[key]), default=0.0) for key in ('effect', 'control')]
        rows.append([
          f'{one["name"]} at {place}, {order}', f'{len(part["latents"])}', f'{part["active_latents"]:.1f}',
          give(part['error_share']), *(_give(part['sets'][key]) for key in ('clean', *SETS)),
          *(give(x, digits=3) for x in largest),
        ])  # fmt: skip
  return Table(
    'IOI: dictionaries as a whole',
    'Latents that are active on any prompt, active ones on a prompt, and the squared length of the error as a share of '
    'that of the activation; the clean logit difference; its change without all latents, without the error, and with '
    'zero in place of the activation; the largest mean effect of one latent, and of a random vector of its length.',
    [
      'dictionary, place and order', 'active', 'on a prompt', 'error', 'clean', *(f'without {s}' for s in SETS),
      'largest effect', 'largest control',
    ],
    rows, 'logits',
  )  # fmt: skip


def tabulate_roles(results: dict[str, Any], one: dict[str, Any]) -> Table:
  """Scores of all heads with their control."""
  roles = one['roles']
  rows = []
  for head, shares in enumerate(roles['shares']):
    cells = [f'{one["layer"]}.{head}', f'{min(shares):.2f} to {max(shares):.2f}']
    cells.append(give(roles['mean_share'][head]))
    for scores in roles['scores'].values():
      low, high = scores['control_quantiles']
      cells += [
        give(scores['score'][head], digits=3), f'{scores["control"]:.3f} [{low:.3f}, {high:.3f}]',
        give(scores['p_above'][head], digits=4),
      ]  # fmt: skip
    rows.append(cells)
  top, peaks = results['settings']['top'], results['settings']['peaks']
  return Table(
    f'Roles of heads: {one["name"]}',
    f'The {top} latents with the largest shares of each head, of {roles["live"]} that are active in enough contexts. '
    f'Share: from the least to the largest of these, and the mean of all latents. Jaccard: mean over pairs of latents, '
    f'of the tokens at the peaks of their top {peaks} contexts, and of all tokens there. Control: '
    f'{results["settings"]["shuffles"]} groups of as many latents drawn from the {roles["pool"]} of all heads, the '
    f'mean and 95 % of them; p: share of these groups that are at least as alike.',
    [
      'head', 'share', 'mean share', 'Jaccard, peaks', 'control', 'p', 'Jaccard, contexts', 'control ', 'p ',
    ],
    rows,
  )  # fmt: skip


def tabulate_latents(one: dict[str, Any]) -> Table:
  """The three first latents of each head with their tokens."""
  rows = []
  for head, (latents, shares) in enumerate(zip(one['roles']['latents'], one['roles']['shares'])):
    named = [f'{i} ({s:.2f}): {_tokens(one, i)}' for i, s in zip(latents[:3], shares[:3])]
    rows.append([f'{one["layer"]}.{head}', *named, *[''] * (3 - len(named))])
  return Table(
    f'Latents of heads: {one["name"]}',
    'The three latents with the largest shares of each head, the share, and the tokens at which they peak most often.',
    ['head', 'first', 'second', 'third'], rows,
  )  # fmt: skip


def tabulate_induction(results: dict[str, Any], one: dict[str, Any]) -> Table:
  """Shares of the source tokens in induction latents and random latents."""
  found = one['induction']
  shares, rows = found['shares'], []
  for n, latent in enumerate(found['latents'] + found['random']):
    kind = '' if n < len(found['latents']) else ' (random)'
    rows.append([
      f'{latent}{kind}', _head(one, latent), f'{shares["columns"]["value"][n]:.0f}',
      give(found['first'][n]), give(found['second'][n]), give(shares['activation']['value'][n]),
      *(_give_at(shares[key], n) for key in (*PARTS, 'others_mean', 'largest')),
    ])  # fmt: skip
  n, half = results['settings']['sequences'], results['settings']['half']
  return Table(
    f'Induction latents: {one["name"]}',
    f'{n} sequences of {half} tokens, repeated; tokens of the second half that occur exactly once before. Latents are '
    f'those whose mean activation rises most from the first to the second occurrence (columns 1st and 2nd), on half of '
    f'the sequences; all other numbers are of the other half. Columns: tokens at which the latent is active there, and '
    f'its mean pre-activation. Shares of the pre-activation by source token: the token after the earlier occurrence, '
    f'the earlier occurrence, the token after the first of these, the token itself, the token that begins the text, '
    f'all others, and the constant; they sum to 1. One other: their mean. Largest: share of the tokens at which '
    f'"after" is the largest source. ± one standard error over sequences.',
    [
      'latent', 'head (share)', 'columns', '1st', '2nd', 'activation', *PARTS, 'one other', 'largest',
    ],
    rows, 'shares',
  )  # fmt: skip


def tabulate_effects(one: dict[str, Any], place: str) -> Table:
  """Latents with the largest effects at a place."""
  found, rows = one['places'][place], []
  for latent in found['shown']:
    cells = [str(latent), _head(one, latent), _tokens(one, latent)]
    for order in ORDERS:
      part = found['orders'][order]
      if latent not in part['latents']:
        cells += ['0', '', '0', '', '', '']
        continue
      n = part['latents'].index(latent)
      cells += [
        give(part['effect'][n], part['effect_se'][n], 3), give(part['control'][n], part['control_se'][n], 3),
        give(part['active'][n]), give(part['activation'][n]),
        *(give(part['noise'][key][n]) for key in ('alongside', 'order')),
      ]  # fmt: skip
    rows.append(cells)
  heads = [
    f'{order}: {name}'
    for order in ORDERS
    for name in ('effect', 'control', 'active', 'activation', 'alongside', 'order')
  ]
  return Table(
    f'IOI latents at {place}: {one["name"]}',
    'Change of the logit difference without one latent, everything else of the activation kept; the control removes a '
    'vector of the same length along a random latent that is not active. Means over all prompts, ± one standard error '
    'over prompts; active: share of the prompts with the latent; its mean activation, and that on noise prompts with '
    'another word for " and", and in the other order of names.',
    ['latent', 'head (share)', 'tokens', *heads], rows, 'logits',
  )  # fmt: skip


def _give(pair: dict[str, Any]) -> str:
  return give(pair['value'], pair['se'])


def _give_at(pairs: dict[str, Any], n: int) -> str:
  return give(pairs['value'][n], pairs['se'][n])


def _head(one: dict[str, Any], latent: int) -> str:
  known = one['latents'][str(latent)]
  return f'{one["layer"]}.{known["head"]} ({known["share"]:.2f})'


def _tokens(one: dict[str, Any], latent: int) -> str:
  """Tokens of a latent; a vertical bar would end the cell of a table."""
  return ' '.join(map(show_blanks, one['latents'][str(latent)]['tokens'])).replace('|', '¦')
