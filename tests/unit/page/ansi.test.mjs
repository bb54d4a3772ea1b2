import assert from "node:assert/strict";
import { test } from "node:test";

import { PLAIN, colour, parse, plain, shown } from "../../../cronium_worker/web/static/ansi.mjs";

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

test("a carriage return begins the line anew", () => {
  assert.equal(shown("10 %\r20 %\r30 %"), "30 %");
  assert.equal(shown("of Windows\r"), "of Windows");
});
