"""Scripts that tell all they find, and scripts that end in all ways: for comparing one start with another."""

# Of an interpreter's own descriptors the kinds alone are told: two numbers below them belong to the gate, and are free
# when the script begins. Not told: process.moduleLoadList, where modules of the standard streams may stand sooner; and
# the /dev/null that libuv opens with the first stream, in case it runs out of descriptors; that Bash's SECONDS has been
# set, which only `declare -p` shows.
BASH_FINDS = r"""first=$_
ls -l /proc/$$/fd >/tmp/fds
jq -n --argjson waited "$(tr '\0' '\n' </proc/$$/environ | grep -c '^CRONIUM_GATE=' || :)" \
  --arg vars "$(declare -p | grep -vE '^declare -[-airx]+ (BASHPID|PPID|S?RANDOM|EPOCH[A-Z]+|SECONDS|_)\b')" \
  --arg functions "$(declare -f)" --arg options "$(set -o; shopt)" --arg traps "$(trap -p)" --arg aliases "$(alias)" \
  --arg hashed "$(hash 2>&1)" --arg jobs "$(jobs)" --arg history "$(history)" --arg completions "$(complete)" \
  --arg bindings "$(enable -a)" --arg limits "$(ulimit -a)" --arg umask "$(umask)" --arg seconds "$((SECONDS < 3))" \
  --arg place "$0 $# $* $- $first $LINENO ${BASH_SOURCE[*]} ${BASH_LINENO[*]} ${FUNCNAME[*]-} $BASH_SUBSHELL $SHLVL" \
  --arg directory "$(pwd; pwd -P; dirs; echo ~ "${OLDPWD-none}")" \
  --arg said "$(printf '%s|' "${IFS@Q}" "$PS4" "$OPTIND")" \
  --arg environment "$(env | sort)" --arg group "$(awk '{print $1 == $5, $6, $7}' /proc/$$/stat)" \
  --arg cmdline "$(tr '\0' ' ' </proc/$$/cmdline)" --arg times "$(times | grep -c 0m0)" \
  --arg status "$(grep -E '^(Sig[BIC]|Umask|Threads|Cap|NoNew|Seccomp|Groups|Uid|Gid|Cpus_a)' /proc/$$/status)" \
  --arg fds "$(sed -E 's/.* ([0-9]+ -> [^[]*).*/\1/' /tmp/fds)" \
  '$ARGS.named | .waited = (.waited == 1)' -c
"""
PYTHON_FINDS = """
import sys
modules = list(sys.modules)
import json, locale, os, site
found = {
    "modules": sorted(modules), "argv": sys.argv, "orig_argv": sys.orig_argv, "path": sys.path, "flags": str(sys.flags),
    "prefixes": [sys.prefix, sys.exec_prefix, sys.base_prefix, sys.executable], "hooks": len(sys.meta_path),
    "importers": sorted(sys.path_importer_cache), "warnings": sys.warnoptions, "xoptions": sys._xoptions,
    "name": __name__, "file": __file__, "spec": str(__spec__), "loader": str(type(__loader__)), "doc": __doc__,
    "package": __package__, "cached": __cached__, "globals": sorted(set(globals()) - {"found"}),
    "builtins": sorted(dir(__builtins__)), "environ": dict(os.environ), "cwd": os.getcwd(),
    "posix": len(__import__("posix").environ),
    "fds": {fd: os.readlink(f"/proc/self/fd/{fd}").split("[")[0] for fd in os.listdir("/proc/self/fd") if fd != "3"},
    "next fd": os.dup(0), "status": [line for line in open("/proc/self/status") if line.startswith(
        ("SigB", "SigI", "SigC", "Umask", "Threads", "Cap", "NoNew", "Seccomp", "Groups", "Uid", "Gid", "Cpus_a"))],
    "cmdline": open("/proc/self/cmdline").read(), "limits": open("/proc/self/limits").read(), "umask": os.umask(0),
    "encodings": [sys.getfilesystemencoding(), sys.stdout.encoding, sys.stdin.encoding, locale.getlocale()],
    "errors": [sys.stdout.errors, sys.stdin.errors, sys.stderr.errors, sys.getfilesystemencodeerrors()],
    "streams": [sys.stdout.line_buffering, sys.stderr.line_buffering, sys.stdin.isatty(), sys.stdout.isatty()],
    "site": [site.ENABLE_USER_SITE, site.USER_SITE, site.USER_BASE], "helper": cronium.__spec__.origin,
    "group": os.getpgrp() == os.getpid(), "session": os.getsid(0),
    "trace": [str(sys.gettrace()), str(sys.getprofile())],
    "handlers": [str(__import__("signal").getsignal(number)) for number in (1, 2, 13, 15, 17)],
    "threads": __import__("threading").active_count(), "stack": sys.getrecursionlimit(),
    "switch": sys.getswitchinterval(),
    "subprocess": sorted(__import__("subprocess").run(["env"], capture_output=True, text=True).stdout.splitlines()),
    "waited": "CRONIUM_GATE=" in open("/proc/self/environ").read(),
}
print(json.dumps(found))
"""
NODE_FINDS = """
const fs = require("fs");
const fds = fs.readdirSync("/proc/self/fd").map((fd) => {
  try { return fs.readlinkSync(`/proc/self/fd/${fd}`).split("[")[0].replace(/:$/, ""); } catch { return "gone"; }
}).filter((found, number) => number === 0 || found !== "/dev/null");
const own = (object) => Object.entries(Object.getOwnPropertyDescriptors(object)).map(([name, found]) =>
  [name, found.writable, found.enumerable, found.configurable, Boolean(found.get), typeof found.value]);
const found = {
  fds: fds.sort(), argv: process.argv, argv0: process.argv0, execArgv: process.execArgv, execPath: process.execPath,
  env: { ...process.env }, cwd: process.cwd(), main: require.main === module, filename: __filename, dirname: __dirname,
  module: [module.id, module.path, module.filename, module.parent, module.children, module.paths],
  preload: Object.values(require.cache).map((one) => [one.id, one.children.map((child) => child.id)]),
  paths: Object.keys(module.constructor._pathCache), globals: own(globalThis), process: own(process),
  runMain: String(module.constructor.runMain), globalPaths: module.constructor.globalPaths, umask: process.umask(),
  title: process.title, ids: [process.getuid(), process.getgid()],
  status: fs.readFileSync("/proc/self/status", "utf8").split("\\n")
    .filter((line) => /^(Sig[BIC]|Umask|Cap|NoNew|Seccomp|Cpus_a)/.test(line)),
  listeners: process.eventNames().map(String), handles: process._getActiveHandles().length,
  requests: process._getActiveRequests().length,
  cmdline: fs.readFileSync("/proc/self/cmdline", "latin1"), limits: fs.readFileSync("/proc/self/limits", "utf8"),
  heap: require("v8").getHeapStatistics().heap_size_limit, zone: Intl.DateTimeFormat().resolvedOptions(),
  features: process.features,
  trace: Error.stackTraceLimit, prepare: typeof Error.prepareStackTrace, warnings: process.noDeprecation,
  performance: [performance.now.name, performance.now.length, typeof performance.timeOrigin],
  uptime: [process.uptime.name, process.uptime.length],
  subprocess: require("child_process").execFileSync("env", { encoding: "utf8" }).split("\\n").sort(),
  exec: process.report.getReport().header.commandLine,
  waited: fs.readFileSync("/proc/self/environ", "latin1").includes("CRONIUM_GATE="),
};
console.log(JSON.stringify(found));
"""
FINDS = {"bash": BASH_FINDS, "python": PYTHON_FINDS, "node": NODE_FINDS}

BASH_ENDS = {
    "nothing": "",
    "a text": "printf 'no end of line'; echo é >&2",
    "exit 3": "exit 3",
    "a command that fails": "echo before\nfalse\necho after",
    "a pipe that fails": "false | true\necho after",
    "a function that fails": "f() { return 5; }\nf",
    "a variable that is not there": 'echo "$nowhere"',
    "no Bash": "echo a\nif ; then",
    "a command that is not there": "nowhere",
    "return": "return 3",
    "its lines": "# one\necho $LINENO $BASH_SOURCE $0\nf() { caller; echo ${BASH_LINENO[*]} ${FUNCNAME[*]}; }\nf",
    "SIGKILL": "kill -9 $$",
    "SIGTERM": "kill -15 $$",
    "SIGINT": "kill -2 $$",
    "abort": "kill -6 $$",
    "a handler": "trap 'exit 4' TERM; kill -15 $$; sleep 5",
    "a group": "kill -15 0",
    "input": "read -r line || echo no input",
    "helpers": 'cronium_output "$(cronium_input)"; cronium_setVariable v 2; cronium_setCondition true\n'
    "echo x >/workspace/output/file; cronium_event_field name",
    "at exit": "trap 'echo at exit $?' EXIT; trap 'echo failed $LINENO' ERR\nfalse",
    "tracing": "set -x\necho hi\nf() { echo $1; }; f 1",
    "options": "set +euo pipefail; false; echo $nowhere; false | true; echo ${PIPESTATUS[*]} $?",
    "the same interpreter": "bash -c 'echo $0 $-; env | cut -d= -f1 | sort; ls /proc/self/fd; declare -F; exit 6' x y",
    "exec": "exec bash -c 'env | sort | grep -v ^CRONIUM_JOB_ID'",
    "a subshell": "(exit 9)",
    "a process beside": "coproc cat\necho hi >&${COPROC[1]}; read -r -u ${COPROC[0]} line; echo $line\ncat <(echo m)",
    "what stays": "sleep 0.5 & echo left",
    "a closed stdout": "exec >&-; echo into the void",
    "text of its own": "cat <<<$SECONDS; cat $0 | wc -c",
    "much": "for ((n = 0; n < 20000; n++)); do echo $n; done",
}
PYTHON_ENDS = {
    "nothing": "",
    "a text": "import sys; sys.stdout.write('no end of line'); sys.stderr.write('é\\n')",
    "sys.exit(3)": "import sys; sys.exit(3)",
    "sys.exit(text)": "import sys; sys.exit('words')",
    "an exception": "def f(n):\n    return 1 / n\n\nprint('before')\nf(0)\n",
    "an exception in an exception": "try:\n    {}['a']\nexcept KeyError:\n    raise ValueError('b')\n",
    "no Python": "print('a'\nif :",
    "a module that is not there": "import nowhere",
    "os._exit": "import os; print('lost?', flush=True); os._exit(5)",
    "SIGKILL": "import os; os.kill(os.getpid(), 9)",
    "SIGTERM": "import os; os.kill(os.getpid(), 15)",
    "SIGINT": "import os; os.kill(os.getpid(), 2)",
    "abort": "import os; os.abort()",
    "a handler": "import os, signal, sys; signal.signal(15, lambda *_: sys.exit(4)); os.kill(os.getpid(), 15)",
    "a group": "import os; os.killpg(0, 15)",
    "input": "try:\n    input()\nexcept EOFError:\n    print('no input')\n",
    "helpers": "cronium.output({'in': cronium.input()}); cronium.set_variable('v', 2); cronium.set_condition(True)\n"
    "open('/workspace/output/file', 'w').write('x'); print(cronium.event()['name'])",
    "at exit": "import atexit, threading, time\natexit.register(print, 'at exit')\n"
    "threading.Thread(target=lambda: (time.sleep(0.1), print('thread'))).start()",
    "the same interpreter": "import subprocess, sys\nsubprocess.run([sys.executable, '-c', "
    "'import os, sys; print(sys.argv, sorted(os.environ)); print(os.listdir(\"/proc/self/fd\")); sys.exit(6)'])\n",
    "processes": "import multiprocessing as m\ndef f(n): return n * n\nif __name__ == '__main__':\n"
    "    for how in 'fork', 'spawn', 'forkserver':\n        with m.get_context(how).Pool(2) as pool:\n"
    "            print(how, pool.map(f, [1, 2, 3]))\n",
    "fork": "import os, sys\nif os.fork() == 0:\n    sys.exit(8)\nprint(os.waitstatus_to_exitcode(os.wait()[1]))\n",
    "exec": "import os, sys\nos.execv(sys.executable, [sys.executable, '-c', 'import os; print(sorted(os.environ))'])",
    "what stays": "import subprocess; subprocess.Popen(['sleep', '0.5']); print('left')",
    "a closed stdout": "import os; os.close(1); print('into the void')",
    "a name of its own": "print(repr(__import__('__main__')), __import__('pickle').dumps(len)[:2])",
}
NODE_ENDS = {
    "nothing": "",
    "a text": "process.stdout.write('no end of line'); process.stderr.write('é\\n')",
    "process.exit(3)": "process.exit(3)",
    "process.exitCode": "process.exitCode = 4; setTimeout(() => console.log('later'), 20)",
    "an error": "function f() { throw new Error('e'); }\nconsole.log('before');\nf();\n",
    "an error later": "setTimeout(() => { null.x; }, 10)",
    "no text": "throw null",
    "a rejection": "Promise.reject(new Error('r'))",
    "a rejection of a text": "Promise.reject('r')",
    "an error of a module": "import fs from 'fs';\nthrow new Error(typeof fs);",
    "a rejection of a module": "export {};\nawait Promise.reject(new Error('r'));",
    "an await that never ends": "export {}; await new Promise(() => {});",
    "no JavaScript": "let = ;",
    "a module that is not there": "require('nowhere')",
    "a package that is not there": "import 'nowhere';",
    "SIGKILL": "process.kill(process.pid, 'SIGKILL'); setInterval(() => {}, 1000)",
    "SIGTERM": "process.kill(process.pid, 'SIGTERM'); setInterval(() => {}, 1000)",
    "a handler": "process.on('SIGTERM', () => process.exit(4)); process.kill(process.pid, 'SIGTERM');"
    "setInterval(() => {}, 1000)",
    "abort": "process.abort()",
    "uncaughtException": "process.on('uncaughtException', (e) => console.log('caught', e.message));"
    "throw new Error('u')",
    "a warning": "process.emitWarning('careful'); new Buffer(1)",
    "input": "process.stdin.on('data', () => {}).on('end', () => console.log('no input'))",
    "helpers": "cronium.output({ in: cronium.input() }); cronium.setVariable('v', 2); cronium.setCondition(true);"
    "require('fs').writeFileSync('/workspace/output/file', 'x'); console.log(require('cronium').event().name)",
    "at exit": "process.on('beforeExit', () => console.log('before')).on('exit', (code) => console.log('exit', code))",
    "the same interpreter": "const { status } = require('child_process').spawnSync(process.execPath, ['-e',"
    "'console.log(process.argv, Object.keys(process.env).sort()); process.exit(6)'], { stdio: 'inherit' });"
    "console.log(status)",
    "a fork": "const { fork } = require('child_process');\n"
    "if (process.send) { process.on('message', (m) => { process.send(m + 1); process.disconnect(); }); }\n"
    "else { fork(__filename).on('message', (m) => console.log(m)).send(1); }",
    "workers": "const { Worker, isMainThread, parentPort, threadId } = require('worker_threads');\n"
    "if (isMainThread)\n"
    "  new Worker(__filename).on('message', (m) => console.log(m)).on('exit', (c) => console.log(c));\n"
    "else parentPort.postMessage([threadId, process.argv.length, Object.keys(process.env).sort(), process.cwd()]);",
    "a cluster": "const cluster = require('cluster');\n"
    "if (cluster.isPrimary) cluster.fork().on('exit', (c) => console.log(c));\n"
    "else process.exit(7);",
    "timers": "const log = []; setImmediate(() => log.push('i')); process.nextTick(() => log.push('t'));"
    "Promise.resolve().then(() => log.push('p')); setTimeout(() => { log.push('o'); console.log(log.join()) }, 50)",
    "what stays": "require('child_process').spawn('sleep', ['0.5'], { stdio: 'inherit', detached: true }).unref();"
    "console.log('left')",
    "much": "for (let n = 0; n < 20000; n++) console.log(n)",
    "streams": "require('fs').createReadStream(__filename).pipe(require('zlib').createGzip())"
    ".pipe(require('zlib').createGunzip()).pipe(process.stdout)",
}
ENDS = {"bash": BASH_ENDS, "python": PYTHON_ENDS, "node": NODE_ENDS}
