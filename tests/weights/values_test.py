"""Getters of settings: the values that each accepts and refuses, and its error."""

import math

import pytest

from mechjax.errors import WeightsError
from mechjax.weights.values import MAX_INT, Values

NAN, INF = math.nan, math.inf
WRONG = {
  'integer': [True, 1.0, '1', 0, -1, MAX_INT + 1, [1], {}, NAN],
  'number': [True, '1', 0, -1.0, NAN, INF, -INF, 1e300, 10**400, [1.0]],
  'flag': [0, 1, 'true', 'false', [True], 0.0],
  'string': [1, True, ['a'], {}],
  'strings': ['a', [1], {'a': 1}, 5],
  'mapping': ['a', [1], 5, True],
}
RIGHT = {
  'integer': [1, MAX_INT],
  'number': [1, 0.5, 1e-30],
  'flag': [True, False],
  'string': ['', 'a'],
  'strings': [[], ['a', 'b']],
  'mapping': [{}, {'a': 1}],
}


@pytest.mark.parametrize('getter', WRONG)
def test_a_value_of_another_kind_is_an_error_with_file_key_value_and_what_is_wanted(getter):
  for value in WRONG[getter]:
    with pytest.raises(WeightsError, match=r'(?s)some file has key=.*expected'):
      getattr(Values({'key': value}, 'some file'), getter)('key')
  for value in RIGHT[getter]:
    s = Values({'key': value}, 'some file')
    assert getattr(s, getter)('key') == value
    s.check_all_taken()


@pytest.mark.parametrize('getter', WRONG)
def test_what_is_missing_or_null_has_its_default_or_is_an_error(getter):
  for found in ({}, {'key': None}):
    assert getattr(Values(found, 'some file'), getter)('key', 'default') == 'default'
    with pytest.raises(WeightsError, match=r"some file has no 'key'"):
      getattr(Values(found, 'some file'), getter)('key')


def test_null_can_differ_from_what_is_missing():
  for found, expected in (({}, 7), ({'key': None}, None), ({'key': 3}, 3)):
    s = Values(found, 'some file')
    assert s.or_null(s.integer, 'key', 7) == expected


@pytest.mark.parametrize(
  ('value', 'expected'), [(None, ()), (0, (0,)), (4, (4,)), ([], ()), ([1, 4], (1, 4))]
)
def test_token_ids_are_one_several_or_none(value, expected):
  assert Values({'key': value}, 'some file').ids('key', 5) == expected


@pytest.mark.parametrize('value', [5, -1, True, 1.0, '1', NAN, [1, 5], [None], {'a': 1}, [[1]]])
def test_what_is_no_token_of_the_vocabulary_is_refused(value):
  with pytest.raises(WeightsError, match='a token id from 0 to 4, or a list of them'):
    Values({'key': value}, 'some file').ids('key', 5)


def test_a_word_is_one_of_those_that_are_known_and_a_setting_one_that_is_computed():
  s = Values({'a': 'x', 'b': 1, 'c': [1], 'd': 2}, 'some file')
  with pytest.raises(WeightsError, match=r"a='x'; expected one of \['y', 'z'\]"):
    s.string('a', known=('z', 'y'))
  for key, allowed in (('b', True), ('c', 1)):
    with pytest.raises(WeightsError, match=f'{key}='):
      s.check_supported(key, allowed)
  s.check_supported('d', 2.0)
  s.check_supported('e', 3)
  s.check_all_taken()


def test_what_was_not_taken_and_is_not_harmless_is_an_error():
  s = Values({'a': 1, 'b': 2, 'c': None}, 'some file')
  s.check_all_taken({'a', 'b'})
  with pytest.raises(WeightsError, match=r"unknown settings: \{'b': 2\}"):
    s.check_all_taken({'a'})
  with pytest.raises(WeightsError, match=r'some file is \[1\]; expected an object'):
    Values([1], 'some file')
