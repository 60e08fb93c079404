"""Attribution graphs against circuit-tracer: features, edges, influence, pruning, interventions and files.

circuit-tracer computes rows as gradients of TransformerLens, so nothing is shared but the weights. Both read the same
files of transcoders, which we write. Its graph is a part of ours: it drops features and errors of position 0, has no
biases, and no learned positions. With these left out of ours, all numbers agree to rounding in float64.
"""

import contextlib
import dataclasses
import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

from mechjax import sae
from mechjax.circuits import (
  CrossLayerReplacement,
  Frozen,
  Graph,
  Intervention,
  Maps,
  Replacement,
  attribute,
  constrain,
  logits,
  prune,
)
from mechjax.circuits.graph_export import as_data
from mechjax.circuits.neuronpedia import read_graph
from mechjax.models import decoder
from mechjax.sae import formats
from tests.models import decoders
from tests.truth import hooked

pytestmark = pytest.mark.truth

D, M, L, T = 16, 24, 2, decoders.T
TOKENS = decoders.TOKENS[:1]
PIECES = [f'<{i}>' for i in range(decoders.V)]
CLOSE = {'rtol': 1e-9, 'atol': 1e-11}
# circuit-tracer gives all layers the rotary embeddings of the last one, so local layers have no base of their own here.
CONFIGS = decoders.CONFIGS | {
  'gemma': dataclasses.replace(decoders.CONFIGS['gemma'], rope_local_base=None, rope_scale=1.0)
}
SHAPE: dict[str, Any] = {'d_in': D, 'd_out': D, 'width': M, 'sparsity': 0.0}
JUMP = {l: sae.JumpReLU(**SHAPE) for l in range(L)}
SKIP = {l: sae.JumpReLU(**SHAPE, skip=True) for l in range(L)}
RELU = {l: sae.ReLU(**SHAPE) for l in range(L)}
CROSS = {'all': sae.CrossLayerJumpReLU(**SHAPE, n_layers=L)}
CASES = {
  'skip transcoders of a gpt2': ('gpt2', SKIP, 'mlp_out'),
  'transcoders of a parallel neox': ('neox', JUMP, 'mlp_out'),
  'transcoders before the post-norm of a gemma': ('gemma', RELU, 'mlp_raw'),
  'a cross-layer transcoder of a gemma': ('gemma', CROSS, 'mlp_out'),
}
HOOKS = {'mlp_norm': 'mlp.hook_in', 'mlp_out': 'hook_mlp_out', 'mlp_raw': 'mlp.hook_out'}


@dataclasses.dataclass
class Pair:
  """One prompt's run and graph here, and the model and graph of circuit-tracer."""

  forward: Any
  params: Any
  frozen: Frozen
  graph: Graph
  lens: Any
  theirs: Any

  @property
  def kept(self):
    """Our features that circuit-tracer has."""
    return np.flatnonzero(self.graph.position > 0)

  @property
  def columns(self):
    """Our columns in the order of theirs: features, errors, embeddings."""
    errors, tokens = (self.graph.columns.of(kind) for kind in ('error', 'embedding'))
    return np.concatenate([self.kept, np.arange(errors.start, tokens.stop)])

  @property
  def rows(self):
    """Our rows in the order of theirs: features, logits."""
    n = len(self.graph.targets)
    return np.concatenate([n + self.kept, np.arange(n)])

  @functools.cached_property
  def table(self):
    """Their contributions in the order of our rows and columns."""
    square = self.theirs.adjacency_matrix.numpy()
    n, F = len(self.graph.targets), len(self.kept)
    assert not square[F:-n].any()
    assert not square[:, -n:].any()
    return np.concatenate([square[:F, :-n], square[-n:, :-n]])

  @functools.cached_property
  def part(self):
    """Our graph without what circuit-tracer leaves out."""
    table = np.zeros_like(self.graph.table)
    table[np.ix_(self.rows, self.columns)] = self.graph.table[np.ix_(self.rows, self.columns)]
    table[:, self.graph.columns.of('error').start + T * np.arange(L)] = 0
    return dataclasses.replace(self.graph, table=table)


@contextlib.contextmanager
def float64():
  """Both libraries in float64."""
  import torch

  before = torch.get_default_dtype()
  torch.set_default_dtype(torch.float64)
  try:
    with jax.enable_x64(True):
      yield
  finally:
    torch.set_default_dtype(before)


@pytest.fixture(autouse=True)
def _float64():
  with float64():
    yield


def tracer():
  """circuit-tracer, which reads a constant that newer versions of huggingface-hub lack when it is imported."""
  import huggingface_hub.constants

  vars(huggingface_hub.constants).setdefault('HF_HUB_ENABLE_HF_TRANSFER', False)
  import circuit_tracer

  return circuit_tracer


class Tokenizer:
  """The part of a tokenizer that circuit-tracer needs for tokens."""

  all_special_ids = tuple(range(decoders.V))
  vocab_size = decoders.V
  padding_side = 'right'

  def decode(self, tokens):
    return ''.join(PIECES[int(t)] for t in np.atleast_1d(tokens))


def parameters(architecture, seed):
  """Random parameters, of which some latents are active."""
  r = np.random.default_rng(seed)
  found = {
    name: 0.4 * r.standard_normal(x.shape)
    for name, x in jax.eval_shape(architecture.init, jax.random.key(0)).items()
  }
  found['b_enc'] -= 0.5
  found['b_enc'][..., :L] -= 100  # files give errors of layer l the id of latent l of layer 0
  if 'log_threshold' in found:
    found['log_threshold'] = np.log(r.uniform(0.1, 0.6, found['log_threshold'].shape))
  return {name: jnp.asarray(x, jnp.float32) for name, x in found.items()}


def write(place, name, dictionaries, target):
  """Writes dictionaries in the format of circuit-tracer."""
  about = {'feature_input_hook': HOOKS['mlp_norm'], 'feature_output_hook': HOOKS[target]}
  with_parameters = {key: (x, parameters(x, i)) for i, (key, x) in enumerate(dictionaries.items())}
  if dictionaries is CROSS:
    formats.save(place, *with_parameters['all'], format='circuit_tracer', about=about)
  else:
    formats.save_set(place, with_parameters, about=about | {'model_name': name, 'scan': 'ours'})


def read_as_theirs(place, dtype='float64'):
  """The dictionaries of a directory in circuit-tracer."""
  import torch

  tracer()
  from circuit_tracer.transcoder.cross_layer_transcoder import load_clt
  from circuit_tracer.utils.hf_utils import load_transcoders

  config = yaml.safe_load((place / 'config.yaml').read_text())
  if config['model_kind'] == 'cross_layer_transcoder':
    hooks = {name: config[name] for name in ('feature_input_hook', 'feature_output_hook')}
    return load_clt(str(place), **hooks, scan='ours', dtype=getattr(torch, dtype))
  files = [str(place / f'layer_{l}.safetensors') for l in range(L)]
  return load_transcoders(config | {'transcoders': files}, dtype=getattr(torch, dtype))


def read_as_ours(place, target):
  if (place / 'W_enc_0.safetensors').exists():
    back = formats.load(place)
    return CrossLayerReplacement(back.sae, back.params)
  found = {f'mlp_norm.{l}': (x.sae, x.params) for l, x in formats.load_set(place).items()}
  return Replacement(found, {f'mlp_norm.{l}': f'{target}.{l}' for l in range(L)})


@functools.cache
def forward_of(name):
  return lambda params, tokens: decoder.forward(params, tokens, CONFIGS[name])


@functools.cache
def maps_of(name):
  return Maps.of(forward_of(name), decoders.params(name, 'float64'), TOKENS)


def lens_of(name, transcoders):
  """The replacement model of circuit-tracer with our parameters."""
  import torch

  tracer()
  from circuit_tracer.replacement_model.replacement_model_transformerlens import (
    TransformerLensReplacementModel,
  )
  from transformer_lens import HookedTransformerConfig

  config = HookedTransformerConfig(**hooked.settings(CONFIGS[name], dtype=torch.float64))
  lens = TransformerLensReplacementModel.from_config(config, transcoders)
  named = hooked.renamed(CONFIGS[name], decoders.params(name, 'float64'))
  hooked.load(lens, named, wrapped=('.old_mlp', '.old_unembed'))
  lens.tokenizer = Tokenizer()
  return lens


@pytest.fixture(scope='module', params=CASES)
def both(request, tmp_path_factory):
  """Both graphs of one prompt."""
  import torch

  name, dictionaries, target = CASES[request.param]
  # circuit-tracer reads decoders from their files again and again.
  place = tmp_path_factory.mktemp(name) / 'dictionaries'
  with float64():
    write(place, name, dictionaries, target)
    lens = lens_of(name, read_as_theirs(place))
    theirs = tracer().attribute(torch.tensor(np.asarray(TOKENS[0])), lens, batch_size=32)
    forward, params = forward_of(name), decoders.params(name, 'float64')
    frozen = Frozen.of(forward, params, TOKENS, read_as_ours(place, target), maps=maps_of(name))
    graph = attribute(frozen, logits(frozen, 0.95, at_most=10), batch=32)
  return Pair(forward, params, frozen, graph, lens, theirs)


def test_features_and_edges_after_position_0_are_those_of_circuit_tracer(both):
  ours, theirs = both.graph, both.theirs
  places = np.stack([ours.layer, ours.position, ours.latent], 1)[both.kept]
  np.testing.assert_array_equal(places, theirs.active_features)
  assert {*places[:, 0]} == {*range(L)}
  assert 10 < len(places) < len(ours.layer)
  np.testing.assert_allclose(ours.activation[both.kept], theirs.activation_values, **CLOSE)
  assert ours.targets.tokens == tuple(theirs.logit_token_ids.tolist())
  np.testing.assert_allclose(ours.targets.weight, theirs.logit_probabilities, **CLOSE)
  errors = both.table[:, len(places) : len(places) + L * T].reshape(-1, L, T)
  assert not errors[..., 0].any()
  expected = both.part.table[np.ix_(both.rows, both.columns)]
  assert np.count_nonzero(expected[: len(places), : len(places)]) > 300
  np.testing.assert_allclose(expected[:, :-T], both.table[:, :-T], **CLOSE)


def test_embeddings_are_those_of_circuit_tracer_without_learned_positions(both):
  frozen, table = both.frozen, both.part.table
  if 'positions' in both.params['embed']:
    tokens = frozen.embed - both.params['embed']['positions'][:T]
    table = attribute(dataclasses.replace(frozen, embed=tokens), both.graph.targets, batch=32).table
  found = table[np.ix_(both.rows, both.columns[-T:])]
  np.testing.assert_allclose(found, both.table[:, -T:], **CLOSE)


def test_rows_of_circuit_tracer_lack_biases_and_position_0(both):
  assert both.graph.check() < 1e-10
  missing = np.abs(both.table.sum(1) / both.graph.values[both.rows] - 1)
  assert np.median(missing) > 0.1


@pytest.fixture
def part(both):
  """Our graph with exactly their table."""
  table = both.part.table.copy()
  table[np.ix_(both.rows, both.columns)] = both.table
  return dataclasses.replace(both.part, table=table)


def test_influence_and_scores_are_those_of_circuit_tracer(both, part):
  from circuit_tracer.graph import compute_graph_scores, compute_node_influence

  n, theirs = len(part.targets), both.theirs
  weights = np.concatenate([np.zeros(len(theirs.adjacency_matrix) - n), part.targets.weight])
  found = compute_node_influence(
    theirs.adjacency_matrix, theirs.logit_probabilities.new_tensor(weights)
  )
  influence = part.influence()
  total = part.targets.weight.sum()  # ours is of weights that sum to 1
  np.testing.assert_allclose(influence[both.columns] * total, found[:-n], **CLOSE)
  replacement, completeness = compute_graph_scores(theirs)
  np.testing.assert_allclose(part.scores()['replacement'], replacement, **CLOSE)
  # Theirs is also over embeddings and errors, whose inputs are none and count as explained.
  features = influence[both.kept].sum()
  leaves = influence.sum() - features
  expected = (part.scores()['completeness'] * (1 + features) + leaves) / (1 + features + leaves)
  np.testing.assert_allclose(expected, completeness, **CLOSE)


@pytest.mark.parametrize(('nodes', 'edges'), [(0.8, 0.98), (0.5, 0.7)])
def test_pruning_keeps_the_nodes_and_edges_of_circuit_tracer(both, part, nodes, edges):
  from circuit_tracer.graph import prune_graph

  n = len(part.targets)
  small, found = prune(part, nodes, edges), prune_graph(both.theirs, nodes, edges)
  np.testing.assert_array_equal(small.nodes, np.sort(both.columns[found.node_mask[:-n].numpy()]))
  target, source = (x.numpy() for x in found.edge_mask.nonzero(as_tuple=True))
  of_logit = target - len(both.columns)
  row = np.where(of_logit >= 0, of_logit, n + both.kept[np.minimum(target, len(both.kept) - 1)])
  assert {*zip(small.target_row, small.source)} == {*zip(row, both.columns[source])}
  assert 0 < len(row) < np.count_nonzero(both.table)


def test_changes_of_a_feature_have_the_effects_that_they_have_in_circuit_tracer(both):
  import torch

  tokens, targets = torch.tensor(np.asarray(TOKENS[0])), both.graph.targets
  totals = np.abs(both.graph.total_effects()).sum(0)[: len(both.frozen.features)]
  feature = int(both.kept[np.argmax(totals[both.kept])])
  place = tuple(int(getattr(both.graph, x)[feature]) for x in ('layer', 'position', 'latent'))
  change = (*place, 3 * float(both.graph.activation[feature]))

  def effect(**options):
    with torch.no_grad():
      before = both.lens(tokens)
      after, _ = both.lens.feature_intervention(tokens, [change], **options)
    difference = (after - before)[0, -1]
    return (difference - difference.mean())[[*targets.tokens]].numpy()

  with both.lens.zero_softcap():
    direct = effect(constrained_layers=range(L))
  np.testing.assert_allclose(constrain(both.frozen, {feature: 3.0}, targets), direct, **CLOSE)
  do = Intervention(both.forward, both.params, both.frozen)
  np.testing.assert_allclose(do.semi_free({feature: 3.0}, targets), effect(), **CLOSE)
  assert np.abs(effect() - direct).max() > 1e-3


def test_a_graph_file_of_circuit_tracer_is_read(both, part, tmp_path, monkeypatch):
  import transformers
  from circuit_tracer.utils import create_graph_files

  monkeypatch.setattr(transformers.AutoTokenizer, 'from_pretrained', lambda name: Tokenizer())
  create_graph_files(both.theirs, 'prompt', str(tmp_path), node_threshold=0.8, edge_threshold=0.9)
  pieces = [PIECES[int(t)] for t in TOKENS[0]]
  found = read_graph(tmp_path / 'prompt.json')
  expected = as_data(prune(part, 0.8, 0.9), pieces, text=PIECES.__getitem__)
  assert found['tokens'] == pieces
  assert found['layers'] == L
  assert edges_of(found) == pytest.approx(edges_of(expected), rel=1e-4)
  names = {node['label'] for node in found['nodes'] if node['kind'] == 'logit'}
  assert names == {PIECES[t] for t in part.targets.tokens}
  assert json.loads((tmp_path / 'graph-metadata.json').read_text())['graphs'][0]['scan'] == 'ours'


def edges_of(data):
  """Weights by kind and place of source and target."""
  names = [
    (
      x['kind'],
      x['layer'],
      x['position'],
      x['latent'],
      x['token'] if x['kind'] == 'logit' else None,
    )
    for x in data['nodes']
  ]
  return {(names[s], names[t]): weight for s, t, weight in data['links']}


@pytest.mark.parametrize('dictionaries', [SKIP, RELU, CROSS], ids=['skip', 'relu', 'cross-layer'])
def test_files_of_circuit_tracer_are_read_with_the_same_numbers(dictionaries, tmp_path):
  write(tmp_path / 'ours', 'gpt2', dictionaries, 'mlp_out')
  read_as_theirs(tmp_path / 'ours', 'float32').to_safetensors(str(tmp_path / 'theirs'))
  load = formats.load if dictionaries is CROSS else formats.load_set
  before, after = load(tmp_path / 'ours'), load(tmp_path / 'theirs')
  pairs = [(before, after)] if dictionaries is CROSS else [(before[l], after[l]) for l in range(L)]
  for one, other in pairs:
    assert one.sae == other.sae
    for name, value in one.params.items():
      np.testing.assert_allclose(other.params[name], value, rtol=1e-6, err_msg=name)
