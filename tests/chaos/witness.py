"""What the engine itself saw of a fleet's containers: their starts and ends, and what they printed.

Nothing of it comes from the code under test: a log line can get lost together with the bug that is looked for.
"""

import contextlib
import re
import threading
import time
from datetime import datetime
from typing import Any

import docker
import requests

from tests.chaos.fleet import ChaosHost
from tests.chaos.history import Run
from tests.chaos.plans import header_of

_PAUSE_S = 0.05
# What the launcher ends the log with (workspace.staging.end_mark).
_END_MARK = re.compile(rb"\x1e[0-9a-f]{32}\x1e$")
_TRANSPORT = (requests.exceptions.RequestException, docker.errors.DockerException, OSError, ValueError)


class Witness:
    """Watches one engine in threads of its own."""

    def __init__(self, host: ChaosHost) -> None:
        self._host = host
        self._filters = {"type": "container", "event": ["start", "die"], "label": f"cronium.host={host.name}"}
        self._since = time.time()
        self._seen: set[tuple[str, int]] = set()
        self._runs: dict[str, Run] = {}
        self._readers: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._client: Any = None
        self._thread = threading.Thread(target=self._watch, name="witness", daemon=True)
        self._thread.start()

    def runs(self) -> list[Run]:
        with self._lock:
            return list(self._runs.values())

    def stop(self) -> None:
        self._stopped.set()
        for thread in [*self._readers, self._thread]:
            thread.join(3)

    def _watch(self) -> None:
        """The engine's events; after a break from where it was: an engine remembers those since its start."""
        while not self._stopped.is_set():
            try:
                with contextlib.closing(self._host.engine()) as client:
                    self._look_after(client)
                    client.api.timeout = None
                    since = int(self._since) - 1
                    for event in client.events(since=since, filters=self._filters, decode=True):
                        self._note(event)
                        if self._stopped.is_set():
                            return
            except _TRANSPORT:
                self._stopped.wait(_PAUSE_S)

    def _look_after(self, client: docker.DockerClient) -> None:
        """An engine that was killed tells nothing of the ends that it has missed."""
        for run in [run for run in self.runs() if run.ended is None]:
            try:
                state = client.api.inspect_container(run.container)["State"]
            except docker.errors.NotFound:
                run.ended = time.time()
                continue
            if not state["Running"]:
                run.ended, run.exit_code = datetime.fromisoformat(state["FinishedAt"]).timestamp(), state["ExitCode"]

    def _note(self, event: dict[str, Any]) -> None:
        key = (event["id"], event["timeNano"])
        if key in self._seen:
            return
        self._seen.add(key)
        at = event["timeNano"] / 1e9
        self._since = at
        labels = event["Actor"]["Attributes"]
        with self._lock:
            if event["status"] == "die":
                if (ended := self._runs.get(event["id"])) is not None:
                    ended.ended, ended.exit_code = at, int(labels.get("exitCode", -1))
                return
            run = Run(
                job_id=labels.get("cronium.job.id", ""),
                attempt=int(labels.get("cronium.job.attempt", 0)),
                host=labels["cronium.host"],
                container=event["id"],
                started=at,
            )
            self._runs[event["id"]] = run
        reader = threading.Thread(target=self._read, args=(run,), name="witness of a log", daemon=True)
        self._readers = [*(thread for thread in self._readers if thread.is_alive()), reader]
        reader.start()

    def _show(self, run: Run, text: str) -> None:
        if len(text) < len(run.text):
            return
        run.text = text
        if not run.job_id and (header := header_of(text)) is not None:
            # It has waited for a job, and begins with it.
            run.attempt, run.job_id, run.started = int(header[0]), header[1], time.time()

    def _read(self, run: Run) -> None:
        """The container's standard output, to its end; from the start again after a break."""
        while not self._stopped.is_set():
            try:
                with contextlib.closing(self._host.engine()) as client:
                    client.api.timeout = None
                    text = b""
                    logs = client.api.logs(run.container, stdout=True, stderr=False, stream=True, follow=True)
                    for piece in logs:
                        text += piece
                        self._show(run, _END_MARK.sub(b"", text).decode())
                    if run.ended is not None or client.api.inspect_container(run.container)["State"]["Status"] in (
                        "exited", "dead", "removing",
                    ):  # fmt: skip
                        return
            except docker.errors.NotFound:
                return
            except _TRANSPORT:
                pass
            self._stopped.wait(_PAUSE_S)
