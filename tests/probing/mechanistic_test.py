"""The probe of a head equals its direct effect by path patching, with attention on the name and frozen norms."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechjax import harvest
from mechjax.errors import MechjaxError, ProbingError
from mechjax.models import decoder, norms
from mechjax.models.head_weights import take_head_weights
from mechjax.patching import Pairs, PathPatching, custom, nodes_of
from mechjax.probing.heads import HeadWeights, normalise
from mechjax.probing.mechanistic import make_probe, search_heads
from tests import typed
from tests.models import decoders

CLASSES = [4, 17, 9]
T, NAME = 5, 2
CONFIGS = {
  'llama': dataclasses.replace(decoders.CONFIGS['mistral'], window=None, local=()),
  'gpt2': decoders.CONFIGS['gpt2'],
  'neox': decoders.CONFIGS['neox'],
  'gemma': dataclasses.replace(decoders.CONFIGS['gemma'], logit_softcap=None),
}
SOURCES = {'llama': 'mistral', 'gpt2': 'gpt2', 'neox': 'neox', 'gemma': 'gemma'}


@pytest.fixture(autouse=True)
def wide():
  with jax.enable_x64(True):
    yield


@functools.cache
def params(name):
  return jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), decoders.params(SOURCES[name]))


def weights(name):
  return HeadWeights.of(**take_head_weights(params(name), CONFIGS[name]))


# --- the truth: path patching -------------------------------------------------------------------------


def norm_with_frozen_scale(x, p, config):
  """The norm of a decoder, with the inverse of its scale taken from `p` if it is there."""
  if p is None or 'inverse' not in p:
    return norms.norm(x, p, config)
  x = x - x.mean(-1, keepdims=True) if config.norm == 'layer' else x
  return x * p['inverse'] * (p['scale'] + config.norm_offset) + p.get('bias', 0)


def inverse(x, config):
  """1 / rms of what a norm divides."""
  x = x - x.mean(-1, keepdims=True) if config.norm == 'layer' else x
  return 1 / np.sqrt((x**2).mean(-1, keepdims=True) + config.norm_eps)


def look_at_the_name(config):
  """A decoder whose heads attend to the name alone."""
  pattern = np.zeros((config.n_layers, 1, config.n_heads, T, T))
  pattern[..., NAME:, NAME] = 1
  pattern[..., range(NAME), range(NAME)] = 1

  def forward(params, tokens):
    plain = lambda params, tokens: decoder.forward(params, tokens, config)  # noqa: E731
    return harvest.plant(plain)({'attn_probs': jnp.asarray(pattern)}, params, tokens)

  return forward


def freeze(params, config, acts):
  """Parameters with the scales of a run, at the norms after the heads."""
  attn = params['layers']['attn']
  raw = np.einsum('lbtnh,lnhd->lbtd', acts['z'], attn['o'])
  raw = raw + (attn['o_bias'][:, None, None] if config.o_bias else 0)
  layers = {**params['layers']}
  scales = {'final': inverse(np.asarray(acts[f'resid_post.{config.n_layers - 1}']), config)}
  if config.post_norms:
    scales['post'] = inverse(np.asarray(raw), config)
    layers['attn_post_norm'] = {**layers['attn_post_norm'], 'inverse': jnp.asarray(scales['post'])}
  final = {**params['final_norm'], 'inverse': jnp.asarray(scales['final'])}
  return {**params, 'layers': layers, 'final_norm': final}, scales


def read_logit(out, token):
  """Logit of one token at the last position; the token is data, so that all classes share an executable."""
  return (out[:, -1] * token).sum(-1)


@pytest.mark.parametrize('name', ['llama', 'gpt2', 'gemma'])
def test_the_score_of_a_head_is_its_direct_effect_on_the_logits(name, monkeypatch):
  config = CONFIGS[name]
  tokens = np.array([[3, 8, 11, 20, 6]], np.int32)
  other = tokens.copy()
  other[0, NAME] = 25
  forward = look_at_the_name(config)
  acts = harvest.reap(forward, sites='*')(params(name), tokens)
  frozen, scales = freeze(params(name), config, acts)
  monkeypatch.setattr(decoder, 'norm', norm_with_frozen_scale)
  unfrozen = acts['logits']
  acts, acts_of_other = (harvest.reap(forward, sites='*')(frozen, x) for x in (tokens, other))
  np.testing.assert_allclose(acts['logits'], unfrozen, atol=1e-9)
  infos = harvest.sites_of(forward, frozen, tokens)
  heads = nodes_of(infos, 'z', positions=[T - 1])
  end = nodes_of(infos, 'final_norm', positions='together')
  patch = PathPatching(forward, heads, end)
  pairs = Pairs(tokens, other, np.ones((1, T), bool))
  metrics = [custom('logit', read_logit, np.eye(decoders.V)[[token]]) for token in CLASSES]
  effects = [patch(frozen, pairs, metric).values[:, 0, 0] for metric in metrics]
  assert np.abs(effects).max() > 0.1
  for number, node in enumerate(heads):
    layer, head = node.site.layer, node.head
    probe = make_probe(weights(name), layer, head, CLASSES)
    x = [np.asarray(side[f'resid_pre.{layer}'])[:, NAME] for side in (acts, acts_of_other)]
    score = np.asarray(probe.scores(np.concatenate(x)))
    scale = scales['final'][0, -1, 0] * (scales['post'][layer, 0, -1, 0] if 'post' in scales else 1)
    expected = (score[1] - score[0]) * scale
    np.testing.assert_allclose([e[number] for e in effects], expected, atol=1e-9)


# --- the search ---------------------------------------------------------------------------------------


def stream(name, n=12, layers=None, seed=0):
  """A random stream at n names, of one layer or of some layers."""
  random = np.random.default_rng(seed)
  shape = (n, CONFIGS[name].d_model) if layers is None else (layers, n, CONFIGS[name].d_model)
  return random.standard_normal(shape) + 1


def by_loops(name, x, centre):
  """Predictions of every head, [L, N, B], one product after the other."""
  c, p = CONFIGS[name], jax.tree.map(np.asarray, params(name))
  layers = p['layers']
  unembed = p['embed']['tokens'].T if c.tied else p['unembed']['kernel']
  found = np.zeros((c.n_layers, c.n_heads, x.shape[-2]), int)

  def read(x, layer):
    return decoders._norm(c, x[layer] if x.ndim == 3 else x, at(layers['attn_norm'], layer))

  def at(tree, layer):
    return {key: value[layer] for key, value in tree.items()}

  for layer in range(c.n_layers):
    h = read(x, layer) - read(centre, layer).mean(0)
    for n in range(c.n_heads):
      v = h @ layers['attn']['v'][layer][:, n // (c.n_heads // c.n_kv_heads)]
      out = v @ layers['attn']['o'][layer, n]
      for norm in (['attn_post_norm'] if c.post_norms else []) + ['final_norm']:
        out = out - out.mean(-1, keepdims=True) if c.norm == 'layer' else out
        scale = layers[norm]['scale'][layer] if norm in layers else p[norm]['scale']
        out = out * (scale + c.norm_offset)
      found[layer, n] = (out @ unembed[:, CLASSES]).argmax(-1)
  return found


@pytest.mark.parametrize('layers', [None, 2])
@pytest.mark.parametrize('name', [*CONFIGS])
def test_the_search_is_every_head_by_itself(name, layers):
  labels = np.arange(12) % 3
  x, centre = stream(name, layers=layers), stream(name, 7, layers, seed=1)
  for reference in (None, centre):
    found = search_heads(weights(name), x, labels, CLASSES, centre_on=reference)
    expected = by_loops(name, x, x if reference is None else reference)
    np.testing.assert_array_equal(found.predictions, expected)
  share = (expected == labels).mean(-1)
  np.testing.assert_array_equal(found.accuracy, share)
  np.testing.assert_allclose(found.standard_error, np.sqrt(share * (1 - share) / 12))
  assert found.majority == pytest.approx(1 / 3)
  best = found.top(3)
  assert [b.accuracy for b in best] == sorted(share.ravel(), reverse=True)[:3]
  assert best[0].standard_error == found.standard_error[best[0].layer, best[0].head]
  for layer, head in np.ndindex(found.accuracy.shape):
    probe = make_probe(weights(name), layer, head, CLASSES)
    mine, near = (s if s is None or layers is None else s[layer] for s in (x, reference))
    np.testing.assert_array_equal(probe.predict(mine, near), expected[layer, head])


def test_biases_vanish_where_scores_are_centred():
  """The head with all its biases, and unfrozen only in what is the same for all names, gives the same differences."""
  name, layer, head = 'gpt2', 1, 2
  c, p = CONFIGS[name], params(name)
  x = stream(name)
  h = decoders._norm(c, x, {k: np.asarray(v[layer]) for k, v in p['layers']['attn_norm'].items()})
  attn = jax.tree.map(lambda a: np.asarray(a[layer]), p['layers']['attn'])
  out = (h @ attn['v'][:, head] + attn['v_bias'][head]) @ attn['o'][head] + attn['o_bias']
  out = (out - out.mean(-1, keepdims=True)) * np.asarray(p['final_norm']['scale'])
  logits = (out + np.asarray(p['final_norm']['bias'])) @ np.asarray(p['embed']['tokens'])[CLASSES].T
  scores = np.asarray(make_probe(weights(name), layer, head, CLASSES).scores(x))
  assert np.abs(logits - scores).max() > 0.01
  np.testing.assert_allclose(logits - logits.mean(0), scores - scores.mean(0), atol=1e-9)


def test_a_model_without_norms_has_a_plain_product():
  config = dataclasses.replace(CONFIGS['llama'], norm='none', final_norm=False)
  p = {key: value for key, value in params('llama').items() if key != 'final_norm'}
  p['layers'] = {key: p['layers'][key] for key in ('attn', 'mlp')}
  probe = make_probe(HeadWeights.of(**take_head_weights(p, config)), 0, 3, CLASSES)
  x = stream('llama')
  expected = x @ p['layers']['attn']['v'][0, :, 1] @ p['layers']['attn']['o'][0, 3]
  np.testing.assert_allclose(probe.scores(x), expected @ p['unembed']['kernel'][:, CLASSES])


def test_a_tie_is_wrong():
  w = weights('llama')
  silent = dataclasses.replace(w, W_O=w.W_O.at[1, 2].set(0))
  found = search_heads(silent, stream('llama'), np.arange(12) % 3, CLASSES)
  assert (found.predictions[1, 2] == -1).all()
  assert found.accuracy[1, 2] == 0
  assert (found.predictions[0] >= 0).all()


def test_bfloat16_weights_are_read_in_float32():
  with jax.enable_x64(False):
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), decoders.params('gemma'))
    w = HeadWeights.of(**take_head_weights(half, CONFIGS['gemma']))
    x = stream('gemma').astype(np.float32)
    assert make_probe(w, 0, 0, CLASSES).scores(x).dtype == jnp.float32
    assert search_heads(
      w, jnp.asarray(x, jnp.bfloat16), np.arange(12) % 3, CLASSES
    ).accuracy.shape == (2, 4)


# --- errors -------------------------------------------------------------------------------------------


X, LABELS = np.random.default_rng(2).standard_normal((6, 16)), [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'x': X[:, :7]}, r'the stream is float64\[6, 7\], and \[B, 16\] was expected'),
    ({'x': X[None]}, r'\[1, 6, 16\], and \[2, B, 16\] was expected'),
    ({'x': X.astype(int)}, 'the stream is int64'),
    ({'x': np.where(X > 2, np.nan, X)}, 'NaN or infinity'),
    ({'x': X[:1].repeat(6, 0)}, 'the stream of all 6 names is the same'),
    ({'centre_on': X[None].repeat(2, 0)}, r'and \[B, 16\] was expected'),
    ({'centre_on': X[:0]}, r'\[0, 16\]'),
    ({'labels': LABELS[:5]}, r'labels of shape \[5\] .* for 6 names'),
    ({'labels': [0.0] * 6}, 'type float64 for 6 names'),
    ({'labels': [0, 1, 2, 0, 1, 3]}, 'label 3 is not an index of 3 classes'),
    ({'labels': [0, 1, 2, 0, 1, 1]}, 'class 2 has 1 names'),
    ({'classes': [4]}, 'two token ids or more'),
    ({'classes': [[4, 5], [6, 7], [8, 9]]}, 'two token ids or more'),
    ({'classes': ['golf', 'tennis', 'polo']}, 'two token ids or more'),
    ({'classes': [4, 17, 4]}, 'different tokens of a vocabulary of 31'),
    ({'classes': [4, 17, 31]}, 'different tokens of a vocabulary of 31'),
  ],
)
def test_names_and_classes_that_do_not_fit_are_refused(change, message):
  given = {'x': X, 'labels': LABELS, 'classes': CLASSES, **change}
  with pytest.raises(ProbingError, match=message):
    search_heads(weights('llama'), **given)


def test_weights_that_are_not_finite_are_refused():
  w = weights('llama')
  with pytest.raises(ProbingError, match='weights that are not finite'):
    search_heads(dataclasses.replace(w, W_V=w.W_V * np.inf), X, LABELS, CLASSES)


@pytest.mark.parametrize(('layer', 'head'), [(2, 0), (0, 4), (-1, 0), (0, True), (0.0, 1)])
def test_a_head_that_does_not_exist_is_refused(layer, head):
  with pytest.raises(ProbingError, match='there is no'):
    make_probe(weights('llama'), layer, head, CLASSES)


def test_a_probe_refuses_names_that_are_all_the_same():
  probe = make_probe(weights('llama'), 0, 0, CLASSES)
  with pytest.raises(ProbingError, match='names is the same'):
    probe.predict(X[:1].repeat(3, 0))


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'W_V': np.ones((2, 16, 12))}, 'are not weights of heads'),
    ({'W_V': np.ones((2, 15, 2, 6))}, 'do not fit together'),
    ({'W_V': np.ones((2, 16, 3, 6))}, 'do not fit together'),
    ({'W_U': np.ones((17, 31))}, 'do not fit together'),
    ({'attn_gain': np.ones(16)}, r'attn_gain has shape \[16\], not \[2, 16\]'),
    ({'final_gain': np.ones((2, 16))}, r'final_gain has shape \[2, 16\], not \[16\]'),
    ({'attn_gain': None}, "there is no attn_gain, and the heads read through norm='rms'"),
    ({'norm': 'none'}, 'attn_gain is given'),
    ({'norm': 'rmsnorm'}, "unknown norm 'rmsnorm'"),
  ],
)
def test_weights_that_do_not_fit_are_refused(change, message):
  given = {**take_head_weights(params('llama'), CONFIGS['llama']), **change}
  with pytest.raises(ProbingError, match=message):
    HeadWeights.of(**given)


def test_an_upstream_model_has_no_known_weights():
  with pytest.raises(MechjaxError, match='upstream code'):
    take_head_weights({}, None)


def test_the_annotations_hold():
  with typed.checked('mechjax.probing.mechanistic', 'mechjax.probing.heads') as calls:
    w = weights('gemma')
    assert w.shape == (2, 4)
    assert normalise(jnp.ones((2, 3)), 'rms', 0.0).shape == (2, 3)
    for x in (X, jnp.asarray(X)):
      probe = make_probe(w, 1, np.int64(0), np.array(CLASSES))
      assert probe.scores(x).shape == (6, 3)
      assert probe.predict(x, x[:3]).shape == (6,)
      found = search_heads(w, x, LABELS, CLASSES)
    found = search_heads(w, X[None].repeat(2, 0), np.array(LABELS), CLASSES)
    assert len(found.top(2)) == 2
    assert found.majority == pytest.approx(1 / 3)
    assert found.accuracy.shape == found.standard_error.shape
  assert not calls.missing()


def test_one_name_is_predicted_if_others_are_there_to_centre_on():
  random = np.random.default_rng(0)
  draw = lambda *shape: random.standard_normal(shape).astype(np.float32)  # noqa: E731
  weights = HeadWeights.of(
    W_V=draw(1, 6, 2, 3),
    W_O=draw(1, 2, 3, 6),
    W_U=draw(6, 9),
    attn_gain=np.ones((1, 6), np.float32),
    final_gain=None,
  )
  x = draw(5, 6)
  probe = make_probe(weights, 0, 1, [2, 4, 7])
  all_names = probe.predict(x)
  for i in range(5):
    assert probe.predict(x[i : i + 1], centre_on=x).tolist() == [all_names[i]]
