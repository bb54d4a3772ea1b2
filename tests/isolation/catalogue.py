"""Bad input and hostile scripts as data: what each is, and how the fleet must take it."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from string import ascii_lowercase
from typing import Any, Literal, TypeVar

from tests.integration.scripts import LANGUAGES
from tests.isolation.steps import Directory, HardLink, Link, ManyFiles, Mode, Shell, Sparse, Step, Write

Outcome = Literal["refused", "user fault", "contained"]
T = TypeVar("T")
MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A job that must be refused by the name of a field, before anything is sent or made."""

    id: str
    title: str
    where: str
    fields: dict[str, Any]
    category: str = "input"


@dataclass(frozen=True, kw_only=True)
class Attack:
    """What a script tries. `user fault`: `error` is in the result's error. `contained`: the job completes.

    `note` is in a note, `says` in the log, `never_says` is not; `kept`: these output files are collected, `dropped`:
    these are not. Attacks of one `group` touch different files and are run in one job. `job`: further fields. CANARY in
    a link's target is the path of a file of the host.
    """

    id: str
    title: str
    category: str
    expected: Outcome
    steps: tuple[Step, ...]
    error: str = ""
    note: str = ""
    says: tuple[str, ...] = ()
    never_says: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    log: dict[str, Any] = field(default_factory=dict)
    group: str = ""
    job: dict[str, Any] = field(default_factory=dict)
    languages: tuple[str, ...] = LANGUAGES
    takes_long: bool = False


def _lettered(number: str, cases: Iterable[T]) -> Iterator[tuple[str, T]]:
    """Each with its id."""
    return ((f"{number}{ascii_lowercase[index]}", case) for index, case in enumerate(cases))


# ---- input


def _refusals() -> Iterator[Refusal]:
    def each(number: str, where: str, title: str, *jobs: dict[str, Any]) -> Iterator[Refusal]:
        for identity, fields in _lettered(number, jobs):
            yield Refusal(id=identity, title=f"{title}: {repr(fields)[:60]}", where=where, fields=fields)

    bad_ids = ("../x", "/abs", ".", "..", "", "x" * 300, "a\0b", "a\n", "-x", "a\uff0fb", "a.", 7, None)
    yield from each("1", "id", "job id", *({"id": value} for value in bad_ids))
    bad_names = ("", "A=B", "A\0", "A B", "A\n", "1A", "BASH_FUNC_x%%", "CRONIUM_JOB_ID", "CRONIUM_X")
    yield from each("4", "environment", "name", *({"environment": {name: "x"}} for name in bad_names))
    yield from each("4s", "secrets", "secret's name", *({"secrets": {name: "x"}} for name in bad_names))
    bad_values = ("a\0b", "x" * (64 * 1024 + 1), None, 7)
    yield from each("5", "environment", "value", *({"environment": {"A": value}} for value in bad_values))
    yield from each("6", "environment", "3 MB in all", {"environment": {f"A{n}": "x" * 60_000 for n in range(50)}})
    bad_scripts = (
        {"content": "a\0b"},
        {"content": "x" * (MIB + 1)},
        {"content": None},
        {"name": "-rf"},
        {"content": "\ud800"},
    )
    yield from each(
        "11", "script", "script", *({"script": {"type": "bash", "content": "", **bad}} for bad in bad_scripts)
    )
    bad_types = ("BASH ", "bash;id", "ruby", "", None, ["bash"], "bash\0")
    yield from each("13", "script", "type", *({"script": {"type": kind, "content": ""}} for kind in bad_types))
    bad_images = ("../x", "a b", "-v", "x:y:z", "a\n", "http://r/x", "Tools", "x@sha256:00", ["x"])
    yield from each("14", "image", "image", *({"image": image} for image in bad_images))
    bad_places = ("data", "/workspace/../etc", "/proc/self/fd/8", "/proc/1/root", "/", "/workspacex", "/tmp/a\0b")
    yield from each("15", "script", "directory", *(
        {"script": {"type": "bash", "content": "", "working_directory": place}} for place in bad_places
    ))  # fmt: skip
    bad_resources = (
        {"memory": 0}, {"memory": -1}, {"memory": "1m"}, {"memory": float("nan")}, {"memory": 1e308},
        {"memory": "512MB "}, {"memory": True}, {"pids": 0}, {"pids": -1}, {"cpu": 0}, {"cpu": float("inf")},
        {"disk": -1}, {"disk_io": 0}, {"swap": 1},
    )  # fmt: skip
    yield from each("16", "resources", "resources", *({"resources": bad} for bad in bad_resources))
    bad_times = (0, -1, 10 * 365 * 86400, float("inf"), float("nan"), 1e400, "1h", True)
    yield from each("17", "timeout", "timeout", *({"timeout": time} for time in bad_times))
    smuggled: tuple[tuple[str, Any], ...] = (
        ("Privileged", True), ("HostConfig", {"Privileged": True}), ("Binds", ["/:/host"]), ("PidMode", "host"),
        ("CapAdd", ["ALL"]), ("privileged", True), ("runtime", "runc"), ("user", "0:0"), ("__class__", "x"),
        ("__init__", {}), ("volumes", ["/:/host"]),
    )  # fmt: skip
    for identity, (key, value) in _lettered("18", smuggled):
        yield Refusal(id=identity, title=f"unknown key {key}", where=key, fields={key: value})


REFUSALS = tuple(_refusals())


# ---- files


def _outputs() -> Iterator[Attack]:
    """What is no JSON of ours, in each of the three files in turn; three to a job."""
    wrong: tuple[tuple[str, str, Callable[[bytes], Step], str], ...] = (
        ("37a", "a list 100,000 deep", lambda f: Write(f, unit=b"[", times=100_000), "nested more than"),
        ("37b", "an object 100,000 deep", lambda f: Write(f, unit=b'{"a":', times=100_000), "nested more than"),
        ("37c", "10 MB", lambda f: Write(f, b'"', b"0123456789", 10**6, b'"'), "is over"),
        ("38a", "NaN", lambda f: Write(f, b'{"x": NaN}'), "NaN is not JSON"),
        ("38b", "Infinity", lambda f: Write(f, b"[Infinity]"), "Infinity is not JSON"),
        ("38c", "1e999", lambda f: Write(f, b"[1e999]"), "too large"),
        ("38d", "an integer of 5,000 digits", lambda f: Write(f, unit=b"9", times=5000), "more than 4300 digits"),
        ("40a", "a byte order mark", lambda f: Write(f, b"\xef\xbb\xbf{}"), "byte order mark"),
        ("40b", "UTF-16", lambda f: Write(f, b"\xff\xfe1\0"), "byte order mark"),
        ("40c", "no UTF-8", lambda f: Write(f, b'"\xff"'), "is not UTF-8"),
        ("40d", "a lone surrogate", lambda f: Write(f, b'"\\ud800"'), "lone surrogate"),
        ("40e", "trailing data", lambda f: Write(f, b"{} {}"), "Extra data"),
        ("40f", "a comment", lambda f: Write(f, b"{} // x"), "Extra data"),
        ("40g", "JSON lines", lambda f: Write(f, b"1\n2\n"), "Extra data"),
        ("40h", "a name twice", lambda f: Write(f, b'{"a": 1, "a": 2}'), "given twice"),
        ("40i", "half a file", lambda f: Write(f, b'{"a": '), "is not JSON"),
        ("40j", "an empty file", Write, "is empty"),
        ("40k", "a NUL byte", lambda f: Write(f, b'"\\u0000', b"\0", 1, b'"'), "is not JSON"),
        ("21a", "a link to a file of the host", lambda f: Link(b"CANARY", f), "a symbolic link"),
        ("21b", "a relative link out", lambda f: Link(b"../../../../canary.txt", f), "a symbolic link"),
        ("21c", "a loop of links", lambda f: Link(f.rpartition(b"/")[2], f), "a symbolic link"),
        ("21d", "a dangling link", lambda f: Link(b"nowhere", f), "a symbolic link"),
        ("23a", "a link to the environment", lambda f: Link(b"/proc/self/environ", f), "a symbolic link"),
        ("23b", "a link to a root", lambda f: Link(b"/proc/self/root/etc/passwd", f), "a symbolic link"),
        ("27a", "a hard link", lambda f: Shell("echo '{}' >F2; ln F2 F".replace("F", f.decode())), "a hard link"),
        ("29a", "a directory", Directory, "a directory"),
        ("29b", "a FIFO", lambda f: Shell(f"mkfifo {f.decode()}"), "a FIFO"),
        ("30a", "a sparse file of 1 TiB", lambda f: Sparse(f, 2**40), "is over"),
    )
    names = (b"output/output.json", b"output/condition.json", b"data/variables.json")
    for number, (identity, title, made_as, error) in enumerate(wrong):
        name = names[number % 3]
        # variables.json is there already, written by the worker for the job.
        steps = (Shell(f"rm -f {name.decode()}"), made_as(name))
        yield Attack(
            id=identity, category="files", title=f"{title} as {name.decode()}", expected="user fault",
            steps=steps, error=error, group=f"outputs {number // 3}",
        )  # fmt: skip


def _conditions() -> Iterator[Attack]:
    conditions = ('"false"', "0", "null", "[]", "true", '{"result": "true"}', "{}")
    for identity, text in _lettered("41", conditions):
        yield Attack(
            id=identity, category="files", title=f"{text} as condition.json", expected="user fault",
            steps=(Write(b"output/condition.json", text.encode()),), error="condition.json must be",
            group=f"variables {identity[-1]}",
        )  # fmt: skip
    name = b"data/variables.json"
    variables = [(text, Write(name, text.encode())) for text in ("[]", "null", '"x"', "1")]
    variables.append(("more than 1 MiB", Write(name, b'{"a": "', b"x", MIB + 1, b'"}')))
    for identity, (title, step) in _lettered("42", variables):
        yield Attack(
            id=identity, category="files", title=f"{title} as variables.json", expected="user fault",
            steps=(step,), error="variables.json", group=f"variables {identity[-1]}",
        )  # fmt: skip


def _tree() -> Iterator[Attack]:
    """What else may lie in the directories, all in one job."""

    def tree(number: str, title: str, *steps: Step, **expected: Any) -> Attack:
        return Attack(id=number, title=title, category="files", expected="contained", steps=steps, group="tree",
                      **expected)  # fmt: skip

    yield tree("21e", "a link among the files", Link(b"CANARY", b"output/link"), note="a symbolic link",
               dropped=("link",))  # fmt: skip
    yield tree("21f", "a link to a directory", Link(b"/", b"output/all"), note="a symbolic link", dropped=("all",))
    yield tree("23c", "magic links", *(Link(f"/proc/{name}".encode(), f"output/magic{n}".encode())
               for n, name in enumerate(("self/environ", "self/root", "1/fd/1", "self/cwd", "1/mem"))),
               dropped=("magic0", "magic1", "magic2", "magic3", "magic4"))  # fmt: skip
    yield tree("26a", "links where the worker deletes", Link(b"CANARY", b"here"), Link(b"CANARY", b"/tmp/here"),
               Link(b"/", b"/tmp/root"), Link(b"../../canary.txt", b"data/canary"))  # fmt: skip
    yield tree("27b", "hard links in the output", Write(b"output/one", b"x"), HardLink(b"output/one", b"output/two"),
               note="a hard link", dropped=("one", "two"))  # fmt: skip
    yield tree("29c", "a FIFO, an unreadable one", Shell("mkfifo output/fifo; chmod 0 output/fifo"), note="a FIFO",
               dropped=("fifo",))  # fmt: skip
    yield tree("29d", "devices", Shell("mknod output/null c 1 3 2>/dev/null || echo no device"), says=("no device\n",))
    yield tree("30b", "a sparse file of 1 TiB", Sparse(b"output/sparse", 2**40), note="not read (too large",
               kept=("sparse",))  # fmt: skip
    names = ("two\nlines", "\x1b[31mred", "\u202etxt", "a b", "%41", "-rf", "x" * 255)
    yield tree("34a", "names", *(Write(b"output/" + name, b"x") for name in (b"\xff\xfe", *map(str.encode, names))),
               kept=("./%FF%FE", *names))  # fmt: skip
    yield tree("35a", "a file without rights", Write(b"output/closed", b"x"), Mode(b"output/closed", 0),
               kept=("closed",))  # fmt: skip
    yield tree("35b", "directories without rights", Directory(b"output/d"), Write(b"output/d/f", b"x"),
               Mode(b"output/d", 0), Directory(b"data/e"), Write(b"data/e/f"), Mode(b"data/e", 0o500),
               Directory(b"/tmp/sticky", 0o3777), kept=("d/f",))  # fmt: skip
    yield tree("36a", "a tree 1,500 deep", Shell('cd data; mkdir -p "$(printf "d/%.0s" $(seq 1500))"'))
    yield tree("25a", "names that the worker uses", Link(b"CANARY", b"output/.output.json.tmp"),
               Link(b"CANARY", b"data/input.json"), Link(b"CANARY", b"data/event.json"),
               Link(b"CANARY", b"start.sh"), Link(b"CANARY", b"released.tmp"), Link(b"CANARY", b"gate"))  # fmt: skip


def _alone() -> Iterator[Attack]:
    yield Attack(id="32a", category="files", title="10,000 empty files", expected="contained",
                 steps=(ManyFiles(b"output/many", 10_000),), note="more than 1000 files: 9000 others",
                 job={"resources": {"cpu": 2}})  # fmt: skip
    yield Attack(
        id="43a", category="files", title="half an output at the timeout", expected="user fault", error="its timeout",
        steps=(Write(b"output/output.json", b'{"half": '), Shell("sleep 60")), job={"timeout": 0.5, "grace_period": 0},
    )  # fmt: skip
    yield Attack(
        id="25b", category="files", title="links planted for the next attempt", expected="contained",
        steps=(Link(b"CANARY", b"data/input.json"), Link(b"CANARY", b"output/output.json"),
               Shell('echo "attempt $CRONIUM_ATTEMPT"; test "$CRONIUM_ATTEMPT" = 2 && rm output/output.json')),
        says=("attempt 1\nattempt 2\n",), job={"retry": {"max_attempts": 2, "delay": 0.01, "on": ["failed"]}},
    )  # fmt: skip
    tries = "; ".join(
        f"({command}) 2>/dev/null && echo changed"
        for command in (
            "echo x >>/workspace/scripts/$f", "echo x >/workspace/scripts/new", "mv /workspace/scripts/$f /tmp/",
            "rm -f /workspace/scripts/$f", "chmod 777 /workspace/scripts/$f", "mv /workspace/scripts /workspace/old",
            "rmdir /workspace/data", "mount -o remount,rw /workspace/scripts", "echo x >/run/cronium/start.sh",
            "echo x >>/etc/hosts", "echo x >>/etc/passwd", "ln -s /tmp /usr/local/lib/cronium/x",
        )
    )  # fmt: skip
    yield Attack(
        id="44a", category="files", title="changes to the script and to the image", expected="contained",
        steps=(Shell(f"f=$(ls /workspace/scripts | head -n 1); was=$(sha256sum /workspace/scripts/$f); {tries}; "
                     '[ "$(sha256sum /workspace/scripts/$f)" = "$was" ] || echo changed; echo tried'),),
        says=("tried\n",), never_says=("changed",),
    )  # fmt: skip


# ---- the environment


def _environments() -> Iterator[Attack]:
    hooks = {
        "LD_PRELOAD": "/workspace/data/evil.so", "LD_AUDIT": "/workspace/data/evil.so", "ENV": "/tmp/evil",
        "PYTHONSTARTUP": "/tmp/evil", "PERL5OPT": "-Mevil", "PYTHONPATH": "/workspace/data", "NODE_PATH": "/tmp",
        "SHELLOPTS": "xtrace", "PATH": "/workspace/data:/usr/local/bin:/usr/bin:/bin", "BASH_ENV": "/nowhere",
    }  # fmt: skip
    yield Attack(
        id="7a", category="input", title="variables that loaders and interpreters obey", expected="contained",
        steps=(Shell("echo ran"),), says=("ran\n",), job={"environment": hooks},
    )  # fmt: skip
    yield Attack(
        id="7b", category="input", title="an interpreter that cannot start", expected="user fault",
        steps=(Shell("echo never"),), error="the script exited with",
        job={"environment": {"PYTHONHOME": "/nowhere", "NODE_OPTIONS": "--require /nowhere.js"}},
        languages=("python", "node"),
    )  # fmt: skip
    yield Attack(
        id="10a", category="input", title="variables of Docker and of proxies", expected="contained",
        steps=(Shell('echo "$DOCKER_HOST $HTTP_PROXY $REDIS_URL"'),),
        says=("tcp://127.0.0.1:9 http://127.0.0.1:9 x\n",),
        job={"environment": {"DOCKER_HOST": "tcp://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9", "REDIS_URL": "x",
                             "DOCKER_CONFIG": "/tmp", "DOCKER_AUTH_CONFIG": "{}", "no_proxy": "*"}},
    )  # fmt: skip


# ---- logs


def _logs() -> Iterator[Attack]:
    quick = {"resources": {"cpu": 2, "memory": "256m"}}
    yield Attack(
        id="78a", category="logs", title="100 MB without a line's end", expected="contained", job=quick,
        steps=(Shell("head -c 100000000 /dev/zero | tr '\\0' x"),), log={"bytes": 100_000_000, "truncated": True},
    )  # fmt: skip
    yield Attack(
        id="78b", category="logs", title="a million empty lines", expected="contained", job=quick,
        steps=(Shell("head -c 1000000 /dev/zero | tr '\\0' '\\n'"),),
        log={"bytes": 1_000_000, "lines": 1_000_000, "truncated": False},
    )  # fmt: skip
    yield Attack(
        id="77a", category="logs", title="1 GB of lines", expected="user fault", error="the script exited with",
        job={**quick, "timeout": 900},
        steps=(Shell("yes 0123456789012345678901234567890123456789012345678 | head -c 1000000000; exit 5"),),
        log={"bytes_at_least": 10**9, "lines_at_least": 20_000_000, "truncated": True}, takes_long=True,
    )  # fmt: skip
    octal = "\\377\\000\\033[31m\\033]0;title\\007\\r\\342\\200\\256\\342\\200\\250\\360\\237\\230\\200"
    yield Attack(
        id="80a", category="logs", title="bytes that steer terminals, and no UTF-8", expected="contained",
        steps=(Shell(f"printf '{octal}|\\n'"),),
        says=("\ufffd\0\x1b[31m\x1b]0;title\x07\r\u202e\u2028\U0001f600|\n",), group="bytes",
    )  # fmt: skip
    frame = "\\001\\000\\000\\000\\377\\377\\377\\377"
    yield Attack(
        id="81a", category="logs", title="frames, SSE, Redis's protocol, our own words", expected="contained",
        steps=(Shell(f"printf '{frame}'; printf 'data: x\\n\\n*1\\r\\n$8\\r\\nFLUSHALL\\r\\n'; "
                     "printf '{\"type\": \"status\", \"status\": \"completed\"}\\n'; echo go"),),
        says=("\x01\0\0\0\ufffd\ufffd\ufffd\ufffddata: x\n\n*1\r\n$8\r\nFLUSHALL\r\n",
              '{"type": "status", "status": "completed"}\ngo\n'), group="bytes",
    )  # fmt: skip


ATTACKS = (*_outputs(), *_conditions(), *_tree(), *_alone(), *_environments(), *_logs())


def grouped(attacks: tuple[Attack, ...] = ATTACKS) -> list[tuple[Attack, ...]]:
    """Attacks that are run in one job, together."""
    groups: dict[str, list[Attack]] = {}
    for attack in attacks:
        groups.setdefault(attack.group or attack.id, []).append(attack)
    return [tuple(group) for group in groups.values()]
