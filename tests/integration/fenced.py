"""A host of the rig with its engine and its firewall, the world beyond it, and what a job there reaches."""

import json
from collections.abc import Callable, Iterator
from ipaddress import IPv4Network
from typing import Any

import pytest

from cronium_worker.engine.client import Engine
from cronium_worker.engine.firewall import Firewall
from cronium_worker.engine.spec import NETWORK_NAME
from cronium_worker.execution.sandbox import Host
from cronium_worker.models import Job
from cronium_worker.settings import Security, Settings
from tests.conftest import wait_until
from tests.integration.conftest import Bench
from tests.rig import Rig, RigHost, runner_image
from tests.rig_network import run
from tests.world import RESOLVED, World

INTERNET, PRIVATE, PRIVATE_TOO = RESOLVED, "10.99.0.7", "10.99.0.8"
METADATA, ECS, ALIBABA, METADATA_6 = "169.254.169.254", "169.254.170.2", "100.100.100.200", "fd00:ec2::254"
PROBE = """
import json, socket, sys, urllib.request
from concurrent.futures import ThreadPoolExecutor

def tcp(host, port):
    with socket.create_connection((host, port), timeout=3) as connection:
        connection.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
        return bool(connection.recv(100))

def udp(host, port):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sender:
        sender.settimeout(3)
        sender.connect((host, port))
        sender.send(b"who is there?")
        return bool(sender.recv(100))

def http(url):
    return bool(urllib.request.urlopen(url, timeout=3).read())

def name(host):
    return bool(socket.gethostbyname(host))

def tried(probe):
    kind, *arguments = probe
    try:
        return globals()[kind](*arguments)
    except OSError as error:
        return f"{type(error).__name__}: {error}"

with ThreadPoolExecutor(40) as threads:
    print(json.dumps(list(threads.map(tried, cronium.input()))))
"""


@pytest.fixture(scope="module")
def rig_host(settings: Settings) -> Iterator[RigHost]:
    rig = Rig(redis_url=settings.redis_url.get_secret_value(), fleet=f"{settings.fleet}-fence", hosts=1).start()
    rig.a.load(runner_image("python"))
    yield rig.a
    rig.stop()


@pytest.fixture(scope="module")
def world(rig_host: RigHost) -> Iterator[World]:
    addresses = [INTERNET, PRIVATE, PRIVATE_TOO, METADATA, ALIBABA, METADATA_6]
    world = World(rig_host.name, addresses=addresses).start()
    yield world
    world.stop()


@pytest.fixture(scope="module")
def host(rig_host: RigHost, settings: Settings) -> Iterator[Host]:
    """That the benches of these tests run on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOCKER_HOST", rig_host.engine.url)
        engine = Engine()
    host = Host(engine=engine, settings=settings.model_copy(update={"fleet": rig_host.env["CRONIUM_FLEET"]}))
    assert host.wiring.ensure() == "none"
    yield host
    engine.close()


@pytest.fixture
def fence(host: Host, rig_host: RigHost) -> Iterator[Callable[..., Firewall]]:
    """The rules of these settings; none are there at the beginning and in the end."""

    def make(**security: Any) -> Firewall:
        made = Firewall(host.engine, Security(**security), fleet=host.settings.fleet)
        assert made.keep() == ""
        return made

    remove_rules(rig_host)
    yield make
    remove_rules(rig_host)


def remove_rules(host: RigHost) -> None:
    within(host, "nft", "add", "table", "inet", "cronium")
    within(host, "nft", "delete", "table", "inet", "cronium")


def within(host: RigHost, *command: str) -> str:
    return run("nsenter", f"--net=/run/netns/{host.name}", *command)


def log(bench: Bench, job: Job) -> str:
    return "".join(event["data"] for event in bench.store.events(job.id) if event["type"] == "log")


def pid_of(host: RigHost, job: Job) -> int:
    def running() -> int:
        found = host.client.containers.list(filters={"label": f"cronium.job.id={job.id}"})
        return int(found[0].attrs["State"]["Pid"]) if found else 0

    return int(wait_until(running, what="the job's container"))


def look(bench: Bench, probes: list[list[Any]], **network: Any) -> list[Any]:
    """What each of the probes of one job says: True, or its error."""
    environment = {"RES_OPTIONS": "timeout:2 attempts:1"}  # instead of ten seconds for a name server that is silent
    script = {"type": "python", "content": PROBE}
    ran = bench.run(script=script, input_data=probes, network=network, environment=environment)
    assert ran.result.status == "completed", ran.result.error
    answers: list[Any] = json.loads(ran.text("stdout"))
    assert len(answers) == len(probes)
    return answers


def gateway(host: Host, network_name: str = NETWORK_NAME) -> str:
    network = host.engine.api.inspect_network(network_name)
    return str(next(IPv4Network(network["IPAM"]["Config"][0]["Subnet"]).hosts()))
