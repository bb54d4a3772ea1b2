"""A Redis of a test's own behind Sentinel: a primary, replicas, three sentinels that take seconds to replace it. The
servers have a password, and the sentinels another one."""

import subprocess
from pathlib import Path
from typing import Self
from urllib.parse import quote

from redis import Redis
from redis.exceptions import RedisError

from tests.conftest import wait_until
from tests.own_redis import OwnRedis
from tests.registry import free_port

SERVICE = "fleet"
DOWN_AFTER_MS = 1000
FAILOVER_TIMEOUT_MS = 3000
PASSWORD, SENTINEL_PASSWORD = "of@the:servers", "of@the:sentinels"
_SENTINELS = 3
_QUORUM = 2


class OwnSentinel:
    """The servers are in the order of their starts: the first one is the primary until it is killed."""

    def __init__(self, directory: Path, *, replicas: int = 2, options: tuple[str, ...] = ()) -> None:
        self.servers: list[OwnRedis] = []
        for number in range(replicas + 1):
            place = directory / f"redis-{number}"
            place.mkdir()
            login = ("--requirepass", PASSWORD, "--masterauth", PASSWORD)
            of_replica = ("--replicaof", f"127.0.0.1 {self.servers[0].port}") if number else ()
            self.servers.append(OwnRedis(place, "--repl-diskless-sync-delay", "0", *login, *of_replica, *options))
            self.servers[-1].url = f"redis://:{quote(PASSWORD)}@127.0.0.1:{self.servers[-1].port}/0"
        self._ports = [free_port() for _ in range(_SENTINELS)]
        self._sentinels: list[subprocess.Popen[bytes]] = []
        self._cut_off: list[OwnRedis] = []
        self._directory = directory

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{port}" for port in self._ports)
        login, watch = quote(PASSWORD, safe=""), quote(SENTINEL_PASSWORD, safe="")
        return f"sentinel://:{login}@{hosts}/0?service={SERVICE}&sentinel_password={watch}"

    def __enter__(self) -> Self:
        for server in self.servers:
            server.start()
        for port in self._ports:
            self._start_sentinel(port)
        wait_until(self._is_whole, what="each sentinel knows the replicas and the others")
        return self

    def __exit__(self, *_: object) -> None:
        for sentinel in self._sentinels:
            sentinel.kill()
            sentinel.wait(10)
        for server in self.servers:
            server.kill()

    def _start_sentinel(self, port: int) -> None:
        place = self._directory / f"sentinel-{port}"
        place.mkdir()
        configuration = place / "sentinel.conf"  # a sentinel writes it anew whenever it learns something
        configuration.write_text(
            f"port {port}\nbind 127.0.0.1\ndir {place}\n"
            f"sentinel monitor {SERVICE} 127.0.0.1 {self.servers[0].port} {_QUORUM}\n"
            f"requirepass {SENTINEL_PASSWORD}\nsentinel sentinel-pass {SENTINEL_PASSWORD}\n"
            f"sentinel auth-pass {SERVICE} {PASSWORD}\n"
            f"sentinel down-after-milliseconds {SERVICE} {DOWN_AFTER_MS}\n"
            f"sentinel failover-timeout {SERVICE} {FAILOVER_TIMEOUT_MS}\n"
        )
        command = ["setpriv", "--pdeathsig", "KILL", "--", "redis-server", str(configuration), "--sentinel"]
        self._sentinels.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))

    def _is_whole(self) -> bool:
        about = [self._ask(port) for port in self._ports]
        expected = (len(self.servers) - 1, _SENTINELS - 1)
        return all((each.get("num-slaves"), each.get("num-other-sentinels")) == expected for each in about)

    def _ask(self, port: int) -> dict[str, int]:
        with Redis(port=port, password=SENTINEL_PASSWORD, decode_responses=True, socket_timeout=1) as sentinel:
            try:
                state: dict[str, int] = sentinel.sentinel_master(SERVICE)
            except RedisError:
                return {}
        return state

    def primary(self) -> OwnRedis | None:
        """As the sentinels have it; None while they do not agree."""
        ports = {self._ask(port).get("port") for port in self._ports}
        named = [server for server in self.servers if {server.port} == ports]
        return named[0] if named and named[0].role() == "master" else None

    def replicas(self) -> list[OwnRedis]:
        return [server for server in self.servers if server.role() == "slave"]

    def cut_off_replicas(self) -> None:
        """They hear nothing any more. (Frozen alone, they would read later on what is in their sockets.)"""
        primary = wait_until(self.primary, what="the sentinels agree on the primary")
        self._cut_off = self.replicas()
        for server in self._cut_off:
            server.freeze()
        with primary.client() as redis:
            redis.client_kill_filter(_type="replica")
            wait_until(lambda: redis.info("replication")["connected_slaves"] == 0, what="no replica")

    def bring_back_replicas(self) -> None:
        for server in self._cut_off:
            server.thaw()

    def kill_primary(self) -> OwnRedis:
        """SIGKILL. Returns the one that was it."""
        killed = wait_until(self.primary, what="the sentinels agree on the primary")
        killed.kill()
        return killed

    def wait_for_another(self, killed: OwnRedis) -> OwnRedis:
        def other() -> OwnRedis | None:
            now = self.primary()
            return now if now is not killed else None

        found: OwnRedis = wait_until(other, timeout_s=30, what="another primary")
        return found
