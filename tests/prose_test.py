"""Prose that a reader from any country understands at the first reading: patterns of unclear prose are refused.

Docstrings, comments and messages of `mechjax`, `patches` and `experiments`, and every page of Markdown. A first line of
a docstring is a noun phrase or a verb in the third person. CONTRIBUTING.md gives the rules with examples.
"""

import ast
import io
import pathlib
import re
import tokenize

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
SENTENCES = ('steering/concepts.py',)
"""Files of texts that a model reads, which describe people."""
SOURCES = [
  path
  for room in ('mechjax', 'patches', 'experiments')
  for path in (ROOT / room).rglob('*.py')
  if not str(path).endswith(SENTENCES)
]
PAGES = [
  *ROOT.glob('*.md'),
  *(p for room in ('docs', 'patches', 'experiments') for p in (ROOT / room).rglob('*.md')),
]

OPENINGS = re.compile(
  r'(What|How|Of|Until|Who|Whose|Where|When|That|As|All that|Everything that|To|Beside|By|In|For)\b'
)
"""First words of a docstring that are neither a noun phrase nor a verb."""

PATTERNS = {
  'write "is not a"': r'(?<!here )\b(is|are) no (?!longer|more|less|matter)',
  'write "none of them" or name the thing': r'\b(is|are|of|were|was) none\b(?! of)',
  'say which program or person acts': r'\b(nobody|somebody|anybody|whoever|for who)\b',
  'write "it" or name the thing': r'\b(he|his|him)\b',
  'write "next to", "besides" or "with"': r'\bbeside\b(?! under)',
  'write "continue" or "resume"': r'\b(goes|go|going|went|gone) on\b',
  'write "is given" or "receives"': r'\b(is|are|be|being|was|were) told\b',
  'write "does not have"': r'\b(has|have|had) not (a|an|the|any|one|all|that|those|this|these|it)\b',
  'write "available" or "can be downloaded"': r'\bto be had\b',
  'write "hint" or "fix"': r'\bmend(s|ed|ing)?\b',
  'say what is expected': r'\bas (it|they) should( be)?\b',
  'write "reconstructs", "outputs" or "states"': r'\b(dictionar\w+|autoencoders?|transcoders?|latents?) (say|says)\b',
  'write "are concatenated" or "flattened"': r'\blaid end to end\b',
  'write "the next" or "later"': r'\bbehind (it|them|that|which)\b',
}
PATTERNS = {advice: re.compile(pattern) for advice, pattern in PATTERNS.items()}


def prose(source: str) -> list[tuple[int, str]]:
  """Comments, docstrings and other strings of a file: (line, text)."""
  tokens = tokenize.generate_tokens(io.StringIO(source).readline)
  fstring = getattr(tokenize, 'FSTRING_MIDDLE', None)
  kinds = {tokenize.COMMENT, tokenize.STRING, *([fstring] if fstring else [])}
  return [(t.start[0], t.string) for t in tokens if t.type in kinds]


def found(parts: list[tuple[int, str]]) -> list[str]:
  """Where a pattern occurs, with the advice."""
  hits = []
  for line, text in parts:
    flat = re.sub(r'\s+#?\s*', ' ', text)
    for advice, pattern in PATTERNS.items():
      hits += [
        f'{line}: {flat[max(0, m.start() - 40) : m.end() + 20]!r}: {advice}'
        for m in pattern.finditer(flat)
      ]
  return hits


def openings(source: str) -> list[str]:
  """Docstrings of functions and classes whose first word is wrong."""
  nodes = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
  docs = [
    (n.lineno, ast.get_docstring(n)) for n in ast.walk(ast.parse(source)) if isinstance(n, nodes)
  ]
  return [f'{line}: {doc.splitlines()[0]}' for line, doc in docs if doc and OPENINGS.match(doc)]


@pytest.mark.parametrize('path', SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_docstrings_comments_and_messages_are_plain(path):
  source = path.read_text()
  assert not found(prose(source))
  assert not openings(source)


@pytest.mark.parametrize('path', PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_pages_are_plain(path):
  text = re.sub(r'```.*?```', '', path.read_text(), flags=re.DOTALL)
  assert not found([(1, text)])


@pytest.mark.parametrize(
  'text',
  [
    "f'{x!r} is no site'",
    '# a number that is none',
    '# nobody reads it',
    '# the run goes on',
    '"""A mask that the model is told."""',
    '# the caller closes his children',
    '# a list that has not the names',
    '# what the dictionary says',
  ],
)
def test_the_patterns_find_what_they_forbid(text):
  assert len(found(prose(text))) == 1


@pytest.mark.parametrize(
  'text',
  [
    "f'there is no site {x!r}'",
    '# it is no longer there, and none of them is',
    '# has not fired',
    '"""The error says which layer."""',
  ],
)
def test_plain_english_is_left_alone(text):
  assert not found(prose(text))


def test_an_opening_is_a_noun_phrase_or_a_verb():
  assert openings('def f():\n  """What is read."""\n') == ['1: What is read.']
  assert not openings('def f():\n  """Activations that are read."""\n')
