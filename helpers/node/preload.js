"use strict";
/**
 * Makes a Node.js job's script run as it is: `node --require /node_modules/cronium/preload.js main.js`.
 *
 * `cronium` becomes a global. And main.js may be CommonJS or an ES module: the worker lays main.mjs, the same file
 * under another name, beside it, and main.mjs is run when main.js can only be a module (import, export,
 * import.meta, await at the top level). Newer versions of Node.js find that out themselves, 18 does not; this
 * makes all alike.
 * A module's traces and import.meta.url say main.mjs; so does process.argv[1], which programs compare with them.
 *
 * Nothing changes for other files: worker threads and forked processes, which inherit --require, run as ever.
 *
 * A process that was started before its job waits here for it (gate.js).
 */

const fs = require("node:fs");
const Module = require("node:module");

Object.defineProperty(globalThis, "cronium", {
  configurable: true,
  get() {
    globalThis.cronium = require("./cronium.js"); // when first used: most of what loading costs
    return globalThis.cronium;
  },
  set(value) {
    Object.defineProperty(globalThis, "cronium", { value, configurable: true, writable: true });
  },
});

// Node.js calls this to run the main file, and keeps it replaceable for programs of this kind. A forked process or
// a worker thread of a module has main.mjs for its main file.
const runMain = Module.runMain;
Module.runMain = function (main = process.argv[1], ...rest) {
  Module.runMain = runMain;
  const script = main?.replace(/\.mjs$/, ".js");
  const twin = script?.replace(/\.js$/, ".mjs");
  const areThere = script !== twin && fs.existsSync(script) && fs.existsSync(twin);
  if (!areThere || !runsAsModule(script, twin)) {
    return runMain.call(Module, main, ...rest);
  }
  // Scripts mix await at the top level with require(). No __filename: packages would take that for CommonJS.
  const value = Module.createRequire(script);
  Object.defineProperty(globalThis, "require", { value, configurable: true, writable: true });
  process.argv[1] = twin;
  return runMain.call(Module, twin, ...rest);
};

/** Whether two files are a job's script and a module: other files of such names are none of ours. */
function runsAsModule(script, twin) {
  const source = fs.readFileSync(script);
  return isModule(source.toString()) && source.equals(fs.readFileSync(twin));
}

// What V8 says of a function with ES module syntax in it, except for await: that has a dozen messages.
const MODULE_SYNTAX = /^(Cannot use (import statement|'import\.meta') outside a module|Unexpected token 'export')$/;
const AsyncFunction = async function () {}.constructor;

/** Whether a source can be no CommonJS module but an ES module. */
function isModule(source) {
  const text = source.replace(/^\uFEFF?#!/, "//");
  // A CommonJS module is the body of a function.
  const error = errorOf(() => new Function("exports", "require", "module", "__filename", "__dirname", text));
  if (error === undefined && !/\bawait\b/.test(text)) return false;
  // In the body of an async function await may stand where a module may have it; and without the parameters the
  // names are free that a module may declare.
  const asyncError = errorOf(() => new AsyncFunction(text));
  // The same error: a mistake, which Node.js shall report for main.js. Another one: main.mjs has that as well.
  if (error !== undefined) return asyncError !== error || MODULE_SYNTAX.test(error);
  // `await (x)` may call a function named await, unless that name is reserved, as it is in a static block.
  if (asyncError !== undefined) return false;
  return errorOf(() => new Function(`class C { static { ${text}\n} }`)) === "Unexpected reserved word";
}

function errorOf(compile) {
  try {
    compile();
    return undefined;
  } catch (error) {
    return error.message;
  }
}

if ("CRONIUM_GATE" in process.env) {
  const gate = require.resolve("./gate.js");
  require(gate)();
  delete require.cache[gate];
  module.children.pop();
  for (const key of Object.keys(Module._pathCache)) if (Module._pathCache[key] === gate) delete Module._pathCache[key];
}
