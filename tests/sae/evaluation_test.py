"""Every metric against a computation in NumPy: a model of two layers, changed by hand where a dictionary is spliced.

The model's gradient is taken by finite differences, its losses token by token. Letters as in `mechjax.sae`.
"""

import dataclasses
import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechjax import harvest, sites
from mechjax.errors import SiteError
from mechjax.sae import BatchTopK, JumpReLU, ReLU, SAEError, TopK
from mechjax.sae.evaluation import comparing, splice
from mechjax.sae.evaluation.comparing import evaluate
from mechjax.sae.evaluation.metrics import Spread, report
from mechjax.sae.evaluation.passes import Evaluation
from mechjax.sae.evaluation.sums import Batch, next_tokens
from tests.sae import plain

pytestmark = pytest.mark.slow

V, T, D, F, M, LAYERS = 11, 6, 6, 5, 9, 2
R0, R1, N0, N1, O0, O1 = (
  f'{name}.{i}' for name in ('resid_post', 'mlp_norm', 'mlp_out') for i in range(LAYERS)
)


# --- the model, twice -------------------------------------------------------------------------------------


def forward(params, tokens):
  """Means over the tokens so far make a token depend on earlier ones, as attention does."""
  x = harvest.sow(params['embed'][tokens], name='embed')
  n = jnp.arange(1, tokens.shape[1] + 1, dtype=x.dtype)[:, None]
  for i in range(LAYERS):
    with sites.layer(i):
      so_far = jnp.cumsum(x, 1) / n
      h = harvest.sow(x + so_far @ params['mix'][i], name='mlp_norm')
      y = harvest.sow(jnp.tanh(h @ params['in'][i]) @ params['out'][i], name='mlp_out')
      heads = harvest.sow((x + y).reshape(*x.shape[:2], 2, D // 2), name='z')
      x = harvest.sow(heads.reshape(x.shape), name='resid_post')
  return harvest.sow(x @ params['unembed'], name='logits')


def by_hand(p, tokens, change=None):
  """Logits and the values of all sites; `change` has functions of values by site."""
  seen = {}

  def site(name, value):
    seen[name] = value = (change or {}).get(name, lambda v: v)(value)
    return value

  x = site('embed', p['embed'][tokens])
  for i in range(LAYERS):
    so_far = np.cumsum(x, 1) / np.arange(1, tokens.shape[1] + 1)[:, None]
    h = site(f'mlp_norm.{i}', x + so_far @ p['mix'][i])
    y = site(f'mlp_out.{i}', np.tanh(h @ p['in'][i]) @ p['out'][i])
    x = site(f'resid_post.{i}', site(f'z.{i}', x + y))  # heads concatenated
  return x @ p['unembed'], seen


def model(seed=0):
  r = np.random.default_rng(seed)
  shapes = {
    'embed': (V, D),
    'mix': (LAYERS, D, D),
    'in': (LAYERS, D, F),
    'out': (LAYERS, F, D),
    'unembed': (D, V),
  }
  return {k: r.standard_normal(s).astype(np.float32) for k, s in shapes.items()}


def texts(n=4, seed=0):
  """Texts that begin with a special token and end in padding."""
  r = np.random.default_rng(seed)
  tokens = r.integers(1, V, (n, T))
  kept = (np.arange(T) > 0) & (np.arange(T) < r.integers(4, T + 1, n)[:, None])
  tokens[:, 0] = 0
  return tokens, kept


def dictionary(sae, seed=0):
  r = np.random.default_rng(seed)
  shapes = {'W_enc': (sae.d_in, M), 'W_dec': (M, sae.target_width), 'b_dec': (sae.target_width,)}
  shapes |= {name: (M,) for name in sae.PER_LATENT}  # noqa: C420
  params = {k: 0.5 * r.standard_normal(s) for k, s in shapes.items()}
  if 'log_threshold' in params:
    params['log_threshold'] = np.log(r.uniform(0.1, 0.4, M))
  if sae.skip:
    params['W_skip'] = r.standard_normal((sae.d_in, sae.target_width))
  params['b_enc'][0] = -100.0  # dead
  return {k: v.astype(np.float32) for k, v in params.items()}


def double(params):
  return {k: np.asarray(v, np.float64) for k, v in params.items()}


# --- metrics, one after the other -------------------------------------------------------------------------


def log_probs(logits):
  logits = logits - logits.max(-1, keepdims=True)
  return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def losses(p, tokens, kept, change=None):
  """The loss of each prediction, and its log-probabilities."""
  lp = log_probs(by_hand(p, tokens, change)[0])
  at = [(b, t) for b in range(len(tokens)) for t in range(T - 1) if kept[b, t] and kept[b, t + 1]]
  return np.array([-lp[b, t, tokens[b, t + 1]] for b, t in at]), [lp[b, t] for b, t in at]


def where(kept, new):
  return lambda value: np.where(kept[..., None], new(value), value)


def said(sae, own, x):
  k = getattr(sae, 'k', None)
  f = plain.latents(sae, own, x.reshape(-1, x.shape[-1]), k)[0].reshape(*x.shape[:-1], M)
  return f, plain.decode(sae, own, f, x)


def gradient(p, tokens, kept, site, h=1e-5):
  """d(sum of losses) / d(value at a site), by central differences."""
  value = by_hand(p, tokens)[1][site]
  result = np.zeros_like(value)
  for index in np.ndindex(value.shape):
    step = np.zeros_like(value)
    step[index] = h
    up, down = (
      losses(p, tokens, kept, {site: lambda v, s=s: v + s})[0].sum() for s in (step, -step)
    )
    result[index] = (up - down) / (2 * h)
  return result


def uniformity(f, own, g):
  ratios = []
  for f_M, g_E in zip(f, g):
    a = np.abs(f_M * (own['W_dec'] @ g_E))
    if a.sum() > 0:
      share = a[a > 0] / a.sum()
      ratios.append(np.exp(-(share * np.log(share)).sum()) / len(share))
  return np.mean(ratios)


def expected(p, own, saes, targets, tokens, kept):
  """All metrics of dictionaries whose sites are given in the order of the forward pass."""
  _, seen = by_hand(p, tokens)
  result, change = {'sites': {}}, {}
  for site, sae in saes.items():
    at = targets.get(site, site)
    x, y = seen[site][kept], seen[at][kept]
    f, y_hat = said(sae, own[site], x)
    result['sites'][site] = {
      'tokens': len(x),
      'l0': (f > 0).sum(1).mean(),
      'fvu': ((y - y_hat) ** 2).sum() / ((y - y.mean(0)) ** 2).sum(),
      'dead_fraction': np.mean([not (f[:, i] > 0).any() for i in range(M)]),
      'shrinkage': (y_hat**2).sum() / (y * y_hat).sum(),
      'uniformity': uniformity(f, own[site], gradient(p, tokens, kept, at)[kept]),
      'density': (f > 0).mean(0),
    }
    if at == site:
      change[at] = where(kept, lambda v, s=sae, o=own[site]: said(s, o, v)[1])
    else:
      read = by_hand(p, tokens, change)[1][site]
      change[at] = where(kept, lambda v, s=sae, o=own[site], r=read: said(s, o, r)[1])
  means = {targets.get(s, s): seen[targets.get(s, s)][kept].mean(0) for s in saes}
  zero = {at: where(kept, np.zeros_like) for at in means}
  mean = {at: where(kept, lambda v, m=m: np.broadcast_to(m, v.shape)) for at, m in means.items()}
  base, lp = losses(p, tokens, kept)
  spliced, lp_spliced = losses(p, tokens, kept, change)
  loss_zero, loss_mean = (losses(p, tokens, kept, c)[0].mean() for c in (zero, mean))
  return result | {
    'predicted': len(base),
    'loss': base.mean(),
    'loss_spliced': spliced.mean(),
    'loss_zero': loss_zero,
    'loss_mean': loss_mean,
    'delta_loss': spliced.mean() - base.mean(),
    'recovered_zero': (loss_zero - spliced.mean()) / (loss_zero - base.mean()),
    'recovered_mean': (loss_mean - spliced.mean()) / (loss_mean - base.mean()),
    'kl': np.mean([(np.exp(a) * (a - b)).sum() for a, b in zip(lp, lp_spliced)]),
  }


def compare(found, wanted, rtol=2e-4, atol=2e-5):
  metrics = found.metrics()
  assert metrics.pop('splice_drift') < 1e-5
  both = metrics.pop('sites'), wanted.pop('sites')
  assert {*metrics} == {*wanted}
  for name, value in wanted.items():
    np.testing.assert_allclose(metrics[name], value, rtol, atol, err_msg=name)
  for site, values in both[1].items():
    density = values.pop('density')
    np.testing.assert_allclose(found.sites[site].density, density, rtol=1e-12)
    assert {*both[0][site]} == {*values}
    for name, value in values.items():
      np.testing.assert_allclose(both[0][site][name], value, rtol, atol, err_msg=f'{site} {name}')


SHAPE = {'d_in': D, 'width': M}
CASES = {
  'several sites': (
    {
      'embed': ReLU(**SHAPE, sparsity=0.0),
      O0: TopK(**SHAPE, k=2),
      'z.1': JumpReLU(**SHAPE, sparsity=0.0),
    },
    {},
  ),
  'transcoders': (
    {
      N0: ReLU(**SHAPE, d_out=D, skip=True, sparsity=0.0),
      R0: ReLU(**SHAPE, sparsity=0.0),
      N1: TopK(**SHAPE, d_out=D, k=3),
    },
    {N0: O0, N1: O1},
  ),
}


@functools.cache
def judge(name):
  """The dictionaries are given in another order than that of the forward pass."""
  saes, targets = CASES[name]
  return Evaluation(forward, dict(reversed(saes.items())), dict(reversed(targets.items())))


@pytest.mark.parametrize('name', CASES)
def test_every_figure_is_that_of_the_definitions(name):
  saes, targets = CASES[name]
  own = {site: dictionary(sae, i) for i, (site, sae) in enumerate(saes.items())}
  tokens, kept = texts()
  found = evaluate(judge(name), model(), own, [next_tokens(tokens, kept)])
  doubled = {site: double(o) for site, o in own.items()}
  compare(found, expected(double(model()), doubled, saes, targets, tokens, kept))
  json.dumps(found.metrics())


# --- known results ----------------------------------------------------------------------------------------


def several():
  """Parameters for the case of several sites."""
  return {
    site: dictionary(sae, i) for i, (site, sae) in enumerate(CASES['several sites'][0].items())
  }


@functools.cache
def speaker():
  return Evaluation(forward, {R0: ReLU(d_in=D, width=2 * D, sparsity=0.0)})


def judged(W, b, **options):
  """Evaluates a dictionary that reconstructs x where W is 1, and b where it is 0."""
  eye = np.eye(D, dtype=np.float32) * W
  matrices = {'W_enc': np.concatenate([eye, -eye], 1), 'W_dec': np.concatenate([eye, -eye])}
  own = {**matrices, 'b_enc': np.zeros(2 * D, np.float32), 'b_dec': np.float32(b)}
  return evaluate(speaker(), model(), {R0: own}, [next_tokens(*texts())], **options)


def test_a_perfect_dictionary_loses_nothing():
  found = judged(1, np.ones(D))
  site = found.sites[R0]
  assert (found.delta_loss, found.kl, site.fvu) == pytest.approx((0, 0, 0), abs=1e-6)
  assert (found.recovered_zero, found.recovered_mean) == pytest.approx((1, 1), abs=1e-5)
  assert (site.shrinkage, site.l0) == pytest.approx((1, D), abs=1e-6)


def test_a_dictionary_that_says_zero_recovers_nothing_of_zero_ablation():
  found = judged(0, np.zeros(D))
  assert found.recovered_zero == pytest.approx(0, abs=1e-6)
  assert math.isnan(found.sites[R0].shrinkage)
  assert math.isnan(found.sites[R0].uniformity)
  assert (found.sites[R0].l0, found.sites[R0].dead_fraction) == (0, 1)


def test_a_dictionary_that_says_the_mean_recovers_nothing_of_mean_ablation_and_explains_nothing():
  tokens, kept = texts()
  mean = by_hand(double(model()), tokens)[1][R0][kept].mean(0)
  found = judged(0, mean)
  assert found.recovered_mean == pytest.approx(0, abs=1e-5)
  assert found.sites[R0].fvu == pytest.approx(1, abs=1e-5)
  assert judged(0, np.zeros(D), means={R0: np.zeros(D)}).recovered_mean == pytest.approx(
    0, abs=1e-6
  )


# --- streaming --------------------------------------------------------------------------------------------


def cut(tokens, kept):
  """Batches of one shape, so that nothing is compiled again: each keeps one of the texts."""
  return [
    next_tokens(tokens, kept & (np.arange(len(tokens)) == i)[:, None]) for i in range(len(tokens))
  ]


def flat(found):
  metrics = found.metrics()
  drift = metrics.pop('splice_drift')
  own = {f'{s} {k}': v for s, values in metrics.pop('sites').items() for k, v in values.items()}
  return metrics | own, drift


def test_blocks_in_any_order_add_up_to_the_whole():
  r = np.random.default_rng(0)
  shapes = {'W_enc': (D, 2 * D), 'W_dec': (2 * D, D), 'b_enc': (2 * D,), 'b_dec': (D,)}
  own = {R0: {name: r.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}}
  many = speaker()
  tokens, kept = texts()
  whole = evaluate(many, model(), own, [next_tokens(tokens, kept)])
  blocks = cut(tokens, kept)
  wanted = flat(whole)[0]
  for batches in (blocks, blocks[::-1]):
    found = flat(evaluate(many, model(), own, batches))[0]
    for name, value in wanted.items():
      assert found[name] == pytest.approx(value, rel=2e-4, abs=1e-5), name
  means = many.measure_means(model(), blocks)
  parts = [
    many.measure_totals(model(), own, b, many.measure_base(model(), b, means)) for b in blocks
  ]
  left = parts[0].merge(parts[1]).merge(parts[2].merge(parts[3]))
  right = parts[3].merge(parts[1].merge(parts[0])).merge(parts[2])
  for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right)):
    np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)
  assert {leaf.dtype for leaf in jax.tree.leaves(left)} <= {np.dtype(float), np.dtype(np.int64)}


@pytest.mark.parametrize('reads', [R0, 'mlp_norm.1'])
def test_a_token_that_is_too_long_keeps_its_activation_and_does_not_count_at_its_site(reads):
  """Half of the tokens exceed the limit, and the truth is a splice of the others by hand."""
  r = np.random.default_rng(2)
  said = {R0: R0, 'mlp_norm.1': 'mlp_out.1'}[reads]
  sae = TopK(d_in=D, width=2 * D, k=2, d_out=None if said == reads else D)
  own = jax.tree.map(
    lambda x: x + 0.1 * r.standard_normal(x.shape).astype(x.dtype), sae.init(jax.random.key(0))
  )
  tokens, kept = texts()
  run = harvest.reap(forward, sites=[reads])
  x = np.asarray(run(model(), tokens)[sites.parse(reads)])
  limit = float(np.median(np.linalg.norm(x, axis=-1)))
  short = kept & (np.linalg.norm(x, axis=-1) <= limit)
  assert short.any()
  assert (kept & ~short).any()
  targets = {} if said == reads else {reads: said}
  batch = next_tokens(tokens, kept)
  found = evaluate(
    Evaluation(forward, {reads: sae}, targets, {reads: limit}), model(), {reads: own}, [batch]
  )
  fewer = dataclasses.replace(batch, kept=short)
  alone = evaluate(Evaluation(forward, {reads: sae}, targets), model(), {reads: own}, [fewer])
  assert found.predicted == alone.predicted
  assert found.sites[reads].tokens == short.sum()
  wanted, other = flat(alone)[0], flat(found)[0]
  for name, value in wanted.items():
    assert other[name] == pytest.approx(value, rel=1e-5, abs=1e-6), name


def test_a_limit_for_a_site_without_a_dictionary_is_an_error():
  with pytest.raises(SAEError, match='limits for'):
    Evaluation(forward, {R0: ReLU(d_in=D, width=4, sparsity=0.0)}, limits={'resid_post.9': 1.0})


@pytest.mark.parametrize('limit', [0.0, -1.0, float('nan'), '3'])
def test_a_limit_that_is_not_a_length_is_refused(limit):
  with pytest.raises(SAEError, match='is not a norm'):
    Evaluation(forward, {R0: ReLU(d_in=D, width=4, sparsity=0.0)}, limits={R0: limit})


def test_what_is_given_for_other_sites_or_in_another_shape_is_refused():
  sae = ReLU(**SHAPE, sparsity=0.0)
  own, batches = dictionary(sae), [next_tokens(*texts())]
  judging = Evaluation(forward, {R0: sae})
  for given in ({}, {R1: own}, {R0: own, R1: own}):
    with pytest.raises(SAEError, match='parameters for'):
      evaluate(judging, model(), given, batches)
  for means in ({}, {R1: np.zeros(D)}, {R0: np.zeros(1)}, {R0: np.zeros((2, D))}):
    with pytest.raises(SAEError, match='means of shapes'):
      evaluate(judging, model(), {R0: own}, batches, means)


def test_dictionaries_compared_are_judged_as_each_alone():
  r = np.random.default_rng(1)
  saes = {'few': TopK(d_in=D, width=2 * D, k=2), 'many': ReLU(d_in=D, width=3 * D, sparsity=0.0)}
  candidates = {
    name: (
      Evaluation(forward, {R0: sae}),
      {
        R0: jax.tree.map(
          lambda x: x + 0.1 * r.standard_normal(x.shape).astype(x.dtype),
          sae.init(jax.random.key(0)),
        )
      },
    )
    for name, sae in saes.items()
  }
  batches, told = cut(*texts()), []
  found = comparing.compare(candidates, model(), batches, progress=told.append)
  assert told == [1, 2, 3, 4]
  for name, (one, own) in candidates.items():
    assert flat(found[name]) == flat(evaluate(one, model(), own, batches)), name
  elsewhere = Evaluation(forward, {O0: saes['few']}), {O0: candidates['few'][1][R0]}
  with pytest.raises(SAEError, match='different sites'):
    comparing.compare(candidates | {'else': elsewhere}, model(), batches)
  with pytest.raises(SAEError, match='no dictionaries'):
    comparing.compare({}, model(), batches)


def test_the_scatter_of_many_blocks_far_from_zero_is_exact():
  r = np.random.default_rng(0)
  y = 1e4 + r.standard_normal((64, 7, 3))
  total = Spread(np.int64(0), np.zeros(3), np.float64(0))
  for block in y:
    mean = block.mean(0)
    total = total.merge(Spread(np.int64(7), mean, ((block - mean) ** 2).sum()))
  every = y.reshape(-1, 3)
  assert total.count == len(every)
  np.testing.assert_allclose(total.mean, every.mean(0), rtol=1e-14)
  np.testing.assert_allclose(total.scatter, ((every - every.mean(0)) ** 2).sum(), rtol=1e-10)


def test_what_is_not_kept_counts_for_nothing():
  own = several()
  tokens, kept = texts()
  other = np.where(kept | (np.arange(T) == 0), tokens, (tokens + 5) % V)
  assert (other != tokens).any()
  results = [
    flat(evaluate(judge('several sites'), model(), own, [next_tokens(t, kept)]))[0]
    for t in (tokens, other)
  ]
  assert results[0] == pytest.approx(results[1], rel=1e-5, abs=1e-7)


def test_densities_make_a_histogram_without_the_dead():
  site = evaluate(judge('several sites'), model(), several(), [next_tokens(*texts())]).sites[O0]
  counts = site.histogram([-4, -2, -1, 0])
  assert counts.sum() == (site.density > 0).sum() == M - round(M * site.dead_fraction)
  assert counts[2] == (site.density >= 0.1).sum()


# --- splicing ---------------------------------------------------------------------------------------------


def test_a_user_splices_with_the_same_functions():
  tokens, kept = texts()
  sae = TopK(**SHAPE, k=2)
  own = dictionary(sae)
  planted = harvest.plant(forward)
  changed = {R0: where(kept, lambda v: said(sae, double(own), v)[1])}
  logits = planted({R0: splice.reconstruct(sae, own, kept)}, model(), tokens)
  np.testing.assert_allclose(logits, by_hand(double(model()), tokens, changed)[0], atol=1e-4)


def test_what_is_put_back_changes_nothing():
  tokens, kept = texts()
  sae = TopK(**SHAPE, k=2)
  with jax.enable_x64(True):
    own, params = double(dictionary(sae)), double(model())
    restored = harvest.plant(forward)({R0: splice.restore(sae, own, kept)}, params, tokens)
    np.testing.assert_allclose(restored, forward(params, tokens), rtol=0, atol=1e-12)


def test_a_site_in_half_precision_is_restored_to_the_last_bit():
  sae, (_, kept) = BatchTopK(**SHAPE, k=2), texts()
  own = dictionary(sae) | {'threshold': np.float32(0.3)}
  value = jnp.asarray(np.random.default_rng(0).standard_normal((*kept.shape, D)), jnp.bfloat16)
  restored = jax.jit(splice.restore(sae, own, kept))(value)
  assert restored.dtype == jnp.bfloat16
  np.testing.assert_array_equal(restored, value)
  assert (jax.jit(splice.reconstruct(sae, own, kept))(value) != value).any()


# --- errors -----------------------------------------------------------------------------------------------


def test_mistakes_are_errors_that_say_what_to_do():
  sae, transcoder = ReLU(**SHAPE, sparsity=0.0), ReLU(**SHAPE, d_out=D, sparsity=0.0)
  own, tokens, kept = dictionary(sae), *texts()
  batch = next_tokens(tokens, kept)
  with pytest.raises(SAEError, match='transcoders at'):
    Evaluation(forward, {N0: transcoder})
  with pytest.raises(SAEError, match='transcoders at'):
    Evaluation(forward, {R0: sae}, {R0: R1})
  with pytest.raises(SAEError, match='each with its own'):
    Evaluation(forward, {O0: sae, N0: transcoder}, {N0: O0})
  with pytest.raises(SAEError, match='one or more'):
    Evaluation(forward, {})
  with pytest.raises(SAEError, match='means='):
    evaluate(Evaluation(forward, {R0: sae}), model(), {R0: own}, iter([batch]))
  with pytest.raises(SAEError, match='no batches'):
    evaluate(Evaluation(forward, {R0: sae}), model(), {R0: own}, [])
  with pytest.raises(SiteError, match='resid_post'):
    evaluate(Evaluation(forward, {'resid_past.0': sae}), model(), {'resid_past.0': own}, [batch])
  with pytest.raises(SiteError):
    evaluate(Evaluation(forward, {'resid_post': sae}), model(), {'resid_post': own}, [batch])
  with pytest.raises(SAEError, match='tokens'):
    next_tokens(tokens, kept[:, 1:])
  for ids in (tokens + 0.5, tokens - 100, tokens.astype(np.int64) + 2**32):
    with pytest.raises(SAEError, match='token ids are integers from 0'):
      next_tokens(ids, kept)
  with pytest.raises(SAEError, match='does not reconstruct'):
    splice.reconstruct(transcoder, own, kept)
  with pytest.raises(SAEError, match='mask of shape'):
    Evaluation(forward, {R0: sae}).measure_means(
      model(), [Batch(tokens, batch.targets, kept[:, 1:])]
    )


def test_a_dictionary_that_cannot_be_put_back_is_found_before_anything_is_counted():
  own = several()
  own[O0]['b_dec'] = np.full(D, np.nan, np.float32)
  with pytest.raises(SAEError, match='moves the loss by nan'):
    evaluate(judge('several sites'), model(), own, [next_tokens(*texts())])


def test_a_model_without_a_loss_and_masks_without_a_prediction_are_errors():
  own, (tokens, kept) = several(), texts()
  one, means = judge('several sites'), dict.fromkeys(own, np.zeros(D))
  with pytest.raises(SAEError, match='no token was predicted'):
    evaluate(one, model(), own, [next_tokens(tokens, np.zeros_like(kept))])
  batch = next_tokens(tokens, kept)
  totals = one.measure_totals(model(), own, batch, one.measure_base(model(), batch, means))
  assert report(totals, 0.0).predicted == losses(double(model()), tokens, kept)[0].size
  broken = model() | {'unembed': np.full((D, V), np.inf, np.float32)}
  with pytest.raises(SAEError, match='the loss of the model itself is nan'):
    evaluate(one, broken, own, [next_tokens(tokens, kept)], means)


# --- padding ----------------------------------------------------------------------------------------------


def test_rows_padded_on_the_left_have_the_figures_of_the_rows_alone():
  def masked(params, tokens, positions=None, mask=None):
    """The model above, with means over real tokens only."""
    real = jnp.ones(tokens.shape, bool) if mask is None else mask
    x = jnp.where(real[..., None], params['embed'][tokens], 0)
    so_far = jnp.cumsum(x, 1) / jnp.maximum(jnp.cumsum(real, 1), 1).astype(x.dtype)[..., None]
    with sites.layer(0):
      x = harvest.sow(x + so_far @ params['mix'][0], name='resid_post')
    return x @ params['unembed']

  sae = ReLU(d_in=D, width=M, sparsity=0.0)
  judge, own, short = Evaluation(masked, {R0: sae}), dictionary(sae), texts()[0][:, 2:]

  def totals(tokens, *masks):
    batch = next_tokens(tokens, *masks)
    base = judge.measure_base(model(), batch, {R0: np.zeros(D, np.float32)})
    found = judge.measure_totals(model(), {R0: own}, batch, base)
    return {'loss': found.loss, 'kl': found.kl, 'n': found.predicted, **found.losses}

  real = np.pad(np.ones(short.shape, bool), ((0, 0), (2, 0)))
  padded = totals(np.pad(short, ((0, 0), (2, 0)), constant_values=3), real, real)
  alone = totals(short, np.ones(short.shape, bool))
  for name in alone:
    np.testing.assert_allclose(padded[name], alone[name], rtol=1e-5, err_msg=name)


def test_padding_that_is_kept_is_refused():
  kept = np.array([[True, True, False]])
  with pytest.raises(SAEError, match='padding mask'):
    next_tokens(np.zeros((1, 3), int), kept, np.array([[False, True, True]]))


@pytest.mark.parametrize(
  ('batches', 'says'),
  [
    (np.zeros((2, T), np.int32), r'got ndarray of shape \(2, 6\)'),
    ([np.zeros((2, T), np.int32)], r'got ndarray of shape \(2, 6\)'),
    (next_tokens(*texts()), 'one batch instead of several'),
    (3, 'got int'),
  ],
  ids=['tokens', 'list of tokens', 'one batch', 'number'],
)
def test_a_value_that_is_not_a_batch_is_refused_by_name(batches, says):
  for judge in (
    functools.partial(evaluate, speaker()),
    lambda params, _, found: speaker().measure_means(params, found),
  ):
    with pytest.raises(SAEError, match=says):
      judge(model(), {R0: {}}, batches)


def test_a_model_or_a_loaded_pair_in_the_wrong_place_is_refused_by_name():
  sae = ReLU(d_in=D, width=2 * D, sparsity=0.0)
  with pytest.raises(SAEError, match=r'model\.apply'):
    Evaluation(model(), {R0: sae})
  with pytest.raises(SAEError, match='the result of load'):
    Evaluation(forward, {R0: (sae, {})})


def test_what_the_model_reads_is_seen_by_a_second_evaluation():
  scale = [1.0]

  def scaled(params, tokens):
    return forward(params, tokens) * scale[0]

  sae = ReLU(d_in=D, width=M, sparsity=0.0)
  own = {R0: dictionary(sae, 0)}
  batches = [next_tokens(*texts())]
  judge = Evaluation(scaled, {R0: sae})
  evaluate(judge, model(), own, batches)
  scale[0] = 2.0
  found = evaluate(judge, model(), own, batches).loss
  fresh = Evaluation(lambda p, t: forward(p, t) * 2.0, {R0: sae})
  assert found == pytest.approx(evaluate(fresh, model(), own, batches).loss, rel=1e-5)
