"""Hash and lookup at the surname: what early MLPs do with the two tokens of a name.

All pairs of the first names and the surnames of the kept athletes are run, three tokens each, and the listed names are
compared with the others, which have the same tokens and no sport.

    excess      the reading's AND of first name and surname by layer, which attention and MLPs write, and the share of
                it that single neurons compute themselves (`mechjax.facts.excess`); controls: shuffled sports, and
                weights permuted over neurons
    linearity   whether a layer keeps the sum of the two tokens' parts (`mechjax.facts.linearity`); control: MLP
                weights permuted
    familiarity length of MLP outputs for known and unknown names (`mechjax.facts.familiarity`); control: labels
                permuted
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from experiments.facts import weights
from experiments.facts.names import Names
from experiments.facts.settings import Settings
from experiments.facts.subject import Subject
from experiments.saved import Saved
from mechjax import harvest, precision
from mechjax.facts.bootstrap import error_of_median
from mechjax.facts.excess import check_gate, excess_computed, share_of_and
from mechjax.facts.familiarity import compare_groups
from mechjax.facts.linearity import draw_swaps, measure_linearity
from mechjax.facts.names import NameProduct
from mechjax.facts.products import ProductSums, read_product
from mechjax.facts.reads import make_row_reader, read_whole
from mechjax.facts.weight_shuffles import shuffle_weights
from mechjax.models.decoder import ACTIVATIONS
from mechjax.probing.heads import normalise
from mechjax.probing.mechanistic import MechanisticProbe

COMPONENTS = ('attn_out', 'mlp_out')
SHUFFLED_MODELS = 3
"""Models with permuted MLP weights."""


@dataclasses.dataclass(frozen=True, eq=False)
class Product:
  """The product of the names' parts.

  Attributes:
    names: the product.
    labels: sport of each listed name.
    depth: number of layers that are read.
  """

  names: NameProduct
  labels: Int[np.ndarray, ' P']
  depth: int


def make_product(settings: Settings, subject: Subject, names: Names) -> Product:
  """The product of the first names and surnames of the kept athletes, at most `grid` of each.

  Raises:
    FactsError: fewer than two first names or surnames.
  """
  first: dict[int, int] = {}
  last: dict[int, int] = {}
  chosen = []
  for number, row in enumerate(names.bare.tokens):
    a, b = (int(x) for x in row[1:])
    if len({*first, a}) <= settings.grid and len({*last, b}) <= settings.grid:
      first[a] = last[b] = 1
      chosen.append(number)
  listed = {
    subject.athletes[names.index[i]].name: names.bare.tokens[i, 1:].tolist() for i in chosen
  }
  product = NameProduct.of(listed, names.bare.tokens[0, :1].tolist())
  depth = min(settings.depth, subject.model.n_layers)
  return Product(product, names.labels[chosen], depth)


def measure_hashing(
  settings: Settings, subject: Subject, names: Names, probe: MechanisticProbe, saved: Saved
) -> dict[str, Any]:
  """Excess, linearity and familiarity; see the head of this file.

  Args:
    settings, subject, saved: as everywhere.
    names: the kept names.
    probe: the head that reads the sport.

  Raises:
    FactsError: the weights of the MLPs are not known; fewer than two first names or surnames.
  """
  weights.check_weights(subject.model)
  product = make_product(settings, subject, names)
  return {
    'names': len(product.labels),
    'product': [*product.names.shape],
    'excess': measure_excess(settings, subject, product, probe, saved),
    'linearity': measure_linear_structure(settings, subject, product, saved),
    'familiarity': measure_familiarity(settings, subject, product, saved),
  }


# --- excess ---------------------------------------------------------------------------------------------------


def measure_excess(
  settings: Settings, subject: Subject, product: Product, probe: MechanisticProbe, saved: Saved
) -> dict[str, Any]:
  """Non-linear excess of the probe, and the share that the writing neurons compute.

  Returns:
    'probe': by layer, median over names of the excess of the reading of the right sport. 'control', 'control_sd': the
    same with shuffled sports, mean and standard deviation over draws. 'attn_out', 'mlp_out': by layer, median share of
    the excess of the last of these layers that the component writes, with norms frozen. 'share', 'error', 'shuffled':
    median share of the AND that single neurons of all these layers compute, its error, and the medians with permuted
    weights. 'by_layer': median share that the neurons of each layer compute. '..._error': errors of the medians.
    'names': for each name, the excess of the reading and the computed one. 'left_out': names without a positive
    excess, which have no share.
  """
  key = [probe.layer, probe.head, len(product.labels)]
  found = saved.arrays('excess', key, lambda: read_excess(settings, subject, product, probe))
  labels, rows = product.labels, np.arange(len(product.labels))
  right = found['nle_probe'][rows, :, labels]
  random = np.random.default_rng(settings.seed)
  draws = [
    np.median(found['nle_probe'][rows, :, random.permutation(labels)], axis=0)
    for _ in range(settings.shuffles)
  ]
  P, L, F = found['computed'].shape
  one = share_of_and(
    found['computed'].reshape(P, L * F), found['weights'].reshape(P, L * F), right[:, -1],
    n_shuffles=settings.shuffles, seed=settings.seed,
  )  # fmt: skip
  by_neurons = (found['computed'] * found['weights']).sum(2)
  there = right[:, -1] > 0
  written = {name: found[f'nle_{name}'] for name in COMPONENTS}
  total = sum(x.sum(1) for x in written.values())
  shares = {name: (x / total[:, None])[there] for name, x in written.items()}
  shares['by_layer'] = by_neurons[there] / right[there, -1:]
  return {
    'probe': np.median(right, axis=0).tolist(),
    'probe_error': error_of_median(right).tolist(),
    'control': np.mean(draws, axis=0).tolist(),
    'control_sd': np.std(draws, axis=0).tolist(),
    **{name: np.median(x, axis=0).tolist() for name, x in shares.items()},
    **{f'{name}_error': error_of_median(x).tolist() for name, x in shares.items()},
    'share': one.median,
    'error': one.standard_error,
    'shuffled': one.shuffled.tolist(),
    'left_out': one.left_out,
    'names': {'probe': right[:, -1].tolist(), 'computed': by_neurons.sum(1).tolist()},
  }


def read_excess(
  settings: Settings, subject: Subject, product: Product, probe: MechanisticProbe
) -> dict[str, np.ndarray]:
  """Excess of the listed names: of the probe, and computed by each neuron, with each neuron's weight to the probe."""
  model, depth = subject.model, product.depth
  gated = 'gate' in model.params['layers']['mlp']
  directions = jnp.asarray(weights.centre_directions(probe), jnp.float32)

  def select(params: Any, acts: harvest.Activations) -> dict[str, jax.Array]:
    by_layer = {
      name: jnp.moveaxis(acts.stack(name), 0, 1) for name in ('mlp_pre', 'mlp_post', *COMPONENTS)
    }
    if gated:
      up = params['layers']['mlp']['up'][:depth]
      by_layer['up'] = precision.einsum('lbd,ldf->blf', acts.stack('mlp_norm'), up)
    x_LxBxD = acts.stack('resid_post')
    unit_LxBxD = normalise(x_LxBxD, probe.norm, probe.eps)
    scores = precision.einsum('lbd,dc->lbc', unit_LxBxD, directions)
    return by_layer | {
      'probe': jnp.moveaxis(scores, 0, 1),
      'scale': jnp.linalg.norm(unit_LxBxD[-1], axis=-1) / measure_length(x_LxBxD[-1], probe.norm),
    }

  span = f'{{0..{depth - 1}}}'
  read_sites = ('mlp_norm', 'mlp_pre', 'mlp_post', *COMPONENTS, 'resid_post')
  sites = ', '.join(f'{name}.{span}' for name in read_sites)
  read = read_whole(model.truncate_at(sites), model.params, product.names.prefix, sites, select)
  sums = read_product(read, product.names)
  return summarise_sums(sums, subject, product, np.asarray(directions, np.float64))


def measure_length(x: jax.Array, norm: str) -> jax.Array:
  """Length of what a norm divides."""
  return jnp.linalg.norm(x - x.mean(-1, keepdims=True) if norm == 'layer' else x, axis=-1)


def summarise_sums(
  sums: ProductSums, subject: Subject, product: Product, directions: Float[np.ndarray, 'D C']
) -> dict[str, np.ndarray]:
  """Excess that components write to the probe, and computed excess and weight to the probe of every neuron."""
  nle, values, model = sums.excess(), sums.chosen, subject.model
  inputs = [nle['mlp_pre'], *([nle['up']] if 'up' in nle else [])]
  if 'up' in nle:
    activation = ACTIVATIONS[model.config.activation]  # type: ignore[union-attr]
    check_gate(values['mlp_post'], values['mlp_pre'], values['up'], activation)
  writers = weights.read_writers(model, product.depth)
  scale = weights.freeze_scale(values['mlp_post'], values['mlp_out'], writers)
  to_probe = np.einsum('lfd,dc->lfc', writers, directions)[:, :, product.labels]  # [L, F, P]
  weight = to_probe.transpose(2, 0, 1) * scale[..., None] * values['scale'][:, None, None]
  own = directions[:, product.labels].T * values['scale'][:, None]  # [P, D]
  return {
    **{f'nle_{name}': np.einsum('pld,pd->pl', nle[name], own) for name in COMPONENTS},
    'nle_probe': nle['probe'],
    'computed': excess_computed(nle['mlp_post'], *inputs).astype(np.float32),
    'weights': weight.astype(np.float32),
  }


# --- linear structure and familiarity ---------------------------------------------------------------------------


def make_surname_reader(settings: Settings, subject: Subject, product: Product) -> Any:
  """A function (params, pairs) -> MLP outputs and the stream after each layer at the surname, [U, L, D] by name."""
  span = f'{{0..{product.depth - 1}}}'
  sites = f'mlp_out.{span}, resid_post.{span}'
  read = make_row_reader(subject.model.truncate_at(sites), sites, batch=4 * settings.batch)
  return lambda params, pairs: read(params, product.names.rows(pairs))


def measure_linear_structure(
  settings: Settings, subject: Subject, product: Product, saved: Saved
) -> dict[str, Any]:
  """Linearity index of MLP outputs and of the stream by layer, of the model and of models with permuted MLP weights.

  Returns:
    For 'mlp_out' and 'resid_post', 'mean' and 'error' by layer, and 'shuffled', [models][L].
  """
  swaps = draw_swaps(product.names, seed=settings.seed)

  def compute() -> dict[str, np.ndarray]:
    found: dict[str, list[np.ndarray]] = {}
    read = make_surname_reader(settings, subject, product)
    for number in range(1 + SHUFFLED_MODELS):
      params = subject.model.params
      if number:
        params = shuffle_weights(params, 'mlp', seed=settings.seed + number, stacked=1)
      for name, x in read(params, swaps.pairs).items():
        index = measure_linearity(x, swaps)
        found.setdefault(f'{name}_mean', []).append(index.mean)
        found.setdefault(f'{name}_error', []).append(index.standard_error)
    return {name: np.array(rows) for name, rows in found.items()}

  arrays = saved.arrays('linearity', len(product.labels), compute)
  return {
    name: {
      'mean': arrays[f'{name}_mean'][0].tolist(),
      'error': arrays[f'{name}_error'][0].tolist(),
      'shuffled': arrays[f'{name}_mean'][1:].tolist(),
    }
    for name in ('mlp_out', 'resid_post')
  }


def measure_familiarity(
  settings: Settings, subject: Subject, product: Product, saved: Saved
) -> dict[str, Any]:
  """Length of each MLP's output at the surname: known names against made-up ones in which every token is once.

  Returns:
    By layer: 'ratio' of the means, 'auc' with its 'error', and 'shuffled', the range that 95 % of the AUCs with
    permuted labels are in.
  """
  unknown = draw_unknown(product.names, settings.seed)

  def compute() -> dict[str, np.ndarray]:
    read, params = make_surname_reader(settings, subject, product), subject.model.params
    known, other = (
      np.linalg.norm(read(params, pairs)['mlp_out'], axis=-1)
      for pairs in (product.names.pairs, unknown)
    )
    return {'known': known, 'unknown': other}

  arrays = saved.arrays('familiarity', len(product.labels), compute)
  found = compare_groups(
    arrays['known'], arrays['unknown'], max(settings.shuffles, 100), settings.seed
  )
  return {
    'unknown': len(unknown),
    'ratio': found.ratio.tolist(),
    'auc': found.auc.tolist(),
    'error': found.standard_error.tolist(),
    'shuffled': np.quantile(found.shuffled, [0.025, 0.975], axis=0).tolist(),
  }


def draw_unknown(names: NameProduct, seed: int) -> Int[np.ndarray, 'U 2']:
  """Made-up pairs in which no first name and no surname is twice."""
  random = np.random.default_rng(seed)
  n = min(names.shape)
  pairs = np.stack([random.permutation(size)[:n] for size in names.shape], 1)
  listed = {tuple(row) for row in names.pairs.tolist()}
  return np.array([row for row in pairs.tolist() if tuple(row) not in listed], int)
