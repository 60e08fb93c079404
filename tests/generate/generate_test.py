"""Generation against the uncached forward pass, token by token, with and without interventions."""

import functools
import gc
import weakref

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from mechjax import errors, harvest
from mechjax.generate import Positioned, Sampling, loop, passes, plans, sampling, stepping
from mechjax.models import decoder
from tests import typed
from tests.generate.small import FAMILIES, PROMPTS, assert_clear, generated, model
from tests.models import decoders
from tests.models.ids_test import TOKENIZER


def by_row(out):
  return out.tokens.tolist()


def whole_texts(out):
  """Prompts with what was generated, padded on the right to one length, and which tokens are text."""
  texts = [[*prompt, *row] for prompt, row in zip(PROMPTS, out.tokens)]
  T = max(map(len, texts))
  mask = np.arange(T) < np.array([[len(text)] for text in texts])
  return np.array([text + [0] * (T - len(text)) for text in texts], np.int32), mask


def forward(name, params, tokens, mask):
  """The whole texts in one pass, without a cache."""
  return decoders.logits(params, jnp.asarray(tokens), name, segments=jnp.asarray(mask))


def check_greedy(out, logits):
  """Asserts that each generated token is the most likely after the text before it, up to rounding of the logits."""
  for row, prompt in enumerate(PROMPTS):
    for i, token in enumerate(out.tokens[row]):
      after = np.asarray(logits[row, len(prompt) + i - 1])
      assert after[token] > after.max() - 1e-4


# --- equal to one forward pass ----------------------------------------------------------------------------


@FAMILIES
def test_ragged_prompts_are_continued_with_the_likeliest_tokens_of_an_uncached_pass(name):
  out = generated(name)
  check_greedy(out, forward(name, decoders.params(name), *whole_texts(out)))
  assert len(set(out.tokens.ravel())) > 2


@FAMILIES
def test_an_intervention_for_one_forward_pass_does_the_same_at_every_step(name):
  edit = {'resid_post.0': lambda x: x.at[..., :3].multiply(-2), 'k.1': lambda k: k * 1.5}
  out = generated(name, plants=edit)
  planted = harvest.plant(functools.partial(forward, name))
  check_greedy(out, planted(edit, decoders.params(name), *whole_texts(out)))
  assert (out.tokens != generated(name).tokens).any()


def test_what_is_read_at_every_step_is_what_a_forward_pass_over_the_whole_text_has():
  sites = ('resid_post.1', 'mlp_post.0', 'logits')
  out = generated('gemma', sites=sites)
  reap = harvest.reap(functools.partial(forward, 'gemma'), sites=sites)
  whole = reap(decoders.params('gemma'), *whole_texts(out))
  for row, prompt in enumerate(PROMPTS):
    for site in sites:
      first = np.asarray(out.reads[0][site])[row][out.prompt_mask[row]]
      found = np.concatenate([first, *(acts[site][row] for acts in out.reads[1:])])
      expected = whole[site][row, : len(prompt) + 5]
      np.testing.assert_allclose(found, expected, rtol=0, atol=3e-5)


def test_reads_see_what_was_planted():
  out = generated('gpt2', 2, sites='mlp_out.0', plants={'mlp_out.0': jnp.zeros_like})
  assert not any(np.asarray(acts['mlp_out.0']).any() for acts in out.reads[1:])
  first = np.asarray(out.reads[0]['mlp_out.0'])
  assert not first[out.prompt_mask].any()
  assert np.isnan(first[~out.prompt_mask]).all()


def test_the_last_column_is_the_last_token_of_every_prompt():
  out = generated('gpt2', 1, sites='embed')
  assert out.prompt_mask.sum(-1).tolist() == [5, 2, 4]
  for row, prompt in enumerate(PROMPTS):
    table = decoders.params('gpt2')['embed']
    expected = table['tokens'][prompt[-1]] + table['positions'][len(prompt) - 1]
    np.testing.assert_allclose(out.reads[0]['embed'][row, -1], expected, rtol=1e-6)


# --- functions of positions ---------------------------------------------------------------------------------

OF_TEXTS = {
  'resid_post.0': lambda x: x.at[:, 3].set(0.5),
  'mlp_out.1': lambda x: 2 * x - x.mean(1, keepdims=True),
  'v.1': lambda v: v.at[:, -1].multiply(-3),
  'k.0': lambda k: k + k[:, :1],
  'attn_scores.0': lambda s: s.at[..., 0].add(-4),
  'attn_probs': harvest.At(1, lambda p: p / (1 + p.max(-1, keepdims=True))),
}
READ = 'logits, k.1, attn_probs.0, resid_post.1'


def plain_loop(name, prompts, n, edit):
  """Tokens, and the reads of every whole text: one harvested pass per length."""
  run = harvest.harvest(
    functools.partial(decoder.forward, config=decoders.CONFIGS[name]), sites=READ
  )
  texts, reads = jnp.asarray(prompts), []
  for _ in range(n):
    logits, acts = run(edit, decoders.params(name), texts)
    reads.append(acts)
    texts = jnp.concatenate([texts, logits[:, -1:].argmax(-1).astype(texts.dtype)], 1)
  return np.asarray(texts[:, len(prompts[0]) :]), reads


def test_functions_of_whole_texts_do_what_they_do_in_passes_over_the_text_so_far():
  prompts = [[5, 3, 8, 1, 9], [2, 7, 0, 4, 6]]
  out = generated('gemma', 3, prompts, plants=OF_TEXTS, sites=READ)
  tokens, reads = plain_loop('gemma', prompts, 3, OF_TEXTS)
  assert_clear(reads)
  np.testing.assert_array_equal(out.tokens, tokens)
  assert out.prompt_mask.all()
  for i, (found, whole) in enumerate(zip(out.reads, reads)):
    assert {*found} == {*whole}
    for site in whole:
      expected = np.asarray(whole[site])
      if i and site.startswith('attn_probs'):
        expected = expected[:, :, -1:]
      elif i and not site.startswith('k'):
        expected = expected[:, -1:]
      np.testing.assert_allclose(found[site], expected, rtol=0, atol=5e-5, err_msg=f'{i} {site}')


def test_rows_of_different_length_have_what_each_has_alone_by_either_way():
  prompts = [[5, 3, 8, 1, 9], [2, 7]]
  whole = {site: OF_TEXTS[site] for site in ('resid_post.0', 'v.1')}
  for plants in (whole, {'resid_post.0': lambda x: 1.5 * x.at[..., 2].set(1)}):
    out = generated('mistral', 3, prompts, plants=plants, sites=READ)
    for row, prompt in enumerate(prompts):
      alone = generated('mistral', 3, [prompt], plants=plants, sites=READ)
      assert_clear(alone.reads)
      np.testing.assert_array_equal(out.tokens[row], alone.tokens[0])
      for i, (found, expected) in enumerate(zip(out.reads, alone.reads)):
        for site in expected:
          want = np.asarray(expected[site])[0]
          got = np.asarray(found[site])[row]
          own = got[tuple(slice(-size, None) for size in want.shape)]  # aligned on the right
          np.testing.assert_allclose(own, want, rtol=0, atol=5e-5, err_msg=f'{i} {site}')
          assert np.isnan(got).sum() == got.size - want.size


def test_what_is_read_of_one_prompt_has_its_columns_and_no_others():
  out = generated('qwen', 2, [[5, 3, 8]], sites='resid_post.0, v.1, attn_scores.1')
  shapes = [{s: x.shape for s, x in acts.items()} for acts in out.reads]
  assert shapes == [
    {'resid_post.0': (1, 3, 16), 'v.1': (1, 3, 2, 6), 'attn_scores.1': (1, 4, 3, 3)},
    {'resid_post.0': (1, 1, 16), 'v.1': (1, 4, 2, 6), 'attn_scores.1': (1, 4, 1, 4)},
  ]
  whole = harvest.reap(
    functools.partial(decoder.forward, config=decoders.CONFIGS['qwen']), sites='v.1'
  )
  text = jnp.asarray([[5, 3, 8, out.tokens[0, 0]]])
  np.testing.assert_allclose(
    out.reads[1]['v.1'], whole(decoders.params('qwen'), text)['v.1'], atol=3e-5
  )


def way(plants, prompts=PROMPTS[:1], n=6):
  """Whether whole texts are computed at every step."""
  rows = [np.array(prompt) for prompt in prompts]
  return plans.make(model('qwen'), decoders.params('qwen'), rows, n, plants, ()).whole


def test_what_acts_on_each_position_by_itself_is_run_with_the_cache_and_nothing_else():
  v = jnp.arange(16.0)
  for f in (
    lambda x: x + v,
    jnp.zeros_like,
    lambda x: x.at[..., 3].set(0),
    lambda x: x - (x @ v)[..., None] * v,
    lambda x: jax.nn.relu(x) @ jnp.eye(16),
  ):
    assert not way({'resid_post': f})
  for f in (
    lambda x: x.at[:, 3].set(v),
    lambda x: x - x.mean(1, keepdims=True),
    lambda x: x if x.shape[1] == 1 else x + v,
    lambda x: x if x.shape[1] == 7 else x + v,
    lambda x: x + jnp.arange(x.shape[1], dtype=x.dtype)[:, None],
  ):
    assert way({'resid_post': f})
  assert way({'v.0': lambda x: 2 * x})


def test_a_function_that_spoils_padding_spoils_no_token():
  table = decoders.params('gpt2')['embed']
  padding = table['tokens'][0] + table['positions'][0]
  edit = {'embed': lambda x: jnp.where(x == padding, jnp.nan, x)}
  plain = generated('gpt2', 2, sites='logits')
  assert_clear(plain.reads)
  assert by_row(generated('gpt2', 2, plants=edit)) == by_row(plain)


@pytest.mark.parametrize(
  ('plants', 'n', 'message'),
  [
    (
      {'resid_post.0': lambda x: x - x.mean(0)},
      1,
      "different lengths, and the plant at 'resid_post.0'",
    ),
    ({'resid_post.0': lambda x: x.at[1].set(x[0])}, 1, 'may mix rows'),
    ({'resid_post.0': jnp.ones((2, 5, 16))}, 1, 'may mix rows'),
    ({'resid_post.0': jnp.ones((2, 5, 16))}, 2, 'an array is planted'),
    (
      {'resid_post.0': lambda x: x[:, 0]},
      2,
      r"planted at 'resid_post\.0' returned shape \(2, 16\), the site has \(2, 3, 16\)",
    ),
    ({'resid_post.9': jnp.zeros_like}, 2, 'resid_post.9'),
    ({'resid_post.0': lambda x: None}, 2, r"planted at 'resid_post\.0' returned the structure"),
    ({'resid_post.0': 'zero'}, 2, r"the plant at 'resid_post\.0' is 'zero', of type str"),
    ({'resid_post.0': None}, 1, r"the plant at 'resid_post\.0' is None"),
  ],
)
def test_what_cannot_be_right_is_refused_before_anything_runs(plants, n, message):
  with pytest.raises(errors.MechjaxError, match=message):
    generated('qwen', n, [[1, 2, 3], [1, 2, 3, 4, 5]], plants=plants)


# --- compilation ------------------------------------------------------------------------------------------


def test_a_bucket_of_lengths_is_compiled_once():
  edit = {'resid_post.0': jnp.tanh}
  before = passes._advance._cache_size()
  for prompts, n in (PROMPTS, 6), ([[1] * 9, [2], [3]], 3), ([[1], [2], [3]], 6):
    generated('mistral', n, prompts, plants=edit)
  assert passes._advance._cache_size() - before == 2  # the prompts' program and the step's
  generated('mistral', 6, [[1] * 17, [2], [3]], plants=edit)
  assert passes._advance._cache_size() - before == 4


def test_planted_arrays_are_arguments_and_not_constants():
  before = passes._advance._cache_size()
  found = set()
  for scale in (0.0, 3.0):
    plants = {'mlp_out.1': scale * jnp.ones((1, 16, 16))}
    out = generated('mistral', 1, [[1] * 16], plants=plants, sites='logits')
    logits = out.reads[0]['logits']
    found.add(float(logits[0, -1, 0]))
  assert len(found) == 2
  assert passes._advance._cache_size() - before == 1


def test_what_a_function_closes_over_is_read_anew_and_costs_no_compilation():
  """One function whose vector changes, and functions that are made anew for each vector."""
  v, found = np.zeros(16, np.float32), []
  before = passes._advance._cache_size()

  def steer(x):
    return x + jnp.asarray(v)

  for scale in (0.0, 40.0):
    v[:] = scale * np.arange(16)
    w = jnp.asarray(v)
    both = [
      generated('mistral', 1, [[1, 2]], plants={'resid_post.1': f}, sites='resid_post.1')
      for f in (steer, lambda x, w=w: x + w)
    ]
    a, b = (np.asarray(out.reads[0]['resid_post.1']) for out in both)
    np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
    found.append(a)
  np.testing.assert_allclose(found[1] - found[0], np.broadcast_to(v, (1, 2, 16)), rtol=0, atol=1e-3)
  # The constant of `steer` may be written out as such.
  assert passes._advance._cache_size() - before <= 2


def test_vectors_inside_of_jitted_functions_are_told_apart():
  """An array that a jitted function closes over is part of its own program, however it is written out."""

  def edit(scale):
    w = scale * jnp.arange(2000.0)  # more than are compared by value
    return jax.jit(lambda x: x + w[:16])

  first, second = (
    generated('mistral', 1, [[1, 2]], plants={'resid_post.1': edit(scale)}, sites='resid_post.1')
    for scale in (1.0, 2.0)
  )
  a, b = (np.asarray(out.reads[0]['resid_post.1']) for out in (first, second))
  np.testing.assert_allclose(b - a, np.broadcast_to(np.arange(16.0), a.shape), rtol=0, atol=1e-4)


def test_what_a_planted_function_closes_over_dies_with_it():
  def once(scale):
    w = scale * jnp.arange(16.0)
    generated('mistral', 1, [[1, 2]], plants={'resid_post.1': lambda x: x + w})
    return weakref.ref(w)

  alive = [once(scale) for scale in (1.0, 2.0, 3.0)]
  gc.collect()
  assert not any(array() is not None for array in alive)


# --- sampling ---------------------------------------------------------------------------------------------


def test_samples_depend_on_the_seed_and_the_row_and_on_nothing_else():
  warm = Sampling(temperature=1.0)
  out = by_row(generated('gpt2', sampling=warm, seed=3))
  assert by_row(generated('gpt2', sampling=warm, seed=3)) == out
  assert by_row(generated('gpt2', sampling=warm, seed=4)) != out
  assert by_row(generated('gpt2', prompts=PROMPTS[:1], sampling=warm, seed=3)) == out[:1]
  same = by_row(generated('gpt2', prompts=[[1, 2]] * 3, sampling=warm))
  assert len(set(map(tuple, same))) == 3


# --- stopping, progress, mistakes -------------------------------------------------------------------------


def test_a_row_ends_at_its_stop_token_and_generation_when_all_rows_have():
  whole = by_row(generated('gpt2', 8))
  stop = whole[0][2]
  out = generated('gpt2', 8, stop=[stop], pad=30)
  for found, length, row in zip(by_row(out), out.lengths, whole):
    until = row.index(stop) + 1 if stop in row else 8
    assert length == until
    assert found == [*row[:until], *[30] * (len(found) - until)]
  alone = generated('gpt2', 8, PROMPTS[:1], stop=[stop])
  assert alone.tokens.shape[1] == alone.lengths[0] == len(alone.reads) == whole[0].index(stop) + 1


def test_progress_counts_the_tokens(monkeypatch):
  import tqdm

  bars = []

  class Bar(tqdm.tqdm):
    def __init__(self, **options):
      bars.append(self)
      super().__init__(**options)

  monkeypatch.setattr(tqdm, 'tqdm', Bar)
  generated('gpt2', 6, progress=True)
  assert [(bar.n, bar.total) for bar in bars] == [(6, 6)]


def test_more_tokens_than_learned_positions_are_an_error():
  assert decoders.CONFIGS['gpt2'].n_positions == 24
  assert generated('gpt2', 20).tokens.shape == (3, 20)
  with pytest.raises(errors.MechjaxError, match='generated token 20 of row 0 are NaN'):
    generated('gpt2', 21)


@pytest.mark.parametrize(
  ('prompts', 'n', 'message'),
  [
    ([], 3, 'prompts of shapes'),
    ([[1], []], 3, 'at least one'),
    ([[1]], 0, 'n_tokens=0'),
    ([[1]], '3', "n_tokens='3'"),
    ([[1]], 1.5, 'n_tokens=1.5'),
  ],
)
def test_nothing_to_continue_is_refused(prompts, n, message):
  with pytest.raises(errors.MechjaxError, match=message):
    generated('gpt2', n, prompts)


def test_a_generation_cannot_be_traced():
  params, own = decoders.params('gpt2'), decoders.language_model('gpt2', TOKENIZER)
  tokens = jnp.asarray([[1, 2, 3]])

  def steered(v):
    return own.generate(tokens, 1, plants={'resid_post.0': lambda x: x + v}).log_probs.sum()

  for f, x in (
    (lambda own: own.generate(tokens, 1).tokens, own),
    (lambda tokens: own.generate(tokens, 1).tokens, tokens),
    (stepped, params),
    (steered, jnp.ones(16)),
  ):
    with pytest.raises(errors.MechjaxError, match=r'(?s)cannot be traced.*model\.apply'):
      jax.jit(f)(x)
  with pytest.raises(errors.MechjaxError, match='cannot be traced'):
    jax.grad(steered)(jnp.ones(16))


def stepped(params):
  return stepping.Steps(model('gpt2'), params, PROMPTS, 1).result.tokens


def test_a_text_longer_than_the_learned_positions_is_refused_before_anything_runs():
  own = decoders.language_model('gpt2', TOKENIZER)
  assert own.generate(PROMPTS, 20).tokens.shape == (3, 20)
  for call in own.generate, own.steps:
    with pytest.raises(
      errors.MechjaxError, match=r'(?s)row 0 has 5 tokens, and n_tokens=21.*24.*n_tokens=20 is'
    ):
      call(PROMPTS, 21)
  with pytest.raises(errors.MechjaxError, match=r'(?s)row 1 has 25 tokens.*shorten the prompt'):
    own.generate([[1], [1] * 25], 1)


def test_the_cache_has_the_dtype_of_the_parameters_at_hand():
  own = decoders.language_model('gpt2', TOKENIZER)
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), own)
  tokens = np.asarray([PROMPTS[0]])
  for _ in range(4):
    tokens = np.append(tokens, half(tokens)[:, -1:].argmax(-1), 1)
  out = half.generate(PROMPTS[:1], 4, sites='v.0')
  np.testing.assert_array_equal(out.tokens, tokens[:, 5:])
  assert out.reads[-1]['v.0'].dtype == jnp.bfloat16
  steps = half.steps(PROMPTS[:1], 4, sites='v.0')
  assert {value.dtype for _, run in steps for _, _, value in run} == {jnp.dtype('bfloat16')}
  np.testing.assert_array_equal(steps.result.tokens, out.tokens)


def test_a_site_that_is_not_there_is_an_error_before_anything_is_generated():
  with pytest.raises(errors.SiteError, match='resid_pots'):
    generated('gpt2', sites='resid_pots.0')


# --- annotations ------------------------------------------------------------------------------------------


def test_the_annotations_hold_and_say_what_they_mean():
  share, vague = typed.vague_share('mechjax.generate')
  assert share < 0.05, vague
  with typed.checked('mechjax.generate') as calls:
    options = {'sites': ['resid_post.*'], 'plants': {'resid_post.0': lambda x: x * 1.5}}
    assert len(generated('gpt2', 2, stop={1}, **options).reads) == 2
    fn = Positioned(lambda x, at, n: x)
    warm = Sampling(1.0, frequency_penalty=1.0)
    out = generated('gpt2', 1, plants={'resid_post.0': fn, 'v.1': jnp.tanh}, sampling=warm)
    assert len(out.positions) == 1
    with pytest.raises(errors.HarvestError, match='single pass'):
      fn(jnp.ones(3))
    of_gpt2 = model('gpt2'), decoders.params('gpt2')
    assert len(list(loop.stream(*of_gpt2, [1], 1))) == 1
    steps = stepping.Steps(*of_gpt2, PROMPTS, 1, 'k.0')
    for step, run in steps:
      for _, _, value in run:
        run.modified_value = value * (2.0 + step.index)
    assert steps.result.tokens.shape == (3, 1)
    logits, chosen = jnp.arange(10.0).reshape(2, 5), Sampling(0.5, top_k=2, top_p=0.5)
    assert sampling.restrict(logits, chosen).shape == (2, 5)
    with pytest.raises(jaxtyping.TypeCheckError, match='logits_BxV'):
      sampling.restrict(logits[0], chosen)
  # JAX calls these by names of its own.
  assert calls.missing() <= {
    f'mechjax.generate.functions.Staged.tree_{x}' for x in ('flatten', 'unflatten')
  }
