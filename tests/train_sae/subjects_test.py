"""Published dictionaries of an evaluation: another site or model is refused, and smaller differences are notes."""

import json

import jax
import numpy as np
import pytest

import mechjax
from mechjax import sae
from mechjax.errors import SAEError
from mechjax.eval_sae import report
from mechjax.eval_sae.settings import EvalSettings
from mechjax.eval_sae.subjects import find_subjects
from mechjax.sae import CrossLayerTopK, ReLU, TopK
from tests.models import decoders
from tests.train_sae.one_call_test import TOKENIZER, D

ABOUT = {
  'model_name': 'mistral-it',
  'hook_name': 'resid_post.1',
  'context_size': 8,
  'prepend_bos': False,
}


@pytest.fixture
def evaluate(tmp_path, monkeypatch):
  """Finds the subjects of an evaluation of a dictionary with some metadata."""
  model = decoders.language_model('mistral', TOKENIZER)
  monkeypatch.setattr(mechjax, 'load', lambda *_, **__: model)
  (tmp_path / 'story.txt').write_text('a story of cats and dogs ' * 40)

  def find(one, about, **given):
    place = tmp_path / 'published'
    params = {n: np.ones(a.shape, np.float32) for n, a in jax.eval_shape(_init(one)).items()}
    sae.save(place, one, params, format='mechjax', about=about)
    settings = EvalSettings(
      dictionaries=(str(place),), out=str(tmp_path / 'out'), text=str(tmp_path / 'story.txt'),
      context=12, tokens=24, feature_tokens=24, **{'model': 'mistral', **given},
    )  # fmt: skip
    return find_subjects(settings, tmp_path / 'out')

  return find


def _init(one):
  return lambda: one.init(jax.random.key(0))


def test_smaller_differences_are_notes_of_the_report(evaluate):
  one = ReLU(d_in=D, width=4, sparsity=0.0)
  subjects = evaluate(one, ABOUT, site='resid_post.1')
  (subject,) = subjects.dictionaries
  model, bos, context = subject.notes
  assert "'mistral-it' and used with 'mistral'" in model
  assert 'trained without a BOS token' in bos
  assert 'contexts of 8 tokens, and used in contexts of 12' in context
  assert subject.sae == one
  assert json.dumps(subject.notes)
  assert report.list_notes(subjects) == [f'note on {subject.name}: {n}' for n in subject.notes]


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    ({'site': 'resid_post.0'}, r'site resid_post\.0, and .* trained on resid_post\.1'),
    ({'site': 'resid_post.1', 'model': 'gpt2'}, "model 'gpt2', and .* trained on 'mistral-it'"),
  ],
)
def test_another_site_or_model_is_refused(given, message, evaluate):
  with pytest.raises(SAEError, match=message):
    evaluate(ReLU(d_in=D, width=4, sparsity=0.0), ABOUT, **given)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({}, None),
    ({'hook_name': 'mlp_norm.1,mlp_norm.0'}, r'site mlp_norm\.0, and .* trained on mlp_norm\.1'),
    ({'hook_name_out': 'mlp_out.0,mlp_out.2'}, r'target mlp_out\.1'),
    ({'model_name': 'gpt2'}, "model 'mistral'"),
  ],
)
def test_every_layer_of_a_cross_layer_transcoder_is_compared(change, message, evaluate):
  about = {'hook_name': 'mlp_norm.0,mlp_norm.1', 'hook_name_out': 'mlp_out.0,mlp_out.1', **change}
  clt = CrossLayerTopK(n_layers=2, d_in=D, d_out=D, width=4, k=2)
  given = {'site': 'mlp_norm.*', 'target': 'mlp_out.*'}
  if message is None:
    assert len(evaluate(clt, about, **given).dictionaries[0].dictionaries) == 2
    return
  with pytest.raises(SAEError, match=message):
    evaluate(clt, about, **given)


def test_a_transcoder_is_compared_at_both_ends(evaluate):
  one = TopK(d_in=D, d_out=D, width=4, k=2)
  about = {'hook_name': 'mlp_norm.1', 'hook_name_out': 'mlp_out.1'}
  with pytest.raises(SAEError, match=r'target mlp_out\.0'):
    evaluate(one, about, site='mlp_norm.1', target='mlp_out.0')
