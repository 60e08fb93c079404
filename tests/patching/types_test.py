"""The annotations of `mechjax.patching` hold for every public function, with a decoder and real arguments."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from mechjax import harvest
from mechjax.patching import (
  AblationValues,
  ActivationPatching,
  AtPStar,
  Attribution,
  EdgeAttributionPatching,
  Kept,
  Pairs,
  PatchingError,
  PathPatching,
  Search,
  SubsetPatching,
  ablate,
  ablated_site,
  alignment,
  baselines,
  component_reads,
  components,
  components_of,
  custom,
  cut_paths,
  difference,
  engine,
  frozen_attention,
  kl_divergence,
  log_probability,
  logit_difference,
  loss,
  measure_means,
  metrics,
  nodes,
  nodes_of,
  pairs,
  recall_cost,
  resample_values,
  sources,
  terms,
  verify,
)
from tests import typed
from tests.models import decoders
from tests.patching import linear, plain

pytestmark = pytest.mark.slow

NAME = 'mistral'
PARAMS = decoders.params(NAME)
forward = plain.forward(NAME)


@pytest.fixture(scope='module')
def calls():
  with typed.checked('mechjax.patching') as calls:
    yield calls


def chosen(pattern, **options):
  infos = harvest.sites_of(forward, PARAMS, jnp.asarray(plain.CLEAN))
  return nodes_of(infos, pattern, **options)


def difference_of_logits():
  return logit_difference(plain.PAIRS, plain.ANSWERS, plain.OTHERS)


def question():
  return PARAMS, plain.PAIRS, difference_of_logits()


# --- data -------------------------------------------------------------------------------------------------


def test_pairs(calls):
  lists = Pairs.of([[5, 8, 2], [5, 9, 2, 4]], [[5, 7, 2], [5, 3, 2, 4]])
  arrays = Pairs.of(lists.clean, jnp.asarray(lists.noise), pad=np.int64(7))
  for some in (lists, arrays.rows(np.array([1])), jax.device_put(lists).rows(slice(1))):
    pairs.check(some)
    assert some.last.max() == 3 or len(some) == 1
    assert some.digests.shape == (len(some), 2)
  assert jax.eval_shape(lambda p: p.rows(np.array([True, False])), lists).clean.shape == (1, 4)
  assert pairs.int32([1, 2], 'numbers').dtype == np.int32
  assert pairs.int32(3, 'a number').shape == ()


def test_nodes(calls):
  every = chosen('*', neurons='together')
  neurons = chosen('mlp_post.0', positions=[-1, 0], neurons=np.arange(3))
  heads = chosen('q', heads=[0], positions='together')
  both = every + neurons + heads
  for some in (both[:3], both[[0, 1]], both[np.arange(2)], both[both.table[:, 1] == 0]):
    assert len(list(some)) == len(some) == len(some.labels())
  node = both[np.int64(0)]
  assert node.label(['a'] * plain.T) == both.labels(['a'] * plain.T)[0]
  assert both.there(plain.REAL).shape == (len(both), 2)
  assert neurons.from_the_end
  assert {site.name for site in both.sites()} == set(both.layouts)
  for _, grid in both.grids_in_use():
    assert grid.columns().shape == (int(np.prod(grid.shape)), 4)
    layout = grid.layout
    for letters in (layout.heads, layout.position, layout.neuron):
      assert layout.index(letters).size == layout.size(letters)
  nodes.check_letters('z', 'BTNH')
  assert nodes.to_table(-1) == -2
  at = jnp.asarray([-2, 0])
  for real in (plain.REAL, jnp.asarray(plain.REAL)):
    assert nodes.columns(np.asarray(at), real).tolist() == [[4, 3], [0, 0]]
  assert jax.jit(nodes.columns)(at, plain.REAL).shape == (2, 2)


def test_metrics(calls):
  logits = jnp.asarray(plain.RANDOM.standard_normal((2, plain.T, decoders.V)), jnp.float32)
  some = [
    difference_of_logits(),
    logit_difference(plain.PAIRS, [3, 7], (20, 4), positions=[1, 2]),
    log_probability(plain.PAIRS, [[3, 4], [7, -1]]),
    loss(plain.PAIRS),
    loss(plain.PAIRS, plain.NOISE.tolist()),
    kl_divergence(plain.PAIRS, logits),
    kl_divergence(plain.PAIRS, np.asarray(logits), plain.PAIRS.last - 1),
    custom('norm', lambda out, data: (out**2).sum((1, 2)) * data, np.ones(2, np.float32)),
  ]
  some += [difference('two', some[0], some[2]), difference('whole', some[0], some[-1])]
  for metric in some:
    metric = metrics.bind(metric, plain.PAIRS)
    traced = jax.eval_shape(lambda m, x: m(x), metric, logits)
    assert traced.shape == (2,)
    assert metric.rows(np.array([1])).sizes == {1}
  assert some[0](logits).shape == (2,)


# --- methods ----------------------------------------------------------------------------------------------


def linear_question():
  return linear.PARAMS32, linear.PAIRS, logit_difference(linear.PAIRS, range(4), np.arange(4) + 4)


@pytest.mark.parametrize('mode', ['noising', 'resample', 'gaussian'])
def test_activation_patching(calls, mode, tmp_path):
  some = linear.nodes('embed, mlp_out', positions=[-1] if mode == 'noising' else [0, 1])
  method = ActivationPatching(linear.forward, some, mode, max_batch=4)
  effects = method(*linear_question(), save=tmp_path / 'sweep.npz', save_every=0.0)
  (plan,) = method._plans.values()
  assert plan.rows == linear.B
  again = method(*linear_question(), save=str(tmp_path / 'sweep.npz'), progress=True)
  assert effects.values.shape == again.values.shape == (len(some), 4)
  assert effects.mean().shape == effects.contribution().shape == effects.ranking().shape
  assert len(effects.top(2)) == 2
  assert effects.grid(1, np.arange(len(some))).shape == some.grids[1].shape
  assert effects.grid().shape == some.grids[0].shape


@pytest.mark.parametrize('steps', [0, 2])
def test_attribution(calls, steps):
  some = linear.nodes('mlp_out, mlp_post', positions=[-1, 0], neurons=[0, 2])
  found = Attribution(linear.forward, some, steps=steps)(*linear_question())
  assert found.values.shape == (len(some), 4)


def test_queries_and_keys(calls):
  some = chosen('q.0, k.0', positions=[0, -1])
  star = AtPStar(forward, some, graddrop=False)
  assert star(*question()).values.shape == (len(some), 2)


def test_dropped_gradients(calls):
  some = linear.nodes('embed, mlp_out')
  star = AtPStar(linear.forward, some)
  assert star.name == 'AtP*'
  assert star(*linear_question()).values.shape == (len(some), 4)
  assert star.by_layer(*linear_question()).shape == (linear.L, len(some), 4)


@pytest.mark.parametrize('together', [False, True])
@pytest.mark.parametrize('method', [PathPatching, EdgeAttributionPatching])
def test_paths(calls, method, together):
  senders, receivers = linear.nodes('mlp_out.0'), linear.nodes('resid_post.2', positions=[-1, 1])
  effects = method(linear.forward, senders, receivers, together=together)(*linear_question())
  assert effects.contribution().shape == (linear.T, 1 if together else 2)
  assert effects.to().values.shape == (linear.T, 4)


def test_the_parts_of_a_sweep(calls):
  some, params, sided = linear.nodes('embed, mlp_out'), linear.PARAMS32, linear.PAIRS
  _, values = sources.read(linear.forward, some, params, sided.clean)
  members = np.arange(len(some)) < 3
  for real in (sided.real, jnp.asarray(sided.real)):
    assert set(engine.plant_node(some, values, some.table[0], real)) == set(values)
    for which in (members, jnp.asarray(members)):
      plants = engine.plant_subset(some, values, which, real)
      assert plants['embed'].mask.sum() == 3 * linear.B
  sources.check_forward(forward)


def test_the_softmax_of_keys(calls):
  def effects(scores):
    arrays = terms.prepare_closed_form(scores, scores + 1, jax.nn.softmax(scores))
    return terms.key_effects(arrays, scores)

  scores = jax.ShapeDtypeStruct((2, 3, 4), np.float32)
  assert jax.eval_shape(effects, scores).shape == (2, 4)


# --- effective models -------------------------------------------------------------------------------------


def test_effective_models(calls):
  tokens = plain.CLEAN.astype(np.int32)
  parts = components_of(harvest.sites_of(forward, PARAMS, tokens))
  at = np.array([[-1], [-2]])
  means = measure_means(forward, PARAMS, tokens, parts, mask=plain.REAL)
  others = resample_values(forward, PARAMS, tokens, parts, positions=at)
  kept = Kept.of(parts, 'z.0') | Kept.all_but(parts, parts[:5])
  assert len(kept.labels()) == int(kept.members.sum())
  assert not kept.keeps_all
  path = [('mlp_out.0', 'mlp_norm.1'), (parts[-2:-1], 'final_norm')]
  for values in (means, means.at([-1]), others, AblationValues.zeros(parts, [[-1], [-3]])):
    model = ablate(forward, kept, values, paths=path)
    for mask in (plain.REAL, jnp.asarray(plain.REAL), None):
      model.check_arguments(PARAMS, tokens, mask)
    again = model.tree_unflatten(*model.tree_flatten()[::-1])
    assert again.targets == model.targets
  assert jax.eval_shape(model, PARAMS, tokens).shape == (*tokens.shape, decoders.V)


def test_frozen_attention(calls):
  tokens = plain.CLEAN.astype(np.int32)
  patterns = frozen_attention.measure_patterns(forward, PARAMS, tokens, batch=1)
  assert patterns.shape == (2, 4, plain.T, plain.T)
  for some in (patterns, jnp.asarray(patterns)):
    model = frozen_attention.freeze_attention(forward, some, cut=[(1, -1, -1)])
    model.check_arguments(PARAMS, tokens, np.ones(tokens.shape, bool))
    assert model(PARAMS, tokens).shape == (*tokens.shape, decoders.V)
    assert model.tree_unflatten(*model.tree_flatten()[::-1]).forward is forward


def test_the_parts_of_effective_models(calls):
  tokens = jnp.asarray(plain.CLEAN, jnp.int32)
  infos = harvest.sites_of(forward, PARAMS, tokens)
  parts = components_of(infos)
  for positions in ([-1, -2], np.array([-1]), [[-1], [-2]], None):
    at = alignment.as_positions(positions)
    for real in (plain.REAL, jnp.asarray(plain.REAL)):
      assert alignment.number_columns(at, real).shape == real.shape
      assert alignment.find_missing(at, real, 9).shape == real.shape
      assert alignment.count_from_end(real).shape == real.shape
    if at is not None:
      assert alignment.find_columns(at, plain.REAL).shape == (2, at.shape[-1])
      alignment.check_there(at, plain.REAL)
  assert alignment.is_real(tokens, None).all()
  assert not alignment.is_traced(tokens)
  assert not alignment.takes_mask(forward)
  alignment.check_padding(plain.REAL, masked=False)
  components.check_components(parts)
  assert components.choose_members(parts, 'z').sum() == 8
  assert components.find_owners(parts, 'z').shape == (2, 4, 1)
  assert components.mark_parts(parts, 'mlp_out', np.ones(len(parts), bool)).shape == (2, 1)
  reader = component_reads.ComponentReader.of(
    forward, PARAMS, tokens, parts, positions=[-1], mask=None, batch=1
  )
  assert len(reader) == 2
  assert reader.read(np.array([1]))['z'].shape == (2, 1, 1, 4, 6)
  assert component_reads.list_names(parts) == ['z', 'mlp_out']
  assert component_reads.list_layers(parts)['z'] == (0, 1)
  site = ablated_site.AblatedSite('z', (0, 1), 'BTNH')
  assert site.check(infos, plain.REAL.shape, (4, 6)) == np.float32
  number = alignment.number_columns(None, plain.REAL)
  z = site.spread(jnp.ones((2, 5, 4, 6)), number, number < 0, np.dtype('float32'))
  assert ablated_site.to_front(z, 'BTNH').shape == ablated_site.from_front(z, 'BTNH').shape
  assert site.mask(jnp.ones((2, 4, 1), bool), number >= 0).shape == (2, 2, 5, 4, 1)
  assert ablated_site.rest_of(parts.layouts['z']) == ('NH', (4, 6))
  assert isinstance(ablated_site.mismatch('z', (1,), (2,)), PatchingError)
  cut = cut_paths.CutPaths.of(parts, [('mlp_out.0', 'mlp_norm.1')])
  cut_paths.check_receivers(cut, infos)
  held = cut_paths.HeldModel.of(forward, (PARAMS, tokens), {}, infos)
  mlp = ablated_site.AblatedSite('mlp_out', (0, 1), 'BTD')
  new = {'z': z, 'mlp_out': jnp.zeros((2, 2, 5, 16))}
  assert set(held.plant_paths({}, cut, (site, mlp), new, number >= 0)) == {'mlp_norm'}


# --- searches and bounds ----------------------------------------------------------------------------------


def test_searches_and_bounds(calls):
  some = linear.nodes('mlp_out', positions=[0, -1])
  patch = SubsetPatching(linear.forward, some)(*linear_question())
  n = len(some)
  effects = baselines.measure(patch, np.eye(n, dtype=bool))
  truth = np.abs(effects).mean(1)
  costs = [
    recall_cost(search, truth)
    for search in (
      Search.by(truth, 0.0),
      Search.by(truth, 2.5),
      baselines.random_order(n),
      baselines.blocks(patch, n, 2),
      baselines.hierarchical(patch, n, joint=3, at_once=2),
      verify.sample_subsets(patch, n, subsets=20, p=0.3).search(),
    )
  ]
  assert all(baselines.aggregate(c) >= 1 for c in costs)
  assert recall_cost(Search.by(truth, 0.0), truth, [1, 2]).tolist() == [1, 2]
  assert baselines.aggregate(costs[0][:2], [1, 2]) >= 1
  order = baselines.random_order(n, 1)
  assert order.place[order.ranking[0]] == 0
  assert 0 <= baselines.recall(order, truth, 2, 3.0) <= 1
  assert len(baselines.false_negatives(order, truth, 3)) <= 3
  assert baselines.spearman(truth, truth) == 1
  found = verify.verify(Search.by(truth, 0.0), patch, 2, 3.0, checks=1, subsets=10, p=0.4)
  assert found.subsets.upper_bounds().shape == found.subsets.nodes.shape
  assert found.subsets.p_values(0.1).max() == found.subsets.p_value(0.1)
  assert len(found.subsets.suspects(0.1)) <= n
  assert verify.count_above(0, 3, 9) <= 9
  assert 0 < verify.fraction_above(0, 3) < 1


# --- all of them, and nothing that is wrong -----------------------------------------------------------------


def test_every_public_function_was_called(calls, request):
  ours = {f for name, f in globals().items() if name.startswith('test_')}
  if not ours <= {item.function for item in request.session.items}:
    pytest.skip('only some tests of this file were selected')
  assert not calls.missing()


def test_a_wrong_shape_is_an_error(calls):
  some = chosen('mlp_out')
  for real in (plain.REAL[0], plain.REAL.astype(int)):
    with pytest.raises(jaxtyping.TypeCheckError, match='real'):
      some.there(real)
  with pytest.raises(jaxtyping.TypeCheckError, match='positions'):
    logit_difference(plain.PAIRS, plain.ANSWERS, plain.OTHERS, positions=np.ones(2))
  row = some.table[0].astype(np.int64)
  with pytest.raises(jaxtyping.TypeCheckError, match='row'):
    engine.plant_node(some, {}, row, plain.REAL)


def test_hardly_anything_is_annotated_as_any():
  share, vague = typed.vague_share('mechjax.patching')
  assert share < 0.05, vague
