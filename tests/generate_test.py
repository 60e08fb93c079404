"""Generation against the uncached forward pass, token by token, with and without interventions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechjax import errors, generate, harvest
from mechjax.generate import Sampling
from mechjax.models import decoder
from tests.models import decoders

FAMILIES = pytest.mark.parametrize('name', ['gpt2', 'mistral', 'gemma'])
PROMPTS = [[5, 3, 8, 1, 9], [2, 7], [4, 4, 6, 1]]


@functools.cache
def model(name):
  """A decoder as something that can generate: one object for each family, so that programs are found again."""
  config = decoders.CONFIGS[name]

  def step(params, tokens, mask, cache):
    return decoder.step(params, tokens, cache, config, segments=mask)

  return generate.Model(step, functools.partial(decoder.new_cache, config))


def generated(name, n=6, prompts=PROMPTS, **options):
  return generate.generate(model(name), decoders.params(name), prompts, n, **options)


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
  """Asserts that each generated token is the likeliest after the text before it, up to rounding of the logits."""
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
  assert not any(np.asarray(acts['mlp_out.0']).any() for acts in out.reads)


def test_the_last_column_is_the_last_token_of_every_prompt():
  out = generated('gpt2', 1, sites='embed')
  assert out.prompt_mask.sum(-1).tolist() == [5, 2, 4]
  for row, prompt in enumerate(PROMPTS):
    table = decoders.params('gpt2')['embed']
    expected = table['tokens'][prompt[-1]] + table['positions'][len(prompt) - 1]
    np.testing.assert_allclose(out.reads[0]['embed'][row, -1], expected, rtol=1e-6)


# --- compilation ------------------------------------------------------------------------------------------


def test_a_bucket_of_lengths_is_compiled_once():
  edit = {'resid_post.0': jnp.tanh}
  before = generate._advance._cache_size()
  for prompts, n in (PROMPTS, 6), ([[1] * 9, [2], [3]], 3), ([[1], [2], [3]], 6):
    generated('mistral', n, prompts, plants=edit)
  assert generate._advance._cache_size() - before == 2  # the prompts' program and the step's
  generated('mistral', 6, [[1] * 17, [2], [3]], plants=edit)
  assert generate._advance._cache_size() - before == 4


def test_planted_arrays_are_arguments_and_not_constants():
  before = generate._advance._cache_size()
  found = set()
  for scale in (0.0, 3.0):
    plants = {'mlp_out.1': scale * jnp.ones((1, 16, 16))}
    logits = generated('mistral', 1, [[1]], plants=plants, sites='logits').reads[0]['logits']
    found.add(float(logits[0, -1, 0]))
  assert len(found) == 2
  assert generate._advance._cache_size() - before == 1


# --- sampling ---------------------------------------------------------------------------------------------


def test_samples_depend_on_the_seed_and_the_row_and_on_nothing_else():
  warm = Sampling(temperature=1.0)
  out = by_row(generated('gpt2', sampling=warm, seed=3))
  assert by_row(generated('gpt2', sampling=warm, seed=3)) == out
  assert by_row(generated('gpt2', sampling=warm, seed=4)) != out
  assert by_row(generated('gpt2', prompts=PROMPTS[:1], sampling=warm, seed=3)) == out[:1]
  same = by_row(generated('gpt2', prompts=[[1, 2]] * 3, sampling=warm))
  assert len(set(map(tuple, same))) == 3


def frequencies(logits, sampling, n=4000):
  keys = jax.random.split(jax.random.key(0), n)
  rows = jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (n, len(logits)))
  return np.bincount(generate._choose(rows, keys, 0, sampling), minlength=len(logits)) / n


PROBS = np.array([0.1, 0.4, 0.05, 0.25, 0.2])


@pytest.mark.parametrize(
  ('sampling', 'expected'),
  [
    (Sampling(), [0, 1, 0, 0, 0]),
    (Sampling(1.0), PROBS),
    (Sampling(0.5), PROBS**2 / (PROBS**2).sum()),
    (Sampling(1.0, top_k=2), np.array([0, 0.4, 0, 0.25, 0]) / 0.65),
    (Sampling(1.0, top_k=9), PROBS),
    (Sampling(1.0, top_p=0.6), np.array([0, 0.4, 0, 0.25, 0]) / 0.65),
    (Sampling(1.0, top_p=0.7), np.array([0, 0.4, 0, 0.25, 0.2]) / 0.85),
    (Sampling(1.0, top_p=1e-9), [0, 1, 0, 0, 0]),
    (Sampling(1.0, top_p=1.0), PROBS),
    (Sampling(1.0, top_k=3, top_p=0.6), np.array([0, 0.4, 0, 0.25, 0]) / 0.65),
  ],
)
def test_tokens_are_drawn_as_often_as_the_sampling_says(sampling, expected):
  np.testing.assert_allclose(frequencies(np.log(PROBS), sampling), expected, atol=0.03)


@pytest.mark.parametrize(
  'bad', [{'temperature': -1.0}, {'top_k': 0}, {'top_p': 0.0}, {'top_p': 1.5}]
)
def test_sampling_without_meaning_is_refused(bad):
  with pytest.raises(errors.MechjaxError, match=next(iter(bad))):
    Sampling(**bad)


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
  with pytest.raises(errors.MechjaxError, match='generated token 20 of row 0 are not numbers'):
    generated('gpt2', 21)


@pytest.mark.parametrize(
  ('prompts', 'n', 'message'),
  [([], 3, 'prompts of shapes'), ([[1], []], 3, 'at least one'), ([[1]], 0, 'n_tokens=0')],
)
def test_nothing_to_continue_is_refused(prompts, n, message):
  with pytest.raises(errors.MechjaxError, match=message):
    generated('gpt2', n, prompts)


def test_a_site_that_is_not_there_is_an_error_before_anything_is_generated():
  with pytest.raises(errors.SiteError, match='resid_pots'):
    generated('gpt2', sites='resid_pots.0')
