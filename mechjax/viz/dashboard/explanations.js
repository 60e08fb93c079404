// Explanations and scores of latents on a dashboard: sections of a latent, and the filter and the column of the list.
// It stands before script.js in one script element, and receives its helpers. Explanations are texts of a language
// model, so they reach the page only through textContent and title.
'use strict';
const explanationsOf = (data, tools) => {
  const {at, find, make, setStyle, formatNumber, escapeInvisible, showBlanks, bytes, heading} = tools;
  const {methods, scorers, kinds, rows} = data.explained;
  const [SCORER, KIND, VALUE, COUNT, FAILURES, BY, REASON, MORE] = [0, 1, 2, 3, 4, 5, 6, 7];
  const FAILED = 255, LARGEST = 254;
  const CONTROLS = {own: 'its own explanation', shuffled: 'the explanation of another latent',
    table: 'the token table as simulator', table_shuffled: 'the token table of another latent'};
  const state = {chosen: null, minimum: -Infinity, prediction: null};

  function formatScore(value) {
    return value === null ? '–' : value.toFixed(2).replace('-', '−');
  }

  function lines(text) {  // characters that do not print become escapes; line breaks stay
    return text.split('\n').map(escapeInvisible).join('\n');
  }

  function name(kind) {
    return escapeInvisible(kinds[kind][0]);
  }

  // --- explanations ---------------------------------------------------------------------------

  function explanation([method, text, reason]) {
    const body = text === null
      ? make('div', {className: 'missing', textContent: 'no explanation: ' + lines(reason)})
      : make('div', {className: 'prose', textContent: lines(text)});
    return make('div', {className: 'explanation'},
      make('div', {className: 'method', textContent: escapeInvisible(methods[method])}), body);
  }

  function explanations(row) {
    const texts = rows[row].texts.map(explanation);
    if (!texts.length) texts.push(make('div', {className: 'missing', textContent: 'This latent has no explanation.'}));
    return make('div', {}, heading('Explanations', ''), ...texts);
  }

  // --- table of scores ------------------------------------------------------------------------

  function describe(score) {
    const parts = [scorers[score[SCORER]] + ' of ' + name(score[KIND])];
    if (score[VALUE] === null) parts.push('undefined: ' + (score[REASON] || 'no reason is given'));
    parts.push('from ' + score[COUNT].toLocaleString('en') + ' excerpts, texts or tokens');
    if (score[FAILURES]) parts.push(score[FAILURES] + ' replies failed, which are left out');
    for (const [what, value] of Object.entries(score[MORE])) parts.push(what + ': ' + formatScore(value));
    return parts.map(escapeInvisible).join('\n');
  }

  function scoreCell(score) {
    if (!score) return make('td', {textContent: '–', title: 'not scored'});
    const cell = make('td', {textContent: formatScore(score[VALUE]), title: describe(score)});
    if (score[VALUE] === null) cell.append(make('small', {textContent: 'undefined'}));
    if (score[FAILURES]) cell.append(make('small', {textContent: score[FAILURES] + ' failed'}));
    return cell;
  }

  function source(latent) {  // names the latent whose explanation was scored
    return at.has(latent) ? make('a', {href: '#latent=' + latent, textContent: latent})
      : make('span', {textContent: latent, title: 'not on this page'});
  }

  function scoreRow(row, kind) {
    const own = rows[row].scores.filter((score) => score[KIND] === kind);
    if (!own.length) return [];
    const label = make('th', {scope: 'row', textContent: name(kind)});
    const others = [...new Set(own.map((score) => score[BY]))].filter((latent) => latent !== data.latents[row]);
    if (others.length) label.append(' (latent', ...others.flatMap((latent) => [' ', source(latent)]), ')');
    return [make('tr', {className: kinds[kind][1]}, label,
      ...scorers.map((_, scorer) => scoreCell(own.find((score) => score[SCORER] === scorer))))];
  }

  function scoreTable(row) {
    if (!rows[row].scores.length) return [];
    const head = make('tr', {}, make('th', {textContent: 'explanation'}),
      ...scorers.map((scorer) => make('th', {scope: 'col', textContent: escapeInvisible(scorer)})));
    const table = make('table', {className: 'scores'}, make('thead', {}, head),
      make('tbody', {}, ...kinds.flatMap((_, kind) => scoreRow(row, kind))));
    const note = 'Shuffled: the explanation of another latent, a control. Token table: the mean activation of each'
      + ' token as the prediction. Point at a number for its counts.';
    return [make('div', {}, heading('Scores', 'higher is better'), make('div', {className: 'scroll'}, table),
      make('div', {className: 'unit', textContent: note}))];
  }

  // --- predicted next to true activations -----------------------------------------------------

  function unpack(row) {
    const {excerpts, tokens, heat} = rows[row];
    const Integers = data.explained.bytes === 2 ? Uint16Array : Uint32Array;
    const ids = new Integers(bytes(tokens).buffer), values = bytes(heat);
    let from = 0;
    return excerpts.map(([sequence, start, width]) => {
      const part = {sequence, start, ids: ids.subarray(from, from + width), heat: values.subarray(from, from + width)};
      from += width;
      return part;
    });
  }

  function token(piece, heat, predicted, scale) {
    const failed = predicted === FAILED, own = heat / 255, other = failed ? 0 : predicted / LARGEST;
    const said = failed ? 'failed' : 'about ' + formatNumber(other * scale);
    const span = setStyle(make('span', {
      className: failed ? 'both failed' : 'both',
      textContent: escapeInvisible(piece),
      title: showBlanks(piece) + '\ntrue: ' + (heat ? 'about ' + formatNumber(own * scale) : '0') + '\npredicted: ' + said,
    }), '--w', own.toFixed(3));
    return setStyle(span, '--p', other.toFixed(3));
  }

  function comparison(row, parts, [, , chosen, packed]) {
    const predicted = bytes(packed), {scale} = rows[row];
    let from = 0;
    return make('ol', {className: 'texts'}, ...chosen.map((place) => {
      const {sequence, start, ids, heat} = parts[place];
      const text = make('div', {className: 'text word compared', title: 'sequence ' + sequence + ', from token ' + start});
      ids.forEach((id, i) => text.append(token(data.pieces[id], heat[i], predicted[from + i], scale)));
      from += ids.length;
      return make('li', {}, make('b', {textContent: formatNumber(Math.max(...heat) / 255 * scale)}), text);
    }));
  }

  function legend(row) {
    const ramp = (kind) => make('i', {className: kind});
    return make('div', {className: 'legend'},
      make('div', {className: 'ramp'}, 'true, colour behind the text: 0', ramp('true'), formatNumber(rows[row].scale)),
      make('div', {className: 'ramp'}, 'predicted, height of the bar: 0', ramp('predicted'), formatNumber(rows[row].scale)));
  }

  function remark([place, count, chosen, packed], score) {
    const few = chosen.length < count ? chosen.length + ' of ' + count : String(count);
    return make('div', {className: 'unit', textContent: few + ' scored excerpts, strongest first, with the largest true'
      + ' activation on the left. Score ' + formatScore(score[VALUE]) + ', by ' + CONTROLS[kinds[score[KIND]][1]] + '.'
      + (bytes(packed).includes(FAILED) ? ' A hatched bar is a prediction that failed.' : '')});
  }

  function preferred(row) {  // the prediction chosen before, or else that of the list's score, or the first
    const {predicted, scores} = rows[row], of = predicted.map(([place]) => scores[place]);
    const same = (key) => key && of.findIndex((score) => score[SCORER] === key[0] && score[KIND] === key[1]);
    return Math.max(0, [state.prediction, state.chosen].map(same).find((n) => n >= 0) ?? 0);
  }

  function predictions(row) {
    const {predicted, scores} = rows[row];
    if (!predicted) return [];
    const parts = unpack(row), body = make('div', {});
    const select = make('select', {id: 'prediction'}, ...predicted.map(([place], n) => make('option', {
      value: n, textContent: escapeInvisible(scorers[scores[place][SCORER]]) + ' · ' + name(scores[place][KIND]),
    })));
    const draw = () => {
      const one = predicted[select.value];
      body.replaceChildren(remark(one, scores[one[0]]), comparison(row, parts, one));
    };
    select.value = preferred(row);
    select.addEventListener('change', () => {
      const score = scores[predicted[select.value][0]];
      state.prediction = [score[SCORER], score[KIND]];
      draw();
    });
    draw();
    return [make('div', {}, heading('Predicted next to true activations', ''),
      make('label', {className: 'choice'}, 'Prediction: ', select), legend(row), body)];
  }

  // --- the list -------------------------------------------------------------------------------

  const choices = scorers.flatMap((_, scorer) => kinds.map((_, kind) => [scorer, kind])).filter(([scorer, kind]) =>
    ['own', 'table'].includes(kinds[kind][1])
    && rows.some(({scores}) => scores.some((score) => score[SCORER] === scorer && score[KIND] === kind)));
  let column = [];

  function choose(n) {  // the score that the list shows
    state.chosen = choices[n] || null;
    column = rows.map(({scores}) => {
      const score = state.chosen && scores.find((s) => s[SCORER] === choices[n][0] && s[KIND] === choices[n][1]);
      return score ? score[VALUE] : null;
    });
  }

  function passes(row) {
    return state.minimum === -Infinity || (column[row] !== null && column[row] >= state.minimum);
  }

  function summary(row) {  // the first explanation, below the tokens
    const first = rows[row].texts.find(([, text]) => text !== null);
    return first ? [make('div', {className: 'summary', textContent: escapeInvisible(first[1]), title: lines(first[1])})] : [];
  }

  function listen(update) {
    find('scored').append(...choices.map(([scorer, kind], n) => make('option', {
      value: n, textContent: escapeInvisible(scorers[scorer]) + ' · ' + name(kind),
    })));
    find('scored').addEventListener('change', (event) => {
      choose(event.target.value);
      update();
    });
    find('minimum').addEventListener('input', (event) => {
      state.minimum = event.target.value === '' ? -Infinity : Number(event.target.value);
      update();
    });
    find('filter').hidden = !choices.length;
  }

  choose(0);
  return {
    sections: (row) => [explanations(row), ...scoreTable(row), ...predictions(row)],
    texts: (row) => rows[row].texts.flatMap(([, text]) => text ?? []),
    cell: (row) => make('td', {textContent: formatScore(column[row])}),
    scores: () => column,
    passes, summary, listen,
  };
};
