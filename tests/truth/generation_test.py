"""Generation against transformers on PyTorch: the same tokens from equal weights, and the same choice from logits."""

import jax.numpy as jnp
import numpy as np
import pytest

import mechjax
from mechjax.generate.sampling import Sampling, history_of, penalise, restrict
from mechjax.weights import huggingface, llama_cpp
from mechjax.weights.fetch import path_of
from mechjax.weights.gguf import GGUFFile

pytestmark = pytest.mark.truth

TEXTS = ['The capital of France is', 'Once upon a time, in a village by the sea, there']
N = 16


def processed(logits, *processors, ids=((0,),)):
  import torch

  scores = torch.tensor(np.array(logits))
  for processor in processors:
    scores = processor(torch.tensor(np.array(ids)), scores)
  return scores.numpy()


LOGITS = np.array(
  [[1.0, 3.0, 3.0, 0.5, 3.0, -1.0, 0.5, 2.0], [0.0] * 8, [5.0, 5.0, -9, -9, -9, -9, -9, -9]],
  np.float32,
)


@pytest.mark.parametrize('top_k', [None, 1, 2, 4, 20])
@pytest.mark.parametrize('top_p', [None, 0.05, 0.3, 0.55, 0.9, 0.99])
def test_top_k_and_top_p_cut_what_transformers_cut_ties_included(top_k, top_p):
  from transformers import TopKLogitsWarper, TopPLogitsWarper

  warpers = [TopKLogitsWarper(top_k)] if top_k else []
  warpers += [TopPLogitsWarper(top_p)] if top_p else []
  found = restrict(jnp.asarray(LOGITS), Sampling(1.0, top_k, top_p))
  np.testing.assert_array_equal(found, processed(LOGITS, *warpers))


@pytest.mark.parametrize('penalty', [0.5, 1.3])
def test_a_repetition_penalty_is_that_of_transformers(penalty):
  from transformers import RepetitionPenaltyLogitsProcessor

  ids = np.array([[1, 1, 5], [0, 2, 7], [3, 4, 0]])
  found = penalise(jnp.asarray(LOGITS), history_of([*ids], 8), Sampling(repetition_penalty=penalty))
  expected = processed(LOGITS, RepetitionPenaltyLogitsProcessor(penalty), ids=ids)
  np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.fixture(scope='module', params=['smollm2-135m', 'gemma3-270m'])
def both(request, tmp_path_factory):
  import transformers

  path, model = tmp_path_factory.mktemp(request.param), mechjax.load(request.param)
  huggingface.write(path, model.params, llama_cpp.config(GGUFFile(path_of(request.param))))
  return model, transformers.AutoModelForCausalLM.from_pretrained(path, dtype='float32').eval()


def continued(torch_model, rows, **options):
  """Tokens of transformers, and by how much each of them led."""
  import torch

  T = max(map(len, rows))
  mask = torch.tensor([[0] * (T - len(row)) + [1] * len(row) for row in rows])
  tokens = torch.tensor([[0] * (T - len(row)) + [*row] for row in rows])
  with torch.no_grad():
    out = torch_model.generate(
      input_ids=tokens,
      attention_mask=mask,
      max_new_tokens=N,
      do_sample=False,
      eos_token_id=None,
      pad_token_id=0,
      output_scores=True,
      return_dict_in_generate=True,
      **options,
    )
  best = torch.stack(out.scores, 1).topk(2).values.numpy()
  return out.sequences[:, T:].numpy(), best[..., 0] - best[..., 1]


@pytest.mark.slow
@pytest.mark.optimised
@pytest.mark.parametrize(('n_rows', 'options'), [(2, {}), (1, {'repetition_penalty': 1.3})])
def test_greedy_text_is_that_of_transformers(both, n_rows, options):
  model, torch_model = both
  rows = [np.asarray(model.tokens(text))[0].tolist() for text in TEXTS[:n_rows]]
  expected, lead = continued(torch_model, rows, **options)
  found = model.generate(rows, N, stop=[], **options).tokens
  for row in range(n_rows):
    ties = np.flatnonzero(lead[row] < 1e-3)  # rounding decides there, and changes what follows
    n = ties[0] if ties.size else N
    assert n > 5
    np.testing.assert_array_equal(found[row, :n], expected[row, :n])
