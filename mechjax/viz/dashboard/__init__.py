"""A page for inspecting a dictionary: the contexts in which each latent is active, and its effects on the logits.

    header = DashboardHeader(model='smollm2-135m', site='resid_post.15', architecture='TopK, k = 32', l0=32, fvu=0.21,
                             text='...')
    pieces = [model.text([i]) for i in range(n_vocab)]
    Path('features.html').write_text(dashboard(features, pieces, title='...', header=header))

The page is a single self-contained file: it opens from a disk or a mail. At the end of its address, '#latent=123' opens
a latent and '#search=paris' searches for latents.

    dashboard(features, pieces, title='...', header=header, explanations=explanations, scores=scores)

also shows the explanations of each latent (`mechjax.autointerp`), a table of their scores and controls, and predicted
next to true activations; and the list can be sorted and filtered by a score. explanations.js and explanations.css are
embedded only then.

Unlike the other pages it has a script, since ten thousand latents below each other are unreadable; script.js and
style.css next to this file are embedded unchanged, and are package data of the wheel. The data are in the page as JSON
(`payload`) and become texts, never elements; and the policy of the page, which has the hash of its script, forbids
running any other script and loading anything.

Sharp edge: a latent takes about 5 kB, so select latents if there are more than a few thousand.
"""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Iterable, Sequence
from importlib import resources

from mechjax.autointerp.record import Explanation, Score
from mechjax.sae.features import Features
from mechjax.viz import logs, page
from mechjax.viz.dashboard.explained import collect_explained
from mechjax.viz.dashboard.payload import as_json, payload

KEYS = (
  'Keys: ← → or j k for the previous and next latent in the list, r for a random one, / to search.'
)


@dataclasses.dataclass(frozen=True)
class DashboardHeader:
  """Facts about a dictionary for the header, besides those in its features.

  Attributes:
    model: name of the model.
    site: the site that the dictionary reads, such as 'resid_post.15'.
    architecture: its kind and settings.
    l0: active latents per token.
    fvu: fraction of variance unexplained.
    text: the text that the tokens come from.
  """

  model: str
  site: str
  architecture: str
  l0: float
  fvu: float
  text: str


def dashboard(
  features: Features,
  pieces: Sequence[str],
  *,
  title: str,
  header: DashboardHeader,
  explanations: Iterable[Explanation] = (),
  scores: Iterable[Score] = (),
) -> str:
  """Makes the page.

  Args:
    features: from `mechjax.sae.features.collect`.
    pieces: the text of each token of the vocabulary.
    title: title of the page.
    header: facts about the dictionary.
    explanations: explanations of these latents, one for each latent and method.
    scores: scores of these latents, one for each latent, scorer, method and control.

  Returns:
    The HTML.

  Raises:
    ChartError: a token without a text, an explanation or score of another latent, two of one kind, or predictions that
      do not fit their excerpts.
  """
  script, style, explorer = _file('script.js'), _file('style.css'), _EXPLORER
  data, texts, found = payload(features, pieces), [*explanations], [*scores]
  if texts or found:
    data['explained'] = collect_explained(features, texts, found, data['pieces'])
    script = f'{_file("explanations.js")}\n{script}'
    style = f'{style}\n{_file("explanations.css")}'
    explorer = explorer.replace(*_COUNT).replace(*_COLUMN)
  body = (
    f'<h1>{html.escape(title)}</h1>\n{_facts(features, header)}\n{_overview(features)}\n{explorer}\n'
    f'<footer>{KEYS}</footer>\n'
    f'<script type="application/json" id="data">{as_json(data)}</script>\n'
    f'<script>{script}</script>'
  )
  return page.document(title, body, style=style, head=page.make_policy(script))


def _file(name: str) -> str:
  return resources.files(__name__).joinpath(name).read_text(encoding='utf-8')


def _facts(features: Features, header: DashboardHeader) -> str:
  looked_at = len(features.latents)
  facts = {
    'Model': header.model,
    'Site': header.site,
    'Architecture': header.architecture,
    'Width': f'{features.width:,}' + f', {looked_at:,} shown' * (looked_at < features.width),
    'L0': logs.number(header.l0),
    'FVU': logs.number(header.fvu),
    'Tokens seen': f'{features.n_tokens:,}',
    'Text': header.text,
  }
  parts = (f'<div><dt>{k}</dt><dd>{html.escape(v)}</dd></div>' for k, v in facts.items())
  return f'<dl class="facts">{"".join(parts)}</dl>'


def _overview(features: Features) -> str:
  dead = int((features.firings == 0).sum())
  of = len(features.latents)
  text = (
    f'{dead:,} of {of:,} latents ({100 * dead / of:.1f} %) were active on none of '
    f'{features.n_tokens:,} tokens. The density of the others, the fraction of tokens on which a latent is active:'
  )
  return page.section('Density of latents', text, '<div id="densities"></div>')


_EXPLORER = """
<noscript><p>The latents are shown by the script of this page, which this browser does not run.</p></noscript>
<div class="explorer" id="explorer" hidden>
<nav class="index" aria-label="Latents">
<input type="search" id="search" placeholder="number of a latent, or text" aria-label="Search latents"
  title="searches the numbers, the tokens with the largest logit effects and the strongest contexts">
<div class="count" id="count" aria-live="polite"></div>
<div class="rows">
<button id="fewer">show previous</button>
<table><thead><tr><th><button value="latent">latent</button></th><th><button value="density">density</button></th>
<th><button value="max">max</button></th><th>peaks on</th></tr></thead><tbody id="rows"></tbody></table>
<button id="more">show more</button>
</div>
</nav>
<main>
<div class="steps"><button id="previous">← previous</button><button id="next">next →</button>
<button id="random">random</button></div>
<h2 id="name"></h2>
<div id="latent"></div>
</main>
</div>
""".strip()

_FILTER = """<div class="filter" id="filter" hidden>
<label>score <select id="scored" title="the score in the list"></select></label>
<label>at least <input type="number" step="any" id="minimum"
  title="hides latents with a lower score, and those without one"></label>
</div>
"""
_COUNT = '<div class="count"', f'{_FILTER}<div class="count"'
_COLUMN = '<th>peaks on</th>', '<th><button value="score">score</button></th><th>peaks on</th>'
