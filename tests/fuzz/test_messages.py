"""Any message: a job that is registered whole, or a refusal in one line, and Redis holds strict JSON."""

import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from cronium_worker import tasks
from cronium_worker.engine.spec import SandboxSpec, container_config
from cronium_worker.envelope import task_defect
from cronium_worker.errors import JobFailed, validation_message
from cronium_worker.fleet.store import Claim, JobStore
from cronium_worker.models import Job
from cronium_worker.policy import admit
from cronium_worker.settings import Settings
from tests.fuzz.profile import FUZZ
from tests.fuzz.strategies import RESERVED_QUEUES, any_job, any_orchestrated, any_text, anything, links
from tests.fuzz.strict import is_one_line, strict

SECRET = "fuzzed-secret-4711"
_settings = Settings(_env_file=None)


@pytest.fixture(scope="module", autouse=True)
def _own_store(store: JobStore) -> Iterator[None]:
    with patch.object(tasks, "store", lambda: store), patch.object(tasks, "get_settings", lambda: _settings):
        yield


def check_refusal(error: Exception) -> None:
    message = validation_message(error) if isinstance(error, ValidationError) else str(error)
    assert is_one_line(message)
    assert SECRET not in message


def all_of(store: JobStore) -> str:
    """What Redis holds, but for the keys of secrets."""
    found = []
    for key in store.redis.scan_iter():
        if not key.endswith(":secrets"):
            kind = store.redis.type(key)
            read = {"hash": store.redis.hgetall, "stream": store.redis.xrange}.get(kind)
            found.append(str(read(key)) if read else key)
    return "".join(found)


@FUZZ
@given(any_job)
def test_any_job_is_valid_for_good_or_refused_in_one_line(data: dict[str, Any]) -> None:
    try:
        job = Job.model_validate(data)
    except ValidationError as error:
        check_refusal(error)
        return
    assert Job.model_validate(strict(job.to_json())) == job
    try:
        admitted = admit(job, _settings)
    except ValidationError as error:
        check_refusal(error)
        return
    spec = SandboxSpec(
        sandbox_id="1", script_type=job.script.type, image="i", workspace=_settings.base_path, user="1000:1000",
        resources=admitted.resources, network=job.network, job_labels={"cronium.job.id": job.id},
    )  # fmt: skip
    text = json.dumps(container_config(spec, _settings), allow_nan=False)
    assert "\\u0000" not in text
    given_away = [*job.environment.values(), *job.secrets.values(), job.script.content]
    assert not any(json.dumps(value) in text for value in given_away if len(value) > 20)


@FUZZ
@given(any_orchestrated)
def test_any_payload_of_the_orchestrator_is_a_job_or_refused_in_one_line(payload: dict[str, Any]) -> None:
    try:
        job = Job.from_orchestrator(payload)
    except ValueError as error:
        check_refusal(error)
        return
    assert Job.model_validate(strict(job.to_json())) == job


@FUZZ
@given(any_job | anything, any_text | st.uuids().map(str), st.booleans(), anything)
@example(None, "t", False, None)
@example(["x"], "t", False, None)
@example({}, 'a"b', False, None)
@example({}, "\x1f", False, None)
@example({}, "\ud800", False, None)
@example({"id": "j", "script": {"type": "bash", "content": ""}}, "\ud800", False, None)
def test_any_message_is_registered_or_refused(
    store: JobStore, message: Any, task_id: str, secret: bool, canvas: Any
) -> None:
    if secret and isinstance(message, dict):
        message["secrets"] = {"TOKEN": SECRET}
    request = SimpleNamespace(id=task_id, callbacks=canvas, errbacks=None, group=None)
    try:
        tasks.register_foreign(message, request)
    except JobFailed as failed:
        result = failed.result
        assert result.error is not None
        assert result.error.type == "validation"
        check_refusal(ValueError(result.error.message))
        strict(json.dumps(failed.args[0], allow_nan=False))
        if not task_id.isprintable():
            return
        assert store.result(result.job_id) is not None
        *_, last = (strict(json.dumps(event)) for event in store.events(result.job_id))
        assert last["status"] == "failed"
        return
    finally:
        found = all_of(store)
        store.redis.flushdb()
    assert SECRET not in found


@FUZZ
@given(links | anything, st.sampled_from(["callbacks", "errbacks", "chain", "chord"]), st.booleans())
def test_links_are_refused_or_name_no_key(link: Any, place: str, old: bool) -> None:
    about = {"task": "cronium.execute_job", "id": "a"}
    after = {place: link if place == "chord" else [link]}
    payload = about | {"args": [], "kwargs": {}} | after if old else [[], {}, after]
    if task_defect(None if old else about, payload) or (old and place == "chain"):
        return
    text = json.dumps(link, default=str)
    assert not any(f'"queue": {json.dumps(name)}' in text for name in RESERVED_QUEUES)
    assert '"exchange"' not in text.replace('"exchange": null', "")


@FUZZ
@given(any_job)
def test_what_is_registered_can_be_claimed(store: JobStore, data: dict[str, Any]) -> None:
    try:
        job_id = tasks.register_foreign(data, SimpleNamespace(id="task-1", callbacks=None, errbacks=None, group=None))
    except JobFailed:
        store.redis.flushdb()
        return
    claim = store.claim(job_id, host="h1")
    events = [strict(json.dumps(event)) for event in store.events(job_id)]
    store.redis.flushdb()

    assert isinstance(claim, Claim)
    assert claim.job == Job.model_validate({**data, "id": job_id})
    assert [event["status"] for event in events] == ["pending", "preparing"]
