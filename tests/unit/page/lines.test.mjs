import assert from "node:assert/strict";
import { test } from "node:test";

import { LONGEST_LINE, Lines, marked } from "../../../cronium_worker/web/static/lines.mjs";

const texts = (lines) => Array.from({ length: lines.length }, (_, place) => lines.text(place));

function of(...pieces) {
  const lines = new Lines();
  for (const [stream, data] of pieces) lines.add(stream, data);
  return lines;
}

test("lines are the same however they come in pieces", () => {
  const whole = "one\n\ntwo ä\nthree";
  const lines = of(...[...whole].map((character) => ["stdout", character]));
  assert.deepEqual(texts(lines), ["one", "", "two ä", "three"]);
  assert.deepEqual(texts(of(["stdout", whole])), texts(lines));
});

test("a line of one stream goes on after one of the other", () => {
  const lines = of(["stdout", "downloading… "], ["stderr", "warning\n"], ["stdout", "done\nnext\n"]);
  assert.deepEqual(texts(lines), ["downloading… done", "warning", "next"]);
  assert.equal(lines.at(1).stream, "stderr");
});

test("each stream has its own colour", () => {
  const lines = of(["stdout", "\x1b[31mred\n"], ["stderr", "plain\n"], ["stdout", "red\n"]);
  assert.deepEqual([0, 1, 2].map((place) => lines.at(place).pieces[0].style.fg), [1, undefined, 1]);
});

test("one stream alone, with the numbers of both, also of what comes later", () => {
  const lines = of(["stdout", "a\n"], ["stderr", "b\n"]);
  lines.show("stderr");
  lines.add("stdout", "c\n");
  lines.add("stderr", "d\n");
  assert.deepEqual(texts(lines), ["b", "d"]);
  assert.deepEqual([0, 1].map((place) => lines.at(place).number), [2, 4]);
  lines.show(null);
  assert.deepEqual(texts(lines), ["a", "b", "c", "d"]);
});

test("above the limit the oldest go, and numbers stay", () => {
  const lines = new Lines(100);
  for (let i = 1; i <= 250; i++) lines.add("stdout", `line ${i}\n`);
  assert.ok(lines.length <= 100 && lines.length >= 90, String(lines.length));
  assert.equal(lines.dropped + lines.length, 250);
  assert.equal(lines.at(lines.length - 1).number, 250);
  assert.equal(lines.text(lines.length - 1), "line 250");
});

test("text is found whatever its colours and the case of its letters", () => {
  const lines = of(["stdout", "An er\x1b[31mror\x1b[0m here\nnothing\nERROR\n"]);
  assert.deepEqual(lines.find("error"), [0, 2]);
  assert.deepEqual(lines.find("error", 1), [2]);
  assert.deepEqual(lines.find(""), []);
  const found = marked(lines.at(0).pieces, "Error").filter((piece) => piece.found);
  assert.deepEqual(found.map((piece) => piece.text), ["er", "ror"]);
  assert.equal(marked(lines.at(0).pieces, "error").map((piece) => piece.text).join(""), "An error here");
});

test("a carriage return begins the line anew, however it comes", () => {
  for (const whole of ["10 %\r20 %\r30 %", "of Windows\r", "a\r\rb", "\r", "x\r\x1b[31mred"]) {
    const at = whole.replace(/\r$/, "").lastIndexOf("\r");
    const expected = whole.slice(at + 1).replace("\x1b[31m", "").replace("\r", "");
    assert.deepEqual(texts(of(["stdout", whole])), [expected]);
    assert.deepEqual(texts(of(...[...whole].map((character) => ["stdout", character]))), [expected]);
  }
});

test("a colour goes on from what was overwritten, and through a sequence that comes in two parts", () => {
  const lines = of(["stdout", "\x1b[31mone\rtwo\x1b[3"], ["stdout", "2m\nthree"]);
  assert.deepEqual([0, 1].map((place) => lines.at(place).pieces.map(({ text, style }) => [text, style.fg])), [[["two", 1]], [["three", 2]]]);
});

const within = (seconds, act) => {
  const start = performance.now();
  act();
  assert.ok(performance.now() - start < seconds * 1000, `${performance.now() - start} ms`);
};

test("of a very long line a part is kept, and the colour after it", () => {
  const lines = new Lines();
  for (let i = 0; i < 64; i++) within(0.5, () => lines.add("stdout", "\x1b[31mx\x1b[0my".repeat(5461)) ?? lines.at(0));
  lines.add("stdout", "\x1b[33m\nnext");
  assert.equal(lines.rows[0].text.length, LONGEST_LINE);
  assert.equal(lines.at(0).cut, 64 * 5461 * 11 + 5 - LONGEST_LINE);
  assert.ok(lines.at(0).pieces.length <= 200);
  assert.equal(lines.at(1).pieces[0].style.fg, 3);
});

test("long lines are dropped by their length", () => {
  const lines = new Lines(1000, 100_000);
  for (let i = 0; i < 500; i++) lines.add("stdout", "x".repeat(5000) + "\n");
  assert.ok(lines.characters <= 100_000 && lines.length >= 10, String(lines.characters));
  assert.equal(lines.characters, lines.rows.reduce((sum, row) => sum + row.text.length, 0));
  lines.add("stderr", "z".repeat(100) + "\r");
  assert.equal(lines.dropped + lines.length, 501);
});

test("what is found is marked, a hundred times at most, over the borders of pieces", () => {
  const pieces = marked([{ text: "xaa", style: {} }, { text: "aax", style: {} }], "aaa");
  assert.deepEqual(pieces.map(({ text, found }) => [text, found]), [["x", false], ["aa", true], ["a", true], ["ax", false]]);
  const many = marked([{ text: "a".repeat(4096), style: {} }], "a");
  assert.equal(many.filter((piece) => piece.found).length, 100);
  assert.equal(many.map((piece) => piece.text).join("").length, 4096);
});
