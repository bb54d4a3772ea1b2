"""The names that queues may have, wherever one is named: never that of a key, a channel or an exchange of others."""

from pathlib import Path
from typing import Any

import kombu.pidbox
import kombu.transport.redis
import pytest
from celery.backends.base import KeyValueStoreBackend
from celery.worker.consumer import Consumer
from click.testing import CliRunner
from kombu import Queue
from pydantic import ValidationError

from cronium_worker import tasks
from cronium_worker.app import app
from cronium_worker.cli.main import cli
from cronium_worker.consumers import EagerConsumer
from cronium_worker.errors import ConfigurationError, validation_message
from cronium_worker.fleet.keys import BOOKKEEPING
from cronium_worker.models import Job
from cronium_worker.models.queues import check_fleet_queue, check_queue, is_destination, is_queue
from cronium_worker.models.schedule import JobSchedule
from cronium_worker.models.workflow import Workflow
from cronium_worker.policy import admit
from cronium_worker.settings import Settings, load_settings
from cronium_worker.transport import Channel
from cronium_worker.workflows import then

GOOD = [
    "cronium.jobs",
    "reports",
    "cronium-x",
    "gpu",
    "team-a.reports",
    "q",
    "q" * 128,
    "A_1",
    "my.celery",
    "chords",
    "amqp",
    "0",
    "cronium.gpu",
]
RESERVED = [
    "unacked", "unacked_index", "unacked_mutex", "UNACKED", "unacked.x",
    "celery", "Celery", "celeryev", "celeryev.1234", "celery.pidbox", "celeryresults", "celery_delayed_27",
    "celery-task-meta-1234", "celery-taskset-meta-1234", "celery-taskset-meta-1234.j", "chord-unlock-1234",
    "jobs.celery.pidbox", "reply.celery.pidbox", "1234.reply.celery.pidbox", "x.PIDBOX",
    "amq.gen-1234", "amq.direct", "redbeat", "redbeat.schedule",
    "cronium", "cronium.fleet", "cronium.host.x", "cronium.jobs2", "Cronium.jobs", "CRONIUM.FLEET", "cronium.hosts",
]  # fmt: skip
FORMLESS = [
    "", " ", "_kombu.binding.celery", "_kombu.binding_deadlines", "_x", ".x", "-x", "/0.celery.pidbox", "q\n", "q ",
    "cronium:jobs", "cronium:job:{a}", "cronium:{hosts}:index", "cronium:beat::schedule", "redbeat:x", "unacked:4",
    "q:4", "q\x06\x164", "q*", "q?", "[q]", "{q}", "q" * 129, "ä", "q\u0661", "q\ud800", "q\0",
]  # fmt: skip
JOB: dict[str, Any] = {"script": {"type": "bash", "content": "true"}}


@pytest.mark.parametrize("name", GOOD)
def test_a_name(name: str) -> None:
    assert check_queue(name) == name
    assert is_destination(name)
    assert Job.model_validate(JOB | {"queue": name}).queue == name


@pytest.mark.attack
@pytest.mark.parametrize("name", [*RESERVED, *FORMLESS])
def test_a_name_that_is_refused_where_jobs_are_described(name: str) -> None:
    assert not is_queue(name)
    job = JOB | {"queue": name}
    for read in (
        lambda: Job.model_validate(job),
        lambda: JobSchedule.model_validate({"name": "n", "every": "5s", "job": job}),
        lambda: Workflow.model_validate({"steps": [{"name": "a", "job": job}]}),
        lambda: Job.from_orchestrator({"execution": {"script": JOB["script"]}, "queue": name}),
        lambda: then(job),
    ):
        with pytest.raises(ValidationError) as caught:
            read()
        message = validation_message(caught.value)
        assert "queue: " in message
        assert message.isprintable()


@pytest.mark.attack
@pytest.mark.parametrize("value", [None, 5, ["q"], {"q": 1}, True])
def test_what_is_no_name(value: Any) -> None:
    assert not is_queue(value)
    assert not is_destination(value)


def test_the_reason_says_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"^unacked is reserved .*: choose another, like reports or team-a.reports$"):
        check_queue("unacked")
    with pytest.raises(ValueError, match=r"^'_kombu.binding.x' is not a queue name: use 1 to 128 letters, "):
        check_queue("_kombu.binding.x")


def test_no_key_of_kombu_and_celery_is_a_name() -> None:
    """By the sources themselves, should a later version of theirs have other ones."""
    channel = kombu.transport.redis.Channel
    keys = [channel.unacked_key, channel.unacked_index_key, channel.unacked_mutex_key]
    assert keys == list(BOOKKEEPING)
    keys += [
        channel.keyprefix_queue % "x",
        channel.keyprefix_binding_deadlines,
        channel.keyprefix_binding_permanent % "x",
    ]
    backend = KeyValueStoreBackend
    keys += [f"{prefix}x" for prefix in (backend.task_keyprefix, backend.group_keyprefix, backend.chord_keyprefix)]
    mailbox = kombu.pidbox.Mailbox("celery", type="fanout")
    keys += [mailbox.exchange.name, mailbox.reply_exchange.name, f"jobs@x.{mailbox.exchange.name}"]
    keys += [app.conf.event_exchange, app.conf.event_queue_prefix, app.conf.result_exchange]
    assert [key for key in keys if is_queue(key)] == []
    assert [key for key in keys if is_destination(key)] == []


def test_where_messages_of_all_kinds_go() -> None:
    for name in ("cronium.fleet", "cronium.host.h-1", "celery", "reports", "1c2d.reply.celery.pidbox"):
        assert is_destination(name)
    for name in ("cronium.host.a:b", "celery.pidbox", "unacked", "cronium.hosts", "", None):
        assert not is_destination(name)


# ---- the fleet's own list


def test_a_fleet_may_have_a_list() -> None:
    settings = Settings(_env_file=None, queues="reports, gpu")
    assert settings.queues == ("reports", "gpu")
    for queue in (None, "cronium.jobs", "reports"):
        admit(Job.model_validate(JOB | ({"queue": queue} if queue else {})), settings)
    with pytest.raises(ValidationError) as caught:
        admit(JOB | {"queue": "other"}, settings)
    said = "other is not a queue of this fleet: use cronium.jobs or gpu or reports (CRONIUM_QUEUES)"
    assert validation_message(caught.value) == f"queue: {said}"
    admit(JOB | {"queue": "other"}, Settings(_env_file=None))
    with pytest.raises(ValueError, match="not a queue of this fleet"):
        check_fleet_queue("other", ["cronium.jobs"])


def test_a_list_with_a_wrong_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRONIUM_QUEUES", "reports,unacked")
    with pytest.raises(ConfigurationError, match=r"CRONIUM_QUEUES.*unacked is reserved"):
        load_settings()


# ---- where Celery has one


@pytest.mark.attack
@pytest.mark.parametrize("name", [name for name in (*RESERVED, *FORMLESS) if not is_destination(name)])
def test_celery_makes_no_such_queue(name: str) -> None:
    with pytest.raises(ValueError, match=r"is reserved|is not a queue"):
        app.amqp.queues.select_add(name)
    with pytest.raises(ValueError, match=r"is reserved|is not a queue"):
        app.send_task("cronium.execute_job", ["a"], queue=name or "\0")
    assert name not in app.amqp.queues


class _Consumer(EagerConsumer):
    def __init__(self, hostname: str) -> None:
        self.hostname, self.app, self.added = hostname, app, []


@pytest.mark.attack
def test_a_node_serves_no_others_queue(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(Consumer, "add_task_queue", lambda self, queue: self.added.append(queue))
    jobs, agent = _Consumer("jobs@h"), _Consumer("agent@h")
    for name in ("reports", "unacked", "cronium.fleet", "celery", "a.celery.pidbox", None, 5):
        jobs.add_task_queue(name, exchange="celery.pidbox", exchange_type="fanout", routing_key="x")  # type: ignore[arg-type]
    agent.add_task_queue("cronium.fleet")
    agent.add_task_queue("unacked")
    assert (jobs.added, agent.added) == (["reports"], ["cronium.fleet"])
    assert caplog.text.count("queue not served: ") == 7


@pytest.mark.attack
@pytest.mark.parametrize("names", ["unacked", "reports,celery", "cronium.fleet", "cronium.host.h", "a,,b", "_kombu.x"])
def test_the_command_starts_no_worker_with_such_a_queue(names: str) -> None:
    done = CliRunner().invoke(cli, ["worker", "--queues", names])
    assert done.exit_code == 2
    assert "Invalid value for --queues: " in done.output


# ---- a job's task


class _NoStore:
    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name}: nothing may be written")


@pytest.fixture
def nothing_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # no .env file
    store = _NoStore()
    store.__dict__["signer"] = tasks.make_store().signer
    monkeypatch.setattr(tasks, "store", lambda: store)


@pytest.mark.attack
@pytest.mark.usefixtures("nothing_written")
@pytest.mark.parametrize(
    "options",
    [
        {"queue": "unacked"},
        {"queue": Queue("unacked")},
        {"queue": "celery"},
        {"queue": "cronium.fleet"},
        {"queue": 5},
        {"exchange": "celery.pidbox"},
        {"routing_key": "unacked"},
        {"link": {"task": "x", "options": {"queue": "unacked"}}},
        {"link": [{"task": "x", "options": {"exchange": "celery.pidbox"}}]},
        {"link_error": {"task": "x", "options": {"link": [{"task": "y", "options": {"routing_key": "a"}}]}}},
        {"chain": [{"task": "x", "options": {"queue": "_kombu.binding.x"}}]},
        {"chord": {"task": "x", "options": {"group_id": "a.j"}}},
        {"group_id": "a.j"},
    ],
)
def test_options_of_the_task_are_refused_before_anything_is_written(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        tasks.execute_job.apply_async((JOB,), **options)


# ---- what a message says of its queue


@pytest.mark.attack
def test_nothing_is_sent_or_restored_to_a_key(caplog: pytest.LogCaptureFixture) -> None:
    channel: Any = Channel.__new__(Channel)
    channel.__dict__["deadletter_queue"] = None
    channel.closed = True
    assert channel._lookup("", "reports") == ["reports"]
    for name in ("unacked", "celery-task-meta-1", "cronium:jobs", "_kombu.binding.x", ""):
        with pytest.raises(ValueError, match="not a queue"):
            channel._lookup("", name)
        channel._do_restore_message({"body": "secret"}, "", name, None)
    assert caplog.text.count("message not restored") == 5
    assert "secret" not in caplog.text
