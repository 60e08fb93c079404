"""Every family gives the logits of transformers' own PyTorch code, from the same safetensors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechjax.models import decoder, families
from mechjax.weights import huggingface
from tests.truth import models

pytestmark = pytest.mark.truth

T = 13  # longer than every window
TOLERANCE = {'rtol': 0, 'atol': 1e-4}


class Pair:
  """One checkpoint in both codes."""

  def __init__(self, name, directory):
    self.torch_model = models.saved(models.CASES[name], directory)
    self.config = families.from_hf(huggingface.config(directory))
    self.params = huggingface.read(directory, decoder.shapes(self.config))

  def truth(self, tokens, **arguments):
    import torch

    tensors = {k: torch.tensor(np.asarray(v)) for k, v in arguments.items()}
    with torch.no_grad():
      return self.torch_model(torch.tensor(tokens), use_cache=False, **tensors).logits.numpy()

  def ours(self, tokens, **arguments):
    f = jax.jit(decoder.forward, static_argnames=('config', 'unroll'))
    return np.asarray(f(self.params, jnp.asarray(tokens), self.config, **arguments))


@pytest.fixture(scope='module', params=models.CASES)
def pair(request, tmp_path_factory):
  return Pair(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture
def tokens():
  return np.random.default_rng(0).integers(0, 61, (3, T))


def test_the_logits_are_those_of_transformers(pair, tokens):
  expected = pair.truth(tokens)
  assert expected.std() > 0.1
  np.testing.assert_allclose(pair.ours(tokens), expected, **TOLERANCE)


def test_left_padding_gives_the_logits_of_transformers(pair, tokens):
  mask = np.arange(T) >= np.array([[0], [3], [9]])
  positions = np.maximum(mask.cumsum(-1) - 1, 0)
  expected = pair.truth(tokens, attention_mask=mask.astype(int), position_ids=positions)
  found = pair.ours(tokens, segments=jnp.asarray(mask))
  np.testing.assert_allclose(found[mask], expected[mask], **TOLERANCE)


def test_positions_are_where_rotary_and_tables_place_a_token(pair, tokens):
  positions = np.arange(T)[None] * 2 + np.array([[0], [1], [2]])
  whole = np.ones_like(tokens)  # without it, transformers takes gaps for the borders of texts
  expected = pair.truth(tokens, position_ids=positions, attention_mask=whole)
  found = pair.ours(tokens, positions=jnp.asarray(positions))
  np.testing.assert_allclose(found, expected, **TOLERANCE)


def test_texts_packed_into_a_row_do_not_see_each_other(pair, tokens):
  segments = 1 + (np.arange(T) >= 6).astype(int) * np.ones((3, 1), int)
  positions = np.where(segments == 1, np.arange(T), np.arange(T) - 6)
  expected = pair.truth(tokens, position_ids=positions)
  found = pair.ours(tokens, segments=jnp.asarray(segments))
  np.testing.assert_allclose(found, expected, **TOLERANCE)
