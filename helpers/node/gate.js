"use strict";
/**
 * Where a Node.js that was started before its job waits for it: the last that preload.js does, before the script's file
 * is looked for.
 *
 * The launcher (launcher.sh, where the protocol is) gives CRONIUM_GATE, the control directory, to the one process that
 * is to become the script. Nothing of this is left in it but what /proc shows of its start. Its clocks that count
 * from the start do not count the waiting: process.uptime(), performance.now(), performance.timeOrigin.
 */

const fs = require("node:fs");

const [GATE, WORD] = [3, 4]; // descriptors

/** Returns as the job's process, or ends. */
module.exports = function wait() {
  try {
    const control = process.env.CRONIUM_GATE;
    delete process.env.CRONIUM_GATE;
    warmUp();
    const since = process.uptime();
    fs.writeSync(WORD, "a");
    if (fs.readSync(GATE, Buffer.alloc(64)) === 0 && !fs.existsSync(`${control}/released`)) process.reallyExit(75);
    become(control);
    setClocks(process.uptime() - since); // uptime() also tells the event loop the time
  } catch {
    process.kill(process.pid, "SIGKILL");
  }
};

/**
 * Loads what nearly every script has loaded a moment later: of 20 ms from here to the first word of a script, that is
 * 16. Nothing of the process's own is touched: stdout is opened by the script, if at all.
 */
function warmUp() {
  performance.now();
  require("node:tty");
  const { Socket } = require("node:net");
  const { Writable } = require("node:stream");
  new console.Console({ stdout: new Writable({ write() {} }), colorMode: false }).log(""); // "auto" opens stderr
  try {
    // The pipe of stdout, opened once more: what is set there is not set for stdout. It is among no active resources;
    // libuv's reserve, a /dev/null, stays, as it would from the first console.log().
    const pipe = new Socket({ fd: fs.openSync("/proc/self/fd/1", "w"), readable: false, writable: true });
    pipe.on("error", () => {}).unref();
    pipe.write("");
    pipe._handle.close(); // destroy() opens stderr
  } catch {
    // The script is a millisecond slower.
  }
}

function become(control) {
  let directory, variables, before;
  try {
    [directory, ...variables] = fs.readFileSync(`${control}/environment`, "utf8").split("\0");
    before = process.env.PWD || process.cwd();
    enter(directory);
  } catch {
    // Not for this process, or a directory of which the shell has something to say. It is quicker than an exit.
    fs.writeSync(WORD, "f");
    process.kill(process.pid, "SIGKILL");
  }
  fs.writeSync(WORD, "s");
  fs.closeSync(GATE);
  fs.closeSync(WORD);
  process.env.OLDPWD = before; // as `cd` does
  process.env.PWD = directory;
  for (const variable of variables) {
    const end = variable.indexOf("=");
    process.env[variable.slice(0, end)] = variable.slice(end + 1);
  }
}

function enter(directory) {
  try {
    process.chdir(directory);
  } catch (error) {
    if (error.code !== "ENOENT") throw error;
    fs.mkdirSync(directory, { recursive: true });
    process.chdir(directory);
  }
}

function setClocks(waited) {
  replace(process, "uptime", (uptime) => ({
    uptime() {
      return uptime() - waited;
    },
  }));
  replace(performance, "now", (now) => ({
    now() {
      return now.call(performance) - waited * 1000;
    },
  }));
  replace(performance, "timeOrigin", (timeOrigin) => ({ timeOrigin: timeOrigin + waited * 1000 }));
}

/** Replaces a property where it is found, as the same kind of property. */
function replace(object, name, make) {
  let owner = object;
  while (owner && !Object.hasOwn(owner, name)) owner = Object.getPrototypeOf(owner);
  const found = owner && Object.getOwnPropertyDescriptor(owner, name);
  if (!found?.configurable) return;
  const value = make(object[name])[name];
  Object.defineProperty(owner, name, "value" in found ? { ...found, value } : { ...found, get: () => value });
}
