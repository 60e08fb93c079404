"""No test compares with a 0 relatively: a sum that is 0 on one processor is 1e-8 on another, and 1e-8 is far from 0.

A tolerance relative to 0 is no tolerance. The rounding error of a sum that is 0 is relative to its terms, so the test
has to give an absolute one: `atol=` of `assert_allclose`, `abs=` of `approx`, `abs_tol=` of `isclose`. An exact 0, of a
mask or a product with 0, is for `assert_array_equal`.
"""

import ast
import pathlib

import pytest

TESTS = pathlib.Path(__file__).parent
ABSOLUTE = {'assert_allclose': 'atol', 'approx': 'abs', 'isclose': 'abs_tol'}
EXPECTED = {'assert_allclose': 1, 'approx': 0, 'isclose': 1}  # which argument it is


def zero(node):
  """Whether an expression is written as 0, or as a sequence with one in it."""
  if isinstance(node, ast.List | ast.Tuple):
    return any(map(zero, node.elts))
  return isinstance(node, ast.Constant) and type(node.value) in (int, float) and node.value == 0


def relative_to_zero(source):
  """Lines of the calls that compare with a written 0 and name no absolute tolerance."""
  for node in ast.walk(ast.parse(source)):
    name = getattr(getattr(node, 'func', None), 'attr', None)
    if name in ABSOLUTE:
      wanted = node.args[EXPECTED[name] :][:1]
      if any(map(zero, wanted)) and ABSOLUTE[name] not in {word.arg for word in node.keywords}:
        yield node.lineno


@pytest.mark.parametrize(
  ('source', 'lines'),
  [
    ('np.testing.assert_allclose(x, [[1, 0], [0, 0]], rtol=1e-6)', [1]),
    ('\nassert x == pytest.approx((1, 0.0), rel=1e-6)', [2]),
    ('math.isclose(x, 0, rel_tol=1e-3)', [1]),
    ('np.testing.assert_allclose(x, 0)', [1]),
    ('np.testing.assert_allclose(x, [1, 0], rtol=0, atol=1e-6)', []),
    ('np.testing.assert_allclose(x[0], y[0], rtol=1e-6)', []),
    ('assert x == pytest.approx(0, abs=1e-6)', []),
  ],
)
def test_it_is_seen_in_every_form(source, lines):
  assert [*relative_to_zero(source)] == lines


def test_nothing_is_compared_with_zero_relatively():
  found = {
    f'{path.relative_to(TESTS)}:{line}'
    for path in TESTS.rglob('*.py')
    for line in relative_to_zero(path.read_text(encoding='utf-8'))
  }
  assert not found
