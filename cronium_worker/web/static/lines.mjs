/** A log as lines: what the page keeps of it, what is shown of it, what is found in it. No document is needed here. */

import { PLAIN, parse, plain, shown } from "./ansi.mjs";

/** The oldest lines above this number are dropped: the download has them. */
export const MOST_LINES = 1_000_000;

export class Lines {
  constructor(most = MOST_LINES) {
    this.most = most;
    this.dropped = 0; // lines before the first one that is kept
    this.rows = []; // {stream, text, style}: the style at its beginning
    this.counts = { stdout: 0, stderr: 0 };
    this.open = {}; // by stream: the row that has no end yet
    this.style = {}; // by stream: the style after its last whole line
    this.filter = null;
    this.chosen = null; // indices into rows, with a filter
  }

  /** Add what a stream has printed; rows never move, the last of each stream may grow. */
  add(stream, data) {
    let start = 0;
    while (start < data.length) {
      const end = data.indexOf("\n", start);
      const piece = data.slice(start, end < 0 ? data.length : end);
      const row = this.open[stream] ?? this.#begin(stream);
      row.text = row.text ? row.text + piece : piece;
      if (end < 0) {
        this.open[stream] = row;
        break;
      }
      this.open[stream] = null;
      if (row.text.includes("\x1b")) this.style[stream] = parse(row.text, row.style).style;
      start = end + 1;
    }
    if (this.rows.length > this.most) this.#drop();
  }

  #begin(stream) {
    const row = { stream, text: "", style: this.style[stream] ?? PLAIN };
    this.rows.push(row);
    this.counts[stream]++;
    if (this.chosen && stream === this.filter) this.chosen.push(this.rows.length - 1);
    return row;
  }

  #drop() {
    const count = Math.ceil(this.most / 10); // at once: each time all places change
    this.rows.splice(0, count);
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

  /** The shown row at a place: {number, stream, pieces}; numbers count from 1 over both streams. */
  at(place) {
    const index = this.chosen ? this.chosen[place] : place;
    const row = this.rows[index];
    return { number: this.dropped + index + 1, stream: row.stream, pieces: parse(shown(row.text), row.style).pieces };
  }

  /** The text of a shown row. */
  text(place) {
    return plain(shown(this.rows[this.chosen ? this.chosen[place] : place].text));
  }

  /** The places from `from` on whose text has `wanted` in it, whatever the case of its letters. */
  find(wanted, from = 0) {
    const lower = wanted.toLowerCase();
    const places = [];
    for (let place = from; lower && place < this.length; place++) {
      if (this.text(place).toLowerCase().includes(lower)) places.push(place);
    }
    return places;
  }
}

/** Pieces cut so that each occurrence of `wanted` is a piece of its own, with `found: true`. */
export function marked(pieces, wanted) {
  const lower = wanted.toLowerCase();
  const whole = pieces.map((piece) => piece.text).join("").toLowerCase();
  const cuts = [];
  for (let at = whole.indexOf(lower); lower && at >= 0; at = whole.indexOf(lower, at + lower.length)) {
    cuts.push([at, at + lower.length]);
  }
  if (!cuts.length) return pieces;
  const result = [];
  let offset = 0;
  for (const { text, style } of pieces) {
    const edges = new Set([0, text.length]);
    for (const cut of cuts.flat()) if (cut > offset && cut < offset + text.length) edges.add(cut - offset);
    const sorted = [...edges].sort((a, b) => a - b);
    for (let i = 0; i + 1 < sorted.length; i++) {
      const [start, end] = [sorted[i], sorted[i + 1]];
      const found = cuts.some(([from, to]) => from <= offset + start && offset + end <= to);
      result.push({ text: text.slice(start, end), style, found });
    }
    offset += text.length;
  }
  return result;
}
