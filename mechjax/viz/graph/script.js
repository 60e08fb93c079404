// The script of the page of an attribution graph. Strings reach the page only through textContent, title and
// aria-label, so they cannot become elements.
'use strict';
(() => {
  const data = JSON.parse(document.getElementById('data').textContent);
  const nodes = data.nodes, links = data.links, N = nodes.length;
  const find = (id) => document.getElementById(id);
  const MAX_LINKS = 2500, STEP = 15, ROW = 40, LEFT = 52, BOTTOM = 84,
    TOP = 92, RIGHT = 110;
  const state = {nodes: data.thresholds.nodes, links: data.thresholds.links, selected: null,
    grouped: Object.keys(data.supernodes).length > 0, colour: 'influence'};

  // --- helpers --------------------------------------------------------------------------------

  function make(tag, properties, ...children) {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  }

  function draw(tag, attributes, ...children) {
    const element = document.createElementNS('http://www.w3.org/2000/svg', tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  }

  function formatNumber(value) {
    if (value === null || value === undefined) return '–';
    if (value === 0) return '0';
    if (Math.abs(value) >= 1000) return Math.round(value).toLocaleString('en');
    return String(Number(value.toPrecision(3)));
  }

  const SIGNS = {' ': '␣', '\n': '↵', '\t': '⇥', '\r': '␍'};

  function showBlanks(piece) {
    return piece.replace(/[\p{C}\p{Z}]/gu, (c) =>
      SIGNS[c] || '\\u{' + c.codePointAt(0).toString(16) + '}');
  }

  // --- influence and pruning --------------------------------------------------------------------

  const order = (() => {  // sources before their targets
    const waiting = new Int32Array(N), out = nodes.map(() => []), sorted = [];
    for (const [s, t] of links) { waiting[t]++; out[s].push(t); }
    const ready = [...nodes.keys()].filter((i) => !waiting[i]);
    while (ready.length) {
      const s = ready.pop();
      sorted.push(s);
      for (const t of out[s]) if (--waiting[t] === 0) ready.push(t);
    }
    return sorted;
  })();
  const rank = new Int32Array(N);
  order.forEach((i, n) => { rank[i] = n; });

  function measure(kept) {  // influence of each node, and the score of each link, among the kept nodes
    const total = new Float64Array(N), influence = new Float64Array(N);
    const inside = [...links.keys()].filter((n) => kept[links[n][0]] && kept[links[n][1]]);
    for (const n of inside) total[links[n][1]] += Math.abs(links[n][2]);
    const scores = new Float64Array(links.length);
    inside.sort((a, b) => rank[links[b][1]] - rank[links[a][1]]);
    for (const n of inside) {
      const [s, t, weight] = links[n];
      if (!total[t]) continue;
      scores[n] = Math.abs(weight) / total[t] * (influence[t] + (nodes[t].probability || 0));
      influence[s] += scores[n];
    }
    return {influence, scores, inside};
  }

  function fewest(items, value, share) {  // the fewest items that reach a share of the sum
    const sorted = [...items].sort((a, b) => value(b) - value(a));
    const whole = sorted.reduce((sum, i) => sum + value(i), 0), kept = [];
    let sum = 0;
    for (const i of sorted) {
      if (share < 1 && sum >= share * whole * (1 - 1e-12)) break;
      kept.push(i);
      sum += value(i);
    }
    return kept;
  }

  const isToken = (node) => node.kind === 'logit' || node.kind === 'embedding';  // these are never pruned
  const all = measure(new Uint8Array(N).fill(1));

  function prune() {
    const kept = new Uint8Array(N);
    const inner = [...nodes.keys()].filter((i) => nodes[i].kind !== 'logit');
    for (const i of fewest(inner, (i) => all.influence[i], state.nodes)) kept[i] = 1;
    nodes.forEach((node, i) => { if (isToken(node)) kept[i] = 1; });
    const {scores, inside} = measure(kept);
    let left = fewest(inside, (n) => scores[n], state.links);
    for (let changed = true; changed;) {
      const into = new Uint8Array(N), from = new Uint8Array(N);
      for (const n of left) { from[links[n][0]] = 1; into[links[n][1]] = 1; }
      changed = false;
      nodes.forEach((node, i) => {
        if (!kept[i] || isToken(node)) return;
        if (from[i] && (node.kind !== 'feature' || into[i])) return;
        kept[i] = 0;
        changed = true;
      });
      if (changed) left = left.filter((n) => kept[links[n][0]] && kept[links[n][1]]);
    }
    return {kept, left, scores};
  }

  // A bias that acts at all positions has a column of its own, after the tokens.
  const columnOf = (node) => node.position === null ? data.tokens.length : node.position;
  const columns = [...data.tokens.map(showBlanks),
    ...(nodes.some((node) => node.position === null) ? ['biases'] : [])];

  // --- what is shown: nodes, or groups of them -------------------------------------------------

  function middle(values) {
    return [...values].sort((a, b) => a - b)[Math.floor((values.length - 1) / 2)];
  }

  function collect(pruned) {
    const at = new Map(nodes.map((node, i) => [node.id, i])), owner = new Map(), shown = [];
    if (state.grouped) {
      for (const [label, ids] of Object.entries(data.supernodes)) {
        const members = ids.map((id) => at.get(id)).filter((i) => i !== undefined && pruned.kept[i]);
        if (!members.length) continue;
        const own = members.map((i) => nodes[i]);
        const sum = (name) => own.reduce((total, node) => total + (node[name] || 0), 0);
        const group = {id: 'group:' + label, kind: 'group', label, members: own,
          layer: middle(own.map((n) => n.layer === null ? -1 : n.layer)), position: middle(own.map(columnOf)),
          influence: members.reduce((total, i) => total + all.influence[i], 0),
          share: own.some((n) => n.share !== null) ? sum('share') : null};
        members.forEach((i) => owner.set(i, group));
        shown.push(group);
      }
    }
    nodes.forEach((node, i) => {
      if (!pruned.kept[i] || owner.has(i)) return;
      const single = {...node, influence: all.influence[i]};
      owner.set(i, single);
      shown.push(single);
    });
    const sums = new Map();
    for (const n of pruned.left) {
      const [s, t, weight] = links[n], a = owner.get(s), b = owner.get(t);
      if (a === b) continue;
      const key = a.id + '\u0000' + b.id;
      if (!sums.has(key)) sums.set(key, {from: a, to: b, weight: 0, score: 0});
      sums.get(key).weight += weight;
      sums.get(key).score += pruned.scores[n];
    }
    return {shown, edges: [...sums.values()].sort((a, b) => b.score - a.score)};
  }

  function place(shown) {  // sets x and y of every node; returns the size, the rows and the columns
    const cells = new Map(), wide = columns.map(() => 1);
    const row = (node) => node.kind === 'embedding' || node.layer === null ? -1 :
      node.kind === 'logit' ? data.layers : node.layer;
    for (const node of shown) {
      const column = columnOf(node), key = row(node) + ' ' + column;
      if (!cells.has(key)) cells.set(key, []);
      cells.get(key).push(node);
      wide[column] = Math.max(wide[column], cells.get(key).length);
    }
    const rows = [...new Set(shown.map(row))].sort((a, b) => a - b), starts = [LEFT];
    const room = (find('picture').clientWidth - LEFT - RIGHT - 4) / wide.length;
    for (const n of wide) starts.push(starts.at(-1) + Math.max(46, Math.min(room, 120), n * STEP + 12));
    const height = TOP + ROW * Math.max(1, rows.length) + BOTTOM;
    const ys = new Map(rows.map((r, n) => [r, height - BOTTOM - ROW * n]));
    for (const [key, members] of cells) {
      const [r, t] = key.split(' ').map(Number);
      const centre = (starts[t] + starts[t + 1]) / 2;
      members.sort((a, b) => b.influence - a.influence).forEach((node, n) => {
        node.x = centre + (n - (members.length - 1) / 2) * STEP;
        node.y = ys.get(r);
      });
    }
    return {width: starts.at(-1) + RIGHT, height, ys, starts};
  }

  // --- drawing ------------------------------------------------------------------------------------

  const SHAPES = {
    feature: 'M-5 0a5 5 0 1 0 10 0a5 5 0 1 0-10 0z', error: 'M0-6L6 0L0 6L-6 0z',
    embedding: 'M-5-5h10v10h-10z', bias: 'M0-6L6 5H-6z', logit: 'M-6-3L0-7L6-3V4L0 7L-6 4z',
    group: 'M-7-5h14v10h-14z',
  };
  const WORDS = {feature: 'feature', error: 'error', embedding: 'token', bias: 'bias', logit: 'output',
    group: 'supernode'};

  function title(node) {
    const where = node.kind === 'group' ? node.members.length + ' nodes' :
      [isToken(node) || node.layer === null ? '' : 'layer ' + node.layer, node.position === null ? '' :
        'position ' + node.position + ' ' + columns[node.position]].filter(Boolean).join(', ');
    const name = node.kind === 'feature' && node.latent !== null ? ' ' + node.latent : '';
    const label = isToken(node) ? showBlanks(node.label || '') : node.label;
    return WORDS[node.kind] + name + (where ? ', ' + where : '') + (label ? ': ' + label : '');
  }

  let view;

  function render() {
    const pruned = prune();
    view = collect(pruned);
    const frame = place(view.shown);
    if (state.selected && !view.shown.some((node) => node.id === state.selected)) state.selected = null;
    const svg = draw('svg', {class: 'graph', viewBox: `0 0 ${frame.width} ${frame.height}`,
      width: frame.width, height: frame.height, role: 'group', 'aria-label': 'Attribution graph'});
    for (const [row, y] of frame.ys) {
      const name = row === -1 ? 'token' : row === data.layers ? 'output' : String(row);
      svg.append(draw('text', {class: 'row', x: 4, y: y + 4}, name));
      svg.append(draw('path', {class: 'grid', d: `M${LEFT - 6} ${y}H${frame.width - RIGHT + 16}`}));
    }
    columns.forEach((piece, t) => {
      const x = (frame.starts[t] + frame.starts[t + 1]) / 2, y = frame.height - BOTTOM + 22;
      svg.append(draw('text', {class: 'token', transform: `translate(${x - 3} ${y}) rotate(38)`}, piece));
    });
    const largest = view.edges.reduce((max, edge) => Math.max(max, Math.abs(edge.weight)), 0) || 1;
    const some = view.edges.slice(0, MAX_LINKS), mine = (edge) =>
      edge.from.id === state.selected || edge.to.id === state.selected;
    const lines = draw('g', {class: state.selected ? 'lines dim' : 'lines'});
    for (const edge of [...some.filter((e) => !mine(e)), ...view.edges.filter(mine)]) {
      const {from, to, weight} = edge, bend = (from.y - to.y) / 2;
      lines.append(draw('path', {class: (weight < 0 ? 'down' : 'up') + (mine(edge) ? ' own' : ''),
        d: `M${from.x} ${from.y}C${from.x} ${from.y - bend} ${to.x} ${to.y + bend} ${to.x} ${to.y}`,
        'stroke-width': (0.4 + 3.6 * Math.abs(weight) / largest).toFixed(2)}));
    }
    svg.append(lines);
    const near = new Set(view.edges.filter(mine).flatMap((edge) => [edge.from.id, edge.to.id]));
    const top = view.shown.reduce((max, node) => Math.max(max, Math.abs(amount(node))), 0) || 1;
    for (const node of view.shown) svg.append(mark(node, near, top));
    find('picture').replaceChildren(svg);
    const counts = `${pruned.kept.reduce((a, b) => a + b, 0)} of ${N} nodes, ` +
      `${pruned.left.length} of ${links.length} links` +
      (view.edges.length > some.length ? `; the ${MAX_LINKS} strongest are drawn` : '');
    find('count').textContent = counts;
    for (const [id, value] of [['node-share', state.nodes], ['link-share', state.links]]) {
      find(id).value = value;
      find(id + '-value').textContent = Number(value).toFixed(2);
    }
    describe();
  }

  function amount(node) {
    if (state.colour === 'share') return node.share || 0;
    return node.influence || node.probability || 0;
  }

  function mark(node, near, top) {
    const weight = Math.min(1, Math.abs(amount(node)) / top), name = title(node);
    const kinds = ['node', node.kind, amount(node) < 0 ? 'down' : 'up'];
    if (node.id === state.selected) kinds.push('selected');
    else if (state.selected && !near.has(node.id)) kinds.push('far');
    const parts = [draw('title', {}, name + '\ninfluence ' + formatNumber(node.influence) +
      ', signed share ' + formatNumber(node.share)), draw('path', {d: SHAPES[node.kind]})];
    if (node.kind === 'group') parts.push(draw('text', {x: 0, y: -9}, node.label));
    if (node.kind === 'logit') {
      parts.push(draw('text', {transform: 'translate(2 -11) rotate(-38)', class: 'left'},
        showBlanks(node.label || '') + ' ' + formatNumber(node.probability)));
    }
    const element = draw('g', {class: kinds.join(' '), transform: `translate(${node.x} ${node.y})`,
      style: `--w:${(0.15 + 0.85 * weight).toFixed(3)}`, tabindex: 0, role: 'button', 'aria-label': name,
      'data-id': node.id}, ...parts);
    element.addEventListener('click', () => select(node.id));
    element.addEventListener('keydown', (event) => {
      if (event.key === 'Enter' || event.key === ' ') { event.preventDefault(); select(node.id); }
    });
    return element;
  }

  function select(id) {
    state.selected = state.selected === id ? null : id;
    history.replaceState(null, '', state.selected ? '#node=' + encodeURIComponent(id) : '#');
    render();
  }

  // --- the panel ----------------------------------------------------------------------------------

  function describe() {
    const node = view.shown.find((one) => one.id === state.selected);
    if (!node) {
      find('panel').replaceChildren(make('p', {textContent: 'Select a node to see its inputs, its outputs and its texts.'}));
      return;
    }
    const parts = [make('h2', {textContent: title(node)})], facts = make('dl', {className: 'facts'});
    const known = [['Influence', node.kind === 'logit' ? null : node.influence], ['Signed share', node.share],
      ['Activation', node.activation], ['Probability', node.probability]];
    for (const [name, value] of known) {
      if (value === undefined || value === null) continue;
      facts.append(make('div', {}, make('dt', {textContent: name}), make('dd', {textContent: formatNumber(value)})));
    }
    parts.push(facts, table('Inputs', view.edges.filter((e) => e.to === node), (e) => e.from));
    parts.push(table('Outputs', view.edges.filter((e) => e.from === node), (e) => e.to));
    if (node.members) {
      parts.push(make('h3', {textContent: 'Members'}));
      for (const member of node.members) parts.push(make('p', {textContent: title(member)}));
    }
    if (node.promoted && node.promoted.length) {
      parts.push(make('h3', {textContent: 'Promoted tokens'}));
      parts.push(make('p', {className: 'word', textContent: node.promoted.map(showBlanks).join('  ')}));
    }
    if (node.contexts && node.contexts.length) {
      parts.push(make('h3', {textContent: 'Contexts'}), ...node.contexts.map(context));
    }
    find('panel').replaceChildren(...parts.filter(Boolean));
  }

  function context(pieces) {
    const strongest = Math.max(...pieces.map(([, value]) => value), 1e-30);
    return make('p', {className: 'tokens word'}, ...pieces.map(([piece, value]) => {
      const span = make('span', {textContent: showBlanks(piece), title: formatNumber(value)});
      if (value > 0) { span.className = 'on'; span.style.setProperty('--w', (value / strongest).toFixed(3)); }
      return span;
    }));
  }

  function table(name, edges, other) {
    if (!edges.length) return null;
    const whole = edges.reduce((sum, edge) => sum + Math.abs(edge.weight), 0) || 1;
    const body = make('tbody', {});
    for (const edge of [...edges].sort((a, b) => Math.abs(b.weight) - Math.abs(a.weight)).slice(0, 14)) {
      const node = other(edge), button = make('button', {textContent: title(node)});
      button.addEventListener('click', () => select(node.id));
      body.append(make('tr', {}, make('td', {}, button),
        make('td', {textContent: formatNumber(edge.weight), className: edge.weight < 0 ? 'down' : 'up'}),
        make('td', {textContent: formatNumber(100 * Math.abs(edge.weight) / whole) + ' %'})));
    }
    return make('table', {}, make('caption', {textContent: name}), make('thead', {}, make('tr', {},
      ...['node', 'weight', 'share of these'].map((text) => make('th', {textContent: text})))), body);
  }

  // --- controls ---------------------------------------------------------------------------------

  find('node-share').addEventListener('input', (e) => { state.nodes = Number(e.target.value); render(); });
  find('link-share').addEventListener('input', (e) => { state.links = Number(e.target.value); render(); });
  find('colour').addEventListener('change', (e) => { state.colour = e.target.value; render(); });
  find('grouped').addEventListener('change', (e) => { state.grouped = e.target.checked; render(); });
  find('grouped').checked = state.grouped;
  find('grouping').hidden = !Object.keys(data.supernodes).length;
  document.addEventListener('keydown', (e) => {
    if (e.key === 'Escape' && state.selected) select(state.selected);
  });

  function open() {
    const found = location.hash.match(/^#node=(.*)$/);
    state.selected = found ? decodeURIComponent(found[1]) : null;
    render();
  }
  addEventListener('hashchange', open);
  find('explorer').hidden = false;
  open();
})();
