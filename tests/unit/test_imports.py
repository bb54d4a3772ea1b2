"""What a producer loads, and what it may rely on."""

import subprocess
import sys

import pytest

import cronium_worker

# A change of this list is a change of the public contract.
PUBLIC = [
    "Job",
    "JobConflict",
    "JobFailed",
    "JobNotFound",
    "JobResult",
    "Network",
    "Resources",
    "Retry",
    "Script",
    "cancel",
    "execute_job",
    "follow",
    "rerun",
    "result",
    "submit",
]


def loaded_by(program: str) -> set[str]:
    """The modules that a new interpreter has loaded at the end of a program."""
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"{program}\nimport sys; print(*sys.modules)"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert ran.stderr == ""
    return set(ran.stdout.split())


def test_the_public_names_are_the_written_list() -> None:
    assert list(cronium_worker.__all__) == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    thing = getattr(cronium_worker, name)

    assert thing.__doc__


def test_other_names_are_not() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Sandbox'"):
        _ = cronium_worker.Sandbox


def test_importing_all_public_names_loads_neither_docker_nor_the_engine() -> None:
    modules = loaded_by(f"from cronium_worker import {', '.join(PUBLIC)}")

    assert "cronium_worker.tasks" in modules
    forbidden = ("docker", "cronium_worker.engine", "cronium_worker.execution", "cronium_worker.workspace")
    assert not {name for name in modules if name in forbidden or name.startswith(tuple(f"{f}." for f in forbidden))}


def test_the_models_load_neither_celery_nor_redis() -> None:
    modules = loaded_by("from cronium_worker import Job, JobResult, Script")

    assert not modules & {"celery", "kombu", "redis", "docker"}


def test_importing_reads_nothing_and_connects_nowhere() -> None:
    # With settings that would end the start of a worker.
    program = "import os; os.environ['CRONIUM_CONCURRENCY'] = 'x'\nimport cronium_worker, cronium_worker.models"

    assert "cronium_worker" in loaded_by(program)


def test_the_help_of_the_command_line_does_not_load_docker() -> None:
    modules = loaded_by("from cronium_worker.cli.main import cli")

    assert not {name for name in modules if name.split(".")[0] == "docker"}


def test_dir_shows_the_public_names() -> None:
    import cronium_worker

    assert set(cronium_worker.__all__) <= set(dir(cronium_worker))
