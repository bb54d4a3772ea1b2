import assert from "node:assert/strict";
import { test } from "node:test";

import { PLAIN, colour, parse, plain, styleAfter, unfinished } from "../../../cronium_worker/web/static/ansi.mjs";

const pieces = (line, style) => parse(line, style).pieces.map(({ text, style }) => [text, { ...style }]);

test("colours and flags begin and end where the sequences stand", () => {
  assert.deepEqual(pieces("a\x1b[1;31mb\x1b[22mc\x1b[0md"), [
    ["a", {}],
    ["b", { bold: true, fg: 1 }],
    ["c", { fg: 1 }],
    ["d", {}],
  ]);
  assert.deepEqual(pieces("\x1b[92mx\x1b[39my\x1b[103mz"), [["x", { fg: 10 }], ["y", {}], ["z", { bg: 11 }]]);
});

test("256 colours and 24 bits, and what comes after them in the same sequence", () => {
  assert.deepEqual(pieces("\x1b[38;5;208;4mx"), [["x", { fg: 208, underline: true }]]);
  assert.deepEqual(pieces("\x1b[48;2;1;20;255;3mx"), [["x", { bg: "#0114ff", italic: true }]]);
  assert.equal(colour(208), "rgb(255 135 0)");
  assert.equal(colour(244), "rgb(128 128 128)");
  assert.equal(colour(3), "var(--ansi-3)");
});

test("a sequence without a number is a reset", () => {
  assert.deepEqual(pieces("\x1b[31ma\x1b[mb"), [["a", { fg: 1 }], ["b", {}]]);
});

test("a style goes on in the next line", () => {
  const { style } = parse("\x1b[33mone");
  assert.deepEqual(pieces("two", style), [["two", { fg: 3 }]]);
  assert.equal(parse("\x1b[0m", style).style, PLAIN);
});

test("other sequences and control characters leave nothing", () => {
  assert.equal(plain("\x1b[2K\x1b[1Ga\x1b]8;;http://x\x07b\x1b]0;title\x1b\\c\x1b(Bd\x07\x08e\tf"), "abcde\tf");
});

test("what moves the cursor colours nothing", () => {
  assert.deepEqual(pieces("\x1b[31ma\x1b[1Gb\x1b[4;7Hc"), [["a", { fg: 1 }], ["b", { fg: 1 }], ["c", { fg: 1 }]]);
});

test("a sequence that has not ended yet is known", () => {
  for (const text of ["\x1b", "\x1b[", "\x1b[38;5", "\x1b]0;title", "\x1b("]) assert.equal(unfinished(`a${text}`), text);
  for (const text of ["", "a", "\x1b[1m", "\x1b[1mb", `\x1b[${"1".repeat(300)}`]) assert.equal(unfinished(text), "");
});

test("what has too many colours is one piece from there on", () => {
  const line = "\x1b[31ma\x1b[32mb".repeat(1000);
  const { pieces } = parse(line, PLAIN, 10);
  assert.equal(pieces.length, 10);
  assert.equal(pieces.map((piece) => piece.text).join(""), "ab".repeat(1000));
  assert.deepEqual({ ...styleAfter(line, PLAIN) }, { fg: 2 });
});

test("control characters of C1 leave nothing", () => {
  assert.equal(plain("a\x9b31mb\x90c\x9d"), "a31mbc");
});
