"""Dictionaries of activations, against a loop over tokens."""

import numpy as np
import pytest

from mechjax.sae import SAEError
from mechjax.sae.pursuit import ActivationDictionary, Pursuit, itda
from tests.sae.pursuit import dense

pytestmark = pytest.mark.usefixtures('float64')
D, T, THRESHOLD = 8, 5, 0.3
PURSUIT = Pursuit(2, 'orthogonal', nonnegative=False)


def stream(seed=0, n=3, B=4):
  """Batches of noisy sums of a few directions; sequences begin alike, and the first position does not count."""
  r = np.random.default_rng(seed)
  directions = r.standard_normal((6, D))
  for _ in range(n):
    x = r.standard_normal((B, T, 6)) @ directions + 0.3 * r.standard_normal((B, T, D))
    x[:3, 1] = directions[0] * [[1], [2], [1]]
    kept = np.ones((B, T), bool)
    kept[:, 0] = False
    kept[-1, -1] = False
    yield x, kept


def loop(batches, k, threshold):
  """Atoms and places, one token after the other."""
  atoms, places, first = [], [], 0
  for n, (x, kept) in enumerate(batches):
    if n == 0:
      starts = [(b, 1) for b in range(len(x))]
      unit = {at: x[at] / np.linalg.norm(x[at]) for at in starts}
      counts = {at: sum(unit[at] @ u > 0.9999 for u in unit.values()) for at in starts}
      new = [a for i, a in enumerate(starts) if all(unit[a] @ unit[b] < 0.9999 for b in starts[:i])]
      for at in sorted(new, key=lambda at: -counts[at]):
        atoms.append(unit[at])
        places.append(at)
    for b, t in np.argwhere(kept):
      token = x[b, t]
      w = dense.orthogonal(np.array(atoms), token, k, nonnegative=False)
      if np.sum((token - w @ np.array(atoms)) ** 2) > threshold * np.sum(token**2):
        atoms.append(token / np.linalg.norm(token))
        places.append((first + b, t))
    first += len(x)
  return np.array(atoms), np.array(places)


def test_one_token_at_a_time_is_the_loop():
  atoms, places = loop(stream(), 2, THRESHOLD)
  found = itda.build(stream(), threshold=THRESHOLD, max_atoms=60, pursuit=PURSUIT, chunk=1)
  np.testing.assert_array_equal(found.places, places)
  np.testing.assert_allclose(found.atoms, atoms, rtol=0, atol=1e-12)
  assert places[0].tolist() == [0, 1]
  assert 6 < len(places) < 40


def test_an_activation_of_zero_is_no_direction():
  batches = [(np.array(x), kept) for x, kept in stream()]
  batches[0][0][0, 1] = 0  # the first kept activation of the first sequence
  found = itda.build(batches, threshold=THRESHOLD, max_atoms=60, pursuit=PURSUIT)
  np.testing.assert_allclose(np.linalg.norm(found.atoms, axis=1), 1, atol=1e-6)
  assert [0, 1] not in found.places.tolist()


def test_a_chunk_adds_all_that_the_atoms_before_it_leave_unexplained_and_equal_ones_go():
  (x, kept), *_ = stream()
  x[1] = -2 * x[0]
  x[2] = 3 * x[0]
  found = itda.build([(x, kept)], threshold=0.01, max_atoms=60, pursuit=PURSUIT, chunk=64)
  first = [(b, 1) for b in range(len(x))]
  assert found.places[0].tolist() == [0, 1]
  cosines = found.atoms @ found.atoms.T - 2 * np.eye(len(found.atoms))
  assert cosines.max() < itda.SAME_COSINE
  assert not {(2, t) for t in range(T)} & {*map(tuple, found.places.tolist())}
  assert {(b, t) for b, t in first if b < 2} <= {*map(tuple, found.places.tolist())}


def test_building_stops_at_the_maximum_and_does_not_read_on():
  read = []

  def batches():
    for n, batch in enumerate(stream()):
      read.append(n)
      yield batch

  found = itda.build(batches(), threshold=0.01, max_atoms=7, pursuit=PURSUIT)
  assert len(found.atoms) <= 7
  assert read == [0]


def test_a_dictionary_is_saved_as_two_integers_per_atom_and_restored_from_the_text(tmp_path):
  found = itda.build(stream(), threshold=THRESHOLD, max_atoms=60, pursuit=PURSUIT)
  found.save(tmp_path / 'places.npz')
  again = itda.gather(stream(), itda.load_places(tmp_path / 'places.npz'))
  np.testing.assert_array_equal(again.places, found.places)
  np.testing.assert_allclose(again.atoms, found.atoms, rtol=0, atol=1e-12)
  with pytest.raises(SAEError, match='no kept token at sequence 99, position 1'):
    itda.gather(stream(), np.array([[0, 1], [99, 1]]))
  with pytest.raises(SAEError, match='no kept token at sequence 0, position 0'):
    itda.gather(stream(), np.array([[0, 0]]))


def test_the_similarity_of_two_dictionaries_is_their_jaccard_index():
  one, two = (
    ActivationDictionary(np.ones((len(p), 2)), np.array(p))
    for p in ([(0, 1), (0, 2), (3, 4)], [(3, 4), (0, 1), (5, 5), (6, 0)])
  )
  assert one.jaccard(two) == two.jaccard(one) == 2 / 5
  assert one.jaccard(one) == 1


def test_latents_are_atoms_and_their_opposites():
  found = itda.build(stream(), threshold=THRESHOLD, max_atoms=60, pursuit=PURSUIT)
  x = next(stream(5))[0].reshape(-1, D)
  ito, params = found.as_dictionary(Pursuit(3, 'matching'))
  f = np.asarray(ito.encode(params, x))
  M = len(found.atoms)
  assert f.shape == (len(x), 2 * M)
  assert (f >= 0).all()
  expected = np.stack([dense.matching(found.atoms, row, 3, nonnegative=False) for row in x])
  np.testing.assert_allclose(f[:, :M] - f[:, M:], expected, rtol=0, atol=1e-10)
  positive, own = found.as_dictionary(Pursuit(3), both_signs=False)
  assert positive.encode(own, x).shape == (len(x), M)


def test_mistakes_are_errors_that_say_what_to_do(tmp_path):
  settings = {'threshold': THRESHOLD, 'max_atoms': 20, 'pursuit': PURSUIT}
  x, kept = next(stream())
  for change, text in (
    ({'threshold': 0}, 'threshold=0 is not a share'),
    ({'max_atoms': 2.5}, 'max_atoms=2.5 should be a whole number'),
    ({'chunk': 0}, 'chunk=0 should be'),
    ({'pursuit': Pursuit(9)}, 'k=9 in a dictionary with M=20 latents of width D=8'),
  ):
    with pytest.raises(SAEError, match=text):
      itda.build([(x, kept)], **settings | change)
  for batches, text in (
    ([], 'no tokens'),
    ([(x, kept & False)], 'no tokens'),
    ([(x[0], kept)], r'activations of shape \(5, 8\)'),
    ([(x, kept), (x[..., 1:], kept)], r'the batch that begins at sequence 4'),
    ([(np.where(x == x[1, 2], np.nan, x), kept)], 'not finite'),
  ):
    with pytest.raises(SAEError, match=text):
      itda.build(batches, **settings)
  (tmp_path / 'a.npz').write_bytes(b'no')
  np.savez(tmp_path / 'b.npz', places=np.zeros((2, 2), int))
  for name, text in (('a.npz', 'not an .npz'), ('b.npz', 'not the places')):
    with pytest.raises(SAEError, match=text):
      itda.load_places(tmp_path / name)
  with pytest.raises(SAEError, match='integers'):
    itda.gather([(x, kept)], np.zeros((2, 2)))
