"""Effects with random values on the sites of a small model, and the cells of the tables on a page."""

from html.parser import HTMLParser
from types import SimpleNamespace
from typing import Any

import numpy as np

from mechjax.patching import Effects, nodes_of
from mechjax.sites import Site

L, H, K, T, B = 3, 4, 2, 5, 3
TOKENS = ['<b>', ' $x$', ' Mary', '"&', ' Mary']
SHAPES = {
  'embed': (B, T, 8),
  'z': (B, T, H, 2),
  'k': (B, T, K, 2),
  'mlp_post': (B, T, 6),
  'mlp_out': (B, T, 8),
}
INFOS: Any = [
  SimpleNamespace(site=Site(name, path), shape=shape, source='')
  for name, shape in SHAPES.items()
  for path in ([()] if name == 'embed' else [(i,) for i in range(L)])
]


def effects_of(pattern, seed=0, title='exact noising: logit difference', **options):
  nodes = nodes_of(INFOS, pattern, **options)
  values = np.random.default_rng(seed).standard_normal((len(nodes), B))
  return Effects(title, nodes, values, np.zeros(B), np.zeros(B))


class Cells(HTMLParser):
  """The cells of tables (text, note, class), column heads, and every text."""

  def __init__(self, content):
    super().__init__()
    self.rows, self.texts, self.tags, self.addresses, self._into = [], [], [], [], None
    self.feed(content)

  def handle_starttag(self, tag, attrs):
    attrs = dict(attrs)
    self.tags.append(tag)
    self.addresses += [attrs[name] for name in ('src', 'href') if name in attrs]
    if tag == 'tr':
      self.rows.append([])
    if tag == 'td':
      self._into = SimpleNamespace(text='', note=attrs['title'], kind=attrs['class'].split())
      self.rows[-1].append(self._into)

  def handle_endtag(self, tag):
    self._into = None if tag == 'td' else self._into

  def handle_data(self, data):
    self.texts.append(data)
    if self._into:
      self._into.text += data

  @property
  def cells(self):
    return [row for row in self.rows if row]
