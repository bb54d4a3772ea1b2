/**
 * A log as lines: what the page keeps of it, what is shown of it, what is found in it. No document is needed here.
 *
 * A script chooses what is in it, so all work is bounded: by the length of what has just come, or of a line that is cut.
 */

import { PLAIN, parse, plain, styleAfter, unfinished } from "./ansi.mjs";

/** The oldest lines above these numbers are dropped: the download has them. */
export const MOST_LINES = 1_000_000;
export const MOST_CHARACTERS = 64 * 1024 * 1024;
/** What is kept of a line, and into how many pieces its colours may cut that. */
export const LONGEST_LINE = 4096;
const MOST_PIECES = 200;
const MOST_MARKS = 100;

export class Lines {
  constructor(most = MOST_LINES, mostCharacters = MOST_CHARACTERS) {
    this.most = most;
    this.mostCharacters = mostCharacters;
    this.characters = 0;
    this.dropped = 0; // lines before the first one that is kept
    this.rows = []; // {stream, text, style, cut, returned, version}: the style at its beginning, how much is not kept
    this.counts = { stdout: 0, stderr: 0 };
    this.open = {}; // by stream: the row that has no end yet
    this.style = {}; // by stream: the style after what has come
    this.pending = {}; // by stream: the beginning of a sequence
    this.filter = null;
    this.chosen = null; // indices into rows, with a filter
  }

  /** Add what a stream has printed; rows never move, the last of each stream may grow. */
  add(stream, data) {
    let start = 0;
    while (start < data.length) {
      const end = data.indexOf("\n", start);
      const row = this.open[stream] ?? this.#begin(stream);
      this.#grow(row, data.slice(start, end < 0 ? data.length : end));
      if (end < 0) {
        this.open[stream] = row;
        break;
      }
      this.open[stream] = null;
      this.pending[stream] = "";
      start = end + 1;
    }
    if (this.rows.length > this.most || this.characters > this.mostCharacters) this.#drop();
  }

  /** Add to a row. As in a terminal, what comes after a carriage return begins the line anew. */
  #grow(row, piece) {
    if (!piece) return;
    if (row.returned) this.#clear(row);
    row.returned = piece.endsWith("\r");
    const last = piece.lastIndexOf("\r", piece.length - (row.returned ? 2 : 1));
    if (last >= 0 && piece.length > 1) {
      this.#style(row.stream, piece.slice(0, last));
      this.#clear(row);
      piece = piece.slice(last + 1);
    }
    const kept = piece.slice(0, LONGEST_LINE - row.text.length);
    row.text = row.text ? row.text + kept : kept;
    row.cut += piece.length - kept.length;
    this.characters += kept.length;
    this.#style(row.stream, piece);
  }

  #clear(row) {
    this.characters -= row.text.length;
    row.text = "";
    row.cut = 0;
    row.version++;
    row.style = this.style[row.stream] ?? PLAIN;
  }

  #style(stream, text) {
    const whole = (this.pending[stream] ?? "") + text;
    this.style[stream] = styleAfter(whole, this.style[stream] ?? PLAIN);
    this.pending[stream] = unfinished(whole);
  }

  #begin(stream) {
    const row = { stream, text: "", style: this.style[stream] ?? PLAIN, cut: 0, returned: false, version: 0 };
    this.rows.push(row);
    this.counts[stream]++;
    if (this.chosen && stream === this.filter) this.chosen.push(this.rows.length - 1);
    return row;
  }

  #drop() {
    const count = Math.ceil(this.rows.length / 10); // at once: each time all places change
    for (const row of this.rows.splice(0, count)) {
      this.characters -= row.text.length;
      if (this.open[row.stream] === row) this.open[row.stream] = null;
    }
    this.dropped += count;
    this.show(this.filter);
  }

  /** "stdout" or "stderr" alone, or null: both. */
  show(filter) {
    this.filter = filter;
    this.chosen = filter ? this.rows.flatMap((row, index) => (row.stream === filter ? [index] : [])) : null;
  }

  /** How many are shown. */
  get length() {
    return this.chosen ? this.chosen.length : this.rows.length;
  }

  /** The shown row at a place: {number, stream, pieces, cut}; numbers count from 1 over both streams. With `isPlain` it
   * is one piece. */
  at(place, isPlain = false) {
    const index = this.chosen ? this.chosen[place] : place;
    const row = this.rows[index];
    const { pieces } = parse(row.text, row.style, isPlain ? 1 : MOST_PIECES);
    return { number: this.dropped + index + 1, stream: row.stream, pieces, cut: row.cut };
  }

  /** What a shown row depends on: {number, length, cut, version}. */
  about(place) {
    const index = this.chosen ? this.chosen[place] : place;
    const { text, cut, version } = this.rows[index];
    return { number: this.dropped + index + 1, length: text.length, cut, version };
  }

  /** The text of a shown row. */
  text(place) {
    return plain(this.rows[this.chosen ? this.chosen[place] : place].text);
  }

  /** The places from `from` to before `end` whose text has `wanted` in it, whatever the case of its letters. */
  find(wanted, from = 0, end = this.length) {
    const lower = wanted.toLowerCase();
    const places = [];
    for (let place = from; lower && place < end; place++) {
      if (this.text(place).toLowerCase().includes(lower)) places.push(place);
    }
    return places;
  }
}

/** Pieces cut so that each occurrence of `wanted`, of the first hundred, is a piece of its own, with `found: true`. */
export function marked(pieces, wanted) {
  const lower = wanted.toLowerCase();
  const whole = lower && pieces.map((piece) => piece.text).join("").toLowerCase();
  const edges = []; // where one begins, where it ends, and so on
  for (let at = lower ? whole.indexOf(lower) : -1; at >= 0 && edges.length < 2 * MOST_MARKS; at = whole.indexOf(lower, at + lower.length)) {
    edges.push(at, at + lower.length);
  }
  if (!edges.length) return pieces;
  const result = [];
  let offset = 0;
  let next = 0; // the first edge that is not behind us
  for (const { text, style } of pieces) {
    let start = 0;
    while (start < text.length) {
      while (next < edges.length && edges[next] <= offset + start) next++;
      const end = Math.min(text.length, (edges[next] ?? Infinity) - offset);
      result.push({ text: text.slice(start, end), style, found: next % 2 === 1 });
      start = end;
    }
    offset += text.length;
  }
  return result;
}
