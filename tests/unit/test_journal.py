"""A node's log lines as JSON objects."""

import json
import logging
import threading
from io import StringIO
from typing import Any

import pytest

from cronium_worker.journal import Formatter, about


class Log:
    def __init__(self) -> None:
        self.stream = StringIO()
        handler = logging.StreamHandler(self.stream)
        handler.setFormatter(Formatter(host="h1", node="jobs"))
        self.logger = logging.getLogger(f"cronium_worker.test.{id(self)}")
        self.logger.propagate = False
        self.logger.setLevel("INFO")
        self.logger.addHandler(handler)

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stream.getvalue().splitlines()]


@pytest.fixture
def log() -> Log:
    return Log()


def test_what_is_in_each_line(log: Log) -> None:
    log.logger.warning("free: %d of\n%s", 3, "größer", extra={"path": "/x"})

    line = log.lines()[0]
    assert line.pop("timestamp").endswith("+00:00")
    assert line == {
        "level": "WARNING",
        "logger": log.logger.name,
        "message": "free: 3 of\ngrößer",
        "host": "h1",
        "node": "jobs",
        "path": "/x",
    }


def test_lines_are_of_the_job_of_their_thread_alone(log: Log) -> None:
    with about(job_id="j1", attempt=2):
        log.logger.info("inside")
        log.logger.info("of another", extra={"job_id": "j2"})
        thread = threading.Thread(target=log.logger.info, args=["elsewhere"])
        thread.start()
        thread.join()
    log.logger.info("outside")

    inside, other, elsewhere, outside = log.lines()
    assert (inside["job_id"], inside["attempt"], other["job_id"]) == ("j1", 2, "j2")
    assert not {"job_id", "attempt"} & (elsewhere.keys() | outside.keys())


def test_of_a_task_the_id_is_told_and_never_its_arguments(log: Log) -> None:
    data = {"id": "t1", "name": "cronium.execute_job", "args": "('echo hunter2',)", "kwargs": "{}"}
    log.logger.info("Task %(name)s[%(id)s] received", data, extra={"data": data})

    line = log.lines()[0]
    assert (line["message"], line["task_id"]) == ("Task cronium.execute_job[t1] received", "t1")
    assert "hunter2" not in log.stream.getvalue()


def test_a_traceback_is_in_its_line(log: Log) -> None:
    try:
        raise ValueError("wrong")
    except ValueError:
        log.logger.exception("failed")

    assert len(log.lines()) == 1
    assert log.lines()[0]["exc_info"].endswith("ValueError: wrong")


def test_what_json_does_not_know_is_told_as_text(log: Log) -> None:
    log.logger.info("odd", extra={"kind": {1, 2}, "what": object})

    assert "object" in log.lines()[0]["what"]
