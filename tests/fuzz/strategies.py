"""What strangers send: JSON as Python reads it, jobs, and jobs with something wrong somewhere."""

from itertools import pairwise
from typing import Any

from hypothesis import strategies as st
from pydantic.alias_generators import to_camel

from cronium_worker.models.fields import KIB, MIB

# Lone surrogates among them: JSON may have them as \ud800.
any_text = st.text(max_size=30) | st.text(st.characters(categories=["Cs", "Cc", "Cf", "Zl", "Zp"]), max_size=8)
RESERVED_QUEUES = ("cronium.fleet", "a b", "unacked", "_kombu.binding.x", "celery-task-meta-x", "cronium:jobs", "q\n")
_numbers = (
    st.integers()
    | st.sampled_from([2**63, 2**64, -(2**63), 0, -1, 10**9, 86401])
    | st.builds(pow, st.sampled_from([10, -10]), st.sampled_from([401, 4001]))
    | st.floats()
)
_leaves = st.none() | st.booleans() | _numbers | any_text


def _nested(levels: int, *, value: Any, in_lists: bool) -> Any:
    for _ in range(levels):
        value = [value] if in_lists else {"a": value}
    return value


_deep = st.builds(_nested, st.sampled_from([140, 151, 200, 255, 900]), value=_leaves, in_lists=st.booleans())
anything = st.recursive(
    _leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text, inner, max_size=3),
    max_leaves=6,
) | st.one_of(_deep, _leaves)

_names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,12}", fullmatch=True).filter(
    lambda name: not name.upper().startswith(("CRONIUM_", "LD_"))
)
any_value = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=60)
environments = st.dictionaries(_names, any_value, max_size=6)
_size = st.integers(6 * MIB, 2**40) | st.sampled_from(["512m", "1.5g", "999999999t", "0.000000001b", "1e3", ""])
_ids = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}", fullmatch=True)
_seconds = st.floats(0.001, 86400) | st.integers(1, 86400)
_addresses = st.ip_addresses().map(str) | st.sampled_from(["fe80::1%eth0", "010.0.0.1", "::ffff:1.2.3.4"])
_paths = st.sampled_from(["/workspace", "/tmp", "/tmp//./a", "/workspace/$(id) 'x'", "/workspace/../etc", "/tmp/\n"])


def _part(**optional: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=optional)


_job = st.fixed_dictionaries(
    {
        "script": st.fixed_dictionaries(
            {"type": st.sampled_from(["bash", "python", "node", "NODEJS"]), "content": any_value},
            optional={"working_directory": _paths},
        )
    },
    optional={
        "id": _ids,
        "environment": environments,
        "secrets": environments,
        "input_data": anything,
        "variables": st.dictionaries(any_text, anything, max_size=3),
        "event": st.dictionaries(any_text, anything, max_size=3),
        "resources": _part(
            cpu=st.floats(0.01, 4), memory=_size, pids=st.integers(1, 2000), disk_io=_size, disk=st.integers(KIB, MIB)
        ),
        "timeout": _seconds,
        "grace_period": _seconds,
        "image": st.sampled_from(["alpine", "cronium/runner:bash-debian", "-x", "a\n", "x@sha256:" + "0" * 64]),
        "pull_policy": st.sampled_from(["always", "never", "ALWAYS"]),
        "network": _part(
            mode=st.sampled_from(["isolated", "none", "host", "container:x"]),
            dns=st.lists(_addresses, max_size=3),
            extra_hosts=st.dictionaries(st.sampled_from(["a", "b.c", "x:y", ""]), _addresses, max_size=2),
        ),
        "retry": _part(max_attempts=st.integers(0, 101), delay=_seconds, on=st.lists(st.just("failed"), max_size=2)),
        "priority": st.integers(-1, 10),
        "queue": st.sampled_from([None, "reports", *RESERVED_QUEUES]),
        "metadata": st.dictionaries(any_text, any_text, max_size=3),
    },
)

_OPTIONS = (
    "queue",
    "exchange",
    "routing_key",
    "task_id",
    "group_id",
    "priority",
    "expires",
    "reply_to",
    "link",
    "chain",
)
_queues = st.sampled_from(["reports", "celery", *RESERVED_QUEUES])


def _without_data(link: dict[str, Any]) -> dict[str, Any]:
    """What a plain task is called with is no link, whatever it looks like."""
    return {name: value for name, value in link.items() if name != "kwargs" or link["task"] == "celery.group"}


links = st.recursive(
    st.fixed_dictionaries(
        {"task": st.just("t")}, optional={"options": st.dictionaries(st.sampled_from(_OPTIONS), _leaves)}
    ),
    lambda inner: st.fixed_dictionaries(
        {"task": st.sampled_from(["t", "celery.group"])},
        optional={
            "kwargs": st.fixed_dictionaries({"tasks": st.lists(inner, max_size=2)}),
            "options": st.fixed_dictionaries({}, optional={"queue": _queues, "link": st.lists(inner, max_size=2)}),
        },
    ).map(_without_data),
    max_leaves=5,
)

_execution = _part(
    target=_part(type=st.sampled_from(["local", "container", "ssh"])),
    script=_job.map(lambda job: job["script"]),
    environment=environments,
    inputData=anything,
    variables=st.dictionaries(any_text, anything, max_size=2),
    timeout=_numbers | st.text("0123456789.hmsnuµ-e", max_size=12) | st.just("9" * 400 + "h"),
    resources=_part(cpuLimit=_numbers, memoryLimit=_size, diskLimit=_size, pidsLimit=_numbers),
    retryPolicy=_part(maxAttempts=_numbers, backoffDelay=_numbers, backoffType=any_text),
)
_orchestrated = _part(id=_ids, priority=_numbers, execution=_execution, metadata=st.dictionaries(any_text, anything))


@st.composite
def _damaged(draw: st.DrawFn, whole: st.SearchStrategy[dict[str, Any]]) -> dict[str, Any]:
    """Anything at all somewhere in it, in the place of a value or under a new key; or nothing of that sort."""
    value = draw(whole)
    for _ in range(draw(st.integers(0, 2))):
        here: Any = value
        while inner := [each for each in here.values() if isinstance(each, dict)]:
            if not draw(st.booleans()):
                break
            here = draw(st.sampled_from(inner))
        known = sorted(map(str, here)) or ["id"]
        here[draw(st.sampled_from(known) | any_text)] = draw(anything)
    return value


def _camel(job: dict[str, Any]) -> dict[str, Any]:
    """With the names of its fields, and of its parts' fields, as JavaScript has them."""
    parts = ("script", "resources", "network", "retry")
    return {
        to_camel(name): _camel(value) if isinstance(value, dict) and name in parts else value
        for name, value in job.items()
    }


jobs = _damaged(_job)
any_job = st.one_of(jobs, jobs.map(_camel), st.dictionaries(any_text, anything, max_size=3))
any_orchestrated = _damaged(_orchestrated) | st.dictionaries(any_text, anything, max_size=3)
cuts = st.lists(st.integers(0, 10**6), max_size=8)


def in_pieces(data: bytes, at: list[int]) -> list[bytes]:
    """The data cut at the numbers, each taken modulo its length."""
    edges = [0, *sorted(cut % (len(data) + 1) for cut in at), len(data)]
    return [data[start:end] for start, end in pairwise(edges) if end > start]
