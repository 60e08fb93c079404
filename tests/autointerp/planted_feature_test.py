"""A planted feature through the whole way: examples, explanations of two kinds, and their exchange."""

import collections
import json
import pathlib
import re

import numpy as np

from mechjax import autointerp, providers
from mechjax.autointerp import TokenTable, explain, shuffle
from mechjax.providers.requests import Answer
from tests.autointerp import planted
from tests.autointerp.planted import PIECES, collect
from tests.experiments import planted_latents

README = pathlib.Path(__file__).parents[2] / 'README.md'


class Reader:
  """A provider that names the token that is marked most often in the question."""

  identity = 'reader'

  def __call__(self, requests, listener=None):
    return [
      Answer(f'[EXPLANATION]: the word {self.read(r.messages[-1].content)}') for r in requests
    ]

  def read(self, question):
    texts = [json.loads(text) for text in re.findall(r'^Text \d+: (.*)$', question, re.MULTILINE)]
    counts = collections.Counter(
      re.findall(r'word\d+', ' '.join(re.findall(r'\{\{(.*?)\}\}', ' '.join(texts))))
    )
    return json.dumps(counts.most_common(1)[0][0])


def test_a_planted_token_is_found_by_the_table_and_by_a_reader_of_the_prompt():
  examples = collect(latents=[0, 1])
  own = {0: 3, 1: 4}
  explanations = explain(examples, Reader())
  for latent, explanation in zip((0, 1), explanations):
    assert explanation.text == f'the word "word{own[latent]}"'
  for one in examples:
    token = own[one.latent]
    table = TokenTable.fit(one.all_shown)
    assert table.explain(one.latent, PIECES).text == f'the tokens " word{token}" (10)'
    seen = np.concatenate([x.tokens for x in one.all_shown])
    values = np.concatenate([x.activations for x in one.all_shown])
    for x in one.scored:
      known = np.isin(x.tokens, seen)
      expected = np.where(x.tokens == token, values[seen == token].mean(), 0)
      np.testing.assert_allclose(table.predict(x.tokens)[known], expected[known], rtol=1e-6)
  others = shuffle(explanations).explanations
  assert others[0, 'highlights'] is explanations[1]
  assert others[1, 'highlights'] is explanations[0]


def test_the_code_of_the_readme_scores_planted_tokens(monkeypatch, tmp_path, capsys):
  """Its names that are not defined there are those of a planted dictionary, and its model follows explanations."""
  heading = '## Say in words what a feature means'
  (code,) = re.findall(heading + r'.*?```\n(.*?)```', README.read_text(), re.DOTALL)
  monkeypatch.chdir(tmp_path)
  follower = providers.Scripted(planted_latents.answer)
  monkeypatch.setattr(providers, 'Local', lambda model: follower, raising=False)
  names = {
    'autointerp': autointerp, 'providers': providers, 'model': None, 'acts': planted.activations,
    'sae': planted.SAE, 'params': planted.PARAMS, 'batches': [(planted.TOKENS, planted.KEPT)],
    'pieces': [f' w{n}' for n in range(planted.V)],
  }  # fmt: skip
  exec(compile(code.replace('[3, 17]', '[0, 1]'), 'README.md', 'exec'), names)
  assert [e.text for e in names['explanations']] == ['the token w3', 'the token w4']
  rows = [line.split() for line in capsys.readouterr().out.splitlines()]
  own = {row[0]: float(row[3]) for row in rows if row[1:3] == ['highlights', 'own']}
  assert own['detection'] == own['fuzzing'] == 1
  assert own['simulation'] > 0.5
  assert (tmp_path / 'out/replies.jsonl').exists()
