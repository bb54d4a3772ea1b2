"""A RabbitMQ of the tests' own: as a process on free ports of loopback, with its own epmd, gone without a trace."""

import os
import signal
import subprocess
from pathlib import Path

import psutil
from amqp import Connection

from tests.conftest import wait_until
from tests.registry import free_port
from tests.rig_engine import end

# Debian's command of the same name changes to another user, who cannot write into a test's directory.
_SERVER = "/usr/lib/rabbitmq/bin/rabbitmq-server"
_LOOPBACK = "{127,0,0,1}"
_WITH_US = ["setpriv", "--pdeathsig", "TERM", "--"]


class OwnRabbitMQ:
    """May be stopped, killed and started again on the same address and data.

    `consumer_timeout_s`: how long a message may be unacknowledged; looked at every second instead of every minute.
    """

    def __init__(self, directory: Path, *, consumer_timeout_s: float = 1800) -> None:
        self.port = free_port()
        self.url = f"amqp://guest:guest@127.0.0.1:{self.port}//"
        self._directory = directory
        (directory / "advanced.config").write_text(
            f"[{{rabbit, [{{consumer_timeout, {int(consumer_timeout_s * 1000)}}}, {{channel_tick_interval, 1000}}]}}]."
        )
        (directory / "plugins").write_text("[].")
        self._env = {
            "PATH": os.environ["PATH"],
            "HOME": str(directory),  # of the cookie
            "RABBITMQ_NODENAME": f"cronium{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_MNESIA_BASE": str(directory / "data"),
            "RABBITMQ_LOG_BASE": str(directory / "log"),
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(directory / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(directory / "plugins"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"-kernel inet_dist_use_interface {_LOOPBACK} -start_epmd false",
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(free_port()),
        }
        self._epmd: subprocess.Popen[bytes] | None = None
        self._server: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        if self._epmd is None:
            self._epmd = subprocess.Popen([*_WITH_US, "epmd"], env=self._env, stdin=subprocess.DEVNULL)
        with (self._directory / "output").open("ab") as output:
            command = [*_WITH_US, _SERVER]
            self._server = subprocess.Popen(
                command, env=self._env, stdout=output, stderr=output, start_new_session=True
            )
        wait_until(self.answers, timeout_s=60, what="RabbitMQ answers")

    def answers(self) -> bool:
        assert self._server is not None
        assert self._server.poll() is None, (self._directory / "output").read_text()[-2000:]
        try:
            with Connection(f"127.0.0.1:{self.port}", "guest", "guest", connect_timeout=2) as connection:
                connection.connect()
                return True
        except OSError:
            return False

    def _processes(self) -> list[psutil.Process]:
        assert self._server is not None
        try:
            server = psutil.Process(self._server.pid)
            return [server, *server.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def stop(self) -> None:
        assert self._server is not None
        processes = self._processes()
        for process in processes:
            if process.name() == "beam.smp":
                process.send_signal(signal.SIGTERM)
        psutil.wait_procs(processes, timeout=30)
        self.kill()

    def kill(self) -> None:
        assert self._server is not None
        end(self._processes())
        self._server.wait()

    def remove(self) -> None:
        if self._server is not None:
            self.kill()
        if self._epmd is not None:
            self._epmd.terminate()
            self._epmd.wait()
