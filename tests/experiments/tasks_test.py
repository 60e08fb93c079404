"""Tasks: all pairs are aligned and single-token for any tokenizer, equal for equal seeds, and SmolLM2 solves some."""

import dataclasses
import re
import types

import jax.numpy as jnp
import numpy as np
import pytest

import mechjax
from experiments import tasks
from experiments.templates import CAPITALS, SUBJECTS
from mechjax.models.tokenizers import Tokenizer
from mechjax.patching import PatchingError

pytestmark = pytest.mark.slow

ABILITIES = {'ioi': 0.9, 'ioi_abc': 0.9, 'capitals': 0.9, 'induction': 0.85, 'agreement': 0.85}
CHANGED = {'ioi': 1, 'ioi_abc': 3, 'capitals': 1, 'induction': 1, 'agreement': 1}
TEMPLATES = [(name, t) for name, kind in tasks.TASKS.items() for t in kind.templates]


@pytest.fixture(scope='module')
def model():
  return mechjax.load('smollm2-135m')


def toy(several=(), bos=0):
  """A made-up tokenizer: one token for each word with its space, two for the words in `several`."""
  texts = ['<s>', *(f' {a}{b}{c}' for a in 'bdfgk' for b in 'aeiou' for c in 'lmnprst')]

  def pieces(text):
    for word in re.findall(r' ?\w+|.', text):
      yield from (word[:2], word[2:]) if word.strip() in several else (word,)

  def split(text):
    texts.extend(piece for piece in pieces(text) if piece not in texts)
    return [texts.index(piece) for piece in pieces(text)]

  tokenizer = Tokenizer(split, lambda ids: ''.join(texts[i] for i in ids), len(texts), bos, None)
  return types.SimpleNamespace(name='toy', tokenizer=tokenizer)


@pytest.mark.parametrize(('name', 'template'), TEMPLATES)
def test_every_pair_is_aligned_and_its_answers_are_single_tokens(model, name, template):
  task = tasks.build(name, model, 32, templates=[template])
  assert len(task) == len(task.pairs) == 32
  assert task.pairs.real.all()
  assert {len(x) for x in (task.answers, task.others, task.prompts)} == {32}
  assert ((task.pairs.clean != task.pairs.noise).sum(1) == CHANGED[name]).all()
  for i, p in enumerate(task.prompts):
    assert task.pairs.clean[i].tolist() == model.tokenizer.encode(p.clean)
    assert task.pairs.noise[i].tolist() == model.tokenizer.encode(p.noise)
    assert model.tokenizer.split(p.answer) == [task.answers[i]]
    assert model.tokenizer.split(p.other) == [task.others[i]]
    assert task.answers[i] != task.others[i]
    assert ''.join(p.clean_tokens) == p.clean
    assert ''.join(p.noise_tokens) == p.noise
    assert p.template == template


@pytest.mark.parametrize(('name', 'template'), TEMPLATES)
def test_pairs_share_no_clean_prompt_and_all_their_positions(model, name, template):
  task = tasks.build(name, model, 32, templates=[template])
  assert len({p.clean for p in task.prompts}) == 32
  assert len(task.columns) == task.pairs.real.shape[1] <= 16
  for p in task.prompts:
    for column, token in zip(task.columns, p.clean_tokens):
      assert column == token or re.fullmatch(r'\{\w+\}', column)


@pytest.mark.parametrize('name', tasks.TASKS)
def test_a_seed_gives_the_same_pairs_and_a_larger_number_more_of_them(model, name):
  task, more = tasks.build(name, model, 8), tasks.build(name, model, 20)
  assert task.prompts == more.prompts[:8] == tasks.build(name, model, 8, seed=0).prompts
  assert task.prompts != tasks.build(name, model, 8, seed=1).prompts


def test_the_noise_prompt_asks_for_the_other_answer(model):
  ioi, capitals, induction, agreement = (
    tasks.build(name, model, 8).prompts for name in ('ioi', 'capitals', 'induction', 'agreement')
  )
  for p in ioi:
    assert p.clean.count(p.other) == p.noise.count(p.answer) == 2
    assert p.clean.count(p.answer) == p.noise.count(p.other) == 1
  capital_of = {f' {b}': a for a, b in (x.split('/') for x in CAPITALS.split())}
  for p in capitals:
    assert capital_of[p.answer] in p.clean
    assert capital_of[p.other] in p.noise
  for p in induction:
    for tokens, answer in ((p.clean_tokens, p.answer), (p.noise_tokens, p.other)):
      assert tokens[tokens.index(tokens[-1]) + 1] == answer
  plural_of = dict(x.split('/') for x in SUBJECTS.split())
  for p in agreement:
    assert plural_of[p.noise.split()[1]] == p.clean.split()[1]
    assert (p.answer, p.other) == (' are', ' is')


@pytest.mark.parametrize(('name', 'minimum'), ABILITIES.items())
def test_smollm2_can_do_the_task_before_anything_is_patched(model, name, minimum):
  metrics = tasks.ability(model, tasks.build(name, model, 8))
  assert metrics['clean_right'] >= minimum
  assert metrics['clean_difference'] > 1
  assert metrics['noise_difference'] < (
    metrics['clean_difference'] - 1 if name == 'ioi_abc' else -1
  )
  assert metrics['text'].startswith(f'{name}: 8 pairs')


def test_abilities_are_those_of_each_prompt_alone_whatever_the_batch_and_the_padding(model):
  task = tasks.build('capitals', model, 5, templates=['is', 'city'])
  assert not task.pairs.real.all()
  alone = np.stack([model.log_probs(model.tokens(p.clean))[0, -1] for p in task.prompts])
  answer, other = (alone[np.arange(5), ids] for ids in (task.answers, task.others))
  metrics = tasks.ability(model, task, batch=3)
  assert metrics['clean_difference'] == pytest.approx((answer - other).mean(), abs=1e-3)
  assert metrics['probability'] == pytest.approx(np.exp(answer).mean(), abs=1e-4)
  assert metrics['clean_top'] == pytest.approx((alone.argmax(-1) == task.answers).mean())
  assert metrics['clean_right'] == (answer > other).mean()


def test_the_metric_is_the_difference_of_two_logits(model):
  task = tasks.build('agreement', model, 2)
  shape = *task.pairs.real.shape, model.tokenizer.n_vocab
  logits = np.random.default_rng(0).normal(size=shape).astype(np.float32)
  (a, b), (c, d) = ((logits[i, -1, task.answers[i]], logits[i, -1, task.others[i]]) for i in (0, 1))
  np.testing.assert_allclose(task.metric()(jnp.asarray(logits)), [a - b, c - d], rtol=1e-6)


def test_keeping_what_the_model_gets_right_is_counted(model):
  task = tasks.build('agreement', model, 8)
  wrong = dataclasses.replace(
    task,
    answers=np.where(np.arange(8) < 2, task.others, task.answers),
    others=np.where(np.arange(8) < 2, task.answers, task.others),
  )
  right = task.metric()(model(task.pairs.clean)) > 0
  expected = np.where(np.arange(8) < 2, ~right, right)
  kept = tasks.keep(model, wrong)
  assert kept.prompts == tuple(p for p, ok in zip(task.prompts, expected) if ok)
  assert f'{expected.sum()} of 8 pairs kept' in kept.selection
  assert kept.selection in tasks.ability(model, kept)['text']
  np.testing.assert_array_equal(kept.pairs.clean, task.pairs.clean[expected])
  assert tasks.keep(model, kept).selection.startswith(
    f'{kept.selection}; {len(kept)} of {len(kept)}'
  )


def test_keeping_nothing_is_refused(model):
  task = tasks.build('capitals', model, 4).rows(slice(0, 2))
  with pytest.raises(PatchingError, match='gets none of 2 pairs'):
    tasks.keep(model, dataclasses.replace(task, answers=task.others, others=task.answers))


def test_templates_take_turns_and_balance_what_one_of_them_holds_constant(model):
  task = tasks.build('agreement', model, 8, templates=['plural', 'singular'])
  assert [p.template for p in task.prompts] == ['plural', 'singular'] * 4
  assert [p.answer for p in task.prompts] == [' are', ' is'] * 4
  assert task.columns == ('The', '{subject}', '{near}', ' the', '{neighbour}')
  mixed = tasks.build('ioi', model, 4, templates=['when', 'then'])
  with pytest.raises(PatchingError, match='positions mean different things'):
    mixed.columns  # noqa: B018


@pytest.mark.parametrize('name', tasks.TASKS)
def test_a_token_before_every_text_is_in_every_prompt_and_words_of_two_tokens_in_none(name):
  model = toy(several=('Paris', 'Italy', 'Mary', 'harbor', 'book', 'keys', 'near'))
  task = tasks.build(name, model, 16)
  assert (task.pairs.clean[:, 0] == 0).all()
  assert (task.pairs.noise[:, 0] == 0).all()
  assert task.columns[0] == '<s>'
  for p in task.prompts:
    words = f'{p.clean} {p.noise}{p.answer}{p.other}'
    assert not re.search('Paris|Italy|Mary|harbor|book|keys|near', words)


def test_too_many_pairs_are_refused_with_the_number_there_is(model):
  with pytest.raises(PatchingError, match=r'999 pairs .* there are (\d+)') as e:
    tasks.build('capitals', model, 999)
  n = int(re.search(r'there are (\d+)', e.value.what)[1])
  assert n >= 32
  assert len({p.clean for p in tasks.build('capitals', model, n).prompts}) == n
  with pytest.raises(PatchingError, match=f'there are {n}'):
    tasks.build('capitals', model, n + 1)


@pytest.mark.parametrize('name', tasks.TASKS)
def test_a_tokenizer_that_fits_no_word_gives_no_pairs(name):
  def letters(text):
    return [ord(c) % 100 for c in text]

  model = types.SimpleNamespace(
    name='letters', tokenizer=Tokenizer(letters, lambda ids: '?' * len(ids), 100, None, None)
  )
  with pytest.raises(PatchingError, match='there are 0'):
    tasks.build(name, model, 1)


def test_what_is_not_there_is_named(model):
  with pytest.raises(PatchingError, match="unknown task 'capital'") as e:
    tasks.build('capital', model, 4)
  assert "'capitals'" in e.value.hint
  with pytest.raises(PatchingError, match="unknown template of 'ioi' 'where'"):
    tasks.build('ioi', model, 4, templates=['where'])
  for n, templates in ((0, None), (4, [])):
    with pytest.raises(PatchingError, match='are not a task'):
      tasks.build('ioi', model, n, templates=templates)
