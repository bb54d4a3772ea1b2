// Ordinary work of a Node script, a line for each thing that went well.
const { spawn, exec, execFileSync, fork } = require("child_process");
const { once } = require("events");
const { pipeline } = require("stream/promises");
const { promisify } = require("util");
const { Worker } = require("worker_threads");
const assert = require("assert");
const crypto = require("crypto");
const dgram = require("dgram");
const dns = require("dns");
const fs = require("fs");
const http = require("http");
const net = require("net");
const os = require("os");
const path = require("path");
const zlib = require("zlib");

process.chdir(fs.mkdtempSync(path.join(os.tmpdir(), "work-")));

const works = {
  async threads() {
    const source = "const {parentPort, workerData} = require('worker_threads');" +
      "Atomics.add(new Int32Array(workerData), 0, 1); parentPort.postMessage('done')";
    const shared = new SharedArrayBuffer(4);
    const workers = [1, 2].map(() => new Worker(source, { eval: true, workerData: shared }));
    await Promise.all(workers.map((worker) => once(worker, "message")));
    assert.equal(new Int32Array(shared)[0], 2);
  },
  async subprocesses() {
    const child = spawn("cat", { stdio: ["pipe", "pipe", "inherit"] });
    child.stdin.end("in");
    assert.equal((await once(child.stdout, "data"))[0].toString(), "in");
    assert.equal((await promisify(exec)("echo $((6 * 7))")).stdout, "42\n");
    assert.equal(execFileSync("pwd").toString().trim(), process.cwd());
    fs.writeFileSync("child.js", "process.on('message', (n) => { process.send(n + 1); process.disconnect(); })");
    const forked = fork("child.js");
    forked.send(1);
    assert.equal((await once(forked, "message"))[0], 2);
    const sleeping = spawn("sleep", ["99"], { detached: true });
    process.kill(-sleeping.pid, "SIGKILL");
    assert.equal((await once(sleeping, "exit"))[1], "SIGKILL");
  },
  async signals() {
    const heard = once(process, "SIGUSR2");
    process.kill(process.pid, "SIGUSR2");
    await heard;
  },
  async tcp_and_udp() {
    for (const where of [{ port: 0, host: "127.0.0.1" }, { path: "unix.sock" }]) {
      const server = net.createServer((socket) => socket.pipe(socket)).listen(where);
      await once(server, "listening");
      const to = where.path ? where : { port: server.address().port, host: "127.0.0.1" };
      const client = net.connect(to);
      client.write("echo");
      assert.equal((await once(client, "data"))[0].toString(), "echo");
      client.destroy();
      server.close();
    }
    const socket = dgram.createSocket("udp4");
    socket.bind(0, "127.0.0.1");
    await once(socket, "listening");
    socket.send("datagram", socket.address().port, "127.0.0.1");
    assert.equal((await once(socket, "message"))[0].toString(), "datagram");
    socket.close();
    assert.ok((await dns.promises.lookup("localhost")).address);
    assert.deepEqual(Object.keys(os.networkInterfaces()), ["lo"]);
  },
  async a_server() {
    const server = http.createServer((request, response) => response.end(request.url)).listen(0, "127.0.0.1");
    await once(server, "listening");
    const answer = await fetch(`http://127.0.0.1:${server.address().port}/asked`);
    assert.equal(await answer.text(), "/asked");
    server.closeAllConnections();
    server.close();
  },
  async files() {
    await fs.promises.writeFile("file", "content".repeat(100_000));
    await fs.promises.copyFile("file", "copy", fs.constants.COPYFILE_FICLONE);
    await fs.promises.cp("file", "cp");
    const watcher = fs.watch(".");
    const changed = once(watcher, "change");
    fs.writeFileSync("new", "");
    await changed;
    watcher.close();
    fs.symlinkSync("file", "soft");
    fs.linkSync("file", "hard");
    fs.chmodSync("file", 0o600);
    fs.utimesSync("file", 1, 1);
    fs.truncateSync("copy", 3);
    const file = fs.openSync("copy", "r+");
    fs.fsyncSync(file);
    fs.closeSync(file);
    await pipeline(fs.createReadStream("file"), zlib.createGzip(), fs.createWriteStream("file.gz"));
    assert.equal((await promisify(zlib.gunzip)(fs.readFileSync("file.gz"))).length, 700_000);
    fs.rmSync("file.gz");
    assert.ok((await fs.promises.readdir(".")).includes("hard"));
    assert.ok(fs.statfsSync(".").bsize);
  },
  async its_own_limits() {
    assert.equal((await promisify(crypto.randomBytes)(16)).length, 16);
    await promisify(crypto.pbkdf2)("password", "salt", 10, 32, "sha256");
    os.setPriority(os.getPriority() + 1);
    assert.ok(os.cpus().length && process.memoryUsage().rss && process.resourceUsage().maxRSS);
    process.setuid(process.getuid());
    process.umask(0o22);
    process.title = "renamed";
    const empty = new Uint8Array([0, 0x61, 0x73, 0x6d, 1, 0, 0, 0]);
    assert.ok((await WebAssembly.instantiate(empty)).instance);
    await new Promise((resolve) => setTimeout(resolve, 1));
  },
};

(async () => {
  const alive = setInterval(() => {}, 1000); // waiting for a signal keeps no process
  for (const [name, work] of Object.entries(works)) {
    try {
      await work();
      console.log(name);
    } catch (error) {
      console.log(`${name}: ${error}`);
    }
  }
  clearInterval(alive);
})();
