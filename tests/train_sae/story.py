"""A text that a model's first layer can be trained on in seconds: one sentence with names put in at random."""

import numpy as np

SENTENCE = (
  'The river was high and the bridge closed when {} came to the town with {} letters in a bag . '
)
NAMES = ('Anna', 'a doctor', 'the baker', 'Mr Holt', 'two sailors', 'nobody', 'an old friend')


def write(path):
  """About 7,000 tokens."""
  rng = np.random.default_rng(0)
  path.write_text(''.join(SENTENCE.format(*rng.choice(NAMES, 2)) for _ in range(250)))
  return path
