"""Errors state what, where, the likely cause and the hint, all or in part, also after pickling."""

import copy
import pickle
import re

import pytest

from mechjax import errors
from mechjax.errors import MechjaxError

KINDS = [k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, MechjaxError)]


def test_all_four_parts_are_printed_in_order():
  error = MechjaxError(
    'mlp_out.9 is not there', where='model.py:3', cause='it has 4 layers', hint='ask for one'
  )
  assert str(error).splitlines() == [
    'mlp_out.9 is not there',
    '  where: model.py:3',
    '  likely cause: it has 4 layers',
    '  hint: ask for one',
  ]


@pytest.mark.parametrize('part', ['where', 'cause', 'hint'])
def test_a_part_that_is_not_known_is_left_out(part):
  assert str(MechjaxError('what')) == 'what'
  error = MechjaxError('what', **{part: 'x'})
  assert len(str(error).splitlines()) == 2
  assert getattr(error, part) == 'x'


@pytest.mark.parametrize('kind', KINDS, ids=lambda k: k.__name__)
def test_every_kind_keeps_its_parts_through_pickle_and_copy(kind):
  error = kind('what', where='here', cause='why', hint='how')
  for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
    assert type(twin) is kind
    assert str(twin) == str(error)
    assert (twin.what, twin.where, twin.cause, twin.hint) == ('what', 'here', 'why', 'how')


BUILTINS = {
  errors.SiteError: ValueError,
  errors.HarvestError: ValueError,
  errors.RunError: RuntimeError,
  errors.PatchError: ValueError,
  errors.StackingError: ValueError,
  errors.WeightsError: ValueError,
  errors.FetchError: OSError,
  errors.MissingExtraError: ImportError,
  errors.MatchError: errors.PatchError,
  errors.FlagsError: ValueError,
  errors.PatchingError: ValueError,
  errors.SAEError: ValueError,
  errors.SteeringError: ValueError,
  errors.ProbingError: ValueError,
  errors.FactsError: ValueError,
  errors.NeuronError: ValueError,
  errors.CircuitError: ValueError,
  errors.YardstickError: ValueError,
  errors.ProviderError: ValueError,
  errors.InterpretationError: ValueError,
}


@pytest.mark.parametrize('kind', KINDS, ids=lambda k: k.__name__)
def test_each_is_also_what_python_would_have_raised(kind):
  assert kind.__doc__
  with pytest.raises(BUILTINS.get(kind, Exception), match='what'):
    raise kind('what')
  assert kind is MechjaxError or kind in BUILTINS


def test_the_table_at_the_head_names_every_kind_with_its_builtin():
  rows = [line.split() for line in errors.__doc__.splitlines() if re.match(r' +\w+Error', line)]
  assert [row[0] for row in rows] == [kind.__name__ for kind in KINDS]
  for name, builtin, *_ in rows[1:]:
    kind = getattr(errors, name)
    if BUILTINS[kind] is not errors.PatchError:
      assert BUILTINS[kind].__name__ == builtin


def test_what_a_kind_holds_besides_its_parts_survives_pickle():
  assert pickle.loads(pickle.dumps(errors.MatchError('what', matches=3))).matches == 3


def test_an_unknown_name_is_refused_with_the_nearest_or_with_all():
  near = errors.unknown(errors.SAEError, 'architecture', 'topkk', ['topk', 'relu'], where='a.json')
  assert isinstance(near, errors.SAEError)
  assert near.what == "unknown architecture 'topkk'"
  assert near.hint == "did you mean 'topk'?"
  assert near.where == 'a.json'
  assert errors.unknown(errors.SAEError, 'x', 'zz', ['topk', 'relu']).hint == ('known: topk, relu')


@pytest.mark.parametrize(
  ('name', 'best'),
  [('mpl_out', 'mlp_out'), ('resid', 'resid_pre'), ('attn_prob', 'attn_probs'), ('zz', None)],
)
def test_the_nearest_names_come_first(name, best):
  found = errors.nearest(name, ['mlp_out', 'mlp_pre', 'attn_probs', 'resid_pre', 'resid_post'])
  assert found[:1] == ([best] if best else [])


def test_nearest_names_are_few_and_each_once():
  found = errors.nearest('site', [f'site_{i}' for i in range(20)] * 2)
  assert len(found) == len(set(found)) == 5
