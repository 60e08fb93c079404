"""A page of one attribution graph: tokens along the bottom, layers upwards, links by weight, and a panel for each node.

    html = graph_page(graph, title='The capital of France is', supernodes=read_supernodes('groups.json'))

`graph` is plain data (`mechjax.circuits.graph_data` describes it), so that graphs of this project and of others are
shown alike. Sliders prune: the fewest nodes that hold a share of the influence on the outputs stay (tokens and outputs
always), of the links between them the fewest that hold a share of the scores, and then nodes that lead nowhere or begin
from nothing go (Ameisen et al. 2025, "Circuit Tracing"; the rules of circuit-tracer). Influence is a sum of magnitudes
and cannot show that two paths cancel, so the signed share of a node, an exact part of its target, stands next to it.

Supernodes are groups of nodes that are drawn as one, at the median of their places, with the sums of their links. The
page is a single self-contained file, which loads nothing; '#node=ID' at the end of its address selects a node. Shapes
tell the kinds apart, and dashes the negative links, so that the picture can be read without colours.

Sharp edge: the strongest 2,500 links are drawn, and those of the selected node; the page states it.
"""

from __future__ import annotations

import html
import numbers
from importlib import resources

from mechjax.circuits.graph_data import (
  Graph,
  Supernodes,
  check_graph,
  check_supernodes,
  read_supernodes,
)
from mechjax.errors import CircuitError
from mechjax.viz import page
from mechjax.viz.dashboard.payload import as_json

__all__ = ['graph_page', 'read_supernodes']

LEGEND = (
  'circle: feature · diamond: error · triangle: bias · square: token · hexagon: output · box: supernode · '
  'solid blue link: positive · dashed red link: negative'
)


def graph_page(
  graph: Graph,
  *,
  title: str,
  lead: str = '',
  nodes: float = 0.8,
  links: float = 0.98,
  supernodes: Supernodes | None = None,
  footer: str = '',
) -> str:
  """Makes the page.

  Args:
    graph: the graph, see `mechjax.circuits.graph_data`.
    title: title of the page.
    lead: a sentence below the title.
    nodes: share of the influence that the kept nodes have at first.
    links: share of the scores that the kept links have at first.
    supernodes: ids of the nodes of each group, keyed by its label.
    footer: provenance of the page.

  Returns:
    The HTML.

  Raises:
    CircuitError: a graph that is not one, supernodes of other nodes, a share that is not in (0, 1].
  """
  checked = check_graph(graph)
  for name, share in (('nodes', nodes), ('links', links)):
    if not isinstance(share, numbers.Real) or not 0 < share <= 1:
      raise CircuitError(f'{name}={share!r} should be a share above 0 and at most 1')
  groups = check_supernodes(supernodes or {}, [node['id'] for node in checked['nodes']])
  data = checked | {'supernodes': groups, 'thresholds': {'nodes': nodes, 'links': links}}
  script, style = _file('script.js'), _file('style.css')
  body = (
    f'<h1>{html.escape(title)}</h1>\n<p>{html.escape(lead)}</p>\n{_EXPLORER}\n'
    f'<div class="legend">{LEGEND}</div>\n<footer>{html.escape(footer)}</footer>\n'
    f'<script type="application/json" id="data">{as_json(data)}</script>\n<script>{script}</script>'
  )
  return page.document(title, body, style=style, head=page.make_policy(script))


def _file(name: str) -> str:
  return resources.files(__name__).joinpath(name).read_text(encoding='utf-8')


_EXPLORER = """
<noscript><p>The graph is drawn by the script of this page, which this browser does not run.</p></noscript>
<div id="explorer" hidden>
<div class="controls">
<label>nodes: share of influence <input type="range" id="node-share" min="0.05" max="1" step="0.01">
<output id="node-share-value"></output></label>
<label>links: share of scores <input type="range" id="link-share" min="0.05" max="1" step="0.01">
<output id="link-share-value"></output></label>
<label>shade nodes by <select id="colour"><option value="influence">influence</option>
<option value="share">signed share</option></select></label>
<label id="grouping"><input type="checkbox" id="grouped"> draw supernodes</label>
</div>
<div id="count" aria-live="polite"></div>
<div class="explorer">
<div id="picture"></div>
<aside id="panel"></aside>
</div>
</div>
""".strip()
