"""The tables of each study, from the plain results alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from experiments.dictionaries.diffing import GROUPS
from experiments.dictionaries.variants import BASELINES
from experiments.facts.cells import Table, give, give_pair
from mechjax.sae.analysis.dark_matter import TOKEN

STAGES = {'before': 'before', 'mse': 'MSE alone', 'end_to_end': 'KL and later layers'}
SHORT = {'batch_topk': 'BatchTopK', 'relu': 'L1', 'topk': 'TopK', 'jumprelu': 'JumpReLU'}
"""Names of the kinds of dictionaries in tables and pictures."""


def make_tables(name: str, found: dict[str, Any]) -> list[Table]:
  """Tables of one study."""
  return MAKERS[name](found)


def tabulate_end_to_end(found: dict[str, Any]) -> list[Table]:
  """Dictionaries before and after both fine-tunings."""
  rows = [
    [
      f'{STAGES[stage]}, {level}', give(one['l0'], digits=1), give_pair(one['delta_loss'], 4),
      '' if stage == 'mse' else give_pair(one['against_mse'], 4), give_pair(one['kl'], 4),
      give(one['fvu'], digits=4),
      f'{100 * one["dead"]:.1f} %',
    ]
    for stage, levels in found['stages'].items()
    for level, one in levels.items()
  ]  # fmt: skip
  text = (
    f'TopK before fine-tuning, and after {found["steps"]} steps with the same contexts. Delta loss: loss added by the '
    f'dictionary, nats per predicted token, ± one standard error over contexts; against MSE alone: the difference, '
    f'paired by context. KL: divergence of the spliced model. Error of later layers: weight '
    f'{found["later_weight"]:.3g}. FVU and latents that are never active: all held-out tokens.'
  )
  heads = ['dictionary', 'L0', 'delta loss', 'against MSE alone', 'KL', 'FVU', 'never active']
  return [Table('End-to-end fine-tuning', text, heads, rows, 'nats per token')]


def tabulate_diffing(found: dict[str, Any]) -> list[Table]:
  """Losses of both models, and the groups of latents."""
  losses = [
    [name, *(give_pair(one[text], 3) for text in ('ordinary', 'other'))]
    for name, one in found['losses'].items()
  ]
  rows, quality = [], []
  for kind, one in found['kinds'].items():
    quality.append(
      [SHORT[kind], give_pair(one['l0'], 1), give_pair(one['fvu'], 3), give_pair(one['auc'])]
    )
    for group in GROUPS:
      cells = [
        give_pair(one['count'][group], 1), give_pair(one['precision'][group]), give_pair(one['selectivity'][group]),
      ]  # fmt: skip
      rows.append([f'{SHORT[kind]}, {group}', *cells])
  text = (
    'Latents by the relative length of their directions: first, of the base model alone; shared; second, of the '
    'fine-tuned model alone; genuine, the second ones that latent scaling confirms; all, and those in between. Only '
    'latents that are active on held-out tokens count. Selectivity: density on the other text over the sum of the '
    'densities on both; selective: above 0.9. Means over seeds, ± one standard error.'
  )
  return [
    Table(
      'Losses of the base model and of its fine-tuned copy',
      'Nats per predicted token on the ordinary text and on that of the fine-tuning, ± one standard error over '
      'contexts; the change is paired by context.',
      ['model', 'ordinary text', 'other text'], losses, 'nats per token',
    ),
    Table(
      'Crosscoders',
      'L0 and FVU on held-out tokens of both texts. AUC: how well the relative length finds selective latents, 0.5 by '
      'chance. Means over seeds, ± one standard error.',
      ['crosscoder', 'L0', 'FVU', 'AUC'], quality,
    ),
    Table(
      'Latents of crosscoders', text, ['latents', 'number', 'share that is selective', 'selectivity'], rows
    ),
  ]  # fmt: skip


def tabulate_stability(found: dict[str, Any]) -> list[Table]:
  """Seeds of each layer, and steps between layers."""
  seeds, steps = [], []
  for kind, one in found.items():
    for layer in one['layers']:
      numbers = [
        give_pair(layer['l0'], 1),
        give_pair(layer['fvu'], 3),
        give_pair(layer['share'], 3),
      ]
      others = [give(layer[key], digits=3) for key in ('alive', 'in_all', 'chance')]
      seeds.append([f'{SHORT_RELU[kind]}, {layer["site"]}', *numbers, *others])
    for n, step in enumerate(one['steps']):
      name = f'{SHORT_RELU[kind]}, {one["layers"][n]["site"]}'
      cells = [give_pair(step['share'], 3), give_pair(step['cosine'], 3)]
      steps.append([name, *cells, *(give_pair(x, 3) for x in step['prediction'].values())])
  return [
    Table(
      'Latents that another seed finds too',
      'Shared: both assignments agree on the pair, cosines of encoder and decoder above 0.7; mean over pairs of seeds '
      '± jackknife over seeds. Active: the same among the latents of the first seed that are active on held-out '
      'tokens, with the second seed. In all: found by every seed. Chance: two untrained dictionaries.',
      ['dictionary', 'L0', 'FVU', 'shared', 'shared, active', 'in all', 'chance'], seeds,
    ),
    Table(
      'Latents matched with those of the next layer',
      'Share of pairs with a decoder cosine above 0.7, and the median cosine. FVU of the next layer: from the matched '
      'latents; by its own dictionary; by the reconstruction of this layer; by the activation of this layer. Means '
      'over seeds, ± one standard error.',
      ['dictionary', 'share', 'cosine', 'matched', 'own', 'unmoved', 'unchanged'], steps,
    ),
  ]  # fmt: skip


SHORT_RELU = SHORT | {'relu': 'ReLU'}


def tabulate_dark_matter(found: dict[str, Any]) -> list[Table]:
  """Regressions of the error, and losses with its parts put back."""
  numbers, losses = [], []
  for name, one in found.items():
    norms = [give_pair(one['norm'][key], 3) for key in ('x', '|x|', 'L0', TOKEN)]
    cells = [give_pair(one[key], 4) for key in ('fvu', 'fvu_nonlinear', 'vector')]
    numbers.append(
      [name, give(one['l0'], digits=1), *cells, give(one['mean_r2'], digits=3), *norms]
    )
    losses.append(
      [name, *(give_pair(one['added'][key], 4) for key in ('spliced', 'linear', 'nonlinear'))]
    )
  return [
    Table(
      'Error of dictionaries, predicted from the activation',
      'R² of contexts that a fit has not seen, ± one standard error over blocks of contexts. Mean R²: over the '
      'dimensions of the error, as published. The last four columns predict the squared norm of the error; from the '
      'token: by the mean over its other occurrences.',
      [
        'dictionary', 'L0', 'FVU', 'FVU, nonlinear', 'R² of the error', 'mean R²', 'norm from x', 'from its length',
        'from L0', 'from the token',
      ],
      numbers,
    ),
    Table(
      'Loss added with parts of the error put back',
      'Nats per predicted token, ± one standard error over contexts; the map was fitted on other contexts.',
      ['dictionary', 'reconstruction', 'with the linear part', 'with the nonlinear part'], losses, 'nats per token',
    ),
  ]  # fmt: skip


def tabulate_variants(found: dict[str, Any]) -> list[Table]:
  """Methods at equal L0, and their differences to their baselines."""
  rows, apart = [], []
  for name, one in found.items():
    at = one['at']
    cells = [give_pair(at['l0'], 1), give_pair(at['fvu'], 4), give_pair(at['delta_loss'], 4)]
    rows.append([name, *cells, give_pair(at['dead'], 3), give(one['similarity'], digits=3)])
    if one['against']:
      values = [give_pair(one['against'][key], 4) for key in ('fvu', 'delta_loss', 'dead')]
      apart.append([f'{name} against {BASELINES[name]}', *values])
  return [
    Table(
      'Variants of training at equal L0',
      'Means over seeds, ± one standard error. ReLU dictionaries are interpolated at the requested L0, and have no '
      'number where their coefficients do not enclose it. Delta loss: nats per predicted token. Dead: share of latents '
      'that are not active on held-out tokens. Similarity: mean MMCS of the decoders of two seeds.',
      ['method', 'L0', 'FVU', 'delta loss', 'dead', 'similarity'], rows,
    ),
    Table(
      'Differences to the baseline',
      'Paired by seed, ± one standard error; below 0 is better.',
      ['methods', 'FVU', 'delta loss', 'dead'], apart,
    ),
  ]  # fmt: skip


MAKERS: dict[str, Callable[[dict[str, Any]], list[Table]]] = {
  'end_to_end': tabulate_end_to_end,
  'diffing': tabulate_diffing,
  'stability': tabulate_stability,
  'dark_matter': tabulate_dark_matter,
  'variants': tabulate_variants,
}
