"""A machine as people have it: Debian trixie with systemd, cgroup v2, AppArmor and its own Docker Engine.

It is a virtual one, and emulated (the /dev/kvm of a machine that is a virtual one itself may not carry it): it shows
function, not speed. Its disk is made once, and kept in var/hosts; each run has a copy. It has no way out: what it needs
lies on a second disk, below /mnt.
"""

import json
import shlex
import shutil
import socket
import subprocess
import tempfile
import textwrap
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import docker

from tests.conftest import wait_until
from tests.labs import ROOT, NoLabs, inside
from tests.registry import forget, push, running_registry
from tests.roots import PLACE, root_of

_PACKAGES = (
    "systemd", "systemd-sysv", "dbus", "udev", "kmod", "linux-image-cloud-amd64", "initramfs-tools",
    "openssh-server", "apparmor", "iproute2", "iptables", "nftables", "procps", "ca-certificates", "curl", "docker.io",
    "docker-cli", "docker-registry", "mmdebstrap", "redis-server", "python3", "python3-venv",
)  # fmt: skip
# In it: has the runner images, for CRONIUM_REGISTRY__PREFIX.
REGISTRY = "127.0.0.1:5000"
# What its kernel and systemd say, of the last run.
CONSOLE = PLACE / "machine-console.log"
_DISK, _PAYLOAD_SPARE_MIB = "12G", 200
_MEMORY_MIB, _CPUS = 4096, 2
_BOOT_S, _STOP_S = 600, 300
# Emulated, everything takes ten to twenty times as long.
_FILES = {
    "etc/hostname": "machine\n",
    "etc/hosts": "127.0.0.1 localhost machine\n",
    "etc/resolv.conf": "nameserver 10.0.2.3\n",
    "etc/fstab": "/dev/vda / ext4 defaults,noatime 0 1\n/dev/vdb /mnt ext4 ro,nofail 0 0\n",
    "etc/systemd/network/10-machine.network": "[Match]\nName=e*\n[Network]\nAddress=10.0.2.15/24\nGateway=10.0.2.2\n",
    "etc/systemd/system.conf.d/slow.conf": "[Manager]\n"
    "DefaultTimeoutStartSec=900\nDefaultTimeoutStopSec=900\nDefaultDeviceTimeoutSec=900\n",
    "etc/ssh/sshd_config.d/machine.conf": "PermitRootLogin prohibit-password\nUseDNS no\nLoginGraceTime 600\n",
    "etc/docker/registry/config.yml": f"""\
version: 0.1
log: {{level: warn}}
storage:
  filesystem: {{rootdirectory: /mnt/registry}}
  maintenance: {{readonly: {{enabled: true}}}}
http: {{addr: '{REGISTRY}'}}
""",
    "etc/pip.conf": "[global]\nno-index = true\nfind-links = /mnt/wheels\n",
}
_ENABLED = "systemd-networkd", "ssh"
_MASKED = "apt-daily.timer", "apt-daily-upgrade.timer", "e2scrub_all.timer", "fstrim.timer", "dpkg-db-backup.timer"


class Machine:
    """One run of it. `directory`: where its disks are while it runs."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._disk = directory / "disk.img"
        self._payload = directory / "payload.img"
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0

    def make(self) -> None:
        """Its disks. Raises NoLabs."""
        for program, package in (("qemu-system-x86_64", "qemu-system-x86"), ("ssh", "openssh-client")):
            if shutil.which(program) is None:
                raise NoLabs(f"{program} is missing: apt-get install {package}")
        base = _base_disk()
        subprocess.run(["cp", "--sparse=always", "--reflink=auto", base, self._disk], check=True)
        self._make_payload()

    def start(self) -> None:
        """Boot it, and wait until it answers."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        kernel = next((PLACE / "machine" / "boot").glob("vmlinuz-*"))
        disks = [f"file={path},if=virtio,format=raw,cache=unsafe" for path in (self._disk, self._payload)]
        command = [
            "nice", "-n", "5", "qemu-system-x86_64", "-machine", "q35", "-accel", "tcg,thread=multi",
            "-cpu", "max", "-smp", str(_CPUS), "-m", str(_MEMORY_MIB), "-display", "none", "-monitor", "none",
            "-kernel", str(kernel), "-initrd", str(kernel).replace("vmlinuz-", "initrd.img-"),
            "-append", "root=/dev/vda rw console=ttyS0 mitigations=off loglevel=4",
            *(part for disk in disks for part in ("-drive", disk)),
            "-netdev", f"user,id=n0,restrict=on,hostfwd=tcp:127.0.0.1:{self._port}-:22",
            "-device", "virtio-net-pci,netdev=n0", "-device", "virtio-rng-pci",
            "-serial", f"file:{CONSOLE}",
        ]  # fmt: skip
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        self._wait_for_boot(before="")

    def run(self, command: str, *, given: str = "", timeout_s: float = 300, may_fail: bool = False) -> str:
        """What a shell command of root's prints, stderr as well."""
        done = self._ssh(command, given=given, timeout_s=timeout_s)
        if done.returncode and not may_fail:
            raise AssertionError(f"{command}: exit code {done.returncode}\n{done.stdout[-4000:]}")
        return done.stdout

    def python(self, script: str, *arguments: str, timeout_s: float = 600) -> Any:
        """What a Python script prints as JSON on its last line. It has the fleet's settings, and the program."""
        command = f"cd /etc/cronium && /opt/cronium/bin/python - {shlex.join(arguments)}"
        return json.loads(self.run(command, given=textwrap.dedent(script), timeout_s=timeout_s).splitlines()[-1])

    def cronium(self, *arguments: str, timeout_s: float = 300, may_fail: bool = False) -> str:
        command = f"cd /etc/cronium && /opt/cronium/bin/cronium {shlex.join(arguments)}"
        return self.run(command, timeout_s=timeout_s, may_fail=may_fail)

    def reboot(self) -> None:
        """In order."""
        before = self._boot_id()
        self.run("systemctl reboot", may_fail=True)
        self._wait_for_boot(before=before)

    def cut_power(self) -> None:
        """What its kernel has not written is lost."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self.start()

    def stop(self) -> None:
        if self._process is None:
            return
        with suppress(subprocess.TimeoutExpired):
            self._ssh("systemctl poweroff", timeout_s=60)
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _wait_for_boot(self, *, before: str) -> None:
        def booted() -> bool:
            if self._process is None or self._process.poll() is not None:
                raise AssertionError(f"qemu ended ({CONSOLE})")
            return self._boot_id() not in ("", before)

        wait_until(booted, timeout_s=_BOOT_S, what=f"the machine's start ({CONSOLE})")

    def _boot_id(self) -> str:
        try:
            done = self._ssh("cat /proc/sys/kernel/random/boot_id", timeout_s=60)
        except subprocess.TimeoutExpired:
            return ""
        return done.stdout.strip() if done.returncode == 0 else ""

    def _ssh(self, command: str, *, given: str = "", timeout_s: float) -> subprocess.CompletedProcess[str]:
        options = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "ConnectTimeout=60", "BatchMode=yes"]
        ssh = ["ssh", "-q", "-i", str(_key()), "-p", str(self._port), *(p for o in options for p in ("-o", o))]
        return subprocess.run(
            [*ssh, "root@127.0.0.1", f"exec 2>&1; {command}"],
            input=given,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )

    def _make_payload(self) -> None:
        """The project as it is here, the packages of its requirements, and a registry's data with the runner images."""
        tree = self._directory / "payload"
        (tree / "project").mkdir(parents=True)
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            check=True,
            capture_output=True,
        ).stdout
        packed = subprocess.run(
            ["tar", "--create", "--null", "--files-from=-"], cwd=ROOT, input=listed, check=True, capture_output=True
        )
        subprocess.run(["tar", "--extract", "--directory", tree / "project"], input=packed.stdout, check=True)
        shutil.copytree(_wheels(), tree / "wheels")
        _push_images(tree / "registry")
        used = int(subprocess.run(["du", "-sm", tree], check=True, capture_output=True, text=True).stdout.split()[0])
        _file_system(self._payload, tree, f"{used + used // 8 + _PAYLOAD_SPARE_MIB}M")
        shutil.rmtree(tree)


def _push_images(directory: Path) -> None:
    """Ours of this machine's engine, into what will be the data of the machine's registry."""
    with (
        tempfile.TemporaryDirectory() as place,
        running_registry(Path(place)) as registry,
        closing(docker.from_env(timeout=300)) as client,
    ):
        for script_type in ("bash", "python", "node"):
            name = f"cronium/runner:{script_type}-debian"
            reference = registry.reference(name)
            client.api.tag(name, *reference.rsplit(":", 1))
            push(client.api, reference)
        forget(client.api, registry.address)
        shutil.copytree(registry.data, directory)


def _key() -> Path:
    return PLACE / "machine.key"


def _base_disk() -> Path:
    disk = PLACE / "machine.img"
    if disk.exists():
        return disk
    root = root_of("machine", "trixie", _PACKAGES)
    if not _key().exists():
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(_key())], check=True)
    files = _FILES | {"root/.ssh/authorized_keys": _key().with_suffix(".key.pub").read_text()}
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    for verb, units in (("enable", _ENABLED), ("mask", _MASKED)):
        subprocess.run(["systemctl", "--quiet", f"--root={root}", verb, *units], check=True)
    _file_system(disk, root, _DISK)
    return disk


def _file_system(image: Path, tree: Path, size: str) -> None:
    making = image.with_suffix(".making")
    making.unlink(missing_ok=True)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", str(tree), str(making), size], check=True)
    making.rename(image)


def _wheels() -> Path:
    """The packages of requirements.txt for the machine's Python, and what it takes to build the project."""
    wheels = PLACE / "machine-wheels"
    stamp = wheels / "requirements.txt"
    wanted = (ROOT / "requirements.txt").read_text()
    if not (stamp.exists() and stamp.read_text() == wanted):
        shutil.rmtree(wheels, ignore_errors=True)
        wheels.mkdir(parents=True)
        # `inside` shows it as the project's .venv. The tools for it are to leave nothing in the root directory.
        script = (
            "mount -t tmpfs tmpfs /tmp && export PIP_CONFIG_FILE=/dev/null && python3 -m venv /tmp/venv && "
            "/tmp/venv/bin/pip --quiet download --dest .venv --requirement requirements.txt hatchling"
        )
        inside(PLACE / "machine", wheels, "sh", "-c", script)
        stamp.write_text(wanted)
    return wheels
