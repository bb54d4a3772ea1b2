"""A job on the terminal: its output on stdout and stderr, our notices on stderr."""

import sys
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.status import Status

from cronium_worker.cli.printing import Output, one_line
from cronium_worker.fleet.events import Event
from cronium_worker.models.result import TERMINAL, JobResult

_STYLES = {"completed": "green", "failed": "red", "timeout": "red", "cancelled": "yellow"}


class JobView:
    """Shows events. On a terminal a spinner tells what is awaited; elsewhere every status is a plain line."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._console = Console(stderr=True, highlight=False)
        self._spinner: Status | None = None
        self._next_seq = 0
        self._targets = {"stdout": Output(sys.stdout), "stderr": Output(sys.stderr)}
        self._last_of: dict[str, str] = {"stdout": "\n", "stderr": "\n"}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop_spinner()

    def resume(self, events: Iterator[Event]) -> Iterator[Event]:
        """A new replay of the same job, from where the last one was left."""
        return (event for event in events if event["seq"] >= self._next_seq)

    def show(self, event: Event) -> None:
        self._next_seq = event["seq"] + 1
        if self._quiet:
            return
        if event["type"] == "log":
            self._log(event["stream"], event["data"])
        elif event["type"] == "status" and event["status"] not in TERMINAL:
            self._waiting(f"{event['status']}: {event['message']}", done=event["status"] == "running")
        elif event["type"] == "progress":
            self._waiting(event["message"])

    def notice(self, text: str) -> None:
        self._stop_spinner()
        self._end_line()
        self._console.print(one_line(text), style="dim", markup=False)

    def summary(self, outcome: JobResult) -> None:
        if self._quiet:
            return
        self._stop_spinner()
        self._end_line()
        timings = outcome.timings
        parts: list[str] = [outcome.status]
        if outcome.error is not None:
            parts.append(outcome.error.message)
        parts.append(f"run {timings.run_s:.2f} s, set-up {timings.setup_s:.2f} s, queue {timings.queue_s:.2f} s")
        if outcome.log.truncated:
            parts.append(f"log truncated, {outcome.log.bytes} bytes in all")
        parts.append(f"job {outcome.job_id}" + (f" on {outcome.host}" if outcome.host else ""))
        self._console.print(one_line(" · ".join(parts)), style=_STYLES[outcome.status], markup=False, soft_wrap=True)

    def _log(self, stream: str, data: str) -> None:
        self._stop_spinner()
        self._targets[stream].write(data)
        self._targets[stream].flush()
        self._last_of[stream] = data[-1]

    def _waiting(self, text: str, *, done: bool = False) -> None:
        text = one_line(text)
        if not self._console.is_terminal:
            self._console.print(text, markup=False, soft_wrap=True)
        elif done:
            self._stop_spinner()
        elif self._spinner is None:
            self._spinner = self._console.status(text)
            self._spinner.start()
        else:
            self._spinner.update(text)

    def _stop_spinner(self) -> None:
        if self._spinner is not None:
            self._spinner.stop()
            self._spinner = None

    def _end_line(self) -> None:
        """Our notices begin on a line of their own when both streams go to the same terminal."""
        if self._console.is_terminal and any(last != "\n" for last in self._last_of.values()):
            self._console.print()
            self._last_of = dict.fromkeys(self._last_of, "\n")
