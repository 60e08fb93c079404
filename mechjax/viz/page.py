"""Self-contained HTML pages: one file, no script, no font or style from elsewhere, light and dark.

A result that can be opened in ten years, mailed, or published with a paper must not depend on a
server. A page consists of sections, and a section of a title, a sentence that explains how to read it,
and a body. The bodies are bars of either sign, a table of words whose cells are coloured by a number,
and a heat map of numbers; the styles of `curves`, `cloud`, `shaded`, `steered`, `attention` and `explanations` are here
as well.

All text is escaped here, so callers pass it as it is: tokens contain '<' as often as any other
character. Colours are custom properties with a dark set for `prefers-color-scheme`; cells mix the
accent into the background only so far that the text on them stays legible.
"""

from __future__ import annotations

import base64
import hashlib
import html
import math
from collections.abc import Iterable, Sequence

from mechjax.viz import scale

_STYLE = """
:root { color-scheme: light dark; --paper: #fdfdfc; --ink: #1c2733; --faint: #5d6874;
  --line: #dde2e6; --max: 70%; --up: #2166ac; --down: #d1495b; --c0: #2166ac; --c1: #d1495b;
  --c2: #1b7837; --c3: #7b4fa3; --c4: #a6611a; --c5: #01798a; --c6: #5d6874; }
@media (prefers-color-scheme: dark) { :root { --paper: #14181d; --ink: #e4e8ec; --faint: #9aa5b1;
  --line: #2d353e; --max: 56%; --up: #6cb0f0; --down: #ff8a80; --c0: #6cb0f0; --c1: #ff8a80;
  --c2: #7ccb8b; --c3: #c5a3e8; --c4: #e2a65e; --c5: #5cc8d6; --c6: #9aa5b1; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.2rem 1.4rem 3rem; max-width: 62rem; background: var(--paper);
  color: var(--ink); font: 16px/1.55 system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .3rem; }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .2rem; }
p { margin: .2rem 0 .9rem; max-width: 46rem; color: var(--faint); }
code, .word { font-family: ui-monospace, 'SF Mono', Menlo, Consolas, 'DejaVu Sans Mono', monospace;
  font-size: .86em; }
.bars { display: grid; grid-template-columns: max-content 1fr; gap: .16rem .8rem;
  align-items: center; }
.bars .name { text-align: right; white-space: pre; }
.track { position: relative; height: 1.25rem; }
.track i { position: absolute; inset-block: .12rem; border-radius: 2px; background: var(--up); }
.track i.down { background: var(--down); }
.track i.cut { mask: repeating-linear-gradient(-45deg, #000 0 5px,
  #0006 5px 8px); }
.track b { position: absolute; font-weight: 400; font-size: .8rem; line-height: 1.25rem;
  font-variant-numeric: tabular-nums; white-space: nowrap; }
.track::before { content: ''; position: absolute; inset-block: -.1rem; left: var(--zero);
  border-left: 1px solid var(--line); }
.scroll { overflow-x: auto; }
table { border-collapse: separate; border-spacing: 2px; width: 100%; }
th { font-weight: 400; color: var(--faint); font-size: .82rem; padding: .1rem .4rem;
  white-space: pre; }
th[scope=row] { text-align: right; font-variant-numeric: tabular-nums; }
td { min-width: 4.6rem; padding: .12rem .4rem; border-radius: 3px; text-align: center;
  white-space: pre;
  background: color-mix(in srgb, var(--up) calc(var(--w) * 52%), var(--paper)); }
.side-by-side { display: flex; flex-wrap: wrap; gap: .6rem 2rem; align-items: flex-end; }
.side-by-side > * { min-width: 0; }
.heat { width: auto; border-spacing: 1px; }
.heat caption { text-align: left; font-size: .9rem; padding-bottom: .2rem; }
.heat th { padding: 0 .3rem; font-variant-numeric: tabular-nums; vertical-align: bottom; }
.heat .steep { writing-mode: vertical-rl; transform: rotate(180deg); padding: .3rem 0; }
.heat td { min-width: 1.72rem; height: 1.25rem; padding: 0 .1rem; border-radius: 2px;
  font-size: .7rem; font-variant-numeric: tabular-nums; --accent: var(--up);
  color: color-mix(in srgb, var(--ink) min(100%, 50% + var(--w) * 250%), var(--paper));
  background: color-mix(in srgb, var(--accent) calc(var(--w) * var(--max)), var(--paper)); }
.heat td.down { --accent: var(--down); }
.heat td.none { background: repeating-linear-gradient(-45deg, var(--line) 0 2px, #0000 2px 5px); }
.heat td.cut { padding: 0 .3rem; box-shadow: inset 0 0 0 2px var(--ink); }
.ramp { display: flex; gap: .5rem; align-items: center; color: var(--faint); font-size: .82rem;
  font-variant-numeric: tabular-nums; margin: .5rem 0 0; }
.ramp i { width: 14rem; height: .8rem; border-radius: 2px; border: 1px solid var(--line);
  background: linear-gradient(to right, color-mix(in srgb, var(--down) var(--max), var(--paper)),
  var(--paper) var(--zero), color-mix(in srgb, var(--up) var(--max), var(--paper))); }
.unit { color: var(--faint); font-size: .82rem; margin: .3rem 0 0; }
.plot { display: block; overflow: visible; width: 100%; height: auto; font-size: 13px; }
.plot text { fill: var(--faint); }
.plot .name { fill: var(--ink); }
.plot .grid { stroke: var(--line); }
.plot .line { fill: none; stroke: var(--c); stroke-width: 1.8; }
.plot .diagonal { stroke: var(--ink); stroke-width: 1.2; }
.plot .mark { fill: var(--c); stroke: var(--paper); stroke-width: .8; }
.plot .felt { fill: #0000; }
.plot .dot { fill: var(--up); fill-opacity: .6; }
.plot .dots { stroke: var(--up); stroke-opacity: .5; stroke-width: 5; stroke-linecap: round; }
.plot .shaded { fill: color-mix(in srgb, var(--down) calc(var(--w) * 100%),
  color-mix(in srgb, var(--faint) 42%, var(--paper))); }
.plot .missed { fill: var(--down); fill-opacity: .1; }
.tokens { max-width: none; color: var(--ink); line-height: 2; overflow-wrap: anywhere; }
.tokens span { padding: .12rem 0; border-bottom: 2px solid #0000; }
.tokens .on { border-bottom-color: var(--up);
  background: color-mix(in srgb, var(--up) calc(var(--w) * 52%), var(--paper)); }
.tokens .down { border-bottom-color: var(--down);
  background: color-mix(in srgb, var(--down) calc(var(--w) * 52%), var(--paper)); }
.tokens .cut { box-shadow: inset 0 0 0 2px var(--ink); }
.tokens .here { outline: 2px solid var(--ink); outline-offset: 1px; border-radius: 2px; }
.tokens .after { color: var(--faint); }
.tokens .end { border-left: 2px solid var(--down); margin: 0 .2rem; padding: .2rem 0; }
.compared { line-height: 2.8; white-space: pre-wrap; overflow-wrap: anywhere; max-width: none; color: var(--ink); }
.both { unicode-bidi: isolate; padding-bottom: 1em; border-bottom: 1px solid var(--line);
  box-decoration-break: clone; -webkit-box-decoration-break: clone; background: no-repeat
  linear-gradient(var(--down) 0 0) left bottom / 100% calc(var(--p) * .95em), no-repeat
  linear-gradient(color-mix(in srgb, var(--up) calc(var(--w) * (var(--max) - 3%)), var(--paper)) 0 0)
  left top / 100% calc(100% - 1em); }
.both.failed { background-image: repeating-linear-gradient(-45deg, var(--faint) 0 1px, #0000 1px 4px),
  linear-gradient(color-mix(in srgb, var(--up) calc(var(--w) * (var(--max) - 3%)), var(--paper)) 0 0);
  background-size: 100% .95em, 100% calc(100% - 1em); }
.ramp i.true { background: linear-gradient(to right, var(--paper),
  color-mix(in srgb, var(--up) calc(var(--max) - 3%), var(--paper))); }
.ramp i.predicted { border: 0; border-radius: 0; background: var(--down);
  clip-path: polygon(0 100%, 100% 0, 100% 100%); }
.tree, .tree ul { list-style: none; margin: .1rem 0; padding-left: 1.1rem;
  border-left: 1px solid var(--line); font-size: .9rem; }
.tree summary { cursor: pointer; }
.tree b { font-weight: 400; font-variant-numeric: tabular-nums; color: var(--up); }
.tree b.down { color: var(--down); }
.tree small { color: var(--faint); }
.cloud { display: flex; flex-wrap: wrap; gap: 0 1.6rem; }
.cloud .plot { flex: 1 1 26rem; }
.cloud ol { flex: 1 1 18rem; margin: 1rem 0; padding-left: 1.4rem; }
footer { margin-top: 2.6rem; border-top: 1px solid var(--line); padding-top: .6rem;
  color: var(--faint); font-size: .85rem; }
""".strip()


def page(title: str, lead: str, sections: Iterable[str], footer: str) -> str:
  """Makes a page of sections.

  Args:
    title: title of the page.
    lead: one sentence below the title.
    sections: HTML from `section`.
    footer: provenance of the page.

  Returns:
    The HTML.
  """
  return document(
    title,
    f'<h1>{html.escape(title)}</h1>\n<p>{html.escape(lead)}</p>\n'
    + '\n'.join(sections)
    + f'\n<footer>{html.escape(footer)}</footer>',
  )


def document(title: str, body: str, *, style: str = '', head: str = '') -> str:
  """Makes a document with any body, in the colours and fonts of all pages.

  Args:
    title: title of the window.
    body: HTML.
    style: additional CSS.
    head: HTML that comes first in the head.

  Returns:
    The HTML.
  """
  styles = '\n'.join(filter(None, (_STYLE, style)))
  return (
    f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n{head}'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    f'<title>{html.escape(title)}</title>\n<style>\n{styles}\n</style>\n</head>\n<body>\n'
    f'{body}\n</body>\n</html>\n'
  )


def make_policy(script: str) -> str:
  """Makes the head of a page that forbids everything except one script and the styles of the page."""
  digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
  return (
    "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; base-uri 'none'; "
    f"form-action 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'\">\n"
  )


def section(title: str, text: str, body: str) -> str:
  """Makes a titled section of a page.

  Args:
    title: its heading.
    text: explanation of the picture.
    body: HTML from `bars`, `words`, `heatmap` and so on.

  Returns:
    The HTML.
  """
  return f'<section>\n<h2>{html.escape(title)}</h2>\n<p>{html.escape(text)}</p>\n{body}\n</section>'


def bars(
  labels: Sequence[str],
  values: Sequence[float],
  *,
  unit: str,
  number: str = '{:.3f}',
  limit: float = math.inf,
) -> str:
  """Draws horizontal bars around a common zero, each with its number at its end.

  Args:
    labels: labels of the bars.
    values: their lengths; negative ones point left and have another colour.
    unit: the quantity, with its unit.
    number: format of the numbers.
    limit: magnitude at which longer bars are cut and hatched; see `scale.limit`.

  Returns:
    The HTML.
  """
  drawn = [scale.cut(v, limit) for v in values]
  low, high = min(0.0, *drawn), max(0.0, *drawn)
  # Numbers are outside their bars, so each side that has bars reserves room for them.
  left, right = 12.0 * (low < 0), 12.0 * (high > 0)
  percent = (100 - left - right) / (high - low or 1.0)
  zero = left - low * percent
  rows = [
    f'<span class="name word">{html.escape(label)}</span>'
    + _bar(length * percent, zero, number.format(value), abs(value) > limit)
    for label, value, length in zip(labels, values, drawn, strict=True)
  ]
  return (
    f'<div class="bars" style="--zero:{zero:.2f}%">\n'
    + '\n'.join(rows)
    + f'\n</div>\n<div class="unit">{html.escape(unit)}</div>'
  )


def _bar(length: float, zero: float, number: str, is_cut: bool) -> str:
  """Draws one bar of signed length from zero, both in percent of the track."""
  number, kind = html.escape(number), 'cut' if is_cut else ''
  if length < 0:
    bar = f'<i class="down {kind}" style="left:{zero + length:.2f}%;width:{-length:.2f}%"></i>'
    text = f'<b style="right:calc({100 - zero - length:.2f}% + .35rem)">{number}</b>'
  else:
    bar = f'<i class="{kind}" style="left:{zero:.2f}%;width:{length:.2f}%"></i>'
    text = f'<b style="left:calc({zero + length:.2f}% + .35rem)">{number}</b>'
  return f'<span class="track">{bar}{text}</span>'


def words(
  cells: Sequence[Sequence[str]],
  weights: Sequence[Sequence[float]],
  *,
  rows: Sequence[str],
  columns: Sequence[str],
  corner: str,
  unit: str,
) -> str:
  """Makes a table of words, coloured by a number that is shown as a tooltip.

  Args:
    cells: [rows][columns] words.
    weights: [rows][columns] numbers from 0 to 1.
    rows: a label for each row.
    columns: a label for each column.
    corner: name of the rows and the columns.
    unit: meaning of the numbers.

  Returns:
    The HTML.
  """
  head = ''.join(f'<th scope="col" class="word">{html.escape(c)}</th>' for c in columns)
  lines = [f'<tr><th>{html.escape(corner)}</th>{head}</tr>']
  for label, words_, numbers in zip(rows, cells, weights, strict=True):
    row = ''.join(
      f'<td class="word" style="--w:{w:.3f}" title="{w:.3f}">{html.escape(word)}</td>'
      for word, w in zip(words_, numbers, strict=True)
    )
    lines.append(f'<tr><th scope="row">{html.escape(label)}</th>{row}</tr>')
  table = '\n'.join(lines)
  return (
    f'<div class="scroll"><table>\n{table}\n</table></div>\n'
    f'<div class="unit">{html.escape(unit)}</div>'
  )


def heatmap(
  values: Sequence[Sequence[float]],
  notes: Sequence[Sequence[str]],
  *,
  rows: Sequence[str],
  columns: Sequence[str],
  title: str,
  axes: tuple[str, str],
  limit: float,
  number: str = '{:.2f}',
) -> str:
  """Makes a heat map of numbers with a note as tooltip of each cell. `ramp` is its scale.

  Args:
    values: [rows][columns] numbers; NaN marks a missing one, whose cell is hatched.
    notes: [rows][columns] tooltips.
    rows: a label for each row.
    columns: a label for each column; long ones are written upwards.
    title: caption above; may be empty.
    axes: names of the rows and of the columns.
    limit: magnitude at which the colours end; a cell beyond it is framed.
    number: format of the numbers.

  Returns:
    The HTML.
  """
  kind = 'word steep' if max(map(len, columns)) > 4 else 'word'
  head = ''.join(
    f'<th scope="col"><span class="{kind}">{html.escape(c)}</span></th>' for c in columns
  )
  lines = [
    f'<caption>{html.escape(title)}</caption>' if title else '',
    f'<tr><th></th><th colspan="{len(columns)}">{html.escape(axes[1])}</th></tr>',
    f'<tr><th>{html.escape(axes[0])}</th>{head}</tr>',
  ]
  for label, numbers, texts in zip(rows, values, notes, strict=True):
    cells = zip(numbers, texts, strict=True)
    row = ''.join(_cell(v, limit, number, html.escape(note)) for v, note in cells)
    lines.append(f'<tr><th scope="row">{html.escape(label)}</th>{row}</tr>')
  table = '\n'.join(lines)
  return f'<div class="scroll"><table class="heat">\n{table}\n</table></div>'


def ramp(limit: float, *, signed: bool, unit: str, number: str = '{:.2f}') -> str:
  """Makes the colour scale of one or more heat maps.

  Args:
    limit: as in `heatmap`.
    signed: whether the colours extend to -limit, or begin at 0.
    unit: the quantity, with its unit.
    number: format of the numbers.

  Returns:
    The HTML.
  """
  low, zero = (number.format(-limit), 50) if signed else ('0', 0)
  return (
    f'<div class="ramp">{low}<i style="--zero:{zero}%"></i>{number.format(limit)}</div>\n'
    f'<div class="unit">{html.escape(unit)}</div>'
  )


def side_by_side(bodies: Iterable[str]) -> str:
  """Places several bodies next to each other, or below each other if there is no room."""
  return '<div class="side-by-side">\n' + '\n'.join(bodies) + '\n</div>'


def _cell(value: float, limit: float, number: str, note: str) -> str:
  if math.isnan(value):
    return f'<td class="none" title="{note}"></td>'
  text = number.format(value)
  # In a nearly empty map, a hundred -0.00 would hide the other numbers.
  text = text.replace('0.', '.', 1) if abs(value) < 1 and 'e' not in text else text
  text = text if float(text) else '0'
  kind = ('down ' if value < 0 else '') + ('cut' if abs(value) > limit else '')
  weight = abs(scale.cut(value, limit)) / limit
  return f'<td class="{kind.strip()}" style="--w:{weight:.3f}" title="{note}">{text}</td>'
