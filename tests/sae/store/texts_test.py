"""Sources of texts: every kind of file, in a fixed order, and errors that name the file and the line."""

import gzip
import json

import datasets
import pyarrow
import pytest
from pyarrow import parquet

from mechjax.errors import MissingExtraError
from mechjax.sae import SAEError
from mechjax.sae.store import texts


def written(path, text):
  path.parent.mkdir(parents=True, exist_ok=True)
  data = text.encode()
  path.write_bytes(gzip.compress(data) if path.suffix in ('.gz', '.dz') else data)
  return path


def lines(*rows):
  return ''.join(json.dumps(row) + '\n' for row in rows)


@pytest.mark.parametrize('name', ['a.txt', 'a.md', 'a.rst', 'a.py', 'a.txt.gz'])
def test_plain_files_are_one_text_each(tmp_path, name):
  assert list(texts(written(tmp_path / name, 'one\ntwö'))) == ['one\ntwö']


@pytest.mark.parametrize('name', ['a.dict', 'a.dict.dz'])
def test_an_entry_of_a_dictionary_is_one_text(tmp_path, name):
  words = '\nBee \\Bee\\, n.\n   An insect.\n\n   2. A meeting.\n\nBeech, n.\nOf wood.\n'
  path = written(tmp_path / name, words)
  bee = 'Bee \\Bee\\, n.\n   An insect.\n\n   2. A meeting.'
  assert list(texts(path)) == [bee, 'Beech, n.\nOf wood.']


@pytest.mark.parametrize('name', ['a.jsonl', 'a.jsonl.gz'])
def test_jsonl_is_one_text_a_line_and_empty_ones_are_left_out(tmp_path, name):
  path = written(
    tmp_path / name, lines({'text': 'one'}, {'text': ' '}) + '\n' + lines({'text': 'ö'})
  )
  assert list(texts(path)) == ['one', 'ö']


def test_another_field_may_be_the_text(tmp_path):
  path = written(tmp_path / 'a.jsonl', lines({'text': 'no', 'body': 'yes'}))
  assert list(texts(path, field='body')) == ['yes']


@pytest.mark.parametrize('bad', ['{"text": "half', '{"body": "x"}', '["text"]', '"text"', '7'])
def test_a_bad_line_is_named_by_its_file_and_number(tmp_path, bad):
  path = written(tmp_path / 'a.jsonl', lines({'text': 'one'}) + '\n' + bad + '\n')
  found = texts(path)
  assert next(found) == 'one'
  with pytest.raises(SAEError, match=r'a\.jsonl, line 3'):
    next(found)


@pytest.mark.parametrize('value', [None, 3, ['x']])
def test_what_is_no_text_is_named_by_its_file_and_number(tmp_path, value):
  path = written(tmp_path / 'a.jsonl', lines({'text': 'one'}, {'text': value}))
  with pytest.raises(SAEError, match=r'a\.jsonl, text 2'):
    list(texts(path))


def test_parquet_is_one_text_a_row(tmp_path):
  table = pyarrow.table({'text': ['one', '', 'two'], 'n': [1, 2, 3]})
  parquet.write_table(table, tmp_path / 'a.parquet', row_group_size=2)
  assert list(texts(tmp_path / 'a.parquet')) == ['one', 'two']
  with pytest.raises(SAEError, match=r"no column 'body'(.|\n)*'text', 'n'"):
    list(texts(tmp_path / 'a.parquet', field='body'))
  with pytest.raises(SAEError, match='text 1'):
    list(texts(tmp_path / 'a.parquet', field='n'))


def test_a_file_that_is_not_what_its_name_says_is_named(tmp_path):
  whole = written(tmp_path / 'a.txt.gz', 'text ' * 1000)
  whole.write_bytes(whole.read_bytes()[:-9])
  with pytest.raises(SAEError, match=r'a\.txt\.gz cannot be read'):
    list(texts(whole))
  with pytest.raises(SAEError, match=r'a\.parquet cannot be read'):
    list(texts(written(tmp_path / 'a.parquet', 'no parquet')))


PAGE = """<html><head><title>no</title><style>p {}</style><body>
<nav>menu</nav><h1>One &amp; only</h1><p>wrapped
 line with <b>bold</b>, <kbd>key</kbd> and &eacute;&#33;</p><p>next<br>line</p>
<script>if (a < b) {}</script><pre>kept
  as it is</pre></body></html>"""


def test_a_web_page_is_what_is_read_on_it(tmp_path):
  (text,) = texts(written(tmp_path / 'a.html', PAGE))
  said = [line for line in text.split('\n') if line]
  assert said == [
    'One & only',
    'wrapped line with bold, key and é!',
    'next',
    'line',
    'kept',
    'as it is',
  ]
  assert '\n\n\n' not in text


def test_a_directory_is_read_in_the_order_of_names_and_other_kinds_are_passed_over(tmp_path):
  for name in ('b.txt', 'a/z.txt', 'c.jsonl', 'image.png', 'a/b.md.gz'):
    text = lines({'text': name}) if name.endswith('jsonl') else name
    written(tmp_path / name, text)
  assert list(texts(tmp_path)) == ['a/b.md.gz', 'a/z.txt', 'b.txt', 'c.jsonl']


def test_patterns_and_several_places_are_read_one_after_the_other(tmp_path):
  for name in ('b.txt', 'a.txt', 'c.txt', 'x.md', 'of[x].txt', 'sub.txt/d.txt'):
    written(tmp_path / name, name)
  found = list(texts(tmp_path / '[ab].txt', tmp_path / 'x.md', tmp_path / 'of[x].txt'))
  assert found == ['a.txt', 'b.txt', 'x.md', 'of[x].txt']
  assert list(texts(tmp_path / '[s-z]*')) == ['x.md']  # the directory does not match as a file


def test_nothing_there_and_unknown_kinds_are_errors_with_the_place(tmp_path):
  written(tmp_path / 'a.jsonk', '')
  with pytest.raises(SAEError, match=r"no texts at '.*missing\.txt'"):
    list(texts(tmp_path / 'missing.txt'))
  with pytest.raises(SAEError, match='no texts at'):
    list(texts(tmp_path))
  with pytest.raises(SAEError, match=r'a\.jsonk(.|\n)*perhaps \.jsonl'):
    list(texts(tmp_path / 'a.jsonk'))


# --- a hub ------------------------------------------------------------------------------------------------


def test_a_data_set_of_a_hub_is_streamed(monkeypatch):
  asked = []

  def load_dataset(name, configuration, *, split, streaming):
    asked.append((name, configuration, split, streaming))
    return iter([{'text': 'one'}, {'text': ''}, {'text': 'two'}])

  monkeypatch.setattr(datasets, 'load_dataset', load_dataset)
  assert list(texts('hf:allenai/c4:en:train', 'hf:me/mine::test')) == ['one', 'two'] * 2
  assert asked == [('allenai/c4', 'en', 'train', True), ('me/mine', None, 'test', True)]


def test_a_hub_that_does_not_answer_is_one_clear_error(monkeypatch):

  def load_dataset(*_, **__):
    raise ConnectionError('no route to host')

  monkeypatch.setattr(datasets, 'load_dataset', load_dataset)
  with pytest.raises(SAEError, match=r'ConnectionError: no route to host(.|\n)*no network'):
    list(texts('hf:allenai/c4:en:train'))


def test_a_field_that_the_hub_does_not_have_or_that_is_no_text_is_an_error(monkeypatch):
  monkeypatch.setattr(datasets, 'load_dataset', lambda *_, **__: iter([{'text': 'x', 'n': 3}]))
  with pytest.raises(SAEError, match="KeyError: 'body'"):
    list(texts('hf:a/b:c:d', field='body'))
  with pytest.raises(SAEError, match='hf:a/b:c:d, text 1'):
    list(texts('hf:a/b:c:d', field='n'))


def test_a_name_that_lacks_its_parts_says_how_it_is_written():
  with pytest.raises(SAEError, match='hf:name:configuration:split'):
    list(texts('hf:allenai/c4'))


def test_without_the_library_the_extra_is_named(monkeypatch, tmp_path):
  monkeypatch.setitem(__import__('sys').modules, 'datasets', None)
  monkeypatch.setitem(__import__('sys').modules, 'pyarrow.parquet', None)
  for place in ('hf:a/b:c:d', written(tmp_path / 'a.parquet', '')):
    with pytest.raises(MissingExtraError, match=r'\.\[text\]'):
      list(texts(place))
