"""Draws docs/architecture.svg: the floors, the rooms on them, and the imports between rooms.

    python -m docs.draw

The picture is made from the imports themselves, by the reader of `tests/layering_test.py`, so that it cannot be wrong;
`tests/docs_test.py` compares it with the file. Two kinds of arrows are left out: those to the lowest floor, which
every room may use, and those that follow from others (viz uses forward through patching).

The file has its own background, colours for light and dark mode, and no script.
"""

from __future__ import annotations

import itertools
import pathlib
from collections.abc import Mapping, Sequence

from tests.layering_test import EDGES, FLOORS, SOURCES, room

FILE = pathlib.Path(__file__).with_name('architecture.svg')
WIDTH, LEFT, RIGHT, TOP = 1240, 76, 20, 20  # width of the picture, and of its margins
HEIGHT, GAP, BOX = 40, 52, 99  # height of a box; distance between floors; width of a box
PASSAGE, PORT = 0.3, 14  # width of an arrow that crosses a floor, in boxes; gap of arrows at a box

STYLE = """
  svg { color-scheme: light dark; --paper: #fdfdfc; --ink: #1c2733; --faint: #5d6874; --band: #f0f2f4; --box: #ffffff;
    --line: #3d6fa5; }
  @media (prefers-color-scheme: dark) { svg { --paper: #14181d; --ink: #e4e8ec; --faint: #9aa5b1; --band: #1c222a;
    --box: #262e38; --line: #7fb2e5; } }
  .paper { fill: var(--paper); } .band { fill: var(--band); }
  .room { fill: var(--box); stroke: var(--faint); } .head { fill: var(--line); }
  .arrow { fill: none; stroke: var(--line); stroke-width: 1.6; }
  text { font: 14px system-ui, sans-serif; fill: var(--ink); text-anchor: middle; }
  .floor { font-size: 12px; fill: var(--faint); text-anchor: start; }
""".strip('\n')


Point = tuple[float, float]
Node = str | tuple[str, str, int]
"""A room, or the point where an arrow (user, used) crosses a floor, with the floor's number."""


def draw() -> str:
  """The picture, as SVG."""
  rooms = {room(path) for path in SOURCES} - {''}
  floors = [sorted(floor & rooms) for floor in FLOORS if floor & rooms]
  arrows = sorted(reduce_edges({e for e in EDGES if e[1] not in floors[0]}))
  ways = {arrow: crossings(arrow, floors) for arrow in arrows}
  at = places(floors, ways)
  height = 2 * TOP + len(floors) * (HEIGHT + GAP) - GAP + 24
  bands = [_band(number, at[floor[0]][1]) for number, floor in enumerate(floors)]
  ends = ports(arrows, at)
  curves = [_arrow(*ends[a], [at[node] for node in ways[a]]) for a in arrows]
  boxes = [_box(name, *at[name]) for floor in floors for name in floor]
  return '\n'.join(
    [
      f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
      '<title>The floors of mechjax, and which room imports which</title>',
      f'<style>\n{STYLE}\n</style>',
      '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
      'orient="auto"><path class="head" d="M0 0 L8 4 L0 8 z"/></marker></defs>',
      f'<rect class="paper" width="{WIDTH}" height="{height}"/>',
      *bands,
      *curves,
      *boxes,
      '</svg>\n',
    ]
  )


def reduce_edges(edges: set[tuple[str, str]]) -> set[tuple[str, str]]:
  """The edges that do not follow from others: the transitive reduction of a graph without circles."""

  def reached(start: str, left: set[tuple[str, str]]) -> set[str]:
    direct = {used for user, used in left if user == start}
    return direct.union(*(reached(used, left) for used in direct))

  return {(user, used) for user, used in edges if used not in reached(user, edges - {(user, used)})}


def crossings(arrow: tuple[str, str], floors: Sequence[list[str]]) -> list[Node]:
  """The points where an arrow crosses the floors between its ends, from the upper end down."""
  upper, lower = (next(n for n, f in enumerate(floors) if name in f) for name in arrow)
  return [(*arrow, n) for n in range(upper - 1, lower, -1)]


def places(
  floors: Sequence[list[str]], ways: Mapping[tuple[str, str], list[Node]]
) -> dict[Node, Point]:
  """The centre of every node. A room stands above the rooms that it uses, as far as there is space."""
  below: dict[Node, list[Node]] = {}
  for (user, used), way in ways.items():
    for node, lower in itertools.pairwise([user, *way, used]):
      below.setdefault(node, []).append(lower)
  found: dict[Node, Point] = {}
  for number, floor in enumerate(floors):
    y = TOP + 12 + (len(floors) - 1 - number) * (HEIGHT + GAP) + HEIGHT / 2
    nodes: list[Node] = [*floor, *(n for way in ways.values() for n in way if n[2] == number)]
    middle = {}
    for node in nodes:
      xs = [found[lower][0] for lower in below.get(node, ()) if lower in found]
      middle[node] = sum(xs) / len(xs) if xs else WIDTH / 2
    wide = {node: 1.0 if isinstance(node, str) else PASSAGE for node in nodes}
    step, left = (WIDTH - LEFT - RIGHT) / sum(wide.values()), float(LEFT)
    for node in sorted(nodes, key=lambda node: (middle[node], str(node))):
      found[node] = (round(left + step * wide[node] / 2, 1), y)
      left += step * wide[node]
  return found


def ports(
  arrows: Sequence[tuple[str, str]], at: Mapping[Node, Point]
) -> dict[tuple[str, str], tuple[Point, Point]]:
  """The start and the end of each arrow. Arrows lie side by side along the edge of a box."""
  edges: dict[tuple[str, float], list[tuple[float, tuple[str, str], int]]] = {}
  for arrow in arrows:
    (x, y), (to, below) = at[arrow[0]], at[arrow[1]]
    edges.setdefault((arrow[0], y + HEIGHT / 2), []).append((to, arrow, 0))
    side = HEIGHT / 2 if y == below else -HEIGHT / 2
    edges.setdefault((arrow[1], below + side), []).append((x, arrow, 1))
  found: dict[tuple[str, str], list[Point]] = {arrow: [(0, 0), (0, 0)] for arrow in arrows}
  for (name, y), ends in edges.items():
    for n, (_, arrow, end) in enumerate(sorted(ends)):
      found[arrow][end] = (at[name][0] + (n - (len(ends) - 1) / 2) * PORT, y)
  return {arrow: (ends[0], ends[1]) for arrow, ends in found.items()}


def _band(number: int, y: float) -> str:
  top = y - HEIGHT / 2 - 12
  return (
    f'<rect class="band" x="8" y="{top:g}" width="{WIDTH - 16}" height="{HEIGHT + 24}" rx="8"/>'
    f'<text class="floor" x="20" y="{y + 4:g}">floor {number}</text>'
  )


def _box(name: str, x: float, y: float) -> str:
  return (
    f'<rect class="room" x="{x - BOX / 2:g}" y="{y - HEIGHT / 2:g}" width="{BOX}" height="{HEIGHT}" rx="6"/>'
    f'<text x="{x:g}" y="{y + 5:g}">{name}</text>'
  )


def _arrow(start: Point, end: Point, way: Sequence[Point]) -> str:
  (x, y), (to, below) = start, end
  if y == below:  # neighbours on one floor: an arc under the boxes between them
    deep = y + 16 + abs(to - x) / 30
    path = f'M{x:g} {y:g} C{x:g} {deep:g} {to:g} {deep:g} {to:g} {y + 1:g}'
  else:
    path = f'M{x:g} {y:g}'
    for a, b in [*((a, b - HEIGHT / 2) for a, b in way), (to, below - 1)]:
      path += f' C{x:g} {(y + b) / 2 + 8:g} {a:g} {(y + b) / 2 - 8:g} {a:g} {b:g}'
      x, y = a, b
      if b != below - 1:
        y = b + HEIGHT
        path += f' L{x:g} {y:g}'
  return f'<path class="arrow" marker-end="url(#head)" d="{path}"/>'


if __name__ == '__main__':
  FILE.write_text(draw())
