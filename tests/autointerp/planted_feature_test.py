"""A planted feature through the whole way: examples, explanations of two kinds, and their exchange."""

import collections
import json
import re

import numpy as np

from mechjax.autointerp import TokenTable, explain, shuffle
from mechjax.providers.requests import Answer
from tests.autointerp.planted import PIECES, collect


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
