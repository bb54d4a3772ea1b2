/**
 * Colours of terminals: ECMA-48 "select graphic rendition" as xterm knows it. Other control sequences are left out.
 * No document is needed here.
 */

// CSI … final byte; OSC … BEL or ST; two-byte escapes; other control characters but the tab,
// those of C1 too.
const SEQUENCE = /\x1b\[([0-?]*)[ -/]*([@-~])|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[ -/]*[0-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f]/g;

export const PLAIN = Object.freeze({});

/** A line as pieces `{text, style}` and the style after it. A style is an immutable object: bold, dim, italic,
 * underline, inverse, strike: true; fg, bg: 0–255 or "#rrggbb". The last of `most` pieces has all that follows. */
export function parse(line, style = PLAIN, most = Infinity) {
  const pieces = [];
  let start = 0;
  const add = (end) => {
    if (end > start) pieces.push({ text: line.slice(start, end), style });
  };
  for (const match of line.matchAll(SEQUENCE)) {
    if (pieces.length + 1 >= most) {
      pieces.push({ text: plain(line.slice(start)), style });
      return { pieces, style };
    }
    add(match.index);
    start = match.index + match[0].length;
    if (match[2] === "m") style = applied(style, match[1]);
  }
  add(line.length);
  return { pieces, style };
}

/** The style after a text. */
export function styleAfter(text, style) {
  if (text.includes("\x1b")) for (const [, parameters, final] of text.matchAll(SEQUENCE)) if (final === "m") style = applied(style, parameters);
  return style;
}

// The beginning of a sequence whose end may come with the next text; longer ones are not waited for.
const UNFINISHED = /\x1b(?:\[[0-?]*[ -/]*|\][^\x07\x1b]*|[ -/]*)?$/;
const LONGEST_SEQUENCE = 256;

/** What at the end of a text is not yet a whole sequence. */
export function unfinished(text) {
  return UNFINISHED.exec(text.slice(-LONGEST_SEQUENCE))?.[0] ?? "";
}

/** The text alone. */
export function plain(line) {
  return line.replace(SEQUENCE, "");
}

const ON = { 1: "bold", 2: "dim", 3: "italic", 4: "underline", 7: "inverse", 9: "strike" };
const OFF = { 22: ["bold", "dim"], 23: ["italic"], 24: ["underline"], 27: ["inverse"], 29: ["strike"], 39: ["fg"], 49: ["bg"] };

// What became of a style: a log may have a million sequences, and most are the same.
const MOST_KNOWN = 2000;
let known = new WeakMap();
let count = 0;

function applied(style, parameters) {
  let next = known.get(style)?.get(parameters);
  if (next) return next;
  if (++count > MOST_KNOWN) {
    count = 0;
    known = new WeakMap();
  }
  next = changed(style, parameters);
  if (!known.has(style)) known.set(style, new Map());
  known.get(style).set(parameters, next);
  return next;
}

function changed(style, parameters) {
  const codes = parameters.split(/[;:]/).map(Number);
  let next = { ...style };
  for (let i = 0; i < codes.length; i++) {
    const code = codes[i];
    if (code === 0) next = {};
    else if (ON[code]) next[ON[code]] = true;
    else if (OFF[code]) for (const name of OFF[code]) delete next[name];
    else if (code >= 30 && code <= 37) next.fg = code - 30;
    else if (code >= 40 && code <= 47) next.bg = code - 40;
    else if (code >= 90 && code <= 97) next.fg = code - 82;
    else if (code >= 100 && code <= 107) next.bg = code - 92;
    else if (code === 38 || code === 48) {
      const name = code === 38 ? "fg" : "bg";
      if (codes[i + 1] === 5) next[name] = codes[(i += 2)] & 255;
      else if (codes[i + 1] === 2) {
        next[name] = `#${codes.slice(i + 2, i + 5).map((part) => (part & 255).toString(16).padStart(2, "0")).join("")}`;
        i += 4;
      }
    }
  }
  return Object.keys(next).length ? Object.freeze(next) : PLAIN;
}

/** The colour of a number: 0–15 are the page's own (variables of the style sheet), the rest xterm's. */
export function colour(value) {
  if (typeof value === "string") return value;
  if (value < 16) return `var(--ansi-${value})`;
  if (value >= 232) {
    const grey = 8 + (value - 232) * 10;
    return `rgb(${grey} ${grey} ${grey})`;
  }
  const part = (n) => (n ? 55 + n * 40 : 0);
  const cube = value - 16;
  return `rgb(${part(Math.floor(cube / 36))} ${part(Math.floor(cube / 6) % 6)} ${part(cube % 6)})`;
}
