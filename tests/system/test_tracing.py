"""OpenTelemetry's own console exporter, in the command that sends a job and in the worker that runs it."""

import json
from json import JSONDecoder
from typing import Any

import pytest

from tests.conftest import wait_until
from tests.system.local_host import LocalHost

CONSOLE = {
    "OTEL_TRACES_EXPORTER": "console",
    "OTEL_METRICS_EXPORTER": "none",
    "OTEL_LOGS_EXPORTER": "none",
    "OTEL_BSP_SCHEDULE_DELAY": "100",
}
SENT, RAN = "apply_async/cronium.execute_job", "run/cronium.execute_job"


def spans(text: str, name: str) -> list[dict[str, Any]]:
    """Those of a name that were printed, each as a JSON object over many lines."""
    found = []
    for place in (at for at in range(len(text)) if text.startswith('{\n    "name": ', at)):
        try:
            found.append(JSONDecoder().raw_decode(text, place)[0])
        except json.JSONDecodeError:
            continue  # the rest is still to come
    return [span for span in found if span["name"] == name]


@pytest.mark.timeout(180)
def test_sending_a_job_and_running_it_are_one_trace(host: LocalHost) -> None:
    worker = host.start(node="jobs", **CONSOLE)
    file = host.path / "script.sh"
    file.write_text("echo hunter2; exit 3")
    sent = host.cronium("run", str(file), "--queue", host.queue, **CONSOLE)
    assert sent.returncode == 3, sent.stderr

    (producer,) = spans(sent.stdout, SENT)
    (consumer,) = wait_until(lambda: spans(worker.log.read_text(), RAN), timeout_s=30, what="the worker's span")
    assert (producer["kind"], consumer["kind"]) == ("SpanKind.PRODUCER", "SpanKind.CONSUMER")
    assert consumer["context"]["trace_id"] == producer["context"]["trace_id"]
    assert consumer["parent_id"] == producer["context"]["span_id"]
    assert "hunter2" not in json.dumps([producer, consumer])


@pytest.mark.parametrize("environment", [{}, CONSOLE | {"OTEL_SDK_DISABLED": "true"}])
def test_who_does_not_ask_for_it_loads_nothing_of_it(host: LocalHost, environment: dict[str, str]) -> None:
    done = host.cronium("ps", PYTHONPROFILEIMPORTTIME="1", **environment)

    assert done.returncode == 0, done.stderr
    assert "cronium_worker.tracing" in done.stderr
    assert "opentelemetry.instrumentation" not in done.stderr
