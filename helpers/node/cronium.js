"use strict";
/**
 * Cronium's functions for Node.js jobs: input, output, variables, condition and event of the running job.
 *
 * A job has this module as `cronium` with no import. Everything is a JSON file under $CRONIUM_DATA_DIR
 * (/workspace/data) or $CRONIUM_OUTPUT_DIR (/workspace/output), so with these two set it works anywhere;
 * they are read at each call. Files are replaced whole or not at all. All functions are synchronous, so they may
 * be awaited as well. Whatever goes wrong is a CroniumError.
 *
 * Values are written as JSON.stringify writes them (NaN becomes null) and read as JSON.parse reads them (whole
 * numbers are exact up to 2^53). Node.js has no file locks: processes that change variables at the same time may
 * lose changes, unlike in Bash and Python.
 */

const fs = require("node:fs");
const path = require("node:path");

const CONDITION_WORDS = new Map([
  ...["true", "1", "yes", "on"].map((word) => [word, true]),
  ...["false", "0", "no", "off"].map((word) => [word, false]),
]);

/** A file of the job cannot be read or written, or a value cannot be stored as JSON. */
class CroniumError extends Error {
  get name() {
    return "CroniumError";
  }
}

/**
 * The helper functions over one pair of directories. Its methods may be taken apart (`const { input } = cronium`).
 * The class has the same functions as static ones, over the directories that the environment names: that is what
 * makes `require("cronium").input()` work.
 */
class Cronium {
  #dataDir;
  #outputDir;

  /**
   * @param {{dataDir?: string, outputDir?: string}} [directories] instead of the environment's
   */
  constructor({ dataDir, outputDir } = {}) {
    this.#dataDir = dataDir;
    this.#outputDir = outputDir;
    for (const name of FUNCTIONS) {
      Object.defineProperty(this, name, { value: this[name].bind(this), configurable: true, writable: true });
    }
  }

  /** Returns the job's input, any JSON value; {} when none was given. */
  input() {
    return read(this.#data("input.json"), {});
  }

  /** Sets the job's result, any JSON value. The last call wins. */
  output(data) {
    write(this.#output("output.json"), data);
  }

  /** Returns all variables; a change of the object changes no variable. */
  variables() {
    return readObject(this.#data("variables.json"), {});
  }

  /** Returns a variable's value, `defaultValue` if there is none of that name. */
  getVariable(key, defaultValue = null) {
    const variables = this.variables();
    return Object.hasOwn(variables, key) ? variables[key] : defaultValue;
  }

  /** Sets a variable to any JSON value. */
  setVariable(key, value) {
    if (typeof key !== "string") throw new CroniumError(`a variable's name is a string, not ${typeof key}`);
    serialise(value, `variable ${JSON.stringify(key)}`); // within an object, undefined would vanish without a word
    const variables = this.variables();
    // An assignment to `__proto__` would change the prototype instead.
    Object.defineProperty(variables, key, { value, configurable: true, enumerable: true, writable: true });
    write(this.#data("variables.json"), variables);
  }

  /** Removes a variable and returns whether there was one. */
  deleteVariable(key) {
    const variables = this.variables();
    if (!Object.hasOwn(variables, key)) return false;
    delete variables[key];
    write(this.#data("variables.json"), variables);
    return true;
  }

  /**
   * Adds a number to a variable and returns the new value; a missing variable counts as 0.
   * Throws CroniumError if the variable, `by` or the sum is not a finite number.
   */
  incrementVariable(key, by = 1) {
    const old = this.getVariable(key, 0);
    if (typeof old !== "number") throw new CroniumError(`variable ${JSON.stringify(key)} is not a number`);
    if (!Number.isFinite(by)) throw new CroniumError("the increment is not a number");
    if (!Number.isFinite(old + by)) throw new CroniumError("the sum is too large");
    this.setVariable(key, old + by);
    return old + by;
  }

  /**
   * Sets the job's condition to the truth of a value. A string must be one of true, 1, yes, on, false, 0, no, off
   * (any case), so that "false" is not true.
   */
  setCondition(condition) {
    const isText = typeof condition === "string";
    const result = isText ? CONDITION_WORDS.get(condition.toLowerCase()) : Boolean(condition);
    if (result === undefined) throw new CroniumError("a condition is one of true, 1, yes, on, false, 0, no, off");
    write(this.#output("condition.json"), { result });
  }

  /** Returns the condition as set so far, false when it was not. */
  getCondition() {
    const file = this.#output("condition.json");
    const { result } = readObject(file, { result: false });
    if (typeof result !== "boolean") throw new CroniumError(`${file} does not hold a condition`);
    return result;
  }

  /**
   * Returns the event that started the job, with its jobId, attempt and host; {} without one.
   * Without the file it is the JSON in $CRONIUM_EVENT_METADATA.
   */
  event() {
    const file = this.#data("event.json");
    const metadata = process.env.CRONIUM_EVENT_METADATA;
    if (metadata && !fs.existsSync(file)) {
      return asObject(parse(metadata, "CRONIUM_EVENT_METADATA"), "CRONIUM_EVENT_METADATA");
    }
    return readObject(file, {});
  }

  #data(name) {
    return path.join(this.#dataDir || process.env.CRONIUM_DATA_DIR || "/workspace/data", name);
  }

  #output(name) {
    return path.join(this.#outputDir || process.env.CRONIUM_OUTPUT_DIR || "/workspace/output", name);
  }
}

const FUNCTIONS = Object.getOwnPropertyNames(Cronium.prototype).filter((name) => name !== "constructor");

function read(file, missing) {
  let content;
  try {
    content = fs.readFileSync(file);
  } catch (error) {
    if (error.code === "ENOENT") return missing;
    throw new CroniumError(`cannot read ${file}: ${error.code}`, { cause: error });
  }
  return parse(content, file);
}

function readObject(file, missing) {
  return asObject(read(file, missing), file);
}

function asObject(value, where) {
  if (value === null || typeof value !== "object" || Array.isArray(value)) {
    throw new CroniumError(`${where} does not hold a JSON object`);
  }
  return value;
}

// Not toString(): it replaces bad bytes, and the next write would make that permanent.
const strictUtf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

function parse(content, where) {
  try {
    return JSON.parse(typeof content === "string" ? content : strictUtf8.decode(content));
  } catch (cause) {
    throw new CroniumError(`${where} does not hold valid JSON`, { cause });
  }
}

function serialise(value, what) {
  let text;
  try {
    text = JSON.stringify(value);
  } catch (cause) {
    // a cycle or a BigInt
    throw new CroniumError(`cannot write ${what}: ${cause.message.split("\n")[0]}`, { cause });
  }
  if (text === undefined) throw new CroniumError(`cannot write ${what}: JSON has no ${typeof value}`);
  return text;
}

function write(file, value) {
  const text = serialise(value, path.basename(file));
  const directory = path.dirname(file);
  const unique = `${process.pid}-${Math.random().toString(36).slice(2)}`;
  const temporary = path.join(directory, `.${path.basename(file)}.${unique}.tmp`);
  try {
    fs.mkdirSync(directory, { recursive: true });
    try {
      fs.writeFileSync(temporary, text);
      fs.renameSync(temporary, file);
    } catch (error) {
      fs.rmSync(temporary, { force: true });
      throw error;
    }
  } catch (cause) {
    throw new CroniumError(`cannot write ${file}: ${cause.code}`, { cause });
  }
}

const cronium = new Cronium();
for (const name of FUNCTIONS) Cronium[name] = cronium[name];
module.exports = Object.assign(Cronium, { Cronium, CroniumError, cronium, default: Cronium });
