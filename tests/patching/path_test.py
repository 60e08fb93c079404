"""Path patching is two hand-written passes in NumPy, and edge attribution is its derivative."""

import functools
import itertools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import timing
from mechjax import harvest
from mechjax.models import decoder
from mechjax.patching import (
  EdgeAttributionPatching,
  Effects,
  PatchingError,
  PathPatching,
  custom,
  logit_difference,
  nodes_of,
)
from tests.models import decoders
from tests.patching import plain

pytestmark = pytest.mark.slow
METRIC = logit_difference(plain.PAIRS, plain.ANSWERS, plain.OTHERS)
CLEAN, NOISE, T = plain.CLEAN, plain.NOISE, plain.T


# --- the truth --------------------------------------------------------------------------------------------


def places(nodes, row):
  """The site of each node, and the index of the node in its value."""
  found = []
  for node in nodes:
    layout = nodes.layouts[node.site.name]
    axes = [(axis, size) for axis, size in zip(layout.axes, layout.shape) if axis != 'B']
    index = np.ix_(*(plain._picked(axis, node, row, size) for axis, size in axes))
    found.append((str(node.site), index))
  return found


def values_of(run, tokens):
  kept = {}
  run(tokens, lambda site, value: kept.setdefault(site, value))
  return kept


def by_hand(
  run,
  senders,
  receivers,
  row,
  *,
  mediators=None,
  together=False,
  share=1.0,
  held=('z', 'mlp_out'),
  base=CLEAN,
  other=NOISE,
):
  """The effects on one pair when senders move by `share` of the way, [S, R]; all of them in one batch.

  `run(tokens, edit)` returns logits, with `edit(site, value)` in place of every value; without `other` zeros are
  planted.
  """
  base = base[row : row + 1]
  before = values_of(run, base)
  after = {site: np.zeros_like(value) for site, value in before.items()}
  if other is not None:
    after = values_of(run, other[row : row + 1])
  sending, receiving = places(senders, row), places(receivers, row)
  groups = [receiving] if together else [[place] for place in receiving]
  free = places(mediators, row) if mediators is not None else []
  received = {}

  def first(site, value):
    value = value.copy()
    if site.partition('.')[0] in held:
      frozen = np.ones(value.shape[1:], bool)
      for where, index in free:
        if where == site:
          frozen[index] = False
      value[:, frozen] = before[site][0][frozen]
    for n, (where, index) in enumerate(sending):
      if where == site:
        start, end = (side[site][0][index] for side in (before, after))
        value[n][index] = start + share * (end - start)
    return received.setdefault(site, value)

  run(np.repeat(base, len(sending), 0), first)
  many = list(itertools.product(range(len(sending)), groups))

  def second(site, value):
    value = value.copy()
    for n, (s, group) in enumerate(many):
      for where, index in group:
        if where == site:
          value[n][index] = received[site][s][index]
    return value

  patched = plain.logit_difference(run(np.repeat(base, len(many), 0), second), row)
  unpatched = plain.logit_difference(run(base, lambda site, value: value), row)
  return (patched - unpatched).reshape(len(sending), len(groups))


def compare(effects, expected, tolerance):
  """`expected(row)` are the effects on one pair, [S, R]."""
  for row in range(2):
    wanted = expected(row)
    assert np.abs(wanted).max() > 0.05
    limit = tolerance * max(1.0, np.abs(wanted).max())
    np.testing.assert_allclose(effects.values[..., row], wanted, rtol=0, atol=limit)


def layers_of(nodes):
  """The layer of each node; `logits` lie above all."""
  numbers = [node.site.layer for node in nodes]
  above = {'embed': -1, 'logits': 99}
  return np.array([above[node.site.name] if i is None else i for node, i in zip(nodes, numbers)])


# --- decoders ---------------------------------------------------------------------------------------------


SOME, ALONG = {'positions': [1, 3, -1]}, {'positions': 'together'}
WHOLE = {'heads': 'together', 'positions': 'together'}


@pytest.mark.parametrize(
  ('name', 'mode', 'senders', 'receivers', 'mediated', 'resumed'),
  [
    (
      'gpt2',
      'noising',
      {'z': SOME, 'z.0, mlp_out': WHOLE},
      {'v': ALONG, 'mlp_norm': SOME, 'logits': ALONG},
      True,
      False,
    ),
    (
      'mistral',
      'noising',
      {'z': SOME, 'embed, mlp_out.0': ALONG},
      {'q.1, k.1': ALONG, 'q.1, mlp_pre': SOME},
      False,
      True,
    ),
    (
      'neox',
      'denoising',
      {'z.0': SOME, 'embed, attn_out': ALONG},
      {'v.1': ALONG, 'mlp_norm': SOME},
      False,
      False,
    ),
  ],
)
def test_path_patching_equals_two_passes_by_hand(name, mode, senders, receivers, mediated, resumed):
  some = functools.partial(plain.nodes, name)
  senders, receivers = (
    functools.reduce(operator.add, (some(pattern, **options) for pattern, options in x.items()))
    for x in (senders, receivers)
  )
  mediators = some('mlp_out.0') + some('z.1', heads=[2]) if mediated else None
  forward_from = functools.partial(_forward_from, name) if resumed else None
  paths = PathPatching(
    plain.forward(name), senders, receivers, mediators, mode, max_batch=9, forward_from=forward_from
  )
  effects = paths(decoders.params(name), plain.PAIRS, METRIC)
  assert effects.title == f'path patching {mode}: logit difference'
  sides = {'noising': (CLEAN, NOISE), 'denoising': (NOISE, CLEAN)}[mode]
  truth = functools.partial(
    by_hand,
    functools.partial(plain.logits, name),
    senders,
    receivers,
    mediators=mediators,
    base=sides[0],
    other=sides[1],
  )
  compare(effects, truth, 2e-4)
  below = layers_of(receivers) < layers_of(senders)[:, None]
  assert below.any()
  assert (effects.values[below] == 0).all()
  np.testing.assert_allclose(truth(0)[below], 0, atol=1e-12)


def _forward_from(name, params, tokens, residual, start, at):
  return decoder.forward_from(params, tokens, residual, start, decoders.CONFIGS[name], at=at)


# --- a small model ----------------------------------------------------------------------------------------


L, D, H, E, V = 3, 4, 2, 3, decoders.V
RANDOM = np.random.default_rng(5)
SHAPES = {'q': (D, H, E), 'k': (D, H, E), 'v': (D, H, E), 'o': (H, E, D), 'mlp': (D, D)}
LAYERS = {name: 0.6 * RANDOM.standard_normal((L, *shape)) for name, shape in SHAPES.items()}
PARAMS = {
  'embed': RANDOM.standard_normal((V, D)),
  'unembed': RANDOM.standard_normal((D, V)),
  'layers': LAYERS,
}


def layer(xp, w, x, at, bent):
  """One layer on arrays of `xp`, with `at(name, value)` at every site; linear unless `bent`."""
  x, squash = at('resid_pre', x), xp.tanh if bent else lambda x: x
  q, k, v = (at(n, xp.einsum('btd,dhe->bthe', squash(x), w[n])) for n in 'qkv')
  scores = xp.einsum('bthe,bshe->bhts', q, k) if bent else xp.ones((len(x), H, T, T))
  z = at('z', xp.einsum('bhts,bshe->bthe', xp.tril(scores), v))
  x = x + at('attn_out', xp.einsum('bthe,hed->btd', z, w['o']))
  return x + at('mlp_out', squash(at('mlp_norm', x) @ w['mlp']))


def model(tagged=('z',), bent=True):
  """The model as a function of JAX; `tagged` of 'z' and 'attn_out' are its sites of attention."""

  def sow(name, value):
    untagged = name in ('z', 'attn_out') and name not in tagged
    return value if untagged else harvest.sow(value, name=name)

  def forward(params, tokens):
    x = sow('embed', jnp.asarray(params['embed'])[tokens])
    body = lambda x, w: (layer(jnp, w, x, sow, bent), None)  # noqa: E731
    return sow('logits', jax.lax.scan(body, x, params['layers'])[0] @ params['unembed'])

  return forward


def run(tokens, edit, bent=True):
  """The same in NumPy."""
  x = edit('embed', PARAMS['embed'][tokens])
  for i in range(L):
    w = {name: values[i] for name, values in LAYERS.items()}
    x = layer(np, w, x, lambda name, value, i=i: edit(f'{name}.{i}', value), bent)
  return edit('logits', x @ PARAMS['unembed'])


def some(forward, pattern, **options):
  return nodes_of(harvest.sites_of(forward, PARAMS, plain.PAIRS.clean), pattern, **options)


@pytest.fixture
def wide():
  with jax.enable_x64(True):
    yield


def ends(forward):
  """Senders and receivers of the small model with 'z'."""
  senders = some(forward, 'z.{0,2}', positions=[0, 2]) + some(forward, 'embed, mlp_out.0', **WHOLE)
  receivers = some(forward, 'q.{1,2}', **ALONG) + some(forward, 'mlp_norm', positions=[2])
  return senders, receivers


def mediators_of(forward):
  """One head everywhere, and an MLP at some positions."""
  return some(forward, 'z.1', heads=[1]) + some(forward, 'mlp_out.1', positions=[0, 2])


@pytest.mark.usefixtures('wide')
def test_receivers_together_are_patched_at_once_and_attention_may_be_held_at_its_output():
  forward = model(tagged=['attn_out'])
  senders = some(forward, 'attn_out.{0,1}, embed', positions='together')
  receivers = some(forward, 'mlp_norm.{0,2}', positions='together')
  mediators = some(forward, 'attn_out.1')
  paths = PathPatching(forward, senders, receivers, mediators, together=True)
  effects = paths(PARAMS, plain.PAIRS, METRIC)
  without = functools.partial(
    by_hand, run, senders, receivers, together=True, held=('attn_out', 'mlp_out')
  )
  truth = functools.partial(without, mediators=mediators)
  compare(effects, truth, 1e-9)
  assert np.abs(truth(0) - without(0)).max() > 0.05
  assert effects.receivers is None
  with timing.compilations() as again:
    paths(PARAMS, plain.PAIRS, METRIC)
  assert again.count == 0


def single(params, tokens):
  """A model of one component, with sites that have no layer."""
  x = harvest.sow(jnp.asarray(params['embed'])[tokens], name='embed')
  x = x + harvest.sow(jnp.tanh(x), name='mlp_out')
  return harvest.sow(x @ params['unembed'], name='logits')


@pytest.mark.usefixtures('wide')
def test_pairs_that_do_not_fit_at_once_are_taken_one_after_the_other():
  senders, receivers = some(single, 'embed, mlp_out'), some(single, 'logits', positions=[-1, -2])
  whole = PathPatching(single, senders, receivers, mode='denoising')
  expected = whole(PARAMS, plain.PAIRS, METRIC)
  (plan,) = whole._sweep._plans.values()
  small = PathPatching(single, senders, receivers, mode='denoising', budget=plan.bytes - 1)
  found = small(PARAMS, plain.PAIRS, METRIC)
  (plan,) = small._sweep._plans.values()
  assert plan.rows == 1
  np.testing.assert_allclose(found.values, expected.values, atol=1e-12)
  np.testing.assert_allclose([found.base, found.other], [expected.base, expected.other])
  # Logits are a sum of what the two send, and pair i reads them at receiver i.
  ends = found.other - found.base
  np.testing.assert_allclose(found.values.sum(0), np.diag(ends), atol=1e-12)


# --- to first order ---------------------------------------------------------------------------------------


@functools.cache
def edges():
  """Edge attribution on the small model."""
  forward = model()
  method = EdgeAttributionPatching(forward, *ends(forward), mediators_of(forward), chunk=3)
  return method(PARAMS, plain.PAIRS, METRIC)


@pytest.mark.usefixtures('wide')
def test_edge_attribution_is_the_derivative_of_path_patching():
  truth = functools.partial(by_hand, run, *ends(model()), mediators=mediators_of(model()))
  h = 1e-5
  slope = lambda row: (truth(row, share=h) - truth(row, share=-h)) / (2 * h)  # noqa: E731
  compare(edges(), slope, 1e-7)


@pytest.mark.usefixtures('wide')
def test_on_a_linear_model_edge_attribution_is_exact():
  """Here of receivers together, for each pair alone, without what the senders' other sites hold."""
  forward = model(bent=False)
  every = some(forward, 'embed, z, mlp_out, q', positions='together')
  senders = every[[node.site.name in ('embed', 'z') and node.site.layer != 1 for node in every]]
  receivers = some(forward, 'v.{1,2}, resid_pre.2', positions=[0, 2, 3])
  linear = EdgeAttributionPatching(forward, senders, receivers, mode='zero', together=True, rows=1)
  found = linear(PARAMS, plain.PAIRS, METRIC)
  straight = functools.partial(run, bent=False)
  truth = functools.partial(by_hand, straight, senders, receivers, together=True, other=None)
  compare(found, truth, 1e-9)
  assert found.to().title == 'edge attribution zero: logit difference, to all receivers'


# --- results ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures('wide')
def test_the_effects_through_one_receiver_are_effects_of_the_senders():
  found = edges()
  np.testing.assert_array_equal(found.contribution(), np.abs(found.values).mean(2))
  one = found.to(2)
  assert isinstance(one, Effects)
  assert one.title == 'edge attribution noising: logit difference, to q.2 head 0'
  np.testing.assert_array_equal(one.contribution(), found.contribution()[:, 2])
  assert one.top(1)[0][0] == found.senders[int(found.contribution()[:, 2].argmax())]
  for side, tokens in ((one.base, CLEAN), (one.other, NOISE)):
    out = run(tokens, lambda site, value: value)
    expected = [plain.logit_difference(out[i : i + 1], i)[0] for i in range(2)]
    np.testing.assert_allclose(side, expected)


# --- errors -----------------------------------------------------------------------------------------------


@functools.cache
def site(pattern):
  return some(model(tagged=['z', 'attn_out']), pattern, heads='together', positions='together')


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'senders': 'q.0, z.0'}, r'q cannot send(.|\n)*hint: embed, z, attn_out, mlp_out'),
    ({'receivers': 'q.1, mlp_out.1'}, r'mlp_out cannot receive(.|\n)*hint: q, k, v; mlp_norm'),
    ({'receivers': 'embed'}, 'embed cannot receive'),
    ({'mode': 'mean'}, r"'mean' is for exact patching(.|\n)*hint: noising"),
  ],
)
def test_what_cannot_be_asked_is_refused(options, message):
  sets = {'senders': 'z.0', 'receivers': 'q.1', **options}
  sets = {k: site(v) if k != 'mode' else v for k, v in sets.items()}
  for method in (PathPatching, EdgeAttributionPatching):
    with pytest.raises(PatchingError, match=message):
      method(model(), **sets)


def test_empty_sets_are_refused():
  for method in (PathPatching, EdgeAttributionPatching):
    with pytest.raises(PatchingError, match='no senders'):
      method(model(), site('z')[:0], site('q'))
    with pytest.raises(PatchingError, match='no receivers'):
      method(model(), site('z'), site('q')[:0])


def test_mediators_are_components_that_are_held():
  for method in (PathPatching, EdgeAttributionPatching):
    routes = method(model(tagged=['z', 'attn_out']), site('z.0'), site('q.2'), site('attn_out.1'))
    with pytest.raises(
      PatchingError, match=r'attn_out cannot mediate(.|\n)*hint: nodes of z, mlp_out'
    ):
      routes(PARAMS, plain.PAIRS, METRIC)


def test_a_model_without_components_is_refused():
  def bare(params, tokens):
    x = harvest.sow(jnp.asarray(params['embed'])[tokens], name='embed')
    return harvest.sow(x @ params['unembed'], name='logits')

  with pytest.raises(PatchingError, match=r'no components(.|\n)*hint: tag z, mlp_out'):
    PathPatching(bare, some(bare, 'embed'), some(bare, 'logits'))(PARAMS, plain.PAIRS, METRIC)


@pytest.mark.parametrize(
  ('senders', 'mediators', 'message'),
  [
    ('mlp_out.{0,1}', 'mlp_out.{1,2}', 'mlp_out at layers 1 is a sender, and mlp_out acts'),
    ('attn_out.1', 'z.1', 'attn_out at layers 1 is a sender, and z acts'),
    ('z, attn_out.1', None, 'attn_out at layers 1 is a sender, and z acts'),
  ],
)
def test_nothing_passes_through_a_sender_of_edge_attribution(senders, mediators, message):
  mediators = None if mediators is None else site(mediators)
  with pytest.raises(PatchingError, match=rf'{message} through it(.|\n)*hint: other layers, or Pa'):
    EdgeAttributionPatching(model(), site(senders), site('logits'), mediators)


@pytest.mark.usefixtures('wide')
def test_nan_under_a_patch_names_the_path():
  clean = single(PARAMS, plain.PAIRS.clean)
  moved = lambda out, clean: jnp.abs(out - clean).max((1, 2)) > 1e-9  # noqa: E731
  metric = custom('moved', lambda *both: jnp.where(moved(*both), jnp.nan, 0.0), clean)
  senders, receivers = some(single, 'mlp_out', positions=[2]), some(single, 'logits')
  with pytest.raises(PatchingError, match='NaN\n  where: mlp_out position 2 to logits position 2'):
    PathPatching(single, senders, receivers, mode='zero')(PARAMS, plain.PAIRS, metric)
