"""A Docker Engine of the rig: a dockerd with all that is its own, in the network namespace of its host."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import docker
import psutil

from tests.conftest import wait_until
from tests.mounts import unmount_below
from tests.rig_network import NAMESPACES

_CGROUPS = Path("/sys/fs/cgroup")
_START_S = 60
# Of gVisor as jobs need it (docs/security.md). No network: its own one needs a newer release on newer kernels.
_RUNTIMES = {
    "runsc": {"path": "runsc", "runtimeArgs": ["--host-fifo=open", "--network=none"]},
    "runsc-without-fifo": {"path": "runsc", "runtimeArgs": ["--network=none"]},
}


class RigEngine:
    """One dockerd with its containerd. Everything of it is below `root`, but for its control groups."""

    def __init__(self, name: str, root: Path, *, insecure_registries: str) -> None:
        self.name = name
        self.root = root
        self.socket = root / "docker.sock"
        self.url = f"unix://{self.socket}"
        self.log = root / "dockerd.log"
        self._client: docker.DockerClient | None = None
        self.insecure_registries = insecure_registries
        self._dockerd: subprocess.Popen[bytes] | None = None

    def start(self, *, live_restore: bool = False) -> None:
        """Returns when the engine answers."""
        self.root.mkdir(parents=True, exist_ok=True)
        self._configure(live_restore=live_restore)
        # After a kill -9 it can stumble over the pid file of its last containerd, once.
        if not self._launch() and not self._launch():
            raise RuntimeError(f"dockerd of {self.name} did not start: {self.log.read_text()[-2000:]}")

    @property
    def client(self) -> docker.DockerClient:
        """Of the dockerd that runs now: ask anew after a restart."""
        assert self._client is not None, "the engine has not been started"
        return self._client

    def _configure(self, *, live_restore: bool) -> None:
        self._config.write_text(json.dumps({"live-restore": live_restore, "runtimes": _RUNTIMES}))

    @property
    def _config(self) -> Path:
        return self.root / "daemon.json"

    def _launch(self) -> bool:
        """False if it ends again. Fails if it does not answer in time."""
        command = [
            # Ends with the process of the tests, however that ends. `ip netns exec` would hide the control groups.
            *("setpriv", "--pdeathsig", "TERM", "--", "nsenter", f"--net={NAMESPACES / self.name}", "dockerd"),
            *("--config-file", str(self._config), "--host", self.url, "--pidfile", str(self.root / "dockerd.pid")),
            *("--data-root", str(self.root / "data"), "--exec-root", str(self.root / "exec")),
            *("--storage-driver", "overlay2", "--exec-opt", "native.cgroupdriver=cgroupfs"),
            *("--cgroup-parent", f"/{self.name}", "--insecure-registry", self.insecure_registries),
        ]
        with self.log.open("ab") as log:
            self._dockerd = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        dockerd = self._dockerd
        wait_until(lambda: self._connect() or dockerd.poll() is not None, timeout_s=_START_S, what="dockerd answers")
        if dockerd.poll() is None:
            return True
        self.kill()
        return False

    def _connect(self) -> bool:
        # Asked by hand first: the SDK does not close a socket that was refused.
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(self.socket))
            except OSError:
                return False
        try:
            client = docker.DockerClient(base_url=self.url, version="auto")
        except docker.errors.DockerException:
            return False
        self._disconnect()
        self._client = client
        return True

    def _disconnect(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    def kill(self) -> None:
        """SIGKILL to dockerd, and with it to its containerd. Containers and their shims run on."""
        containerd = [process for process in self.processes() if process.name() == "containerd"]
        if self._dockerd is not None:
            self._dockerd.kill()
            self._dockerd.wait()
        end(containerd)
        # Until it is reaped, dockerd would take it for running, and wait 15 s for its answer.
        (self.root / "exec/containerd/containerd.pid").unlink(missing_ok=True)

    def restart(self, *, live_restore: bool = False) -> None:
        """Stop dockerd as a service manager does, and start it again; with live_restore containers run on meanwhile."""
        assert self._dockerd is not None
        if self._dockerd.poll() is None:
            self._configure(live_restore=live_restore)
            self._dockerd.send_signal(signal.SIGHUP)
            wait_until(lambda: self.client.info()["LiveRestoreEnabled"] == live_restore, what="settings read")
            self._dockerd.terminate()
            self._dockerd.wait(_START_S)
        self.start(live_restore=live_restore)

    def processes(self) -> list[psutil.Process]:
        """dockerd, containerd and the shims: all whose command line names a path below `root`."""
        mark = f"{self.root}/"
        found = []
        for process in psutil.process_iter(["name", "cmdline"]):
            of_engine = process.info["name"].startswith(("dockerd", "containerd", "nsenter"))
            if of_engine and any(mark in argument for argument in process.info["cmdline"] or ()):
                found.append(process)
        return found

    def remove(self) -> None:
        """Away with the engine and all that it has made. From any state, also of a rig that was left behind."""
        self._disconnect()
        # The engine first: what it sees dying it may start again.
        end(self.processes())
        if self._dockerd is not None:
            self._dockerd.wait()
        # What forks while it is ended is found the next time.
        wait_until(lambda: end(self._contained()) == 0, what=f"no process in containers of {self.name}")
        end(self.processes())
        unmount_below(self.root)
        for group in self._groups():
            _remove_group(group)
        if self.root.exists():
            shutil.rmtree(self.root)

    def _groups(self) -> list[Path]:
        """The engine's parent group: one, or with version 1 of control groups one in each hierarchy."""
        return [path for path in (_CGROUPS / self.name, *_CGROUPS.glob(f"*/{self.name}")) if path.is_dir()]

    def _contained(self) -> list[psutil.Process]:
        """The processes in containers."""
        pids = set()
        for group in self._groups():
            for path in group.rglob("cgroup.procs"):
                with contextlib.suppress(OSError):  # the group has just gone
                    pids |= {int(pid) for pid in path.read_text().split()}
        found = []
        for pid in pids:
            with contextlib.suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(pid))
        return found


def end(processes: list[psutil.Process]) -> int:
    """SIGKILL, which ends stopped ones as well, and wait until they are gone. Returns how many there were."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    wait_until(lambda: all(map(has_ended, processes)), what=f"the end of {processes}")
    return len(processes)


def has_ended(process: psutil.Process) -> bool:
    """Also when nobody has asked for its exit code yet."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _remove_group(group: Path) -> None:
    """The kernel takes a little until a group of killed processes counts as empty."""

    def gone() -> bool:
        with contextlib.suppress(OSError):
            for path, _, _ in os.walk(group, topdown=False):
                os.rmdir(path)  # noqa: PTH106 - not a file in it can be removed, and none needs to be
        return not group.exists()

    wait_until(gone, what=f"{group} is empty")
