"""End-to-end fine-tuning against spliced models that are written out, on the two layers of `evaluation.toy`."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechjax.errors import SAEError, SiteError
from mechjax.models import ours
from mechjax.sae import BatchTopK, CrossLayerTopK, GradientTopK, ReLU, TopK
from mechjax.sae.store import Contexts, Scale
from mechjax.sae.training import (
  Checkpoints,
  EndToEnd,
  Ensemble,
  LoopSettings,
  Optimisation,
  Trainer,
  feed_tokens,
  restart,
  train,
)
from tests.models import decoders
from tests.sae.evaluation import toy

SITE, LAST, SCALE = 'resid_post.0', 'resid_post.1', 1.7
SAE = ReLU(d_in=toy.D, width=toy.M, sparsity=0.1)
IDENTITY = ReLU(d_in=toy.D, width=2 * toy.D, sparsity=0.0)


def scale(limit=np.inf):
  return Scale(SCALE, np.zeros(toy.D, np.float32), limit)


def objective(site=SITE, limit=np.inf, **settings):
  params = jax.tree.map(jnp.asarray, toy.model())
  return EndToEnd(toy.forward, params, site, {site: scale(limit)}, **settings)


def batch():
  tokens, kept = toy.texts()
  return {'tokens': jnp.asarray(tokens, jnp.int32), 'kept': jnp.asarray(kept)}


def dictionary(sae=SAE, seed=0):
  r = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: jnp.asarray(0.5 * r.standard_normal(x.shape), x.dtype), sae.init(jax.random.key(0))
  )


def identity():
  """Reconstructs everything: latents are the positive and the negative parts of each coordinate."""
  both = jnp.concatenate([jnp.eye(toy.D), -jnp.eye(toy.D)])
  return IDENTITY.init(jax.random.key(0)) | {'W_enc': both.T, 'W_dec': both}


@functools.partial(jax.jit, static_argnums=(0, 1))
def run(one, sae, sae_params, batch):
  """Loss, its parts, and gradients of the dictionary."""

  def loss(sae_params):
    acts, observed = one.observe(one.arrays, batch)
    x = acts[one.site]
    total, output = one.loss(sae, observed, sae_params, x, None, None, None)
    return total, output.parts

  (total, parts), grads = jax.value_and_grad(loss, has_aux=True)(sae_params)
  return total, parts, grads


def close(found, wanted, **tolerance):
  tolerance = {'rtol': 1e-4, 'atol': 1e-6} | tolerance
  jax.tree.map(functools.partial(np.testing.assert_allclose, **tolerance), found, wanted)


def layers_by_hand(p, x, start):
  """Residual streams after the layers from `start` on."""
  n = jnp.arange(1, toy.T + 1, dtype=jnp.float32)[:, None]
  streams = []
  for i in range(start, toy.LAYERS):
    h = x + jnp.cumsum(x, 1) / n @ p['mix'][i]
    x = x + jnp.tanh(h @ p['in'][i]) @ p['out'][i]
    streams.append(x)
  return streams


def loss_by_hand(p, sae_params, tokens, kept, limit, kl, mse, reconstruction):
  """The objective at `resid_post.0` with the later site `resid_post.1`, of a ReLU dictionary."""
  clean = layers_by_hand(p, p['embed'][tokens], 0)
  x = clean[0]
  spliced = np.asarray(kept) & (np.linalg.norm(x, axis=-1) <= limit)
  own = x / SCALE
  f = jax.nn.relu((own - sae_params['b_dec']) @ sae_params['W_enc'] + sae_params['b_enc'])
  own_hat = f @ sae_params['W_dec'] + sae_params['b_dec']
  new = jnp.where(spliced[..., None], own_hat * SCALE, x)
  (later,) = layers_by_hand(p, new, 1)
  log_p, log_q = (jax.nn.log_softmax(s @ p['unembed']) for s in (clean[-1], later))
  divergence = jnp.sum(jnp.exp(log_p) * (log_p - log_q), -1)
  rows = np.flatnonzero(spliced)
  # Tokens that are not reconstructed are replaced by the others in turn in the batch of the dictionary.
  filled = np.concatenate([rows, np.resize(rows, spliced.size - len(rows))])
  per_token = jnp.sum(jnp.square(own - own_hat), -1).reshape(-1)[filled]
  return (
    kl * jnp.sum(jnp.where(kept, divergence, 0)) / int(np.sum(kept))
    + mse * jnp.sum(jnp.where(spliced, jnp.mean(jnp.square(clean[1] - later), -1), 0)) / len(rows)
    + reconstruction * per_token.mean()
    + SAE.sparsity * jnp.sum(f, -1).reshape(-1)[filled].mean()
  )


# --- the loss and its gradient ----------------------------------------------------------------------------


@pytest.mark.parametrize('weights', [(1.0, 0.0, 0.0), (0.5, 2.0, 0.0), (0.3, 0.7, 0.2)])
def test_the_gradient_is_that_of_a_spliced_model_that_is_written_out(weights):
  kl, mse, reconstruction = weights
  data, p = batch(), jax.tree.map(jnp.asarray, toy.model())
  x = layers_by_hand(p, p['embed'][data['tokens']], 0)[0]
  lengths = np.sort(np.linalg.norm(x, axis=-1)[np.asarray(data['kept'])])
  limit = float(lengths[-3:-1].mean())  # two tokens are too long
  one = objective(
    limit=limit, kl=kl, mse=mse, reconstruction=reconstruction, later=(LAST,) if mse else ()
  )
  total, parts, grads = run(one, SAE, dictionary(), data)
  by_hand = lambda own: loss_by_hand(p, own, data['tokens'], data['kept'], limit, *weights)  # noqa: E731
  expected, expected_grads = jax.value_and_grad(by_hand)(dictionary())
  close((total, grads), (expected, expected_grads))
  close(sum(parts.values()), total)
  assert np.abs(grads['W_enc']).max() > 1e-3


def test_a_dictionary_that_reconstructs_everything_has_no_gradient_of_the_divergence():
  _, parts, grads = run(objective(), IDENTITY, identity(), batch())
  assert abs(float(parts['kl'])) < 1e-6
  close(grads, jax.tree.map(jnp.zeros_like, grads), atol=1e-5)
  moved = identity() | {'b_dec': 0.1 * jnp.ones(toy.D)}
  moved['b_enc'] = -0.3 * jnp.ones(2 * toy.D)
  _, parts, grads = run(objective(), IDENTITY, moved, batch())
  assert parts['kl'] > 1e-3
  assert np.abs(grads['W_dec']).max() > 1e-2


def test_without_layers_above_the_divergence_is_that_through_the_unembedding():
  data, p = batch(), toy.model()
  _, parts, _ = run(objective(LAST), SAE, dictionary(), data)
  x = np.asarray(toy.by_hand(p, np.asarray(data['tokens']))[1][LAST], np.float64)
  x_hat = SCALE * np.asarray(SAE.reconstruct(dictionary(), jnp.asarray(x / SCALE, jnp.float32)))
  kept = np.asarray(data['kept'])
  log_p, log_q = (
    v - np.log(np.exp(v).sum(-1, keepdims=True)) for v in (x @ p['unembed'], x_hat @ p['unembed'])
  )
  expected = (np.exp(log_p) * (log_p - log_q)).sum(-1)[kept].mean()
  np.testing.assert_allclose(parts['kl'], expected, rtol=1e-4)


def test_padding_changes_nothing():
  """Ids at padding reach only padding, since tokens see earlier ones alone, and no mean counts it."""
  data = batch()
  one = objective(mse=1.0, later=(LAST,))
  kept = np.asarray(data['kept'])
  after = np.cumsum(kept, 1) == kept.sum(1, keepdims=True)
  padding = after & ~kept
  assert padding.any()
  others = data | {'tokens': jnp.where(padding, 5, data['tokens'])}
  wider = jax.tree.map(lambda x: jnp.concatenate([x, jnp.zeros_like(x)]), data)
  first = run(one, SAE, dictionary(), data)
  close(first, run(one, SAE, dictionary(), others))
  found, wanted = (run(one, SAE, dictionary(), d)[1] for d in (wider, data))
  close({k: found[k] for k in ('kl', 'mse')}, {k: wanted[k] for k in ('kl', 'mse')})


@pytest.mark.parametrize('family', ['gpt2', 'gemma'])
@pytest.mark.parametrize('site', ['resid_post.0', 'resid_post.1', 'mlp_out.0', 'mlp_out.1'])
def test_a_pass_that_begins_at_the_site_gives_the_same_loss(family, site):
  config, params = decoders.CONFIGS[family], decoders.params(family)
  model = ours.forward(params, config)
  sae = TopK(d_in=config.d_model, width=24, k=4)
  later = {'resid_post.0': ('mlp_out.1', LAST), 'mlp_out.0': (LAST,)}.get(site, ())
  data = {'tokens': jnp.asarray(decoders.TOKENS), 'kept': jnp.arange(9) > jnp.array([[0], [1]])}
  results = []
  assert model.forward_from is not None
  for forward_from in (None, functools.partial(model.forward_from, unroll=True)):
    one = EndToEnd(
      model.apply, params, site, {site: Scale(2.0, np.zeros(config.d_model, np.float32))},
      later=later, mse=0.5 if later else 0.0, forward_from=forward_from,
    )  # fmt: skip
    results.append(run(one, sae, dictionary(sae), data))
  assert results[0][1]['kl'] > 1e-4
  close(*results)


def test_rows_with_padding_give_the_loss_of_the_rows_alone():
  config, params = decoders.CONFIGS['qwen'], decoders.params('qwen')
  model, sae = ours.forward(params, config), TopK(d_in=config.d_model, width=24, k=4)
  scales = {'resid_post.0': Scale(2.0, np.zeros(config.d_model, np.float32))}
  settings: dict[str, Any] = {'forward_from': model.forward_from}
  one = EndToEnd(model.apply, params, 'resid_post.0', scales, **settings)
  masked = EndToEnd(model.apply, params, 'resid_post.0', scales, masked=True, **settings)
  tokens = jnp.asarray(decoders.TOKENS)
  ahead = jnp.pad(tokens, ((0, 0), (3, 0)))
  real = jnp.broadcast_to(jnp.arange(12) >= 3, ahead.shape)
  plain = run(one, sae, dictionary(sae), {'tokens': tokens, 'kept': jnp.ones(tokens.shape, bool)})
  padded = run(masked, sae, dictionary(sae), {'tokens': ahead, 'kept': real | True, 'mask': real})
  close(padded[1]['kl'], plain[1]['kl'])


# --- the trainer ------------------------------------------------------------------------------------------


def contexts(n=24):
  r = np.random.default_rng(3)
  rows = r.integers(1, toy.V, (n, toy.T)).astype(np.int32)
  rows[:, 0] = 0
  return Contexts(rows, np.arange(n), (0,), 'made up')


@functools.cache
def trainer(**settings):
  ensembles = {
    'relu': Ensemble(sae=SAE, reads=SITE, seeds=(0, 1), hparams={'sparsity': (0.0, 0.1)}),
    'batch': Ensemble(sae=BatchTopK(d_in=toy.D, width=toy.M, k=3), reads=SITE),
  }
  optimisation = Optimisation(
    steps=30, learning_rate=1e-2, warm_up_steps=0, sparsity_warm_up_steps=0
  )
  return Trainer(ensembles, optimisation, objective=objective(mse=0.1, later=(LAST,), **settings))


def trained(home, begin=None, stop_at=None):
  """A run whose metrics are kept, or that stops after some steps without notice."""
  seen = []

  def report(r):
    seen.append((r.step, r.metrics))
    if r.step == stop_at:
      raise KeyboardInterrupt

  one = trainer()
  feed = lambda position: feed_tokens(  # noqa: E731
    contexts(), one.batch_sharding, rows=4, seed=1, position=position
  )
  with Checkpoints(home / 'checkpoints') as kept:
    loop = LoopSettings(log_every=5, save_every=10)
    result = train(one, feed, {}, kept, loop, report, home / 'dump', begin)
  return result, seen


def test_a_stopped_run_continues_as_if_it_had_not_stopped(tmp_path):
  whole, told = trained(tmp_path / 'whole')
  with pytest.raises(KeyboardInterrupt):
    trained(tmp_path / 'parts', stop_at=25)
  rest, told_later = trained(tmp_path / 'parts')
  jax.tree.map(np.testing.assert_array_equal, rest.state, whole.state)
  assert [step for step, _ in told_later] == [25, 30]
  jax.tree.map(np.testing.assert_array_equal, told_later[-1], told[-1])
  for _, metrics in told:
    for own in metrics.values():
      assert {'kl', 'mse', 'fvu', 'l0', 'dead'} <= {*own}
      assert np.isfinite(own['fvu']).all()
  first, last = (told[n][1]['relu']['kl'][0] for n in (0, -1))
  assert last < 0.7 * first


def test_a_training_begins_with_finished_dictionaries_and_a_new_optimiser():
  one = trainer()
  state = one.init()
  for _ in range(3):
    state, _ = one.step(state, batch())
  silent = {
    name: dataclasses.replace(m, tokens_since_fired=m.tokens_since_fired + 7)
    for name, m in state.ensembles.items()
  }
  state = dataclasses.replace(state, ensembles=silent)
  before = jax.tree.map(np.array, state)
  first = restart(one, state.ensembles)
  begun = jax.tree.map(np.array, first)
  one.step(first, batch())  # deletes the arrays of `first`, and none of the finished training
  jax.tree.map(np.array, state.ensembles)
  fresh = jax.tree.map(np.array, one.init())
  assert begun.step == 0
  for name, own in begun.ensembles.items():
    jax.tree.map(np.testing.assert_array_equal, own.params, before.ensembles[name].params)
    jax.tree.map(np.testing.assert_array_equal, own.optimiser, fresh.ensembles[name].optimiser)
    np.testing.assert_array_equal(own.tokens_since_fired, before.ensembles[name].tokens_since_fired)
  assert not np.array_equal(
    begun.ensembles['relu'].params['W_enc'], fresh.ensembles['relu'].params['W_enc']
  )
  with pytest.raises(SAEError, match='begins with'):
    restart(one, {'other': state.ensembles['relu']})
  with pytest.raises(SAEError, match='another architecture or width'):
    restart(one, dict.fromkeys(state.ensembles, state.ensembles['relu']))


def test_values_that_the_model_reads_may_change_between_steps():
  strength = {'of logits': 1.0}

  def forward(params, tokens):
    return strength['of logits'] * toy.forward(params, tokens)

  def make():
    own = dataclasses.replace(objective(), forward=forward)
    ensemble = Ensemble(sae=SAE, reads=SITE)
    return Trainer({'a': ensemble}, Optimisation(steps=9, warm_up_steps=0), objective=own)

  def divergence(one):
    return float(one.step(one.init(), batch())[1].ensembles['a']['kl'][0])

  used = make()
  before = divergence(used)
  strength['of logits'] = 3.0
  after = divergence(used)
  assert after != pytest.approx(before, rel=1e-3)
  np.testing.assert_allclose(after, divergence(make()), rtol=1e-5)


def test_a_batch_without_any_token_to_train_on_stops_the_training():
  one = trainer(limit=1e-6)
  state, _ = one.step(one.init(), batch())
  assert (bool(state.ok), int(state.bad_step)) == (False, 0)


def test_batches_of_tokens_are_a_function_of_the_position():
  sharding = trainer().batch_sharding

  def take(position, n):
    with feed_tokens(contexts(10), sharding, rows=4, seed=1, position=position) as batches:
      return [(p, jax.tree.map(np.array, b)) for (p, b), _ in zip(batches, range(n))]

  whole = take(0, 5)
  assert [p for p, _ in whole] == [1, 2, 3, 4, 5]
  jax.tree.map(np.testing.assert_array_equal, take(3, 2), whole[3:])
  rows = np.concatenate([b['tokens'] for _, b in whole[:2]])
  assert len({tuple(r) for r in rows.tolist()}) == 8
  np.testing.assert_array_equal(whole[0][1]['kept'], whole[0][1]['tokens'] != 0)
  with pytest.raises(SAEError, match='3 contexts do not fill a batch of 4'):
    feed_tokens(contexts(3), sharding, rows=4, seed=1, position=0)


# --- mistakes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  ('settings', 'says'),
  [
    ({'kl': -1.0}, 'kl=-1.0 should be at least 0'),
    ({'kl': float('nan')}, 'kl=nan should be a finite number'),
    ({'kl': 0.0}, 'kl=0, mse=0 and reconstruction=0'),
    ({'mse': 1.0}, r'mse=1.0 with later=\(\)'),
    ({'later': (LAST,)}, 'mse=0.0 with later='),
    ({'mse': 1.0, 'later': (LAST, LAST)}, 'sites, each once'),
    ({'mse': 1.0, 'later': ('mlp_out.0', LAST)}, r"contains \['mlp_out.0'\]"),
    ({'mse': 1.0, 'later': (SITE,)}, r"contains \['resid_post.0'\]"),
    ({'site': 'logits'}, 'nothing of the model is left after logits'),
    ({'reads': 'mlp_norm.0'}, r"no scales of \['mlp_norm.0'\]"),
    ({'site': 'embed', 'forward_from': toy.forward}, 'forward_from cannot begin a pass at embed'),
  ],
)
def test_settings_without_a_meaning_are_errors(settings, says):
  with pytest.raises(SAEError, match=says):
    objective(**settings)


def test_sites_that_the_model_does_not_have_are_errors():
  with pytest.raises(SiteError, match='resid_post'):
    objective('resid_post.7')
  with pytest.raises(SAEError, match='function'):
    EndToEnd(4, {}, SITE, {SITE: scale()})  # type: ignore[arg-type]


def test_a_transcoder_reads_before_it_writes():
  scales = {name: scale() for name in ('mlp_norm.0', 'mlp_norm.1', 'mlp_out.0')}
  params = jax.tree.map(jnp.asarray, toy.model())
  one = EndToEnd(toy.forward, params, 'mlp_out.0', scales, reads='mlp_norm.0')
  sae = ReLU(d_in=toy.D, d_out=toy.D, width=toy.M, sparsity=0.0)
  ensemble = Ensemble(sae=sae, reads='mlp_norm.0', writes='mlp_out.0')
  state, metrics = (
    t := Trainer({'a': ensemble}, Optimisation(steps=9, warm_up_steps=0), objective=one)
  ).step(t.init(), batch())
  assert bool(state.ok)
  assert metrics.ensembles['a']['kl'] > 0
  with pytest.raises(SAEError, match=r'read mlp_norm\.1, which is after mlp_out.0'):
    EndToEnd(toy.forward, params, 'mlp_out.0', scales, reads='mlp_norm.1')


def test_dictionaries_of_other_sites_are_errors():
  optimisation = Optimisation(steps=9, warm_up_steps=0)
  with pytest.raises(
    SAEError, match=r"reads 'mlp_out\.0' and writes None, and the objective is for 'resid_post\.0'"
  ):
    Trainer({'a': Ensemble(sae=SAE, reads='mlp_out.0')}, optimisation, objective=objective())
  parts = dataclasses.replace(SAE, d_in=2 * toy.D, parts=(toy.D, toy.D))
  clt = CrossLayerTopK(n_layers=2, d_in=toy.D, d_out=toy.D, width=toy.M, k=2)
  for ensemble in (
    Ensemble(sae=parts, reads=(SITE, LAST)),
    Ensemble(sae=clt, reads=('mlp_norm.0', 'mlp_norm.1'), writes=('mlp_out.0', 'mlp_out.1')),
  ):
    with pytest.raises(SAEError, match='of several sites'):
      Trainer({'a': ensemble}, optimisation, objective=objective())
  guided = GradientTopK(d_in=toy.D, width=toy.M, k=2)
  with pytest.raises(SAEError, match=r"'a' is a GradientTopK, which selects latents by gradients"):
    Trainer(
      {'a': Ensemble(sae=guided, reads=SITE, guide=f'grad:{SITE}')},
      optimisation,
      objective=objective(),
    )
  with pytest.raises(SAEError, match=r"a batch without \['kept'\]"):
    trainer().step(trainer().init(), {'tokens': batch()['tokens']})
