// The script of a dashboard; on a page with explanations, explanations.js stands before it. Strings from a model or a
// corpus reach the page only through textContent and title, so they cannot become elements; links are built from
// numbers.
'use strict';
(() => {
  const data = JSON.parse(document.getElementById('data').textContent);
  const at = new Map(data.latents.map((latent, row) => [latent, row]));
  const find = (id) => document.getElementById(id);
  const PAGE = 200;

  // --- helpers --------------------------------------------------------------------------------

  function make(tag, properties, ...children) {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  }

  function setStyle(element, name, value) {
    element.style.setProperty(name, value);
    return element;
  }

  function formatNumber(value) {
    if (value === 0) return '0';
    if (Math.abs(value) >= 1000) return Math.round(value).toLocaleString('en');
    return String(Number(value.toPrecision(3)));
  }

  function formatPercent(value) {
    return value === 0 ? '0' : formatNumber(100 * value) + ' %';
  }

  const SIGNS = {' ': ' ', '\n': '↵', '\t': '⇥', '\r': '␍'};

  function escapeInvisible(piece) {  // writes characters that do not print as escapes
    return piece.replace(/[\p{C}\p{Z}]/gu, (c) =>
      SIGNS[c] || '\\u{' + c.codePointAt(0).toString(16) + '}');
  }

  function showBlanks(piece) {  // with visible spaces
    return escapeInvisible(piece).replaceAll(' ', '␣');
  }

  function bytes(text) {
    return Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  }

  const explained = data.explained && explanationsOf(data, {
    at, find, make, setStyle, formatNumber, escapeInvisible, showBlanks, bytes, heading,
  });

  // --- examples: [latent][example][token] in one flat array ---------------------------------

  function unpack(part) {
    const Integers = data.bytes === 2 ? Uint16Array : Uint32Array;
    return {...part, tokens: new Integers(bytes(part.tokens).buffer), heat: bytes(part.heat)};
  }

  const top = unpack(data.top), drawn = unpack(data.drawn);

  function pieces(part, row, n) {
    const start = (row * part.examples + n) * part.window;
    return Array.from(part.tokens.subarray(start, start + part.window), (i) => data.pieces[i]);
  }

  function heats(part, row, n) {
    const start = (row * part.examples + n) * part.window;
    return part.heat.subarray(start, start + part.window);
  }

  function peakTokens(row) {  // tokens on which the top contexts peak, the most frequent first
    const counts = new Map();
    top.strength[row].forEach((_, n) => {
      const piece = data.pieces[top.tokens[(row * top.examples + n) * top.window + top.own]];
      counts.set(piece, (counts.get(piece) || 0) + 1);
    });
    return [...counts].sort((a, b) => b[1] - a[1]).map(([piece]) => piece);
  }

  function context(part, row, n) {
    const all = pieces(part, row, n), heat = heats(part, row, n);
    const text = make('div', {className: 'text word'});
    const first = all.findIndex(Boolean), last = all.findLastIndex(Boolean);
    for (let i = first; i <= last; i++) {
      if (!all[i]) {
        text.append(make('span', {className: 'gap', textContent: '┆', title: 'excluded token'}));
        continue;
      }
      const value = i === part.own ? part.strength[row][n] : heat[i] / 255 * data.maximum[row];
      const note = value ? (i === part.own ? '' : 'about ') + formatNumber(value) : 'not active';
      text.append(setStyle(make('span', {
        className: i === part.own ? 'token own' : 'token',
        textContent: escapeInvisible(all[i]),
        title: showBlanks(all[i]) + '\n' + note,
      }), '--w', (heat[i] / 255).toFixed(3)));
    }
    const [sequence, position] = part.where[row][n];
    text.title = 'sequence ' + sequence + ', token ' + position;
    return make('li', {}, make('b', {textContent: formatNumber(part.strength[row][n])}), text);
  }

  function contexts(part, row, chosen) {
    return make('ol', {className: 'texts'}, ...chosen.map((n) => context(part, row, n)));
  }

  // --- a latent -------------------------------------------------------------------------------

  function heading(text, note) {
    return make('h3', {textContent: text + ' '}, make('small', {textContent: note}));
  }

  function facts(pairs) {
    return make('dl', {className: 'facts'}, ...pairs.map(([name, value]) =>
      make('div', {}, make('dt', {textContent: name}), make('dd', {textContent: value}))));
  }

  function histogram(row) {
    const [first, ...counts] = data.histogram[row];
    const edges = counts.map((_, i) => edge(first + i)).concat(edge(first + counts.length));
    const isTick = (i) => (first + i) % data.per_octave === 0;
    return make('div', {}, heading('Activations', 'number of tokens per activation; log scale'),
      barChart(counts, edges, isTick, formatNumber, 'tokens'));
  }

  function barChart(counts, edges, isTick, format, unit) {  // bars between edges, with ticks at some edges
    const max = Math.max(...counts);
    const bars = counts.map((count, i) => setStyle(make('i', {
      className: count ? '' : 'none',
      title: format(edges[i]) + ' to ' + format(edges[i + 1]) + ': ' + formatNumber(count) + ' ' + unit,
    }), 'height', 100 * count / max + '%'));
    const places = edges.map((_, i) => i).filter(isTick);
    const few = places.filter((_, n) => n % Math.ceil(places.length / 7) === 0);
    const ticks = few.map((i) => setStyle(make('span', {
      textContent: format(edges[i]), className: i ? '' : 'first',
    }), 'left', 100 * i / counts.length + '%'));
    return make('div', {className: 'chart'},
      make('div', {className: 'max', textContent: formatNumber(max) + ' ' + unit}),
      make('div', {className: 'rise'}, ...bars), make('div', {className: 'ticks'}, ...ticks));
  }

  function densities() {  // of the latents that are not dead, with ten bars per factor of ten
    const tenths = data.firings.filter(Boolean).map((n) => Math.floor(10 * Math.log10(n / data.tokens)));
    if (!tenths.length) return [];
    const first = 10 * Math.floor(Math.min(...tenths) / 10);
    const counts = new Array(Math.max(...tenths) - first + 1).fill(0);
    for (const tenth of tenths) counts[tenth - first] += 1;
    const edges = counts.map((_, i) => 10 ** ((first + i) / 10)).concat(10 ** ((first + counts.length) / 10));
    return [barChart(counts, edges, (i) => i % 10 === 0, formatPercent, 'latents')];
  }

  function edge(bin) {
    const part = bin % data.per_octave;
    return 2 ** (data.lowest_octave + (bin - part) / data.per_octave) * (1 + part / data.per_octave);
  }

  function effects(title, ranked, row, largest, down) {
    const bars = make('div', {className: 'bars'});
    setStyle(bars, '--zero', '0%');
    ranked.pieces[row].forEach((i, n) => {
      const value = ranked.values[row][n], length = 78 * Math.abs(value) / largest;
      const bar = setStyle(make('i', {className: down ? 'down' : ''}), 'width', length + '%');
      const number = make('b', {textContent: formatNumber(value)});
      const piece = showBlanks(data.pieces[i]);
      bars.append(make('span', {className: 'name word', textContent: piece, title: piece}),
        make('span', {className: 'track'}, setStyle(bar, 'left', '0'),
          setStyle(number, 'left', 'calc(' + length + '% + .35rem)')));
    });
    return make('div', {}, heading(title, 'per unit of activation'), bars);
  }

  function near(title, ranked, row) {
    const items = ranked.latents[row].map((latent, n) => {
      const name = at.has(latent)
        ? make('a', {href: '#latent=' + latent, textContent: latent,
                     title: 'peaks on ' + peakTokens(at.get(latent)).slice(0, 3).map(showBlanks).join('  ')})
        : make('span', {textContent: latent, title: 'not on this page'});
      const cosine = ranked.values[row][n].toFixed(2);
      return make('li', {}, name, ' ', make('small', {textContent: cosine}));
    });
    return make('div', {}, heading(title, 'with cosine similarity'),
      make('ol', {className: 'near'}, ...items));
  }

  function legend(row) {
    const ramp = make('div', {className: 'ramp'}, '0', make('i', {}), formatNumber(data.maximum[row]));
    const own = setStyle(make('span', {className: 'token own', textContent: 'token'}), '--w', '.6');
    return make('div', {className: 'legend'}, ramp,
      make('div', {className: 'unit'}, own, ' main token of the context; its activation is on the left'));
  }

  function levels(row) {
    const of = data.drawn.level[row];
    return [...new Set(of)].map((level) => {
      const chosen = of.map((l, n) => n).filter((n) => of[n] === level);
      const octave = Math.floor(Math.log2(data.maximum[row])) - level;
      const last = level === data.levels - 1;
      const range = last ? 'below ' + formatNumber(2 ** (octave + 1))
        : formatNumber(2 ** octave) + ' to ' + formatNumber(level ? 2 ** (octave + 1) : data.maximum[row]);
      return make('div', {}, heading('Activation ' + range, 'drawn at random'),
        contexts(drawn, row, chosen));
    });
  }

  function latent(row) {
    const [median, high] = data.quantiles[row], alive = data.firings[row] > 0;
    const parts = [facts([
      ['Density', formatPercent(data.firings[row] / data.tokens)],
      ['Active on', formatNumber(data.firings[row]) + ' tokens'],
      ['Largest activation', formatNumber(data.maximum[row])],
      ['Median', alive ? formatNumber(median) : '–'], ['90th percentile', alive ? formatNumber(high) : '–'],
    ])];
    if (explained) parts.push(...explained.sections(row));
    if (alive) parts.push(histogram(row));
    if (data.promoted.pieces[row].length) {
      const largest = Math.max(...[data.promoted, data.suppressed].flatMap(
        (ranked) => ranked.values[row].map(Math.abs))) || 1;
      parts.push(make('div', {className: 'pair'},
        effects('Logits raised', data.promoted, row, largest, false),
        effects('Logits lowered', data.suppressed, row, largest, true)));
    }
    parts.push(make('div', {className: 'pair'}, near('Nearest decoder directions', data.decoder, row),
      near('Nearest encoder directions', data.encoder, row)));
    if (!alive) return [...parts, make('p', {textContent: 'This latent was active on none of the tokens.'})];
    return [...parts, heading('Top activations', 'the strongest contexts'), legend(row),
      contexts(top, row, top.strength[row].map((_, n) => n)), ...levels(row)];
  }

  // --- the list -------------------------------------------------------------------------------

  const KEYS = {latent: data.latents, density: data.firings, max: data.maximum};
  const state = {key: 'latent', sign: 1, query: '', rows: [], current: null, from: 0, to: PAGE};
  const haystacks = [];
  if (explained) Object.defineProperty(KEYS, 'score', {get: explained.scores});

  function haystack(row) {
    if (haystacks[row] === undefined) {
      const texts = top.strength[row].map((_, n) => pieces(top, row, n).join(''));
      const logits = [data.promoted, data.suppressed].flatMap((ranked) => ranked.pieces[row])
        .map((i) => data.pieces[i]);
      const words = explained ? explained.texts(row) : [];
      haystacks[row] = plain([...logits, ...texts, ...words].join('\0'));
    }
    return haystacks[row];
  }

  function plain(text) {
    return text.toLowerCase().replace(/\s+/g, ' ');
  }

  function select() {
    const values = KEYS[state.key], query = plain(state.query);
    const exact = at.get(Number(query.trim() || NaN));
    const passes = (row) => !explained || explained.passes(row);
    const hit = (row) => row !== exact && passes(row) && (!query.trim() || haystack(row).includes(query));
    const missing = (row) => values[row] === null;  // last, whatever the direction
    const rows = data.latents.map((_, row) => row).filter(hit).sort((a, b) =>
      missing(a) - missing(b) || state.sign * (values[a] - values[b]) || a - b);
    state.rows = exact === undefined ? rows : [exact, ...rows];
  }

  function list() {
    find('count').textContent = formatNumber(state.rows.length) + ' of ' + formatNumber(data.latents.length)
      + ' latents' + (data.latents.length < data.width ? ', of ' + formatNumber(data.width) : '');
    find('rows').replaceChildren(...state.rows.slice(state.from, state.to).map((row) => {
      const line = make('tr', {},
        make('td', {}, make('a', {href: '#latent=' + data.latents[row], textContent: data.latents[row]})),
        make('td', {textContent: formatPercent(data.firings[row] / data.tokens)}),
        make('td', {textContent: formatNumber(data.maximum[row])}),
        ...(explained ? [explained.cell(row)] : []),
        make('td', {
          className: 'word', textContent: peakTokens(row).slice(0, 4).map(showBlanks).join('  ') || '(dead)',
        }));
      if (explained) line.lastChild.append(...explained.summary(row));
      if (row === state.current) line.setAttribute('aria-current', 'true');
      return line;
    }));
    find('fewer').hidden = state.from === 0;
    find('more').hidden = state.rows.length <= state.to;
    for (const button of document.querySelectorAll('th button')) {
      const isSortKey = button.value === state.key;
      if (isSortKey) button.parentElement.setAttribute('aria-sort', state.sign > 0 ? 'ascending' : 'descending');
      else button.parentElement.removeAttribute('aria-sort');
    }
  }

  function showPlace(place) {  // moves the list to a range that contains this place
    if (place === 0 || place < state.from || place >= state.to) {
      state.from = Math.max(0, place - PAGE / 4);
      state.to = state.from + PAGE;
    }
    list();
  }

  function update() {
    select();
    showPlace(0);
  }

  // --- navigation -----------------------------------------------------------------------------

  function show() {  // follows the address: #latent=123, #search=text, or both joined by &
    const requested = new URLSearchParams(location.hash.slice(1));
    if (requested.has('search')) {
      state.query = find('search').value = requested.get('search');
      update();
    }
    const hasLatent = /^\d+$/.test(requested.get('latent') || '');
    const wanted = hasLatent ? Number(requested.get('latent')) : data.latents[state.rows[0] || 0];
    state.current = at.get(wanted);
    const known = state.current !== undefined;
    find('name').textContent = 'Latent ' + wanted;
    find('latent').replaceChildren(...(known ? latent(state.current) : [make('p', {
      textContent: 'This page has ' + formatNumber(data.latents.length) + ' of '
        + formatNumber(data.width) + ' latents, and this one is not among them.'})]));
    showPlace(Math.max(0, state.rows.indexOf(state.current)));
    reveal(document.querySelector('tr[aria-current]'));
    const place = find('name').getBoundingClientRect();
    if (hasLatent && (place.top < 0 || place.bottom > innerHeight)) find('name').scrollIntoView();
  }

  function reveal(line) {  // scrolls only the list; scrollIntoView would scroll the page too
    if (!line) return;
    const box = line.closest('.rows'), frame = box.getBoundingClientRect();
    const place = line.getBoundingClientRect(), bottom = Math.min(frame.bottom, innerHeight);
    if (place.top < frame.top + 2 * place.height || place.bottom > bottom) {
      box.scrollTop += place.top - (frame.top + Math.max(bottom, frame.top + 200)) / 2;
    }
  }

  function go(row) {
    if (row !== undefined) location.hash = 'latent=' + data.latents[row];
  }

  function step(by) {
    const n = state.rows.length, place = state.rows.indexOf(state.current);
    go(state.rows[place < 0 ? 0 : (place + by + n) % n]);
  }

  const actions = {
    previous: () => step(-1),
    next: () => step(1),
    random: () => go(state.rows[Math.floor(Math.random() * state.rows.length)]),
    fewer: () => { state.from = Math.max(0, state.from - PAGE); list(); },
    more: () => { state.to += PAGE; list(); },
  };
  const letters = {ArrowLeft: 'previous', k: 'previous', ArrowRight: 'next', j: 'next', r: 'random'};

  for (const [name, action] of Object.entries(actions)) find(name).addEventListener('click', action);
  for (const button of document.querySelectorAll('th button')) {
    button.addEventListener('click', () => {
      const again = button.value === state.key;
      state.sign = again ? -state.sign : button.value === 'latent' ? 1 : -1;
      state.key = button.value;
      update();
    });
  }
  find('search').addEventListener('input', (event) => {
    state.query = event.target.value;
    update();
  });
  find('search').addEventListener('keydown', (event) => {
    if (event.key === 'Enter') go(state.rows[0]);
    if (event.key === 'Escape') event.target.blur();
  });
  document.addEventListener('keydown', (event) => {
    if (event.target.matches?.('input, select') || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === '/') {
      event.preventDefault();
      find('search').focus();
    } else if (event.key in letters) actions[letters[event.key]]();
  });
  window.addEventListener('hashchange', show);
  if (explained) explained.listen(update);
  find('explorer').hidden = false;
  find('densities').append(...densities());
  update();
  show();
})();
