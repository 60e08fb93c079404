"""The README's lesson on a codebase that we have not seen works as printed."""

import contextlib
import importlib
import inspect
import io
import pathlib
import re

import pytest

from mechjax.errors import PatchError
from mechjax.patcher import Patcher

README = pathlib.Path(__file__).parent.parent.parent / 'README.md'
pytestmark = pytest.mark.equinox


@pytest.fixture
def lesson(tmp_path, monkeypatch):
  """The codebase as an importable file, and the session that instruments it."""
  _, text = README.read_text().split('## Instrument a codebase that we have not seen\n')
  codebase, session = re.findall(r'```python\n(.*?)```', text.split('\n## ')[0], re.DOTALL)
  (tmp_path / 'tiny_gpt.py').write_text(codebase)
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.delitem(importlib.import_module('sys').modules, 'tiny_gpt', raising=False)
  return session


def test_the_session_prints_what_its_comments_say(lesson):
  promised = re.findall(r'^ *print\(.*\S +# (.*)$', lesson, re.MULTILINE)
  assert len(promised) == lesson.count('print(')
  printed, names = io.StringIO(), {}
  with contextlib.redirect_stdout(printed):
    exec(compile(lesson, 'README.md', 'exec'), names)
  assert printed.getvalue().splitlines() == promised
  assert names['PATCHER'].diff().count('harvest.sow') == 7


def test_the_attention_is_where_the_text_says():
  equinox = importlib.import_module('equinox')
  where = inspect.getsourcefile(equinox.nn.MultiheadAttention)
  assert pathlib.Path(where).as_posix().endswith('equinox/nn/_attention.py')
  with pytest.raises(PatchError, match=r'defined in the module equinox\.nn\._attention'):
    Patcher('equinox.nn.MultiheadAttention', __call__=('x', 'y')).install()
