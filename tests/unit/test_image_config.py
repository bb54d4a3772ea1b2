"""What an image brings into its containers, as the engine shows its configuration."""

from typing import Any

import pytest

from cronium_worker.engine.image_config import ImageConfig


def of(**config: Any) -> ImageConfig:
    return ImageConfig.of({"Config": config})


@pytest.mark.parametrize(
    "inspected", [{}, {"Config": None}, {"Config": {"Labels": None, "Volumes": None, "Env": None}}]
)
def test_an_image_may_bring_nothing(inspected: dict[str, Any]) -> None:
    assert ImageConfig.of(inspected) == ImageConfig()


def test_labels_and_variables_that_look_like_ours_are_found() -> None:
    labels = {
        "cronium.job.id": "x",
        "cronium.": "",
        "cronium.sandbox\n": "",
        "cronium": "",
        "Cronium.x": "",
        "my.cronium.x": "",
    }
    names = ("CRONIUM_JOB_ID", "cronium_mark", "CRONIUM_", "XCRONIUM_Y", "CRONIUM", "PATH")
    found = of(Labels=labels, Env=[*(f"{name}=1=2" for name in names), "CRONIUM_BARE", "=", ""])

    assert found.labels == ("cronium.", "cronium.job.id", "cronium.sandbox\n")
    assert found.variables == ("CRONIUM_", "CRONIUM_BARE", "CRONIUM_JOB_ID", "cronium_mark")


@pytest.mark.parametrize(
    ("declared", "volumes"),
    [
        (["/data"], ("/data",)),
        (["/data", "/data/", "//data", "/./data", "/x/../data"], ("/data",)),
        (["/b", "/a/b c", "/a:ro", "/ä", "/tmpfs", "/workspaces", "/run2", "/et"], None),
        (["/workspace", "/tmp/", "/workspace/output", "/run/cronium", "/workspace/scripts"], ()),
        ([f"/v{number}" for number in range(64)], tuple(sorted(f"/v{number}" for number in range(64)))),
    ],
)
def test_each_volume_is_had_once_where_the_engine_would_put_it(
    declared: list[str], volumes: tuple[str, ...] | None
) -> None:
    found = of(Volumes={volume: {} for volume in declared})

    assert found.refused == ""
    assert found.volumes == (tuple(sorted(declared)) if volumes is None else volumes)


@pytest.mark.attack
@pytest.mark.parametrize(
    ("volume", "reason"),
    [
        ("", "is no absolute path"),
        ("data", "is no absolute path"),
        ("../data", "is no absolute path"),
        ("/", "collides with /workspace"),
        ("/..", "collides with /workspace"),
        ("//", "collides with /workspace"),
        ("/run", "collides with /run/cronium"),
        ("/x/../run", "collides with /run/cronium"),
        ("/run/cronium/released", "collides with /run/cronium"),
        ("/run/cronium/../cronium/job", "collides with /run/cronium"),
        ("/workspace/scripts/x", "collides with /workspace"),
        ("/workspace/x", "collides with /workspace"),
        ("/tmp/x", "collides with /tmp"),
        ("/proc", "collides with /proc"),
        ("/proc/sys/kernel", "collides with /proc"),
        ("/proc/self/fd", "collides with /proc"),
        ("/sys/fs/cgroup", "collides with /sys"),
        ("/dev", "collides with /dev"),
        ("/dev/shm", "collides with /dev"),
        ("/etc", "collides with /etc/hostname"),
        ("/etc/resolv.conf", "collides with /etc/resolv.conf"),
        ("/a\nb", "is no usable path"),
        ("/a\x1b[2J", "is no usable path"),
        ("/a\u202eb", "is no usable path"),
        ("/a\ud800", "is no usable path"),
        ("/" + "x" * 1024, "is no usable path"),
    ],
)
def test_a_volume_that_no_container_can_have_is_refused(volume: str, reason: str) -> None:
    found = of(Volumes={"/data": {}, volume: {}})

    assert found.volumes == ()
    assert found.refused.startswith("its volume '")
    assert found.refused.endswith(f"' {reason}")
    assert found.refused.isascii()
    assert found.refused.isprintable()
    assert len(found.refused) < 300


@pytest.mark.attack
def test_hundreds_of_volumes_are_refused() -> None:
    found = of(Volumes={f"/v{number}": {} for number in range(500)})

    assert (found.volumes, found.refused) == ((), "it declares 500 volumes, more than 64")
