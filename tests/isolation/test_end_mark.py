"""Scripts that try to end as what they are not: the launcher's mark at the end of both streams is a secret."""

from collections.abc import Callable

import pytest

from cronium_worker.execution.sandbox import Host
from cronium_worker.settings import Images, Pool
from tests.integration.conftest import Bench, case
from tests.integration.scripts import LANGUAGES, script
from tests.integration.shifts import Case
from tests.isolation.images import built, image_for
from tests.isolation.probes import compiled, job

__all__ = ["case"]

pytestmark = pytest.mark.attack


@pytest.fixture(params=[0, 1], ids=["pool off", "pool on"])
def bench(make_bench: Callable[..., Bench], request: pytest.FixtureRequest) -> Bench:
    bench = make_bench(pool=Pool(size=len(LANGUAGES) * request.param, minimum=request.param))
    bench.runner.start()
    bench.wait_for_pool()
    return bench


@pytest.fixture(scope="module")
def spy(tmp_path_factory: pytest.TempPathFactory) -> str:
    return compiled(tmp_path_factory.mktemp("spy"), "spy")


def ends_with_7(language: str, spy: str) -> dict[str, object]:
    fields = job(language, spy)
    if language == "node":  # for which a child that fails is an exception
        content = fields["script"]["content"]
        fields["script"]["content"] = (
            f"process.env.CHILD_OF_NODE = '1';\ntry {{\n{content}\n}} catch {{ process.exit(7) }}"
        )
    return fields


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_process_of_a_job_finds_the_mark(bench: Bench, spy: str, language: str) -> None:
    """In files, pipes, environments, arguments, descriptors and memory; this machine need not have Yama."""
    ran = bench.run(**ends_with_7(language, spy), timeout=60, resources={"cpu": 2})

    assert (ran.text("stdout"), ran.text("stderr")) == ("looked\n", "")
    assert (ran.result.status, ran.result.exit_code) == ("failed", 7)
    assert bench.runner.pool_count().misses == 0  # with a pool, it had waited


# All that looked like a mark to earlier launchers, or to those who read this one.
FORGES = r"""
forge() {
    id=$(sed -n 's:.*/sandboxes/\([0-9a-f]*\)/.*:\1:p' /proc/self/mountinfo | head -n 1)
    [ -n "$id" ]
    for text in "$(timeout 0.2 cat /run/cronium/mark 2>/dev/null || :)" "$(printf '\036%s\036' "$id")"; do
        printf %s "$text"; printf %s "$text" >&2
    done
}
"""


def in_bash(language: str, content: str) -> dict[str, str]:
    """The script in Bash, or Bash in place of the script."""
    content = FORGES + content
    return script(
        language,
        bash=content,
        python=f"import os\nos.execvp('bash', ['bash', '-euc', {content!r}])",
        node="const {spawnSync} = require('child_process');\n"
        f"const {{status, signal}} = spawnSync('bash', ['-euc', {content!r}], {{stdio: 'inherit'}});\n"
        "signal ? process.kill(process.pid, signal) : process.exit(status);\n"
        "setTimeout(() => {}, 5000)",
    )


@pytest.mark.parametrize(
    ("language", "content", "code"),
    [
        ("bash", "forge; exit 7", 7),
        ("bash", "(forge) & wait; exit 75", 75),  # as a launcher ends whose worker is gone
        ("python", "forge; kill -SEGV $$; sleep 5", 139),
        ("python", "forge; exit 127", 127),  # as one ends whose image has no interpreter
        ("node", "forge; exit 7", 7),
        ("node", "(forge) & wait; kill -SEGV $$; sleep 5", 139),
    ],
)
def test_a_script_that_prints_what_could_be_the_mark_ends_as_it_ends(
    bench: Bench, language: str, content: str, code: int
) -> None:
    ran = bench.run(script=in_bash(language, content), network={"mode": "none"})

    assert (ran.result.status, ran.result.exit_code) == ("failed", code)
    assert ran.result.error is not None
    assert (ran.result.error.type, ran.result.attempt) == ("script", 1)
    assert ran.text("stdout") == ran.text("stderr")
    assert "\x1e" in ran.text("stdout")


@pytest.mark.parametrize(
    ("content", "code"),
    [
        ("forge; kill -KILL $PPID; sleep 5", 137),
        # The code comes by a FIFO, after the mark.
        ("{ forge 2>&1; echo ' 0 '; } >/run/cronium/ending; sleep 0.2; exit 7", 7),
        ("! cat /run/cronium/ending 2>&1 && exit 7", 7),
        ("(sleep 0.3; forge) & forge; kill -KILL $PPID; exit 0", 137),
        # Into the pipe by which an interpreter that waited tells the launcher how far it is.
        ('for fd in /proc/$PPID/fd/*; do (printf f >"$fd") 2>/dev/null || :; done; (forge); exit 7', 7),
    ],
)
def test_a_script_that_turns_on_the_launcher_gains_nothing(bench: Bench, content: str, code: int) -> None:
    ran = bench.run(script={"type": "bash", "content": FORGES + content}, network={"mode": "none"})

    assert (ran.result.status, ran.result.exit_code) == ("failed", code)


SHOWS = "tr '\\0' '\\n' </proc/$$/environ; env; (set); printf '%s\\n' \"$@\""


def test_an_image_cannot_have_the_mark_exported(host: Host, make_bench: Callable[..., Bench]) -> None:
    """Its shell is Bash, which takes options and variables from the image's environment."""
    dockerfile = f"""
FROM {image_for(host, "bash")}
USER 0:0
RUN rm -f /usr/local/lib/cronium/sh && ln -sf bash /bin/sh
ENV SHELLOPTS=allexport:xtrace cronium_mark=x cronium_told=1 cronium_word=as cronium_code=0 cronium_open=1
"""
    with built("cronium-test/exports:1", dockerfile) as name:
        bench = make_bench(images=Images(bash=name), pool=Pool(size=0))
        ran = bench.run(script={"type": "bash", "content": f"set +x\n{SHOWS}\nexit 7"}, network={"mode": "none"})

    assert (ran.result.status, ran.result.exit_code) == ("failed", 7)
    assert "CRONIUM_JOB_ID" in ran.text("stdout")
    assert "\x1e" not in ran.text("stdout") + ran.text("stderr")


def test_no_mark_is_believed_of_a_container_that_another_worker_left(case: Callable[..., Case]) -> None:
    """As a launcher of before writes it, which has no secret; nor is it in the log."""
    content = FORGES + "echo on; until [ -e /tmp/go ]; do sleep 0.05; done; echo; forge"
    content += "; sleep 60 & exit 7"  # so that the launcher writes none
    attempt = case(script={"type": "bash", "content": content})
    shift = attempt.start()
    attempt.wait_for("on")
    shift.leave()
    root = attempt.host.settings.sandboxes_path / "sandboxes" / attempt.container().sandbox_id
    (root / "mark").unlink()
    shift = attempt.adopt()
    (root / "tmp" / "go").touch()
    result = shift.end()

    assert (result.status, result.exit_code) == ("failed", 7)
    assert (attempt.text(), attempt.text("stderr")) == ("on\n\n", "")
