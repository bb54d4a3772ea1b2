"""Jobs that follow each other over a real worker: which branch is taken, what is given on, what is recorded."""

import json
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from celery import chain, chord

from cronium_worker import JobFailed, execute_job, result
from cronium_worker.app import app
from cronium_worker.models import JobResult
from cronium_worker.models.workflow import was_not_taken
from cronium_worker.tasks import store
from cronium_worker.workflows import start, steps, then
from tests.conftest import wait_until
from tests.system.conftest import Fleet

TIMEOUT_S = 60
# Gives on what it got, with its own name.
ECHO = 'cronium_output "$(cronium_input | jq --arg name "$NAME" \'. + [$name]\')"'


def bash(fleet: Fleet, content: str, **fields: Any) -> dict[str, Any]:
    return {"script": {"type": "bash", "content": content}, "queue": fleet.queue, **fields}


def step(fleet: Fleet, name: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "job": bash(fleet, ECHO, environment={"NAME": name}), **fields}


def ended(job_id: str) -> JobResult:
    def look() -> JobResult | None:
        return result(job_id) if store().redis.exists(f"cronium:job:{{{job_id}}}") else None

    return wait_until(look, timeout_s=TIMEOUT_S, what=f"the end of {job_id}")


@pytest.mark.parametrize("condition", [True, False])
def test_three_steps_with_a_condition_take_the_right_branch(fleet: Fleet, condition: bool) -> None:
    decide = f"cronium_set_condition {str(condition).lower()}; cronium_output '[\"decide\"]'"
    views = start({
        "steps": [
            {"name": "decide", "job": bash(fleet, decide)},
            step(fleet, "yes", on="condition"),
            step(fleet, "report-yes"),
            step(fleet, "no", after="decide", on="not_condition"),
            step(fleet, "report-no"),
        ]
    })  # fmt: skip
    assert [(view.name, view.after) for view in views] == [
        ("decide", None), ("yes", "decide"), ("report-yes", "yes"), ("no", "decide"), ("report-no", "no"),
    ]  # fmt: skip
    outcomes = {view.name: ended(view.job_id) for view in views}
    taken, left = ("yes", "no") if condition else ("no", "yes")
    assert outcomes[taken].output.data == ["decide", taken]
    assert outcomes[f"report-{taken}"].output.data == ["decide", taken, f"report-{taken}"]
    for name in (left, f"report-{left}"):
        assert (outcomes[name].status, was_not_taken(outcomes[name])) == ("cancelled", True)
        assert outcomes[name].started_at is None
    error = outcomes[left].error
    assert error is not None
    assert error.message == f"not taken: the condition of {views[0].job_id} is {str(condition).lower()}"
    # The records are linked, whether taken or not, and Celery knows of all of them.
    for view in views[1:]:
        metadata = json.loads(store().record(view.job_id)["job"])["metadata"]
        before = next(each.job_id for each in views if each.name == view.after)
        assert metadata == {
            "cronium.step": view.name, "cronium.workflow": views[0].job_id, "cronium.after": before,
            "cronium.on": view.on,
        }  # fmt: skip
        state = "SUCCESS" if outcomes[view.name].status == "completed" else "FAILURE"
        wait_until(lambda view=view, state=state: app.AsyncResult(view.job_id).state == state)
    assert [(view.name, view.status) for view in steps(views[0].job_id)] == [
        (view.name, outcomes[view.name].status) for view in views
    ]


def test_a_failure_has_a_branch_of_its_own(fleet: Fleet) -> None:
    tell = 'cronium_output "$(cronium_event)"'
    views = start({
        "steps": [
            {"name": "break", "job": bash(fleet, "cronium_output 5; exit 3")},
            {"name": "go-on", "job": bash(fleet, "true")},
            {"name": "mend", "after": "break", "on": "failure", "job": bash(fleet, tell)},
            {"name": "tidy", "after": "break", "on": "always", "job": bash(fleet, "true")},
        ]
    })  # fmt: skip
    outcomes = {view.name: ended(view.job_id) for view in views}
    assert {name: outcome.status for name, outcome in outcomes.items()} == {
        "break": "failed", "go-on": "cancelled", "mend": "completed", "tidy": "completed",
    }  # fmt: skip
    previous = outcomes["mend"].output.data["previous"]
    assert (previous["status"], previous["exit_code"], previous["error"]["type"]) == ("failed", 3, "script")
    assert json.loads(store().record(views[2].job_id)["job"])["input_data"] == 5


def test_a_step_that_is_refused_has_failed(fleet: Fleet) -> None:
    """Its image is no longer allowed when its turn comes: here, because nobody checked before."""
    first = execute_job.s(bash(fleet, "true"))
    bad = execute_job.s(bash(fleet, "true", id="refused-step", image="strange/image")).set(
        task_id="refused-step", on="success"
    )
    mend = then(bash(fleet, "true"), on="failure")
    store().redis.delete("cronium:job:{refused-step}", "cronium:job:{refused-step}:events")
    first.link(bad)
    bad.link(mend)
    first.delay()
    assert ended(mend.options["task_id"]).status == "completed"
    assert ended("refused-step").status == "failed"


def test_the_longest_row_is_left_out_to_its_end(fleet: Fleet) -> None:
    names = [f"s{number}" for number in range(50)]
    first, *others = ({"name": name, "job": bash(fleet, "exit 1")} for name in names)
    views = start({"steps": [first, *others]})
    assert [view.name for view in views] == names
    assert was_not_taken(ended(views[-1].job_id))
    assert {view.status for view in steps(views[0].job_id)[1:]} == {"cancelled"}


def test_a_cancelled_step_ends_its_workflow(fleet: Fleet) -> None:
    views = start({
        "steps": [
            {"name": "long", "job": bash(fleet, "sleep 60", grace_period=0)},
            {"name": "next", "job": bash(fleet, "true")},
            {"name": "mend", "after": "long", "on": "failure", "job": bash(fleet, "true")},
        ]
    })  # fmt: skip
    long, following, mend = (view.job_id for view in views)
    wait_until(lambda: store().record(long)["status"] == "running", timeout_s=40)
    store().cancel(long)
    assert [was_not_taken(ended(job_id)) for job_id in (long, following, mend)] == [False, True, True]


def test_a_message_that_is_taken_twice_starts_no_step_twice(fleet: Fleet) -> None:
    views = start({"steps": [step(fleet, "a"), step(fleet, "b", on="always"), step(fleet, "c", on="failure")]})
    ids = [view.job_id for view in views]

    def states() -> list[str]:
        return [app.AsyncResult(job_id).state for job_id in ids]

    def taken(times: int) -> bool:
        return fleet.log.read_text().count(f"[{ids[0]}] succeeded") == times

    before = [ended(job_id) for job_id in ids]
    wait_until(lambda: taken(1) and states() == ["SUCCESS", "SUCCESS", "FAILURE"], what="the results at Celery")
    events = [list(store().events(job_id)) for job_id in ids]
    execute_job.send_again(ids[0])
    wait_until(lambda: taken(2), what="a second time")
    execute_job.delay(bash(fleet, "true")).get(timeout=TIMEOUT_S)
    assert [ended(job_id) for job_id in ids] == before
    assert [list(store().events(job_id)) for job_id in ids] == events
    assert states() == ["SUCCESS", "SUCCESS", "FAILURE"]


def test_a_chain_gives_the_output_on(fleet: Fleet) -> None:
    jobs = [bash(fleet, ECHO, environment={"NAME": name}) for name in "ab"]
    first = bash(fleet, "cronium_output '[]'")
    last = chain(execute_job.s(job) for job in (first, *jobs)).apply_async()
    assert last.get(timeout=TIMEOUT_S)["output"]["data"] == ["a", "b"]


def test_a_chords_body_is_given_all_outputs(fleet: Fleet) -> None:
    headers = [execute_job.s(bash(fleet, f"cronium_output {number}")) for number in (1, 2, 3)]
    body = execute_job.s(bash(fleet, 'cronium_output "$(cronium_input)"'))
    assert chord(headers, body).apply_async().get(timeout=TIMEOUT_S)["output"]["data"] == [1, 2, 3]


def test_a_link_error_is_given_the_failed_job(fleet: Fleet) -> None:
    rescue = then(bash(fleet, "true"), on="failure")
    failing = execute_job.s(bash(fleet, "cronium_output 7; exit 1")).set(link_error=rescue)
    with pytest.raises(JobFailed):
        failing.delay().get(timeout=TIMEOUT_S)
    ended(rescue.options["task_id"])
    assert json.loads(store().record(rescue.options["task_id"])["job"])["input_data"] == 7


def test_secrets_of_a_step_are_its_own(fleet: Fleet) -> None:
    secret = uuid4().hex
    job = bash(fleet, "[ ${#TOKEN} = 32 ]", secrets={"TOKEN": secret})
    views = start({"steps": [{"name": "first", "job": bash(fleet, "true")}, {"name": "second", "job": job}]})
    assert secret not in str(store().record(views[0].job_id))
    assert ended(views[1].job_id).status == "completed"


def test_the_command_follows_a_file(fleet: Fleet, tmp_path: Path) -> None:
    (tmp_path / "check.sh").write_text("cronium_set_condition false; echo looked")
    (tmp_path / "no.py").write_text("print('no:', cronium.input())")
    file = tmp_path / "flow.json"
    job = {"queue": fleet.queue}
    flow = [
        {"name": "check", "file": "check.sh", "job": job},
        {"name": "yes", "on": "condition", "file": "check.sh", "job": job},
        {"name": "no", "after": "check", "on": "not_condition", "file": "no.py", "job": job},
    ]
    file.write_text(json.dumps({"steps": flow}))
    ran = fleet.cronium("workflow", "run", str(file))
    assert (ran.returncode, ran.stdout) == (0, "looked\nno: None\n"), ran.stderr
    assert "not taken: the condition of" in ran.stderr
    file.write_text(json.dumps({"steps": flow[:2]}))
    assert fleet.cronium("workflow", "run", str(file)).returncode == 0, "a step that is not taken has no exit code"
    file.write_text(json.dumps({"steps": flow}))
    detached = fleet.cronium("workflow", "run", str(file), "--detach")
    shown = json.loads(fleet.cronium("workflow", "show", detached.stdout.strip(), "--json").stdout)
    assert [(row["name"], row["after"], row["on"]) for row in shown] == [
        ("check", None, ""), ("yes", "check", "condition"), ("no", "check", "not_condition"),
    ]  # fmt: skip
    for row in shown:
        ended(row["job_id"])
    file.write_text('{"steps": [{"name": "check"}]}')
    refused = fleet.cronium("workflow", "run", str(file))
    assert (refused.returncode, refused.stderr) == (1, "cronium: steps.0.job: Field required\n")
