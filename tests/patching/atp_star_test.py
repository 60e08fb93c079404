"""AtP* computes the softmax exactly and drops layers one by one: against NumPy, exact patching and autodiff."""

import dataclasses
import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechjax import harvest, sites
from mechjax.patching import (
  ActivationPatching,
  Attribution,
  Pairs,
  PatchingError,
  custom,
  logit_difference,
  nodes_of,
)
from mechjax.patching.atp_star import AtPStar
from tests.models import decoders
from tests.patching import plain

METRIC = logit_difference(plain.PAIRS, plain.ANSWERS, plain.OTHERS)
L = 3


@pytest.fixture(scope='module', autouse=True)
def deep():
  """A decoder of three layers with grouped queries, windows and soft-capped scores."""
  changes = {'attn_softcap': 1.5, 'local': (True, False, True)}
  config = dataclasses.replace(decoders.CONFIGS['mistral'], n_layers=L, **changes)
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(decoders.CONFIGS, 'deep', config)
    yield


def placed(nodes):
  """The layer of each node, -1 for none; and whether it lies inside the layer, not on the residual stream."""
  layers = np.array([-1 if node.site.layer is None else node.site.layer for node in nodes])
  return layers, (layers >= 0) & [not node.site.name.startswith('resid') for node in nodes]


# --- a decoder --------------------------------------------------------------------------------------------

SIDES = {
  'noising': (plain.CLEAN, plain.NOISE),
  'denoising': (plain.NOISE, plain.CLEAN),
  'zero': (plain.CLEAN, None),
}


class Truth:
  """The effects of nodes on one pair, to first order after the softmax of queries and keys, in NumPy and float64."""

  def __init__(self, nodes, row, mode='noising'):
    self.nodes, self.row, self.base = nodes, row, SIDES[mode][0][[row]]
    self.values = plain.values('deep', self.base)
    other = SIDES[mode][1]
    planted = None if other is None else plain.values('deep', other[[row]])
    self.moves = self._through_the_softmax(
      {site: self._move(site, planted) for site in dict.fromkeys(self._sites())}
    )

  def _sites(self):
    return np.array([str(node.site) for node in self.nodes])

  def _move(self, site, planted):
    """Changes of the nodes of a site, [N, ...]; 0 for the other nodes."""
    change = (0 if planted is None else planted[site][0]) - self.values[site][0]
    moves = np.zeros((len(self.nodes), *change.shape))
    for n in np.flatnonzero(self._sites() == site):
      axes = self.nodes.layouts[self.nodes[n].site.name].axes[1:]
      along = zip(axes, change.shape)
      where = np.ix_(*(plain._picked(a, self.nodes[n], self.row, size) for a, size in along))
      moves[n][where] = change[where]
    return moves

  def _through_the_softmax(self, moves):
    """Moves the probabilities instead of queries and keys, to their values when these are patched."""
    fixed = {site: moves.pop(site) for site in list(moves) if site[:2] in ('q.', 'k.')}
    patched = self._run(fixed, 1, {}) if fixed else {}
    for site in fixed:
      probs = f'attn_probs{site[1:]}'
      mine = (self._sites() == site)[:, None, None, None]
      change = np.where(mine, patched[probs] - self.values[probs], 0)
      moves[probs] = moves.get(probs, 0) + change
    return moves

  def _run(self, moves, share, frozen):
    """Every site, [N, ...], of runs in which each node moves by a share of its displacement."""
    kept, n = {}, len(self.nodes)

    def edit(site, value):
      value = value + share * moves.get(site, 0)
      kept[site] = frozen[site].repeat(n, 0) if site in frozen else value
      return kept[site]

    plain.logits('deep', self.base.repeat(n, 0), edit)
    return kept

  def effects(self, frozen=(), h=1e-5):
    """Derivative of the metric with respect to the move of each node, frozen sites keeping their values, [N]."""
    frozen = {site: self.values[site] for site in frozen}
    runs = (self._run(self.moves, share, frozen)['logits'] for share in (h, -h))
    up, down = (plain.logit_difference(logits, self.row) for logits in runs)
    return (up - down) / (2 * h)


def close(found, expected):
  assert np.abs(expected).max() > 0.1
  np.testing.assert_allclose(found, expected, rtol=0, atol=5e-4 * np.abs(expected).max())


@pytest.mark.parametrize(
  ('keys', 'mode', 'q', 'k'),
  [
    ('closed form', 'denoising', 'positions', 'heads'),
    ('sequential', 'zero', 'heads', 'positions'),
  ],
)
def test_queries_and_keys_go_through_the_softmax_exactly(keys, mode, q, k):
  """Each alone, and all heads of a position or all positions of a head."""
  nodes = plain.nodes('deep', 'q, k')
  nodes += plain.nodes('deep', 'q', **{q: 'together'}) + plain.nodes('deep', 'k', **{k: 'together'})
  star = AtPStar(plain.forward('deep'), nodes, mode, graddrop=False, keys=keys)
  effects = star(decoders.params('deep'), plain.PAIRS, METRIC)
  assert effects.title == f'AtP+QK {mode}: logit difference'
  for row in range(2):
    close(effects.values[:, row], Truth(nodes, row, mode).effects())


def test_a_dropped_layer_is_a_frozen_one():
  """A layer without gradient is a layer whose writes do not change."""
  nodes = plain.nodes('deep', 'embed, resid_mid, q, k, v, attn_out, mlp_{post,out}')
  layers, inside = placed(nodes)
  star = AtPStar(plain.forward('deep'), nodes, chunk=2)
  args = decoders.params('deep'), plain.PAIRS, METRIC
  found, effects = star.by_layer(*args), star(*args)
  assert effects.title == 'AtP* noising: logit difference'
  np.testing.assert_array_equal(found[layers[inside], inside], 0)
  for row in range(2):
    truth = Truth(nodes, row)
    for l in range(L):
      close(found[l, :, row], truth.effects((f'attn_out.{l}', f'mlp_out.{l}')))
    last = inside & (layers == L - 1)
    close(effects.values[last, row], np.abs(truth.effects())[last])


# --- attention alone --------------------------------------------------------------------------------------

D, E = 6, 3
RANDOM = np.random.default_rng(5)
SHAPES = {
  'tokens': (decoders.V, D),
  'positions': (plain.T, D),
  'q': (D, 4, E),
  'k': (D, 2, E),
  'v': (D, 2, E),
  'o': (4, E, D),
  'sink': (4, 1, 1),
  'unembed': (D, decoders.V),
}
WEIGHTS = {name: RANDOM.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
ARGS = WEIGHTS, plain.PAIRS, METRIC
SINK, UNSCORED, UNTAGGED = {'sink': True}, {'scored': False}, {'tagged': False}


def attention(params, tokens, sink=False, scored=True, tagged=True):
  """One layer, linear after the softmax. With a sink, probabilities do not add up to 1."""

  def sown(x, name):  # with axes in an order of its own
    return jnp.einsum('tbsh->bhts', harvest.sow(jnp.einsum('bhts->tbsh', x), name=name))

  x = jnp.asarray(params['tokens'])[tokens] + params['positions']
  with sites.layer(0):
    q, k, v = (harvest.sow(jnp.einsum('btd,dhe->bthe', x, params[n]), name=n) for n in 'qkv')
    k, v = (jnp.repeat(y, 2, axis=2) for y in (k, v))
    scores = jnp.einsum('bthe,bshe->bhts', q, k)
    scores = jnp.where(np.tri(plain.T, dtype=bool), scores, -1e30)
    scores = sown(scores, 'attn_scores') if scored else scores
    sinks = jnp.broadcast_to(params['sink'], (*scores.shape[:3], 1)) if sink else scores[..., :0]
    probs = jax.nn.softmax(jnp.concatenate([scores, sinks], -1))[..., : plain.T]
    probs = sown(probs, 'attn_probs') if tagged else probs
    out = jnp.einsum('bhts,bshe,hed->btd', probs, v, params['o'])
    x += harvest.sow(out, name='attn_out') if tagged else out
  return x @ params['unembed']


@functools.cache
def method(kind, sink=False, scored=True, tagged=True, **options):
  """`kind` of a model's queries, keys and values, kept for the sake of its executables."""
  forward = functools.partial(attention, sink=sink, scored=scored, tagged=tagged)
  infos = harvest.sites_of(forward, WEIGHTS, plain.CLEAN)
  options |= {'axes': 'TBSN'} if kind is AtPStar else {}
  laid = {'attn_scores': 'TBSN', 'attn_probs': 'TBSN'}
  return kind(forward, nodes_of(infos, 'q, k, v', axes=laid), **options)


def fixed(**options):
  return method(AtPStar, graddrop=False, **options)


def same(effects, exact):
  largest = np.abs(exact.values).max()
  assert largest > 1
  np.testing.assert_allclose(effects.values, exact.values, rtol=0, atol=2e-5 * largest)


@pytest.mark.parametrize(
  ('model', 'truth', 'in_closed_form'),
  [({}, {}, True), (UNSCORED, {}, False), (SINK, SINK, False)],
)
def test_the_fix_is_exact_where_all_behind_the_softmax_is_linear(model, truth, in_closed_form):
  """Keys take the closed form only if the model's own probabilities show that it holds; values need no fix."""
  star = fixed(**model)
  same(star(*ARGS), method(ActivationPatching, **truth)(*ARGS))
  assert star._attention(*ARGS[:2]).softmax == in_closed_form


def test_the_closed_form_is_refused_where_it_does_not_hold():
  with pytest.raises(PatchingError, match='attn_scores is not tagged'):
    fixed(keys='closed form', **UNSCORED)(*ARGS)
  with pytest.raises(PatchingError, match='does not hold') as error:
    fixed(keys='closed form', **SINK)(*ARGS)
  told = re.search(r'attn_probs differs from softmax\(attn_scores\) by (\S+)', str(error.value))[1]
  forward = functools.partial(attention, sink=True)
  acts = harvest.reap(forward, sites='attn_{scores,probs}.0')(WEIGHTS, plain.CLEAN[:1])
  apart = np.abs(jax.nn.softmax(acts['attn_scores.0']) - acts['attn_probs.0']).max()
  assert 0.95 * apart <= float(told) <= 1


def test_a_saturated_head_is_missed_by_atp_and_found_by_the_fix():
  saturated = WEIGHTS | {'q': 1000 * WEIGHTS['q']}
  args = saturated, plain.PAIRS, METRIC
  exact, atp, nodes = (
    method(ActivationPatching)(*args),
    method(Attribution)(*args),
    method(ActivationPatching).nodes,
  )
  through = [node.site.name in ('q', 'k') for node in nodes]
  assert np.abs(exact.values[through]).max() > 1
  np.testing.assert_allclose(atp.values[through], 0, atol=1e-3)
  same(fixed()(*args), exact)


# --- layers alone -----------------------------------------------------------------------------------------


def writing(params, tokens, unroll=False):
  """Layers that write two things side by side."""

  def layer(x, w):
    attn, mlp = jnp.sin(x @ w[0]), jnp.sin(x @ w[1])
    x += harvest.sow(attn, name='attn_out') + harvest.sow(mlp, name='mlp_out')
    return harvest.sow(x, name='resid_post'), None

  x = harvest.sow(jnp.asarray(params['tokens'])[tokens], name='tokens')
  if not unroll:
    return jax.lax.scan(layer, x, params['layers'])[0]
  for i, w in enumerate(params['layers']):
    with sites.layer(i):
      x, _ = layer(x, w)
  return x


LAYERS = RANDOM.standard_normal((L, 2, D, D)).astype(np.float32)
WRITING = {'tokens': WEIGHTS['tokens'], 'layers': LAYERS}
TOTAL = custom('total', lambda x, scale: jnp.einsum('btd,b->b', x, scale), np.float32([1, -0.5]))


@functools.cache
def star(n_layers=L, unroll=False, **options):
  forward = functools.partial(writing, unroll=unroll)
  infos = harvest.sites_of(forward, WRITING | {'layers': LAYERS[:n_layers]}, plain.CLEAN)
  return AtPStar(forward, nodes_of(infos, '*', axes={'tokens': 'BTD'}), **options)


@functools.cache
def stopped():
  """The effects at each site when no gradient passes the outputs of layer l: L dicts of [B, T]."""
  forward = functools.partial(writing, unroll=True)

  def stop(name, here, x):
    x = harvest.sow(x, name=name)
    return jnp.where(here, jax.lax.stop_gradient(x), x)

  def loss(params, tokens, dropped):
    writes = itertools.product(('attn_out', 'mlp_out'), range(L))
    plants = {f'{name}.{l}': functools.partial(stop, name, l == dropped) for name, l in writes}
    return TOTAL(harvest.plant(forward)(plants, params, tokens)).sum()

  def effects(l):
    _, clean, slopes = harvest.value_and_grad_at(loss, sites='*')(WRITING, plain.CLEAN, l)
    products = ((noise[s] - np.asarray(clean[s])) * np.asarray(slopes[s]) for s in noise)
    return {site: x.sum(-1) * plain.REAL for site, x in zip(noise, products)}

  noise = jax.tree.map(np.asarray, harvest.reap(forward, sites='*')(WRITING, plain.NOISE))
  return [effects(l) for l in range(L)]


def total(tokens):
  x = WRITING['tokens'][tokens]
  for attn, mlp in LAYERS:
    x = x + np.sin(x @ attn) + np.sin(x @ mlp)
  return x.sum((1, 2)) * TOTAL.data


@pytest.mark.parametrize('options', [{}, {'unroll': True, 'chunk': 1, 'rows': 1}])
def test_dropping_is_stopping_the_gradient(options):
  """The mean counts the layers that a node does not lie in."""
  nodes, args = star(**options).nodes, (WRITING, plain.PAIRS, TOTAL)
  found, effects = star(**options).by_layer(*args), star(**options)(*args)
  expected = [[by_site[str(n.site)][:, n.position] for n in nodes] for by_site in stopped()]
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
  layers, inside = placed(nodes)
  np.testing.assert_array_equal(found[layers[inside], inside], 0)
  mean = np.abs(expected).sum(0) / np.where(inside, L - 1, L)[:, None]
  assert mean.max() > 1
  np.testing.assert_allclose(effects.values, mean, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(effects.base, total(plain.CLEAN), rtol=1e-4)
  np.testing.assert_allclose(effects.other, total(plain.NOISE), rtol=1e-4)


def test_with_one_layer_there_is_nothing_to_drop():
  args = WRITING | {'layers': LAYERS[:1]}, plain.PAIRS, TOTAL
  plainly = star(1, graddrop=False)(*args).values
  assert np.abs(plainly).max() > 1
  np.testing.assert_allclose(star(1)(*args).values, np.abs(plainly), rtol=1e-5, atol=1e-6)


def test_routes_that_cancel_are_missed_by_atp_and_found_by_graddrop():
  """The last layer cancels, to first order, the whole contribution of the first."""
  one, none = np.eye(D), np.zeros((D, D))
  layers = np.float32([[one, none], [none, none], [-one, none]])
  params = {'tokens': np.float32(2 * np.eye(decoders.V)[:, [1] * D]), 'layers': layers}
  pairs = Pairs(np.zeros((2, 5), np.int32), np.ones((2, 5), np.int32), plain.REAL)
  args = params, pairs, TOTAL
  first = np.array([str(node.site) == 'attn_out.0' for node in star().nodes])
  scale = D * TOTAL.data * plain.REAL.T
  np.testing.assert_allclose(star(graddrop=False)(*args).values[first], 0, atol=1e-5)
  np.testing.assert_allclose(star().by_layer(*args)[2, first], np.sin(2) * scale, rtol=1e-5)
  effects = star()(*args).values[first]
  np.testing.assert_allclose(effects, np.sin(2) / 2 * np.abs(scale), rtol=1e-5)


@pytest.mark.parametrize('options', [{}, {'graddrop': False}])
def test_nan_is_refused_with_its_layer(options):
  layers = LAYERS.copy()
  layers[1, 0] = np.nan
  with pytest.raises(PatchingError, match=r'NaN\n.*attn_out\.1'):
    star(**options)(WRITING | {'layers': layers}, plain.PAIRS, TOTAL)


# --- what is refused --------------------------------------------------------------------------------------


def test_what_cannot_be_answered_is_refused():
  nodes = star().nodes
  for options, message in (
    ({'keys': 'fast'}, "unknown keys 'fast'"),
    ({'mode': 'mean'}, "'mean' is for exact patching"),
    ({'mode': 'gaussian'}, "'gaussian' is for exact patching"),
    ({'chunk': 0}, 'chunk is 0'),
    ({'rows': 0}, 'rows is 0'),
    ({'axes': 'BHTS'}, 'H without heads'),
  ):
    with pytest.raises(PatchingError, match=message):
      AtPStar(writing, nodes, **options)
  with pytest.raises(PatchingError, match='no nodes'):
    AtPStar(writing, nodes[:0])


@pytest.mark.parametrize(
  ('axes', 'cause'),
  [('BNTS', 'B would be 5, and is 1'), ('SBNT', 'T would be 4'), ('BKGTS', '5 letters for 4')],
)
def test_letters_that_do_not_fit_the_attention_probabilities_are_refused(axes, cause):
  star = dataclasses.replace(fixed(), axes=axes)  # they are laid out as TBSN
  with pytest.raises(PatchingError, match=rf'shape \(5, 1, 5, 4\) for(.|\n)*{cause}'):
    star(*ARGS)


def test_what_a_fix_needs_and_the_model_does_not_tag_is_named():
  with pytest.raises(PatchingError, match='attn_out, mlp_out'):
    method(AtPStar, **UNTAGGED)(*ARGS)
  with pytest.raises(PatchingError, match='attn_probs'):
    fixed(**UNTAGGED)(*ARGS)
