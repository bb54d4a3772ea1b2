"""What a fleet accepts: maxima, defaults, allow-lists."""

from typing import Any

import pytest
from cryptography.fernet import Fernet
from pydantic import ValidationError

from cronium_worker.errors import validation_message
from cronium_worker.models import Job
from cronium_worker.policy import admit, image_candidates, pull_policy, wanted_images, with_defaults
from cronium_worker.settings import Images, Maxima, Settings

DIGEST = f"tools@sha256:{'0a' * 32}"
KEY = Fernet.generate_key().decode()


def fleet(**changed: Any) -> Settings:
    return Settings(_env_file=None, **changed)


def job(**fields: Any) -> Job:
    return Job.model_validate({"id": "j", "script": {"type": "bash", "content": ""}, **fields})


def refused(data: Job, settings: Settings) -> list[str]:
    with pytest.raises(ValidationError) as caught:
        admit(data, settings)
    return [".".join(map(str, detail["loc"])) for detail in caught.value.errors()]


@pytest.mark.parametrize(
    ("field", "at_most", "above"),
    [
        ("cpu", 2, 2.01),
        ("memory", "2g", 2 * 2**30 + 1),
        ("pids", 1000, 1001),
        ("disk", "10g", 10 * 2**30 + 1),
    ],
)
def test_a_resource_above_the_fleets_maximum_is_refused(field: str, at_most: Any, above: Any) -> None:
    settings = fleet()

    assert admit(job(resources={field: at_most}), settings)
    assert refused(job(resources={field: above}), settings) == [f"resources.{field}"]


def test_disk_io_has_no_maximum_unless_the_fleet_sets_one() -> None:
    fast = job(resources={"disk_io": "1t"})

    assert admit(fast, fleet()).resources.disk_io == 2**40
    assert refused(fast, fleet(maxima=Maxima(disk_io=2**30))) == ["resources.disk_io"]


def test_a_fleet_can_raise_a_maximum() -> None:
    assert admit(job(resources={"cpu": 16}), fleet(maxima=Maxima(cpu=16))).resources.cpu == 16


def test_resources_that_are_not_given_take_the_fleets_defaults() -> None:
    settings = fleet(defaults={"cpu": 1.5, "memory": "1g", "pids": 7})

    resources = admit(job(resources={"pids": 50}), settings).resources

    assert resources.model_dump() == {
        "cpu": 1.5,
        "memory": 2**30,
        "pids": 50,
        "disk_io": 10 * 2**20,
        "disk": 2**30,
    }


def test_a_value_that_was_given_is_kept_also_when_it_is_the_general_default() -> None:
    assert admit(job(resources={"cpu": 0.5}), fleet(defaults={"cpu": 1})).resources.cpu == 0.5


def test_admission_changes_nothing_else() -> None:
    given = job(environment={"A": "1"}, secrets={"S": "2"}, timeout=5, metadata={"m": "x"})

    admitted = admit(given, fleet(secret_keys=KEY))

    assert admitted.model_dump(exclude={"resources"}) == given.model_dump(exclude={"resources"})
    assert given.resources.model_fields_set == set()


def test_secrets_without_a_key_are_refused_with_the_remedy() -> None:
    with pytest.raises(ValidationError) as caught:
        admit(job(secrets={"TOKEN": "hunter2"}), fleet())

    message = validation_message(caught.value)
    assert message.startswith("secrets: ")
    assert "cronium key" in message
    assert "CRONIUM_SECRET_KEYS" in message
    assert "hunter2" not in repr(caught.value)
    admit(job(secrets={"TOKEN": "hunter2"}), fleet(secret_keys=KEY))
    admit(job(), fleet())


def test_the_defaults_of_a_job_that_runs_hold_whatever_the_maxima_are_now() -> None:
    running = job(resources={"disk": "5g", "cpu": 64})

    resources = with_defaults(running, fleet(defaults={"memory": "1g"}, maxima=Maxima(disk=1))).resources

    assert (resources.disk, resources.cpu, resources.memory, resources.pids) == (5 * 2**30, 64, 2**30, 100)


def test_admission_can_be_repeated() -> None:
    settings = fleet(defaults={"cpu": 1})
    once = admit(job(), settings)

    assert admit(once, settings) == once


def test_a_dict_is_checked_like_a_job() -> None:
    assert admit({"script": {"type": "bash", "content": ""}}, fleet()).script.type == "bash"
    with pytest.raises(ValidationError):
        admit({"script": {"type": "bash"}}, fleet())


@pytest.mark.parametrize(
    "image",
    [
        "cronium/runner:bash-alpine",
        "cronium/runner:bash-debian",
        "cronium/runner:node-alpine",
        "tools:1",
        "registry.example:5000/team/tools",
        DIGEST,
    ],
)
def test_the_fleets_own_and_allowed_images_are_accepted(image: str) -> None:
    settings = fleet(allowed_images=("tools:1", "registry.example:5000/team/tools", DIGEST))

    assert admit(job(image=image), settings).image == image


@pytest.mark.parametrize(
    "image",
    [
        "tools",
        "tools:2",
        "tools:1x",
        "tools:1@sha256:" + "0a" * 32,
        "x/tools:1",
        "evil.example/tools:1",
        "docker.io/library/tools:1",
        "registry.example:5000/team/tools:1",
        "registry.example/team/tools",
        "registry.example:5000/team/tools-evil",
        "registry.example:5000/team",
        f"tools@sha256:{'0b' * 32}",
        "cronium/runner:ruby-alpine",
        "cronium/runner",
        "evil/cronium/runner:bash-alpine",
        "alpine",
    ],
)
def test_a_look_alike_of_an_allowed_image_is_refused(image: str) -> None:
    settings = fleet(allowed_images=("tools:1", "registry.example:5000/team/tools", DIGEST))

    assert refused(job(image=image), settings) == ["image"]


def test_images_that_the_fleet_replaced_are_no_longer_its_own() -> None:
    settings = fleet(images=Images(bash="tools:1"))

    assert admit(job(image="tools:1"), settings)
    assert refused(job(image="cronium/runner:bash-alpine"), settings) == ["image"]


@pytest.mark.parametrize("mode", ["isolated", "none", "team"])
def test_own_and_allowed_networks_are_accepted(mode: str) -> None:
    assert admit(job(network={"mode": mode}), fleet(allowed_networks=("team",))).network.mode == mode


@pytest.mark.parametrize(
    "mode", ["host", "bridge", "default", "team2", "tea", "TEAM", "Isolated", "None", "cronium-execution"]
)
def test_any_other_network_is_refused(mode: str) -> None:
    assert refused(job(network={"mode": mode}), fleet(allowed_networks=("team",))) == ["network.mode"]


def test_all_that_is_wrong_is_said_at_once() -> None:
    greedy = job(
        resources={"cpu": 64, "memory": "64g", "pids": 5000, "disk": "1t"}, image="evil:1", network={"mode": "host"}
    )

    with pytest.raises(ValidationError) as caught:
        admit(greedy, fleet())

    assert validation_message(caught.value) == (
        "resources.cpu: 64.0 is above this fleet's maximum of 2; "
        "resources.memory: 68719476736 is above this fleet's maximum of 2147483648; "
        "resources.pids: 5000 is above this fleet's maximum of 1000; "
        "resources.disk: 1099511627776 is above this fleet's maximum of 10737418240; "
        "image: evil:1 is not on this fleet's allow-list (CRONIUM_ALLOWED_IMAGES); "
        "network.mode: host is neither isolated, none, nor on this fleet's allow-list (CRONIUM_ALLOWED_NETWORKS)"
    )


def test_defaults_above_the_maxima_are_refused_as_well() -> None:
    assert refused(job(), fleet(defaults={"memory": "4g"})) == ["resources.memory"]


def test_image_candidates() -> None:
    node = job(script={"type": "node", "content": ""})

    assert image_candidates(node, fleet()) == ("cronium/runner:node-alpine", "cronium/runner:node-debian")
    assert image_candidates(node, fleet(images=Images(node="tools:1"))) == ("tools:1",)
    assert image_candidates(job(image="tools:2"), fleet(images=Images(bash="tools:1"))) == ("tools:2",)


def test_runner_images_under_their_plain_names_are_never_pulled() -> None:
    settings = fleet()
    for asked in ("always", "if-not-present", "never"):
        assert pull_policy(asked, image_candidates(job(), settings)) == "never"
        assert pull_policy(asked, image_candidates(job(image="cronium/runner:bash-debian"), settings)) == "never"
    prefixed = fleet(registry={"prefix": "registry.example"})
    assert pull_policy("always", image_candidates(job(), prefixed)) == "always"
    assert pull_policy("always", ["tools:1"]) == "always"


def test_what_a_host_should_have_is_what_can_be_pulled() -> None:
    assert wanted_images(fleet()) == ()
    chosen = fleet(images=Images(bash="registry.example/bash:1"), allowed_images=("tools:1", "registry.example/bash:1"))
    assert wanted_images(chosen) == (("registry.example/bash:1",), ("tools:1",))
    prefixed = fleet(registry={"prefix": "registry.example"})
    assert wanted_images(prefixed) == tuple(
        (f"cronium/runner:{kind}-alpine", f"cronium/runner:{kind}-debian") for kind in ("bash", "python", "node")
    )
