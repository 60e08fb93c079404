"""Our own decoder on real weights: against upstream's classes, in generation, from directories, on a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from jax.sharding import AxisType

import mechjax
from mechjax import generate, harvest
from mechjax.errors import MechjaxError
from mechjax.models import decoder, sharding
from mechjax.weights import huggingface, llama_cpp, orbax
from mechjax.weights.fetch import path_of
from mechjax.weights.gguf import GGUFFile

pytestmark = [pytest.mark.optimised, pytest.mark.slow]

TEXTS = ['The capital of France is', 'One fish, two fish, red fish, blue']


@pytest.fixture(scope='module')
def ours():
  return mechjax.load('smollm2-135m')


@pytest.fixture(scope='module')
def described():
  return llama_cpp.config(GGUFFile(path_of('smollm2-135m')))


@pytest.mark.upstream
def test_logits_sites_and_interventions_are_those_of_the_upstream_code(ours, smollm2):
  tokens = ours.tokens(TEXTS[0])
  np.testing.assert_allclose(ours(tokens), smollm2(tokens), atol=1e-3)
  assert set(ours.sites()) == set(smollm2.sites())
  wanted = 'embed, q.3, attn_scores.7, z.12, mlp_post.20, resid_post.{0,29}, final_norm'
  mine, theirs = (harvest.reap(m.apply, sites=wanted)(m.params, tokens) for m in (ours, smollm2))
  for site in theirs:
    seen = np.asarray(theirs[site]) > -1e30  # masked scores are as low as each code likes
    got, want = np.asarray(mine[site])[seen], np.asarray(theirs[site])[seen]
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3 * np.abs(want).max())
  edit = {'mlp_out.8': lambda x: x.at[:, -1].set(0)}
  a, b = (harvest.plant(m.apply)(edit, m.params, tokens) for m in (ours, smollm2))
  np.testing.assert_allclose(a, b, atol=1e-3)


@pytest.mark.upstream
def test_both_generate_the_same_text(ours, smollm2):
  mine = ours.generate(TEXTS, 8)
  np.testing.assert_array_equal(mine.tokens, smollm2.generate(TEXTS, 8).tokens)
  assert ours.text(mine.tokens[0]).startswith(' Paris')


@pytest.mark.upstream
def test_interventions_at_every_step_do_the_same_in_both(ours, smollm2):
  def steer(x, positions, prompt_length):
    return jnp.where((positions >= prompt_length[:, None] - 1)[..., None], 1.5 * x, x)

  plants = {'mlp_out.8': jnp.zeros_like, 'resid_post.12': generate.Positioned(steer)}
  mine, theirs = (
    m.generate(TEXTS, 6, plants=plants, sites='resid_post.20') for m in (ours, smollm2)
  )
  np.testing.assert_array_equal(mine.tokens, theirs.tokens)
  for a, b in zip(mine.reads, theirs.reads):
    np.testing.assert_allclose(a['resid_post.20'], b['resid_post.20'], rtol=1e-3, atol=0.05)


def test_a_stream_and_steps_give_the_text_of_generate(ours):
  out = ours.generate(TEXTS[0], 6)
  assert ''.join(ours.stream(TEXTS[0], 6)) == ours.text(out.tokens[0])
  steps = ours.steps(TEXTS[0], 6, sites='resid_post.29')
  shapes = [value.shape for _, run in steps for _, _, value in run]
  assert shapes == [(1, 5, 576)] + [(1, 1, 576)] * 5
  np.testing.assert_array_equal(steps.result.tokens, out.tokens)


def test_what_changes_one_forward_pass_changes_every_step(ours):
  edit = {'resid_post.20': lambda x: x.at[..., :].set(0)}
  out = ours.generate(TEXTS[0], 3, plants=edit, sites='resid_post.20')
  text = np.concatenate([ours.tokens(TEXTS[0]), out.tokens], axis=1)
  # The model is causal and the edit acts on each position separately: one pass has the values of every step.
  logits = np.asarray(harvest.plant(ours.apply)(edit, ours.params, text))[0, -4:-1]
  np.testing.assert_allclose(logits[[0, 1, 2], out.tokens[0]], logits.max(-1), atol=1e-3)
  assert [r['resid_post.20'].shape[1] for r in out.reads][1:] == [1, 1]
  plain = ours.generate(TEXTS[0], 3)
  assert plain.tokens.tolist() != out.tokens.tolist()


def test_a_directory_as_published_and_an_orbax_checkpoint_load_by_path(ours, described, tmp_path):
  tokens = ours.tokens(TEXTS[1])
  huggingface.write(tmp_path / 'hf', ours.params, described)
  orbax.write(tmp_path / 'orbax', ours.params, described)
  words = tokenizers.Tokenizer(tokenizers.models.WordLevel({'One': 1, 'two': 2}, unk_token='One'))
  for name in ('hf', 'orbax'):
    words.save(str(tmp_path / name / 'tokenizer.json'))
    again = mechjax.load(tmp_path / name)
    assert again.config == ours.config
    np.testing.assert_array_equal(again(tokens), ours(tokens))
    assert again.tokenizer.encode('two') == [2]


def test_on_a_mesh_every_device_holds_its_part_and_the_logits_are_the_same(ours):
  mesh = jax.make_mesh((4, 2), ('data', 'tensor'), axis_types=(AxisType.Auto,) * 2)
  model = mechjax.load('smollm2-135m', mesh=mesh)
  up = model.params['layers']['mlp']['up']
  assert up.sharding.shard_shape(up.shape) == (30, 576, 768)
  q = model.params['layers']['attn']['q']  # 9 heads do not divide by 2: held whole
  assert q.sharding.is_fully_replicated
  tokens = jnp.tile(ours.tokens(TEXTS[0]), (8, 1))
  placed = sharding.shard_batch(tokens, mesh)
  assert placed.sharding.shard_shape(placed.shape) == (2, 5)
  np.testing.assert_allclose(model(placed), ours(tokens), atol=1e-3)
  np.testing.assert_allclose(model(tokens), ours(tokens), atol=1e-3)


def test_a_mesh_with_explicit_axes_is_refused(ours):
  mesh = jax.make_mesh((8,), ('tensor',), axis_types=(AxisType.Explicit,))
  with pytest.raises(MechjaxError, match='axis_types'):
    sharding.shard_shapes(ours.config, mesh)


def test_bfloat16_is_close_and_half_the_size(ours):
  model = mechjax.load('smollm2-135m', dtype=jnp.bfloat16)
  size = lambda m: sum(x.nbytes for x in jax.tree.leaves(m.params))  # noqa: E731
  assert size(model) * 2 == size(ours)
  tokens = ours.tokens(TEXTS[0])
  assert model(tokens).dtype == jnp.float32
  exact = ours.log_probs(tokens)
  divergence = (jnp.exp(exact) * (exact - jax.nn.log_softmax(model(tokens)))).sum(-1)
  assert 0 < float(divergence.mean()) < 0.03  # nats; of single tokens rounding decides more


def test_parameters_have_the_axes_that_the_rules_know(ours):
  shapes = jax.tree_util.tree_leaves_with_path(decoder.shapes(ours.config))
  mesh = jax.make_mesh((2,), ('tensor',), axis_types=(AxisType.Auto,))
  placed = jax.tree.leaves(sharding.shard_shapes(ours.config, mesh))
  split = {jax.tree_util.keystr(p) for (p, _), s in zip(shapes, placed) if any(s.sharding.spec)}
  assert split == {
    "['embed']['tokens']",
    *(f"['layers']['mlp']['{name}']" for name in ('gate', 'up', 'down')),
  }


@pytest.mark.upstream
def test_upstream_codes_say_what_they_cannot_do(tmp_path):
  with pytest.raises(MechjaxError, match='takes GGUF files'):
    mechjax.load('smollm2-135m', code='tunix', dtype=jnp.bfloat16)
