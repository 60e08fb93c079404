"""When upstream has changed, the error shows the code that the rule was written for."""

import pytest

from mechjax.errors import PatchError
from mechjax.patcher import Patcher
from mechjax.patcher import sources as sources_module

BLOCK = """
class Block:
  def __call__(self, x, mask):
    h = self.norm(x)
    h = self.attention(h, mask, train=False)
    x = x + h
    return x + self.mlp(x)

class Other:
  def __call__(self, x):
    x += self.attention(x)
    return x
"""


def error_of(upstream, *rule, member='Block.__call__', checked=None):
  name = upstream.write(BLOCK)
  with pytest.raises(PatchError) as error:
    Patcher(name, {member: [rule]}, checked=checked).diff()
  return name, str(error.value)


def test_the_nearest_statement_is_shown_as_a_diff_with_file_and_line(upstream):
  name, text = error_of(upstream, 'h = self.attention(h, mask)', 'h = 1')
  assert f'{upstream.path(name)}:4, the nearest code:' in text
  assert '-h = self.attention(h, mask)\n    +h = self.attention(h, mask, train=False)' in text


def test_the_nearest_run_of_statements_is_shown(upstream):
  _, text = error_of(upstream, 'h = self.norm(x)\nh = self.attn(h, $$r)', 'h = 1')
  assert ' h = self.norm(x)\n    -h = self.attn(h, $$r)\n    +h = self.attention(h, mask' in text


def test_the_nearest_expression_is_shown_with_holes_as_they_are_written(upstream):
  name, text = error_of(upstream, 'self.attn($h, mask)', '1')
  assert f'{upstream.path(name)}:4' in text
  assert '-self.attn($h, mask)' in text
  assert '+self.attention(h, mask, train=False)' in text


def test_other_members_where_the_rule_matches_are_named(upstream):
  _, text = error_of(upstream, 'x += $y', 'x += 1')
  assert "it matches in 'Other.__call__'" in text


def test_installed_and_checked_versions_are_compared(upstream):
  _, text = error_of(upstream, 'nothing', 'x', checked=('pytest', ['0.0.1', '0.0.2']))
  assert f'pytest {pytest.__version__}, checked with 0.0.1, 0.0.2' in text


def test_a_missing_member_says_the_versions_and_the_nearest_name(upstream):
  _, text = error_of(upstream, 'a', 'b', member='Block.call', checked=('pytest', ['0.0.1']))
  assert "no member 'Block.call'" in text
  assert "'Block.__call__'" in text
  assert 'checked with 0.0.1' in text


def test_a_rule_that_matches_too_often_lists_the_places(upstream):
  name, text = error_of(upstream, 'x', 'y')
  path = upstream.path(name)
  assert 'matches 4 times, not 1' in text
  assert f'{path}:3, {path}:5' in text


def test_the_error_survives_pickling(upstream):
  import pickle

  name = upstream.write(BLOCK)
  with pytest.raises(PatchError) as error:
    Patcher(name, {'Block.__call__': [('nothing', 'x')]}).diff()
  assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)


def test_source_is_found_without_running_the_packages_around_it(upstream):
  upstream.write('raise RuntimeError\n', 'drift_p.__init__')
  upstream.write('raise RuntimeError\n', 'drift_p.q.__init__')
  upstream.write('x = 1\n', 'drift_p.q.m')
  upstream.write('x = 2\n', 'drift_n.q.m')
  assert sources_module.locate('drift_p.q.m').text == 'x = 1\n'
  assert sources_module.locate('drift_n.q.m').text == 'x = 2\n'
  for gone in ('drift_p.q.z', 'drift_p.z.m', 'drift_p.q.m.z', 'drift_z', 'drift_n.q.z'):
    assert sources_module.locate(gone) is None
