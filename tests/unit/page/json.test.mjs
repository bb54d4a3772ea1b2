import assert from "node:assert/strict";
import { test } from "node:test";

import { shortJson } from "../../../cronium_worker/web/static/json.mjs";

test("what is short is as JSON.stringify has it", () => {
  for (const value of [null, 1, "a\n", [], {}, [1, [2, {}]], { a: { "b\"": [null, true] }, c: "ä" }, [[[]]]]) {
    assert.equal(shortJson(value, 10_000), JSON.stringify(value, null, 2));
  }
});

test("of what is long there is the beginning", () => {
  const values = [Array.from({ length: 1_000_000 }, () => []), "x".repeat(5_000_000), { ["k".repeat(1e6)]: ["v".repeat(1e6)] }];
  for (const value of values) {
    const text = shortJson(value, 1000);
    assert.ok(text.length > 1000 && text.length < 4000, String(text.length));
    assert.ok(JSON.stringify(value, null, 2).startsWith(text.slice(0, 1000)));
  }
});
