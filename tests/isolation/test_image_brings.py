"""What an image brings into its containers: nothing of it is believed, uncounted or in the way of others."""

import json
from collections.abc import Callable
from typing import Any

import docker
import pytest

from cronium_worker.execution.sandbox import Host, Sandbox
from cronium_worker.models.fields import MIB
from cronium_worker.settings import Images, Pool
from tests.conftest import wait_until
from tests.integration.conftest import Bench
from tests.integration.shifts import own
from tests.isolation.images import built, found, image_for

pytestmark = pytest.mark.attack

NAME = "cronium-test/brings:1"
# Where a container can be written to: directories of the workspace, which are counted, and what counts as memory or is
# bounded by the kernel for each user.
COUNTED = {"/workspace", "/workspace/data", "/workspace/output", "/tmp"}
KERNELS = {"/dev/shm", "/dev/mqueue"}

WRITES = """
import json, os
points = [line.split()[4].encode().decode("unicode_escape") for line in open("/proc/self/mountinfo")]
found = []
for point in sorted({"/", *points}):
    try:
        if os.path.isdir(point):
            os.close(os.open(point + "/.try", os.O_CREAT | os.O_WRONLY))
            os.unlink(point + "/.try")
        elif os.stat(point).st_mode & 0o170000 == 0o100000:
            os.close(os.open(point, os.O_WRONLY))
        else:
            continue  # a device keeps nothing
        found.append(point)
    except OSError:
        pass
cronium.output(found)
"""


def image_with(host: Host, *lines: str, language: str = "bash") -> Any:
    return built(NAME, "\n".join([f"FROM {image_for(host, language)}", "USER 0:0", *lines, ""]))


def volumes() -> set[str]:
    client = docker.from_env()
    try:
        return {volume["Name"] for volume in client.api.volumes()["Volumes"] or ()}
    finally:
        client.close()


def test_each_place_that_can_be_written_to_is_known(host: Host, make_bench: Callable[..., Bench]) -> None:
    lines = [
        "RUN mkdir -p /open /there/deep && chmod 777 /open /there/deep",
        'VOLUME ["/there/deep", "/new", "/a b:ro"]',
    ]
    with image_with(host, *lines, language="python") as image:
        ran = make_bench(images=Images(python=image)).run(script={"type": "python", "content": WRITES})

    assert ran.result.error is None
    assert set(ran.result.output.data) == COUNTED | KERNELS | {"/there/deep", "/new", "/a b:ro"}  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [0, 1], ids=["pool off", "pool on"])
def test_what_is_written_to_a_volume_is_counted(host: Host, make_bench: Callable[..., Bench], size: int) -> None:
    """Given an image that declares volumes, one below the other; when a job writes more there than its disk; then it
    ends for that, and no volume of the engine's is made."""
    before = volumes()
    content = "echo mine >/data/deep/x; cat /data/deep/x; while sleep 0.05; do head -c 8M /dev/zero >>/data/big; done"
    with image_with(host, "RUN mkdir -p /data && touch /data/hidden", 'VOLUME ["/data", "/data/deep"]') as image:
        bench = make_bench(images=Images(bash=image), pool=Pool(size=size, minimum=size))
        bench.runner.start()
        bench.wait_for_pool()
        job = bench.start(script={"type": "bash", "content": content}, resources={"disk": "64m"})
        wait_until(lambda: own(bench.runner._host), what="its container")
        assert volumes() <= before
        bench.settle()

    result = bench.store.result(job.id)
    assert result is not None
    assert result.error is not None
    assert (result.error.type, result.error.details["limit"]) == ("resource_limit", "disk")
    assert result.error.details["used_bytes"] < 400 * MIB
    assert volumes() <= before


def test_the_empty_volumes_of_an_image_cost_its_jobs_nothing(host: Host, make_bench: Callable[..., Bench]) -> None:
    with image_with(host, f"VOLUME {json.dumps([f'/v{number}' for number in range(64)])}") as image:
        bench = make_bench(images=Images(bash=image))
        ran = bench.run(script={"type": "bash", "content": "mkdir /v63/x; sleep 1"}, resources={"disk": "16k"})
    assert ran.result.error is None


@pytest.mark.parametrize("volume", ["/run/cronium/released", "/proc/sys", "data"])
def test_a_volume_in_the_way_is_told(host: Host, make_bench: Callable[..., Bench], volume: str) -> None:
    """And it keeps no other sandbox from being made in advance."""
    before = volumes()
    with image_with(host, f"VOLUME {json.dumps([volume])}") as image:
        bench = make_bench(images=Images(bash=image), pool=Pool(size=1, minimum=1))
        ran = bench.run(script={"type": "bash", "content": "echo never"})
        assert bench.runner._standing_kinds() == [
            kind for kind in make_bench().runner._standing_kinds() if kind.script_type != "bash"
        ]
    error = ran.result.error
    assert error is not None
    assert (error.type, error.retryable, ran.text("stdout")) == ("container_create", False, "")
    assert error.message.startswith(f"image {NAME}: its volume '{volume}' ")
    assert volumes() == before


@pytest.mark.parametrize(
    ("target", "volume"),
    [
        ("/run/cronium", "/deep/er/link"),
        ("/run/cronium/released", "/deep/er/link"),
        ("/workspace/scripts", "/deep/er/link"),
        ("/sys/fs/cgroup", "/deep/er/link"),
        ("/run", "/link/cronium"),
    ],
)
def test_a_volume_behind_a_link_opens_nothing(
    host: Host, make_bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch, target: str, volume: str
) -> None:
    """The image's links cannot be seen from outside. Whatever such a volume comes to lie on: nothing of the worker's
    own directories is changed, and what can be written to is counted."""
    monkeypatch.setattr("cronium_worker.execution.runner._FAULT_DELAY_S", 0.01)
    link = volume.removesuffix("/cronium") if volume.startswith("/link") else volume
    before = volumes()
    lines = [f"RUN mkdir -p $(dirname {link}) && ln -s {target} {link}", f"VOLUME {volume}"]
    with image_with(host, *lines, language="python") as image:
        ran = make_bench(images=Images(python=image)).run(script={"type": "python", "content": WRITES})
    if ran.result.error is None:
        known = COUNTED | KERNELS | {volume, target, f"{target}/cronium"}
        assert set(ran.result.output.data) <= known  # type: ignore[arg-type]
    else:
        assert ran.text("stdout") == ""
    assert volumes() == before


LABELS = " ".join(
    f'cronium.{name}="{text}"'
    for name, text in {
        "fleet": "f",
        "host": "h",
        "sandbox": "../x",
        "job.id": "victim",
        "job.attempt": "1",
        "new": "x",
    }.items()
)


def test_no_label_of_ours_comes_from_an_image(
    host: Host, make_bench: Callable[..., Bench], make_sandbox: Callable[..., Sandbox], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = host.settings
    with image_with(host, f"LABEL {LABELS} theirs=kept") as image:
        bench = make_bench(images=Images(bash=image), pool=Pool(size=1, minimum=1))
        bench.runner.start()
        bench.wait_for_pool()
        monkeypatch.setattr("tests.isolation.conftest.image_for", lambda *_: image)
        cold = make_sandbox("bash", id="mine")
        labels = {
            row["Labels"]["cronium.sandbox"]: row["Labels"]
            for row in host.engine.api.containers(filters={"label": f"cronium.fleet={settings.fleet}"})
        }
        bench.settle()
        image_labels = set(found(host, image).config.labels)

    of_cold = labels.pop(cold.workspace.root.name)
    [of_warm] = [each for each in labels.values() if each["cronium.script.type"] == "bash"]
    own_labels = {"fleet": settings.fleet, "host": settings.host_name, "script.type": "bash"}
    for each, of_job in ((of_cold, {"job.id": "mine", "job.attempt": "1"}), (of_warm, {})):
        ours = {name.removeprefix("cronium."): text for name, text in each.items() if name.startswith("cronium.")}
        assert len(ours.pop("sandbox")) == 32
        assert {name: text for name, text in ours.items() if text} == own_labels | of_job
        assert each["theirs"] == "kept"
        assert {name for name in each if name.startswith("cronium.")} <= image_labels | {
            f"cronium.{name}" for name in own_labels
        }


ENVIRONMENT = {
    "CRONIUM_JOB_ID": "forged", "CRONIUM_EXECUTION_MODE": "host", "CRONIUM_EVENT_METADATA": "forged",
    "CRONIUM_INTERPRETER": "/bin/false", "CRONIUM_GATE": "/tmp", "CRONIUM_USER_BASH_ENV": "/evil.sh",
    "CRONIUM_X": "forged", "cronium_told": "1",
    "cronium_word": "as", "cronium_mark": "forged", "cronium_code": "0", "BASH_ENV": "/evil.sh",
}  # fmt: skip


@pytest.mark.parametrize("size", [0, 1], ids=["pool off", "pool on"])
@pytest.mark.parametrize("language", ["bash", "python"])
def test_no_variable_of_ours_comes_from_an_image(
    host: Host, make_bench: Callable[..., Bench], language: str, size: int
) -> None:
    """But its others do."""
    variables = " ".join(f"{name}={text}" for name, text in {**ENVIRONMENT, "THEIRS": "kept"}.items())
    content = {
        "bash": "env -0 | tr '\\n\\0' ' \\n' | grep -i -e ^cronium -e ^theirs",
        "python": "import os\nfor name in os.environ:\n"
        "    if name.lower().startswith(('cronium', 'theirs')): print(name + '=' + os.environ[name])",
    }[language]
    lines = ["RUN echo 'echo evil' >/evil.sh", f"ENV {variables}"]
    with image_with(host, *lines, language=language) as image:
        bench = make_bench(images=Images(**{language: image}), pool=Pool(size=size, minimum=size))
        bench.runner.start()
        bench.wait_for_pool()
        ran = bench.run(script={"type": language, "content": content})
        bench.settle()
    assert (ran.result.error, ran.text("stderr")) == (None, "")
    seen = dict(line.split("=", 1) for line in ran.text("stdout").splitlines())
    assert (seen["THEIRS"], seen["CRONIUM_JOB_ID"], seen["CRONIUM_EXECUTION_MODE"]) == ("kept", ran.job.id, "container")
    assert json.loads(seen["CRONIUM_EVENT_METADATA"])["jobId"] == ran.job.id
    assert "forged" not in ran.text("stdout")
    assert seen.keys().isdisjoint({"CRONIUM_X", "CRONIUM_USER_BASH_ENV", "cronium_told", "cronium_mark"})


def test_a_name_that_means_another_image_by_now_brings_nothing_unseen(
    host: Host, make_sandbox: Callable[..., Sandbox]
) -> None:
    """Given an image that was looked at, and another one of its name since; then the container is of the first."""
    with image_with(host) as image:
        first = found(host, image)
        with built(
            "cronium-test/other:1", f"FROM {image_for(host, 'bash')}\nLABEL cronium.job.id=victim\nVOLUME /x\n"
        ) as other:
            assert host.engine.api.tag(other, *image.split(":"), force=True)
            sandbox = make_sandbox("bash", image=first)
            seen = host.engine.api.inspect_container(sandbox.container_id)
            sandbox.destroy()
    assert seen["Image"] == first.id
    assert {mount["Type"] for mount in seen["Mounts"]} == {"bind"}
