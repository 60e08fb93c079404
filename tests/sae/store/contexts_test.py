"""Packing against the simplest packing, and files that are complete or absent."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mechjax.sae import SAEError
from mechjax.sae.store import contexts, pack

TOKENS = st.lists(st.lists(st.integers(5, 9), max_size=12), min_size=1, max_size=8)
ID = st.none() | st.integers(0, 4)


def encode(text):
  return [int(digit) for digit in text]


def texts_of(lists):
  return [''.join(map(str, ids)) for ids in lists]


def by_hand(lists, length, bos, eos):
  """Packs one token after the other into rows."""
  stream = [t for ids in lists for t in [*ids, *([] if eos is None else [eos])]]
  room, rows = length - (bos is not None), []
  while len(stream) >= room:
    rows.append(([] if bos is None else [bos]) + stream[:room])
    stream = stream[room:]
  return rows


@settings(max_examples=60, deadline=None)
@given(
  lists=TOKENS, length=st.integers(2, 9), bos=ID, eos=ID, max_contexts=st.none() | st.integers(1, 4)
)
def test_packing_is_one_token_after_the_other(
  tmp_path_factory, lists, length, bos, eos, max_contexts
):
  wanted = by_hand(lists, length, bos, eos)[:max_contexts]
  kinds = {'length': length, 'bos': bos, 'eos': eos, 'max_contexts': max_contexts}
  directory = tmp_path_factory.mktemp('packed')
  if not wanted:
    with pytest.raises(SAEError, match='fewer than the'):
      pack(texts_of(lists), encode, directory=directory, **kinds)
    assert not list(directory.iterdir())
    return
  packed = pack(texts_of(lists), encode, directory=directory, special=[7], **kinds)
  np.testing.assert_array_equal(packed.tokens(slice(None)), wanted)
  assert (len(packed), packed.length, packed.tokens([0]).dtype) == (len(wanted), length, np.int32)
  good = [[t not in (7, bos, eos) for t in row] for row in wanted]
  np.testing.assert_array_equal(packed.is_kept(packed.tokens(slice(None))), good)
  np.testing.assert_array_equal(packed.count_kept(), np.sum(good, 1))
  again = contexts.read(directory)
  np.testing.assert_array_equal(again.tokens([len(wanted) - 1]), wanted[-1:])
  assert (again.digest, again.special) == (packed.digest, packed.special)


@pytest.fixture
def packed(tmp_path):
  return pack(['56789' * 30], encode, length=4, bos=1, eos=2, directory=tmp_path / 'packed')


@pytest.mark.parametrize('every', [2, 7, 50])
def test_a_split_is_a_partition_and_each_part_has_its_own_digest(packed, every):
  kept, held = packed.split(every)
  everything = np.concatenate([kept.chosen, held.chosen])
  assert sorted(everything) == list(range(len(packed)))
  assert held.chosen.tolist() == [n for n in range(len(packed)) if n % every == every - 1]
  assert len({packed.digest, kept.digest, held.digest}) == 3
  np.testing.assert_array_equal(held.tokens([0]), packed.tokens([every - 1]))


@pytest.mark.parametrize('every', [0, 1, 1000])
def test_a_split_that_leaves_nothing_is_refused(packed, every):
  with pytest.raises(SAEError, match=f'every {every}th'):
    packed.split(every)


def test_texts_beyond_the_last_context_are_not_looked_at(tmp_path):
  def endless():
    while True:
      yield '5678'

  packed = pack(endless(), encode, length=3, bos=None, eos=None, directory=tmp_path, max_contexts=2)
  assert packed.tokens(slice(None)).tolist() == [[5, 6, 7], [8, 5, 6]]


def test_a_pack_that_is_interrupted_leaves_what_was_there_before_and_no_half(packed, tmp_path):
  def broken():
    yield '999999999'
    raise RuntimeError('the disk of the texts is gone')

  kinds = {'length': 3, 'bos': 1, 'eos': 2}
  for directory in (tmp_path / 'packed', tmp_path / 'new'):
    with pytest.raises(RuntimeError, match='is gone'):
      pack(broken(), encode, directory=directory, **kinds)
  np.testing.assert_array_equal(contexts.read(tmp_path / 'packed').file, packed.file)
  assert not list((tmp_path / 'new').iterdir())
  with pytest.raises(SAEError, match='holds no contexts'):
    contexts.read(tmp_path / 'new')


def test_what_a_killed_process_left_is_removed(tmp_path):
  (tmp_path / '.contexts.bin.4711').write_bytes(b'half')
  (tmp_path / '.others').write_bytes(b'theirs')
  pack(['5678'], encode, length=2, bos=None, eos=None, directory=tmp_path)
  assert {p.name for p in tmp_path.iterdir()} == {'contexts.bin', 'contexts.json', '.others'}


@pytest.mark.parametrize(
  ('bytes_', 'message'),
  [
    (lambda b: b[:-1], 'bytes and should have'),
    (lambda b: b + b'1', 'bytes and should have'),
    (lambda b: b[:-1] + bytes([b[-1] ^ 1]), 'different checksum'),
  ],
)
def test_tokens_that_are_not_those_that_were_written_are_refused(packed, tmp_path, bytes_, message):
  path = tmp_path / 'packed' / 'contexts.bin'
  path.write_bytes(bytes_(path.read_bytes()))
  with pytest.raises(SAEError, match=message):
    contexts.read(tmp_path / 'packed')


@pytest.mark.parametrize('about', [None, '', '[]', '{"length": 3}', json.dumps({'rows': 1})])
def test_a_missing_or_garbled_description_is_one_clear_error(packed, tmp_path, about):
  path = tmp_path / 'packed' / 'contexts.json'
  path.unlink() if about is None else path.write_text(about)
  with pytest.raises(SAEError, match='holds no contexts'):
    contexts.read(tmp_path / 'packed')


@pytest.mark.parametrize(
  'wrong', [{'length': 1}, {'length': 0}, {'max_contexts': 0}, {'max_contexts': -1}]
)
def test_contexts_of_nothing_are_refused(tmp_path, wrong):
  kinds = {'length': 4, 'bos': 1, 'eos': 2} | wrong
  with pytest.raises(SAEError, match='contexts of'):
    pack(['5678'], encode, directory=tmp_path, **kinds)


@pytest.mark.parametrize(
  ('ids', 'kinds'),
  [
    ([5.5] * 9, {}),
    ([5, -100] * 9, {}),
    ([2**31] * 9, {}),
    ([5] * 9, {'bos': -1}),
    ([5] * 7, {'eos': -1}),
  ],
)
def test_invalid_ids_are_refused_and_not_cut_to_some(tmp_path, ids, kinds):
  kinds = {'bos': None, 'eos': None, 'length': 4} | kinds
  with pytest.raises(SAEError, match='token ids are integers from 0 on'):
    pack(['text'], lambda text: ids, directory=tmp_path, **kinds)
