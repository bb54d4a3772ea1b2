"""What of a job's text reaches a terminal."""

import io
import json

import pytest
from click.testing import CliRunner

from cronium_worker.cli import jobs
from cronium_worker.cli.main import cli
from cronium_worker.cli.printing import Output, one_line, printable
from cronium_worker.models import ErrorInfo, JobResult
from cronium_worker.models import Output as JobOutput

pytestmark = pytest.mark.attack

# What steers a terminal, or turns its text around.
EVIL = "\x1b]52;c;x\x07\x1b[2J\x9b31m\x9d0;t\x9c\x90q\x7f\b\r\u202eevil\u2066\u200f\u2028\U000e0041\x00\x85"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def assert_harmless(text: str) -> None:
    steering = {each for each in EVIL if not each.isascii() or not each.isprintable()}
    assert not set(text) & steering


def test_control_characters_are_escaped_and_text_is_not() -> None:
    assert_harmless(printable(EVIL))
    assert printable("größe 日本 👩‍👩‍👧 \tx\n") == "größe 日本 👩‍👩‍👧 \tx\n"
    assert one_line("a\nb\tc") == "a\\nb\\tc"
    assert json.loads(printable(json.dumps(EVIL, ensure_ascii=False))) == EVIL
    assert printable("\ud800") == "\\ud800"


@pytest.mark.parametrize("step", [1, 2, 3, 1000])
def test_on_a_terminal_output_may_only_colour(step: int) -> None:
    terminal = Terminal()
    output = Output(terminal)
    good = "\x1b[1;31mred\x1b[0m 10 %\r20 %\x1b[K\n\ttab\b"
    for text in (good, EVIL, "\x1b[?1049h\x1b[6n\x1bc\x1bP$qm\x1b\\"):
        for start in range(0, len(text), step):
            output.write(text[start : start + step])
    shown = terminal.getvalue()
    assert shown.startswith(good)
    assert shown.count("\x1b") == 3
    assert_harmless(shown.removeprefix(good).replace("\b", "").replace("\r", ""))


def test_elsewhere_output_is_what_the_script_has_printed() -> None:
    stream = io.StringIO()
    Output(stream).write(EVIL)
    assert stream.getvalue() == EVIL


class Store:
    """Of one job, which was given and has left nothing good."""

    def result(self, job_id: str) -> JobResult:
        error = ErrorInfo(type="script", message=EVIL, details={EVIL: EVIL})
        output = JobOutput(data={EVIL: [EVIL]}, variables={EVIL: EVIL}, notes=(EVIL,))
        return JobResult(job_id="j", status="failed", exit_code=1, error=error, host=EVIL, output=output)

    def fields(self, job_id: str, *names: str) -> dict[str, str]:
        return {
            "id": "j",
            "status": "failed",
            "host": EVIL,
            "queue": EVIL,
            "job": json.dumps({"metadata": {EVIL: EVIL}}),
        }

    def recent(self, count: int) -> list[dict[str, str]]:
        return [{"id": "j", "status": "failed", "host": EVIL, "type": EVIL}]


@pytest.mark.parametrize("arguments", ["result j", "result j --json", "status j", "status j --json", "ps"])
def test_nothing_of_a_job_steers_the_terminal(monkeypatch: pytest.MonkeyPatch, arguments: str) -> None:
    monkeypatch.setattr(jobs, "store", Store)
    ran = CliRunner().invoke(cli, arguments.split())
    assert_harmless(ran.output)
    assert "evil" in ran.output
    if arguments.endswith("--json"):
        assert json.loads(ran.stdout)
