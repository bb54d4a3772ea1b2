"""Runs the tests side by side: `python -m tests.labs [--labs N] PYTEST-ARGUMENTS`.

Each worker of pytest-xdist has a lab of its own: a network and a mount namespace with an engine, a Redis, and its own
/run, /var/lib/docker and /var/lib/cronium. So a test that restarts the engine, fills a disk or changes the firewall
disturbs no other. `make test` calls it, with an engine that has the images.
"""

import argparse
import json
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import docker

ROOT = Path(__file__).parents[1]
_LABS = 3  # on two cores: most tests wait for processes and containers
_SUBNET = "10.98"
_START_S = 120
_STOP_S = 90
_MOST_S = 45 * 60
_DISTRIBUTED = ("--dist", "loadfile", "--no-loadscope-reorder", "--durations", "20", "-o", "timeout_method=signal")
# A lab's own are made by with-services.sh; the programs of a virtual environment may be named in PATH.
_OF_SERVICES = ("CRONIUM_", "DOCKER_", "TMPDIR")
_SETUP = r"""
set -e
resolver=$(readlink -f /etc/resolv.conf)
behind=/run/systemd/resolve/resolv.conf
if [ ! -e "$behind" ]; then behind=$resolver; fi
cp "$behind" "$LAB/resolv.conf"
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p "${resolver%/*}"
[ -e "$resolver" ] || : >"$resolver"
mount --bind "$LAB/resolv.conf" "$resolver"
for name in docker cronium; do
    mkdir -p "$LAB/$name" "/var/lib/$name"
    mount --bind "$LAB/$name" "/var/lib/$name"
done
mkdir "$LAB/sys" # it shows the network namespace of whoever mounts it
mount -t sysfs sysfs "$LAB/sys"
mount --rbind /sys/fs/cgroup "$LAB/sys/fs/cgroup"
mount --rbind "$LAB/sys" /sys
ip link set lo up
echo named
read -r _
ip address add "$ADDRESS.2/24" dev eth0
ip link set eth0 up
ip route add default via "$ADDRESS.1"
echo 1 >/proc/sys/net/ipv4/ip_forward
exec deploy/local/with-services.sh sh -ec '
    docker load --quiet --input "$IMAGES" >/dev/null
    env -0 >"$LAB/environment"
    echo ready
    exec cat >/dev/null'
"""


# Into another root directory: that of a newer distribution, with the project, its own virtual environment, and the lab.
_ENTER = r"""
set -e
mount --bind "$ROOT" "$ROOT"
for name in proc sys dev; do mount --rbind "/$name" "$ROOT/$name"; done
# crun refuses cgroup v1 with a v2 beside it that has controllers.
if [ -e /sys/fs/cgroup/unified/cgroup.controllers ]; then umount "$ROOT/sys/fs/cgroup/unified"; fi
mkdir -p "$ROOT/mnt"
# What this machine trusts is trusted there: its mirror may be behind a proxy.
for path in ${LABS:+"$LABS/tmp:/tmp"} /etc/ssl/certs "$PWD" "$ENVIRONMENT:$PWD/.venv" ${LABS:+"$LABS"}; do
    mkdir -p "$ROOT${path#*:}"
    mount --bind "${path%%:*}" "$ROOT${path#*:}"
done
cp --dereference /etc/resolv.conf "$ROOT/etc/resolv.conf"
back=$PWD
cd "$ROOT"
pivot_root . mnt
umount --lazy /mnt
cd "$back"
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
exec sh -c "$THEN"
"""


class NoLabs(Exception):
    """They cannot be made here."""


class Lab:
    """Of one worker of pytest-xdist, or of a row of tests.matrix: then with `root`, what `entering` returns."""

    def __init__(
        self, number: int, directory: Path, images: Path, mtu: str, *, root: Mapping[str, str] | None = None
    ) -> None:
        self.name = f"cronium-lab{number}"
        self._directory = directory / str(number)
        self._directory.mkdir()
        self._mtu = mtu
        self._address = f"{_SUBNET}.{number}"
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_OF_SERVICES)}
        own = {"LAB": str(self._directory), "ADDRESS": self._address, "IMAGES": str(images)}
        self._python = str(ROOT / ".venv" / "bin" / "python") if root else sys.executable
        script = _ENTER if root else _SETUP
        self._process = subprocess.Popen(
            ["unshare", "--net", "--mount", "--propagation", "private", "sh", "-c", script],
            cwd=ROOT,
            env=kept | own | ({**root, "LABS": str(directory), "THEN": _SETUP} if root else {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self) -> None:
        """Wire it, and let its services start; `wait` for them."""
        self._expect("named")
        there = ["name", "eth0", "netns", str(self._process.pid)]
        run("ip", "link", "add", self.name, "mtu", self._mtu, "type", "veth", "peer", "mtu", self._mtu, *there)
        run("ip", "address", "add", f"{self._address}.1/24", "dev", self.name)
        run("ip", "link", "set", self.name, "up")
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def wait(self) -> str:
        """Until its services are there. Returns the command that runs Python in it."""
        self._expect("ready")
        pairs = (self._directory / "environment").read_text().rstrip("\0").split("\0")
        exports = "\n".join(f"export {pair.split('=', 1)[0]}={shlex.quote(pair.split('=', 1)[1])}" for pair in pairs)
        inside = f"nsenter --target {self._process.pid} --mount --net --wdns={shlex.quote(str(ROOT))}"
        python = self._directory / "python"
        python.write_text(f'#!/bin/sh\n{exports}\nexec {inside} {shlex.quote(self._python)} "$@"\n')
        python.chmod(0o755)
        return str(python)

    def stop(self) -> None:
        self._process.communicate(timeout=_STOP_S)
        run("ip", "link", "delete", self.name, may_fail=True)

    def _expect(self, word: str) -> None:
        assert self._process.stdout is not None
        if self._process.stdout.readline().strip() != word:
            raise NoLabs(f"{self.name} did not start")


def entering(root: Path, environment: Path) -> dict[str, str]:
    """The variables of a lab in another root directory, with that virtual environment as the project's."""
    return {"ROOT": str(root), "ENVIRONMENT": str(environment)}


def inside(root: Path, environment: Path, *command: str) -> None:
    """Run a command in another root directory, with this machine's network. Raises NoLabs."""
    then = {"THEN": f"exec {shlex.join(command)}"}
    enter = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _ENTER]
    done = subprocess.run(enter, cwd=ROOT, env=os.environ | entering(root, environment) | then, check=False)
    if done.returncode:
        raise NoLabs(f"{shlex.join(command)} in {root}: exit code {done.returncode}")


def run(*command: str, may_fail: bool = False) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_START_S)
    if done.returncode and not may_fail:
        raise NoLabs(f"{shlex.join(command)}: {done.stderr.strip()}")
    return done.stdout


@contextmanager
def way_out() -> Iterator[str]:
    """Labs reach what this machine does: packages for the tests of installation. Yields the MTU."""
    routes = json.loads(run("ip", "-json", "route", "show", "default"))
    if not routes:
        yield "1500"
        return
    device = routes[0]["dev"]
    rules = [
        ("nat", "POSTROUTING", "-s", f"{_SUBNET}.0.0/16", "-o", device, "-j", "MASQUERADE"),
        ("filter", "FORWARD", "-s", f"{_SUBNET}.0.0/16", "-j", "ACCEPT"),
        ("filter", "FORWARD", "-d", f"{_SUBNET}.0.0/16", "-j", "ACCEPT"),
    ]
    with ExitStack() as stack:
        for table, chain, *rule in rules:
            run("iptables", "--wait", "-t", table, "-I", chain, *rule)
            stack.callback(run, "iptables", "--wait", "-t", table, "-D", chain, *rule, may_fail=True)
        yield Path(f"/sys/class/net/{device}/mtu").read_text().strip()


@contextmanager
def directory_in(place: str) -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="cronium.", dir=place))
    directory.chmod(0o711)  # what drops its rights must still get there
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


@contextmanager
def labs(count: int, directory: Path) -> Iterator[list[str]]:
    """The commands that run Python in them. Their files are in the directory."""
    with ExitStack() as stack:
        mtu = stack.enter_context(way_out())
        images = save_images(directory / "images.tar")
        made = [Lab(number, directory, images, mtu) for number in range(1, count + 1)]
        for lab in made:
            stack.callback(lab.stop)
            lab.start()
        yield [lab.wait() for lab in made]


def save_images(path: Path) -> Path:
    """Ours of this machine's engine."""
    with closing(docker.from_env(timeout=_START_S)) as client:
        names = [tag for image in client.images.list() for tag in image.tags if tag.startswith("cronium/")]
    run("docker", "save", "--output", str(path), *names)
    return path


def wait_for(pytest: subprocess.Popen[bytes]) -> int:
    """Its exit code. One that takes too long is interrupted: pytest-xdist can wait for ever after a worker's crash."""
    try:
        return pytest.wait(_MOST_S)
    except subprocess.TimeoutExpired:
        pytest.send_signal(signal.SIGINT)
        return pytest.wait(_STOP_S) or 1


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.labs", description=__doc__)
    parser.add_argument("--labs", type=int, default=_LABS)
    options, arguments = parser.parse_known_args()
    try:
        if os.geteuid() != 0:
            raise NoLabs("root is needed")
        return side_by_side(options.labs, arguments)
    except (NoLabs, FileNotFoundError) as reason:
        sys.stderr.write(f"one after the other, on the engine that there is: {reason}\n")
        return subprocess.run([sys.executable, "-m", "pytest", *arguments], cwd=ROOT, check=False).returncode


def side_by_side(count: int, arguments: list[str]) -> int:
    """Raises NoLabs, before any test."""
    began = time.monotonic()
    with (
        directory_in("/var/lib") as directory,
        directory_in("/tmp") as temporary,
        labs(count, directory) as pythons,
    ):
        # In /tmp, as jobs' directories are; with a short name: the paths of sockets have no more than 107 bytes.
        arguments = [*arguments, "--basetemp", str(temporary / "t")]
        workers = [part for python in pythons for part in ("--tx", f"popen//python={python}")]
        command = [sys.executable, "-m", "pytest", "-p", "no:rerunfailures", *_DISTRIBUTED, *workers, *arguments]
        code = wait_for(subprocess.Popen(command, cwd=ROOT))
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    minutes, cores = (time.monotonic() - began) / 60, (used.ru_utime + used.ru_stime) / 60
    sys.stdout.write(f"{minutes:.1f} minutes; {cores:.1f} core-minutes without the engines'\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
