"""A tour: the next token of a sentence in a small language model, and the layers that it comes from.

  python -m experiments.tour --prompt='The capital of France is' --out=out

Runs SmolLM2-135M inside the unmodified google-tunix Qwen2 class and writes `tour.json`, `tour.png`
and `tour.html`. Cost: about 15 seconds on two CPU cores once the model is cached, 1.5 GB of memory.
Expected: ' Paris' leads with probability 0.77. It loses 14.9 nats without the MLP of layer 0, and
2.0 nats without that of layer 29. The logit lens shows it first after the last layer.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app

import mechjax
from mechjax import flags
from mechjax.decomposition import LensTable, read_lens
from mechjax.logits import log_probs
from mechjax.viz import charts, page, scale
from mechjax.viz.tokens import show_blanks

MODEL = 'smollm2-135m'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """Settings of a tour.

  Attributes:
    prompt: the text to continue.
    out: directory for the metrics, the picture and the page.
  """

  prompt: str = 'The capital of France is'
  out: str = 'out'


def top_tokens(model: Any, tokens: jax.Array, k: int = 5) -> tuple[list[int], list[float]]:
  """The k most likely next tokens and their probabilities."""
  best, ids = jax.lax.top_k(model.log_probs(tokens)[0, -1], k)
  return ids.tolist(), jnp.exp(best).tolist()


def knock_outs(model: Any, tokens: jax.Array, answer: int) -> list[float]:
  """Changes of the answer's log-probability when one layer's MLP outputs zero at the last position, in nats."""
  forward = mechjax.iterate(model, sites='mlp_out')

  def log_prob(logits: jax.Array) -> float:
    return float(log_probs(logits[0, -1])[answer])

  baseline, effects = log_prob(model(tokens)), []
  for knocked in range(model.n_layers):
    for layer, _, value in (run := forward(tokens)):
      if layer == knocked:
        run.modified_value = value.at[:, -1].set(0)
    effects.append(log_prob(run.retval) - baseline)
  return effects


def logit_lens(model: Any, tokens: jax.Array, answer: int) -> LensTable:
  """Next tokens read in the residual stream after each layer, and the rank of the answer."""
  run = mechjax.iterate(model, sites='resid_post')(tokens)
  streams_LxBxTxD = jnp.stack([value for _, _, value in run])
  return read_lens(streams_LxBxTxD, model.unembed, [answer], k=1)


def measure(model: Any, prompt: str) -> dict[str, Any]:
  """Measures all metrics of the tour, as plain numbers and strings for JSON."""
  tokens = model.tokens(prompt)
  ids, probs = top_tokens(model, tokens)
  lens = logit_lens(model, tokens, ids[0])
  return {
    'model': MODEL,
    'prompt': prompt,
    'tokens': [model.text(i) for i in tokens[0]],
    'top': [model.text(i) for i in ids],
    'top_probabilities': probs,
    'answer': model.text(ids[0]),
    'knock_out_nats': knock_outs(model, tokens, ids[0]),
    'lens': [[model.text(i) for i in row] for row in lens.ids[:, 0, :, 0].tolist()],
    'lens_probabilities': np.exp(lens.log_probs[:, 0, :, 0]).tolist(),
    'lens_answer_rank': lens.target_ranks[:, 0, -1, 0].tolist(),
  }


def report(metrics: dict[str, Any]) -> str:
  """The metrics as lines of text."""
  lines = [f'{metrics["prompt"]!r} continues with']
  lines += [f'  {p:.3f}  {t!r}' for t, p in zip(metrics['top'], metrics['top_probabilities'])]
  lines += ['', f'layer  {"without its MLP":>16}  logit lens   rank of {metrics["answer"]!r}']
  for i, effect in enumerate(metrics['knock_out_nats']):
    word, rank = metrics['lens'][i][-1], metrics['lens_answer_rank'][i]
    lines.append(f'{i:5}  {effect:+11.3f} nats  {word!r:<12} {rank}')
  return '\n'.join(lines)


def lens_table(metrics: dict[str, Any]) -> dict[str, Any]:
  """The logit lens as a table of words: a column for each position, and the rank of the answer."""
  ranks = metrics['lens_answer_rank']
  return {
    'cells': [[*map(show_blanks, row), f'{rank:,}'] for row, rank in zip(metrics['lens'], ranks)],
    'weights': [[*row, 0.0] for row in metrics['lens_probabilities']],
    'rows': [str(i) for i in range(len(ranks))],
    'columns': [*map(show_blanks, metrics['tokens']), f'rank of {show_blanks(metrics["answer"])}'],
  }


def draw(metrics: dict[str, Any], path: Path) -> None:
  """Draws the tour as one PNG: the answer above, and below it how it forms layer by layer."""
  table, effects = lens_table(metrics), metrics['knock_out_nats']
  fig = charts.figure(7 + 0.9 * len(metrics['tokens']), 2.4 + 0.28 * len(effects))
  ratios = [1, 0.15 * len(effects)]
  above, below = fig.subfigures(2, 1, height_ratios=ratios, squeeze=False).flat
  charts.bars(
    above.subplots(),
    [show_blanks(t) for t in metrics['top']],
    metrics['top_probabilities'],
    title=f'“{metrics["prompt"]}” continues with …',
    xlabel='probability of the next token (␣ is a space)',
    number='{:.3f}',
  )
  left, right = below.subplots(1, 2, width_ratios=[len(table['columns']), 4])
  charts.words(
    left,
    **table,
    title='Logit lens: the likeliest next token, read after each layer',
    xlabel='position (last column: rank at the last position)',
    ylabel='layer',
    weight='probability of the token shown',
  )
  charts.bars(
    right,
    table['rows'],
    effects,
    title=f'Knock-out: {show_blanks(metrics["answer"])} without one MLP',
    xlabel='change of log-probability, nats\n(output zeroed at the last position; hatched: cut)',
    number='{:.3f}',
    limit=scale.limit(effects),
  )
  charts.save(fig, path)


def document(metrics: dict[str, Any]) -> str:
  """Writes the tour as one HTML page."""
  table, effects = lens_table(metrics), metrics['knock_out_nats']
  answer = show_blanks(metrics['answer'])
  next_token = page.bars(
    [show_blanks(t) for t in metrics['top']], metrics['top_probabilities'], unit='probability'
  )
  lens = page.words(**table, corner='layer', unit='colour: probability of the token shown')
  unit = 'change of log-probability in nats, by layer; a hatched bar is cut'
  mlps = page.bars(table['rows'], effects, unit=unit, limit=scale.limit(effects))
  return page.page(
    f'“{metrics["prompt"]}” continues with “{metrics["answer"].strip()}”',
    f'{metrics["model"]}, in unmodified upstream code, read and changed while it runs. '
    'In tokens, ␣ is a space.',
    [
      page.section('The next token', 'The five most likely continuations.', next_token),
      page.section(
        'Logit lens',
        'The final norm and the unembedding, applied to the residual stream after each layer at '
        'each position of the prompt: the most likely next token. Stronger colour means higher '
        f'probability; point at a cell to see it. The last column is the rank of {answer} among '
        'all tokens at the last position.',
        lens,
      ),
      page.section(
        'Which MLPs matter',
        f'Change of the log-probability of {answer} when the MLP of one layer outputs zero at the '
        'last position. A bar to the left means that the answer needs that layer.',
        mlps,
      ),
    ],
    footer=f'python -m experiments.tour --prompt={shlex.quote(metrics["prompt"])}',
  )


def run(settings: Settings) -> None:
  """Takes the tour, prints it and writes it."""
  out = Path(settings.out)
  out.mkdir(parents=True, exist_ok=True)
  metrics = measure(mechjax.load(MODEL, code='tunix'), settings.prompt)
  print(report(metrics))
  (out / 'tour.json').write_text(json.dumps(metrics, indent=2, ensure_ascii=False) + '\n')
  draw(metrics, out / 'tour.png')
  (out / 'tour.html').write_text(document(metrics))
  print(f'\nwrote {out}/tour.json, {out}/tour.png and {out}/tour.html')


def main(argv: list[str], handle: flags.Handle[Settings]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}')
  run(handle.value())


if __name__ == '__main__':
  settings = flags.define(Settings)
  app.run(lambda argv: main(argv, settings))
