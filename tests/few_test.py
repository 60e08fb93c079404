"""A share of the tests: every file keeps the first case of every third test, and some rooms keep all."""

import dataclasses
import pathlib

from tests import few

HERE = pathlib.Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Item:
  path: pathlib.Path
  nodeid: str


def items(path, name, *cases):
  return [Item(path=HERE / path, nodeid=f'{path}::{name}{c}') for c in cases]


def kept(*groups):
  every = [item for group in groups for item in group]
  return [item.nodeid for item in every if item not in few.select_dropped(every)]


def test_every_file_keeps_the_first_case_of_every_third_test():
  found = kept(
    items('sae/step_test.py', 'a', '[1]', '[2]', '[3]'),
    *(items('sae/step_test.py', name, '') for name in 'bcd'),
    items('sae/loop_test.py', 'e', '[1]', '[2]'),
  )
  assert found == ['sae/step_test.py::a[1]', 'sae/step_test.py::d', 'sae/loop_test.py::e[1]']


def test_rooms_that_read_the_programs_of_jax_keep_all():
  for room in few.ROOMS:
    assert (HERE / room).is_dir()
    assert len(kept(items(f'{room}/any_test.py', 'a', '[1]', '[2]', '[3]'))) == 3
