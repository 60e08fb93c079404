"""`sae.train` gives the dictionaries of the program, for a model and for the activations that the program stored."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

import mechjax
from mechjax import sae
from mechjax.eval_sae.settings import EvalSettings
from mechjax.eval_sae.subjects import find_subjects
from mechjax.models.tokenizers import Tokenizer
from mechjax.sae import GradientTopK, JumpReLU, SAEError, TopK, store
from mechjax.sae.store import contexts
from mechjax.sae.training import LoopSettings, Optimisation
from mechjax.train_sae import Data, Dictionaries, TrainSettings
from mechjax.train_sae.run import run
from tests.models import decoders

pytestmark = pytest.mark.slow

BOS, EOS, SITE, B, D, M = 0, 1, 'resid_post.0', 32, 16, 24
OPTIMISATION = Optimisation(
  steps=16, learning_rate=1e-2, warm_up_steps=5, sparsity_warm_up_steps=10
)
DICTIONARIES = [
  *(JumpReLU(d_in=D, width=M, sparsity=c, bandwidth=1e-3, initial_threshold=1e-3) for c in (1e-3, 1e-2)),
  TopK(d_in=D, width=M, k=3),
]  # fmt: skip


def split(text):
  return [2 + ord(letter) % (decoders.V - 2) for letter in text]


TOKENIZER = Tokenizer(split, lambda ids: ' '.join(map(str, ids)), decoders.V, BOS, EOS)


@pytest.fixture(scope='module')
def model():
  return decoders.language_model('mistral', TOKENIZER)


@pytest.fixture
def settings(model, tmp_path, monkeypatch):
  monkeypatch.setattr(mechjax, 'load', lambda *_, **__: model)
  words = np.random.default_rng(0).choice(['cat ', 'dog ', 'bird. ', 'and '], 2_000)
  (tmp_path / 'story.txt').write_text(''.join(words))
  return TrainSettings(
    run=str(tmp_path / 'run'),
    model='mistral',
    site=SITE,
    batch=B,
    seed=3,
    dictionaries=Dictionaries(jumprelu=(1e-3, 1e-2), topk=(3,), widths=(M,), seeds=(5,)),
    optimisation=OPTIMISATION,
    data=Data(
      text=str(tmp_path / 'story.txt'), context=12, held_out_every=10, forward_batch=8,
      activations='stream', shard_tokens=128, shards_per_bucket=2,
    ),
    loop=LoopSettings(log_every=4, save_every=8),
    licence='mit',
  )  # fmt: skip


def check_equal(found, home):
  for one in found:
    loaded = sae.load(home / 'dictionaries' / one.name)
    assert type(loaded.sae) is type(one.sae)
    for name, value in one.params.items():
      np.testing.assert_allclose(loaded.params[name], value, rtol=1e-5, atol=1e-6)


def test_a_model_gives_the_dictionaries_of_the_program(settings, model):
  assert run(settings).finished
  home = Path(settings.run)
  kept, held = contexts.read(home / 'tokens').split(10)
  given = {'optimisation': OPTIMISATION, 'batch': B, 'seed': 3, 'seeds': 5, 'bucket_tokens': 256}
  found = sae.train(model, SITE, DICTIONARIES, contexts=kept, held_out=held, **given)
  check_equal(found, home)
  assert all(one.held_out and one.figures['tokens'] > 100 for one in found)
  moved = sae.train(model, SITE, DICTIONARIES, contexts=kept, **{**given, 'seed': 4})
  assert not np.allclose(moved[0].params['W_enc'], found[0].params['W_enc'], atol=1e-4)
  loaded = sae.load(home / 'dictionaries/topk/0')
  stated = found[2].sae.provenance
  for source in (loaded.metadata, stated):
    assert source.check(SITE, model='mistral', prepend_bos=True, context_size=12) == ()
    assert (source.hook_name, source.context_size, source.prepend_bos) == (SITE, 12, True)
    with pytest.raises(SAEError, match=r'site resid_post\.1'):
      source.check('resid_post.1')
  find_subjects(EvalSettings(run=settings.run), home)
  config = home / 'dictionaries/topk/0/cfg.json'
  config.write_text(config.read_text().replace(SITE, 'resid_post.1'))
  with pytest.raises(SAEError, match=r'site resid_post\.0, and .* trained on resid_post\.1'):
    find_subjects(EvalSettings(run=settings.run), home)
  card = (home / 'dictionaries/topk/0/README.md').read_text()
  assert 'license: "mit"' in card
  assert '| fvu, last batch |' in card


def test_stored_activations_and_arrays_give_the_dictionaries_of_the_program(settings):
  data = dataclasses.replace(
    settings.data, activations='disk', shards_per_bucket=4, activation_tokens=512
  )
  assert run(dataclasses.replace(settings, data=data)).finished
  home = Path(settings.run)
  stored = store.Stored.open(home / 'activations', shards_per_bucket=4, seed=3)
  given = {'optimisation': OPTIMISATION, 'batch': B, 'seed': 3, 'seeds': 5}
  check_equal(sae.train(stored, SITE, DICTIONARIES, **given), home)
  check_equal(sae.train(stored.bucket(0)[SITE], SITE, DICTIONARIES, **given), home)


def test_a_dictionary_that_gradients_guide_is_that_of_the_program(settings, model):
  own = Dictionaries(gradient_topk=(3,), widths=(M,), seeds=(5,))
  assert run(dataclasses.replace(settings, dictionaries=own)).finished
  home = Path(settings.run)
  kept, _ = contexts.read(home / 'tokens').split(10)
  given = {'optimisation': OPTIMISATION, 'batch': B, 'seed': 3, 'seeds': 5, 'bucket_tokens': 256}
  one = GradientTopK(d_in=D, width=M, k=3)
  (found,) = sae.train(model, SITE, [one], contexts=kept, **given)
  assert found.name == 'gradient_topk/0'
  loaded = sae.load(home / 'dictionaries' / found.name)
  for name, value in found.params.items():
    np.testing.assert_allclose(loaded.params[name], value, rtol=1e-5, atol=1e-6)


def test_ids_without_special_tokens_of_their_own_are_those_of_the_tokenizer(model):
  ids = np.random.default_rng(0).integers(2, decoders.V, (20, 12))
  ids[:, 0] = BOS
  given = {'optimisation': OPTIMISATION, 'batch': B}
  (found,) = sae.train(model, SITE, DICTIONARIES[2:], contexts=ids, **given)
  assert found.sae.provenance.prepend_bos is True
  acts = jax.jit(mechjax.harvest.reap(model.apply, sites=[SITE]))(model.params, ids)
  x = np.asarray(next(iter(acts.values())))[:, 1:].reshape(-1, D)
  x_hat = found.sae.decode(found.params, found.sae.encode(found.params, x))
  fvu = np.square(x - x_hat).sum() / np.square(x - x.mean(0)).sum()
  assert found.figures['fvu'] == pytest.approx(fvu, rel=0.1)  # without tokens that fill no batch
  for wrong in (None, ids[0], ids.astype(float)):
    with pytest.raises(SAEError, match='contexts'):
      sae.train(model, SITE, DICTIONARIES[2:], contexts=wrong, **given)
