"""A writer that is killed at any moment and started again writes the same bytes as an undisturbed one.

The activations are computed in NumPy, because the test is of the disk and compilation takes a second for each life.
"""

import time

import numpy as np
import pytest

from mechjax.sae.store import Harvester, Stored, contexts, pack, plan, write
from tests.sae import killing
from tests.sae.store import toys

pytestmark = pytest.mark.slow
ROWS = 160


def encode(text):
  return [2 + ord(letter) % (toys.V - 2) for letter in text]


def texts():
  random = np.random.default_rng(0)
  for _ in range(400):
    yield ''.join(map(chr, random.integers(0, 99, 40)))


class ByHand(Harvester):
  """The toy model in NumPy."""

  @property
  def widths(self):
    return dict.fromkeys(self.sites, toys.D)

  def rows(self, numbers, skip, n):
    tokens = self.contexts.tokens(numbers)
    good = self.contexts.is_kept(tokens)
    layers = {site: int(site[-1]) for site in self.sites}
    values = {site: toys.by_hand(self.params, tokens, n) for site, n in layers.items()}
    return {site: x[good][skip : skip + n] for site, x in values.items()}


def packed(begun, directory):
  begun()
  pack(texts(), encode, length=16, bos=0, eos=1, directory=directory)


def written(begun, tokens, directory):
  found = contexts.read(tokens)
  harvester = ByHand(toys.scanned, toys.params(), ['resid_post.2', 'resid_post.0'], found)
  about = plan(harvester, shard_rows=ROWS, model='toy')
  begun()
  write(directory, harvester, about)


def contents(directory):
  return {
    str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob('*') if p.is_file()
  }


def test_a_writer_that_is_killed_many_times_writes_the_bytes_of_one_that_is_not(tmp_path):
  packed(lambda: None, tmp_path / 'tokens')
  began = time.perf_counter()
  written(lambda: None, tmp_path / 'tokens', tmp_path / 'alone')
  seconds = time.perf_counter() - began
  random, kills, homes = np.random.default_rng(1), 0, 0
  while kills < 20:
    home, homes = tmp_path / f'killed {homes}', homes + 1
    moments = random.uniform(0, seconds / 10, 20)
    kills += killing.run_until_done(written, (tmp_path / 'tokens', home), moments.tolist())
    assert contents(home) == contents(tmp_path / 'alone')
    assert Stored.open(home).bucket(0)['resid_post.0'].shape == (ROWS, toys.D)
    assert homes < 40, f'{kills} kills in {homes} attempts; more work, or earlier moments'


def test_tokens_that_were_being_packed_when_the_process_was_killed_are_whole_afterwards(tmp_path):
  packed(lambda: None, tmp_path / 'alone')
  moments = np.random.default_rng(2).uniform(0, 0.02, 6)
  killing.run_until_done(packed, (tmp_path / 'killed',), moments.tolist())
  assert contents(tmp_path / 'killed') == contents(tmp_path / 'alone')
