"""A host from its installation to its removal, as an operator goes through it: one test after the other."""

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import wait_until
from tests.machine.machine import REGISTRY, Machine

pytestmark = pytest.mark.timeout(1500)

HOST = "machine"
SERVICES = ("cronium-worker", "cronium-beat", "cronium-web", "cronium-flower")
JOBS = 100
_SUBMIT = """
import json, sys
from cronium_worker import execute_job
jobs = json.loads(sys.argv[1])
print(json.dumps([execute_job.delay(job).id for job in jobs]))
"""
_RESULTS = """
import json, sys, time
from cronium_worker import result
ids, deadline, found = json.loads(sys.argv[1]), time.monotonic() + float(sys.argv[2]), {}
while len(found) < len(ids) and time.monotonic() < deadline:
    for job_id in ids:
        if job_id not in found and (ended := result(job_id)):
            found[job_id] = ended.model_dump(mode="json")
    time.sleep(0.5)
print(json.dumps([found.get(job_id) for job_id in ids]))
"""
_STATUS = """
import json, sys
from cronium_worker.tasks import store
print(json.dumps(store().fields(sys.argv[1])["status"]))
"""


def submit(machine: Machine, *jobs: dict[str, Any]) -> list[str]:
    ids: list[str] = machine.python(_SUBMIT, json.dumps(jobs))
    return ids


def results(machine: Machine, ids: list[str], *, timeout_s: float = 600) -> list[dict[str, Any]]:
    found: list[dict[str, Any] | None] = machine.python(
        _RESULTS, json.dumps(ids), str(timeout_s), timeout_s=timeout_s + 120
    )
    assert None not in found, f"{found.count(None)} of {len(ids)} jobs have not ended"
    return [one for one in found if one is not None]


def run(machine: Machine, content: str, language: str = "python", **fields: Any) -> dict[str, Any]:
    """The result of a job, with its log as `text`."""
    [job_id] = submit(machine, {"script": {"type": language, "content": content}, **fields})
    [ended] = results(machine, [job_id])
    return ended | {"text": machine.cronium("logs", job_id)}


def running(machine: Machine, content: str, language: str = "bash", **fields: Any) -> str:
    """The id of a job that runs by now."""
    [job_id] = submit(machine, {"script": {"type": language, "content": content}, **fields})
    wait_until(lambda: machine.python(_STATUS, job_id) == "running", timeout_s=300, what="the job runs")
    return job_id


def active(machine: Machine, *units: str) -> list[str]:
    return machine.run(f"systemctl is-active {' '.join(units)}", may_fail=True).split()


def until_live(machine: Machine, state: str = "live") -> None:
    def shown() -> bool:
        found = machine.cronium("hosts", "--json", may_fail=True).splitlines()
        return bool(found) and [host["state"] for host in json.loads(found[-1]) if host["name"] == HOST] == [state]

    wait_until(shown, timeout_s=600, what=f"the host is {state}")


def test_it_is_what_people_have(machine: Machine) -> None:
    told = machine.run(
        "stat -f -c %T /sys/fs/cgroup; docker version -f '{{.Server.Version}}'; docker info -f '{{.CgroupDriver}} "
        "{{.SecurityOptions}}'; python3 --version; redis-server --version; uname -r; grep -c nf /proc/modules"
    )
    print(told)  # noqa: T201 - for the report
    assert told.startswith("cgroup2fs\n26.")
    assert re.search(r"systemd \[.*apparmor.*cgroupns\]", told), told
    assert machine.run("ls /opt /etc/cronium", may_fail=True).count("cronium") == 1  # there is none


def test_install_goes_from_nothing_to_services_that_run(machine: Machine) -> None:
    machine.run("cp -r /mnt/project /root/cronium-worker")
    said = machine.run("/root/cronium-worker/deploy/install.sh", timeout_s=1200, may_fail=True)
    assert "fill in /etc/cronium/cronium.env" in said, said
    key = machine.run("cd / && /opt/cronium/bin/cronium key").strip()
    for name, value in {
        "CRONIUM_REDIS_URL": "redis://127.0.0.1:6379/0",
        "CRONIUM_SECRET_KEYS": key,
        "CRONIUM_FLOWER__PASSWORD": "a-password-of-16-or-more",
        "CRONIUM_WEB__TOKEN": "a-token-of-16-or-more",
        "CRONIUM_CONCURRENCY": "4",
    }.items():
        machine.run(f"sed -i 's|^{name}=.*|{name}={value}|' /etc/cronium/cronium.env")
    machine.run(f"echo CRONIUM_REGISTRY__PREFIX={REGISTRY} >>/etc/cronium/cronium.env")
    machine.run("sed -i 's/^appendonly no/appendonly yes/' /etc/redis/redis.conf; systemctl restart redis-server")
    machine.run("systemctl enable --now --quiet redis-server")

    said = machine.run("/root/cronium-worker/deploy/install.sh", timeout_s=1200)

    print(said)  # noqa: T201 - doctor's words
    assert "enable and start cronium-worker" in said
    machine.run("systemctl enable --now --quiet cronium-beat cronium-web cronium-flower", timeout_s=600)
    until_live(machine)
    assert active(machine, *SERVICES) == ["active"] * len(SERVICES)


def test_doctor_finds_nothing_that_fails(machine: Machine) -> None:
    said = machine.cronium("doctor", "--workers", timeout_s=600)
    assert "FAIL" not in said
    [host] = json.loads(machine.cronium("hosts", "--json").splitlines()[-1])
    assert host["nodes"]["jobs"].get("lacks", []) == []


def test_the_examples_run(machine: Machine) -> None:
    said = machine.run(
        "ln -sfn /opt/cronium /root/cronium-worker/.venv && cd /root/cronium-worker && ln -sf /etc/cronium/.env .env "
        "&& examples/run-all.sh",
        timeout_s=900,
    )
    assert "All three jobs completed as they should." in said
    machine.run("rm /root/cronium-worker/.venv /root/cronium-worker/.env")


def test_its_limits_are_in_the_kernel(machine: Machine) -> None:
    content = (
        "import json, pathlib\n"
        "print(json.dumps({n: pathlib.Path('/sys/fs/cgroup', n).read_text().split() for n in "
        "('memory.max', 'memory.swap.max', 'pids.max', 'cpu.max', 'cpu.max.burst')}))"
    )
    ended = run(machine, content, resources={"memory": "300m", "cpu": 0.5, "pids": 40})
    found = json.loads(ended["text"])
    assert found["memory.max"] == [str(300 * 2**20)]
    assert found["memory.swap.max"] == ["0"]
    assert found["pids.max"] == ["40"]
    quota, period = map(int, found["cpu.max"])
    assert quota == period // 2
    assert int(found["cpu.max.burst"][0]) > 0


def test_out_of_memory_is_told(machine: Machine) -> None:
    ended = run(machine, "x = bytearray(10**9)", resources={"memory": "64m"})
    assert (ended["status"], ended["error"]["type"]) == ("failed", "resource_limit")
    assert ended["error"]["details"]["limit"] == "memory"
    assert None not in ended["metrics"].values(), ended["metrics"]


def test_what_its_kernel_forbids(machine: Machine) -> None:
    content = """
import ctypes, json, socket
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
libc = ctypes.CDLL(None, use_errno=True)
def refused(number, *arguments):
    return libc.syscall(number, *arguments) == -1 and ctypes.get_errno()
def vsock():
    try:
        socket.socket(40, socket.SOCK_STREAM).close()
    except OSError as error:
        return error.errno
print(json.dumps({
    "seccomp": status["Seccomp"].strip(),
    "new privileges": status["NoNewPrivs"].strip(),
    "capabilities": int(status["CapEff"], 16),
    "apparmor": open("/proc/self/attr/current").read().strip(),
    "io_uring": refused(425, 1, 0),
    "ptrace": refused(101, 0, 0, 0, 0),
    "vsock": vsock(),
}))
"""
    found = json.loads(run(machine, content)["text"])
    assert found["seccomp"] == "2"
    assert found["new privileges"] == "1"
    assert found["capabilities"] == 0
    assert found["apparmor"] == "docker-default (enforce)"
    assert all(found[name] for name in ("io_uring", "ptrace", "vsock")), found


def test_its_host_and_its_neighbours_are_out_of_reach(machine: Machine) -> None:
    machine.run(
        "ip link add there type dummy && ip address add 10.77.0.1/24 dev there && ip link set there up; "
        "systemd-run --quiet --unit there python3 -m http.server --bind 0.0.0.0 8099"
    )
    reach = (
        "import json, socket\n"
        "def tried(address):\n"
        "    try:\n"
        "        socket.create_connection((address, 8099), timeout=20).close()\n"
        "        return 'reached'\n"
        "    except OSError as error:\n"
        "        return type(error).__name__\n"
        "gateway = next(l.split()[2] for l in open('/proc/net/route') if l.split()[1] == '00000000')\n"
        "gateway = socket.inet_ntoa(bytes.fromhex(gateway)[::-1])\n"
        "print(json.dumps([tried(a) for a in ('10.77.0.1', '10.0.2.15', gateway)]))"
    )
    machine.run("curl --silent --fail --retry 20 --retry-connrefused http://10.77.0.1:8099/ >/dev/null")  # it is there
    found = json.loads(run(machine, reach)["text"])
    machine.run("systemctl stop there; ip link delete there")
    assert "reached" not in found, found
    assert "cronium" in machine.run("nft list tables")


def test_each_of_a_hundred_jobs_has_every_figure(machine: Machine) -> None:
    scripts = [("bash", "echo hi"), ("python", "print(1)"), ("node", "console.log(1)")]
    jobs = [{"script": dict(zip(("type", "content"), scripts[n % 3], strict=True))} for n in range(JOBS)]
    ended = results(machine, submit(machine, *jobs), timeout_s=1200)
    assert [one["error"] for one in ended] == [None] * JOBS
    missing = [name for one in ended for name, value in one["metrics"].items() if value is None]
    assert missing == []


def test_a_drain_outlives_a_restart(machine: Machine) -> None:
    machine.cronium("drain", HOST, "--wait", timeout_s=600)
    machine.run("systemctl restart cronium-worker", timeout_s=600)
    [waiting] = submit(machine, {"script": {"type": "bash", "content": "echo hi"}})
    until_live(machine, "draining")
    assert machine.python(_STATUS, waiting) == "pending"
    machine.cronium("drain", HOST, "--undo")
    assert [one["status"] for one in results(machine, [waiting])] == ["completed"]


def test_an_upgrade_leaves_a_job_running(machine: Machine) -> None:
    job_id = running(machine, "echo begin; sleep 240; echo end", timeout=3000)
    machine.run("echo '# the next version' >>/root/cronium-worker/cronium_worker/__init__.py")
    machine.run("echo CRONIUM_DRAIN_TIMEOUT=5 >>/etc/cronium/cronium.env")

    said = machine.run("/root/cronium-worker/deploy/install.sh", timeout_s=1200)

    assert "install this check-out in /opt/cronium" in said
    assert "the next version" in machine.run(
        "tail -n 1 /opt/cronium/lib/python3*/site-packages/cronium_worker/__init__.py"
    )
    [ended] = results(machine, [job_id])
    assert (ended["status"], ended["attempt"]) == ("completed", 1)
    assert machine.cronium("logs", job_id) == "begin\nend\n"


@pytest.mark.parametrize("how", [Machine.reboot, Machine.cut_power], ids=["reboot", "power cut"])
def test_no_job_is_lost_with_the_machine(machine: Machine, how: Callable[[Machine], None]) -> None:
    runs = running(machine, "echo begin; sleep 60; echo end", timeout=3000)
    waiting = submit(machine, *[{"script": {"type": "bash", "content": "sleep 20; echo hi"}} for _ in range(8)])
    machine.run("sync")

    how(machine)

    ended = results(machine, [runs, *waiting], timeout_s=900)
    assert {one["status"] for one in ended} == {"completed"}
    until_live(machine)
    assert active(machine, *SERVICES) == ["active"] * len(SERVICES)
    assert machine.cronium("logs", runs).endswith("end\n")


def test_its_page_answers(machine: Machine) -> None:
    page = machine.run("curl --silent --fail --retry 30 --retry-connrefused http://127.0.0.1:8700/")
    assert "<html" in page.lower()
    told = machine.run(
        "curl --silent --fail -H 'Authorization: Bearer a-token-of-16-or-more' http://127.0.0.1:8700/hosts"
    )
    assert HOST in told
    assert machine.run("curl --silent -o /dev/null -w '%{http_code}' http://127.0.0.1:8700/hosts").strip() == "401"


def test_nothing_stays_when_it_leaves_the_fleet(machine: Machine) -> None:
    said = machine.run("/root/cronium-worker/deploy/uninstall.sh --purge", timeout_s=900)
    assert "this machine is no host any more" in said
    left = machine.run(
        "docker ps --all --quiet; docker network ls --quiet --filter name=cronium; docker images --quiet; "
        "nft list tables | grep cronium; ls -d /opt/cronium /etc/cronium /etc/systemd/system/cronium-* 2>/dev/null; "
        "systemctl list-units --plain --no-legend 'cronium-*'; ls -A /var/lib/cronium",
        may_fail=True,
    )
    assert left == ""
