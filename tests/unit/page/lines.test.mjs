import assert from "node:assert/strict";
import { test } from "node:test";

import { Lines, marked } from "../../../cronium_worker/web/static/lines.mjs";

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
