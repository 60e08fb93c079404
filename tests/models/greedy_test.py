"""Greedy merging against its definition, computed without a heap; it is compared with the library itself in
tests/upstream/gemma_test.py, with Gemma's vocabulary."""

import itertools

import hypothesis.strategies as st
import pytest
from hypothesis import given

from mechjax.errors import WeightsError
from mechjax.models import tokenizer_files
from mechjax.models.greedy import BYTE, CONTROL, NORMAL, SPACE, USER_DEFINED, Greedy

BYTES = [f'<0x{b:02X}>' for b in range(256)]
SPECIALS = {'<bos>': CONTROL, '\n\n': USER_DEFINED, '\n\n\n': USER_DEFINED}
LETTERS = ['a', 'b', 'c', SPACE]


def greedy(scores: dict[str, float], specials: dict[str, int] = SPECIALS) -> Greedy:
  """A vocabulary of bytes, specials, single letters and the given pieces."""
  normal = dict.fromkeys(LETTERS, -1e3) | scores
  pieces = [*BYTES, *specials, *normal]
  kinds = [BYTE] * 256 + list(specials.values()) + [NORMAL] * len(normal)
  return Greedy(pieces, [0.0] * (256 + len(specials)) + list(normal.values()), kinds)


def by_definition(text: str, scores: dict[str, float]) -> list[str]:
  """Merges the best union, the leftmost of equals, one at a time."""
  pieces = list(text.replace(' ', SPACE))
  while True:
    unions = [a + b for a, b in itertools.pairwise(pieces)]
    known = [(-scores[union], i) for i, union in enumerate(unions) if union in scores]
    if not known:
      return [piece.replace(SPACE, ' ') for piece in pieces]
    _, i = min(known)
    pieces[i : i + 2] = [unions[i]]


UNIONS = st.text('abc' + SPACE, min_size=2, max_size=5).filter(lambda piece: SPACE * 2 not in piece)


@given(
  scores=st.dictionaries(UNIONS, st.integers(-5, 0), max_size=12),
  words=st.lists(st.text('abc', min_size=1, max_size=12), max_size=5),
)
def test_pieces_are_those_of_the_definition(scores, words):
  text, tokenizer = ' '.join(words), greedy(scores)
  assert [tokenizer.decode([i]) for i in tokenizer.encode(text)] == by_definition(text, scores)


@given(text=st.text().filter(lambda text: SPACE not in text))
def test_any_text_survives_the_round_trip(text):
  tokenizer = greedy({'ab': 0.0, 'abc': -1.0})
  assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_character_without_a_piece_becomes_the_tokens_of_its_bytes():
  assert greedy({}).encode('漢') == list('漢'.encode())


@pytest.mark.parametrize('written', ['  ', SPACE * 2])
def test_special_pieces_are_cut_out_longest_first_and_never_merge(written):
  tokenizer = greedy({f'a{SPACE}': 0.0}, SPECIALS | {written: USER_DEFINED})
  pieces = [tokenizer.decode([i]) for i in tokenizer.encode('<bos>a  a\n\n\n\nb a ', special=True)]
  assert pieces == ['<bos>', 'a', '  ', 'a', '\n\n\n', '\n', 'b', ' ', 'a ']


def test_control_pieces_are_ordinary_characters_unless_they_are_requested():
  tokenizer = greedy({'os': 0.0})
  ids = tokenizer.encode('<bos>a')
  assert [tokenizer.decode([i]) for i in ids] == ['<', 'b', 'os', '>', 'a']
  assert len(tokenizer.encode('<bos>a', special=True)) == 2


def test_the_words_of_a_byte_token_are_ordinary_text():
  assert greedy({}).encode('<0x0A>') == list(b'<0x0A>')


def test_pieces_that_begin_with_a_space_of_their_own_accord_are_refused():
  metadata = {'tokenizer.ggml.model': 'llama', 'tokenizer.ggml.pre': 'default'}
  with pytest.raises(WeightsError, match='without add_space_prefix'):
    tokenizer_files.from_gguf(metadata)
