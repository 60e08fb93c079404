"""Arguments of the methods: of another kind, range or length, they are refused with their name and value."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechjax import harvest
from mechjax.patching import (
  ActivationPatching,
  AtPStar,
  Attribution,
  Effects,
  Pairs,
  PatchingError,
  PathPatching,
  Search,
  SubsetPatching,
  custom,
  nodes_of,
  recall_cost,
)
from tests.patching import linear
from tests.patching.linear import METRIC, PAIRS, PARAMS

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def wide():
  with jax.enable_x64(True):
    yield


@pytest.mark.parametrize('steps', [2.5, True, '3', -1])
def test_steps_that_are_no_whole_number_are_refused(steps):
  with pytest.raises(PatchingError, match=r'steps (must be an integer|is -1)'):
    Attribution(linear.forward, linear.nodes('mlp_out'), steps=steps)


def test_an_empty_node_set_is_refused():
  for method in (ActivationPatching, Attribution):
    with pytest.raises(PatchingError, match='no nodes'):
      method(linear.forward, linear.nodes()[:0])


@pytest.mark.parametrize('method', [ActivationPatching, Attribution])
def test_nan_in_activations_names_the_layer_and_in_the_metric_the_pair(method):
  sweep = method(linear.forward, linear.nodes('mlp_out.1, resid_post', positions=[0]))
  broken = {**PARAMS, 'down': PARAMS['down'] * np.array([1, np.nan, 1])[:, None, None]}
  with pytest.raises(PatchingError, match=r'NaN\n  where: mlp_out.1'):
    sweep(broken, PAIRS, METRIC)
  answers = dataclasses.replace(METRIC, data=(np.array([0, 1, 99, 3]), *METRIC.data[1:]))
  with pytest.raises(PatchingError, match=r'NaN\n  where: pair 2'):
    sweep(PARAMS, PAIRS, answers)


def test_nan_under_a_patch_names_the_node():
  def positive(params, tokens):
    x = harvest.sow(2 + params['embed'][tokens] ** 2, name='embed')
    return jnp.log(x - 1)

  nodes = nodes_of(harvest.sites_of(positive, PARAMS, PAIRS.clean), 'embed')[3:]
  metric = custom('sum', lambda out, _: out.sum((1, 2)))
  with pytest.raises(PatchingError, match=r'patched run is NaN\n  where: embed position 3'):
    ActivationPatching(positive, nodes, mode='zero')(PARAMS, PAIRS, metric)


def test_prompts_of_another_length_are_refused():
  shorter = Pairs(PAIRS.clean[:, :3], PAIRS.noise[:, :3], PAIRS.real[:, :3])
  params = {**PARAMS, 'mix': PARAMS['mix'][:3, :3]}
  metric = custom('first', lambda out, _: out[:, -1, 0])
  for method in (ActivationPatching, Attribution):
    with pytest.raises(PatchingError, match='nodes were made for'):
      method(linear.forward, linear.nodes())(params, shorter, metric)
  uneven = Pairs(PAIRS.clean, PAIRS.noise[:, :4], PAIRS.real)
  with pytest.raises(PatchingError, match='prompts of different length'):
    linear.patch(pairs=uneven)


@pytest.mark.parametrize('gap', [0, 2])
def test_padding_before_a_token_is_refused_because_the_model_would_read_it(gap):
  real = np.ones_like(PAIRS.real)
  real[1, gap] = False
  with pytest.raises(
    PatchingError, match='pair 1 do not begin in column 0, or have padding between'
  ):
    linear.patch(pairs=Pairs(PAIRS.clean, PAIRS.noise, real))


def test_modes_that_mean_nothing_are_refused():
  with pytest.raises(PatchingError, match="unknown mode of patching 'noise'"):
    linear.patch(mode='noise')
  single = PAIRS.rows(np.arange(1))
  with pytest.raises(PatchingError, match='one pair'):
    linear.patch(pairs=single, metric=METRIC.rows(np.arange(1)), mode='mean')
  with pytest.raises(PatchingError, match='exact patching'):
    Attribution(linear.forward, linear.nodes(), mode='mean')
  with pytest.raises(PatchingError, match='no line'):
    Attribution(linear.forward, linear.nodes(), mode='zero', steps=3)


@pytest.mark.parametrize(
  'method', [ActivationPatching, SubsetPatching, Attribution, AtPStar, PathPatching]
)
def test_a_metric_of_other_pairs_and_what_is_no_function_are_refused(method):
  nodes = linear.nodes('mlp_out')
  sets = (nodes, linear.nodes('logits')) if method is PathPatching else (nodes,)
  call = method(linear.forward, *sets)
  some = PAIRS.rows(np.array([2]))
  with pytest.raises(PatchingError, match=r'is of \[4\] pairs, and 1 were given'):
    call(PARAMS, some, METRIC)
  with pytest.raises(PatchingError, match='made for other pairs'):
    call(PARAMS, PAIRS.rows(np.array([1, 0, 2, 3])), METRIC)
  with pytest.raises(PatchingError, match=r'a function, not a Metric'):
    call(PARAMS, PAIRS, lambda logits: logits[:, -1, 0])

  class Model:
    apply, params = staticmethod(linear.forward), PARAMS

    def __call__(self, tokens):
      return self.apply(self.params, tokens)

  with pytest.raises(PatchingError, match='a Model, not a function') as error:
    method(Model(), *sets)
  assert 'model.apply' in error.value.hint


@pytest.mark.parametrize(
  'method', [ActivationPatching, SubsetPatching, Attribution, AtPStar, PathPatching]
)
def test_arguments_of_another_kind_are_refused_by_their_names(method):
  nodes = linear.nodes('mlp_out')
  paths = method is PathPatching
  name, more = ('senders', [nodes]) if paths else ('nodes', [])
  for other in (['z.0'], 'z.0', nodes[0], None):
    with pytest.raises(PatchingError, match=f'{name} must be of the class NodeSet, got'):
      method(linear.forward, other, *more)
  call = method(linear.forward, nodes, *([linear.nodes('logits')] if paths else []))
  with pytest.raises(PatchingError, match='pairs must be of the class Pairs, got Metric') as error:
    call(PARAMS, METRIC, PAIRS)
  assert '(params, pairs, metric), in this order' in error.value.hint


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda n: PathPatching(linear.forward, n, None), 'receivers must be of the class NodeSet'),
    (lambda n: PathPatching(linear.forward, n, n, 'mlp_out'), 'mediators must be of the class'),
    (lambda n: PathPatching(linear.forward, n, n, together='yes'), "True or False, got str: 'yes'"),
    (lambda n: AtPStar(linear.forward, n, qk_fix='no'), 'qk_fix must be True or False, got str'),
    (lambda n: AtPStar(linear.forward, n, graddrop=0), 'graddrop must be True or False, got int'),
    (lambda n: AtPStar(linear.forward, n, axes='BNTT'), "axes='BNTT' do not describe attention"),
    (lambda n: AtPStar(linear.forward, n, rows=2.5), 'rows must be an integer, got float: 2.5'),
    (
      lambda n: ActivationPatching(linear.forward, n, max_batch=True),
      'max_batch must be an integer',
    ),
  ],
)
def test_settings_of_another_kind_are_refused_by_their_names(make, message):
  with pytest.raises(PatchingError, match=message):
    make(linear.nodes('mlp_out'))


def test_effects_refuse_a_negative_number_of_nodes_and_a_grid_that_does_not_exist():
  nodes = linear.nodes('mlp_out.0')
  found = Effects('own', nodes, np.arange(5.0)[:, None], np.zeros(1), np.zeros(1))
  assert [value for _, value in found.top(2)] == [4, 3]
  assert len(found.top(9)) == 5
  for k in (-1, 2.5, True):
    with pytest.raises(PatchingError, match=r'k (is -1|must be an integer)'):
      found.top(k)
  for number in ('mlp_out', 1, -1):
    with pytest.raises(PatchingError, match=r'is not the number of a grid(.|\n)*0 mlp_out'):
      found.grid(number)
  with pytest.raises(PatchingError, match='search must be of the class Search, got Effects'):
    recall_cost(found, found)
  with pytest.raises(PatchingError, match='truth must be numbers, got Effects') as error:
    recall_cost(Search.by(found.contribution(), 0), found)
  assert error.value.hint == 'effects.contribution()'


def test_a_metric_that_is_no_number_for_each_pair_is_refused():
  with pytest.raises(PatchingError, match='not one number for each pair'):
    linear.patch(metric=custom('all', lambda out, _: out))
