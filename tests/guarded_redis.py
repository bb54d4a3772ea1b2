"""A Redis with the users and the TLS of deploy/redis/cronium.conf, and the certificates for it."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import pytest
from redis import Redis

from tests.own_redis import OwnRedis

MAKE = Path(__file__).parents[1] / "deploy" / "redis" / "make.sh"


def make_access(directory: Path, *names: str) -> None:
    """What an operator makes: certificates, the configuration with its passwords, addresses."""
    subprocess.run([str(MAKE), str(directory), *names], check=True, capture_output=True, timeout=30)


class GuardedRedis(OwnRedis):
    """As deploy/redis/make.sh makes it, but for its place."""

    def __init__(self, directory: Path) -> None:
        make_access(directory, "127.0.0.1")
        configuration = directory / "cronium.conf"
        configuration.write_text(configuration.read_text().replace("/etc/redis/tls/", f"{directory}/"))
        super().__init__(directory, "--include", str(configuration))
        self._options = (*self._options, "--port", "0", "--tls-port", str(self.port))
        self._certificates = directory
        self._passwords = {
            str(url.username): str(url.password)
            for url in map(urlsplit, (directory / "addresses").read_text().splitlines())
        }
        self.url = self.address("admin")

    def address(self, user: str, *, password: str | None = None, certificate: bool = True) -> str:
        files = {"ssl_ca_certs": self._certificates / "ca.pem"}
        if certificate:
            files["ssl_certfile"] = self._certificates / "client.pem"
            files["ssl_keyfile"] = self._certificates / "client.key"
        secret = password or self._passwords.get(user, user)
        return f"rediss://{user}:{secret}@127.0.0.1:{self.port}/0?{urlencode(files)}"

    def of(self, user: str) -> Redis:
        return Redis.from_url(self.address(user), decode_responses=True, socket_timeout=5)


@pytest.fixture(scope="module")
def guarded_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardedRedis]:
    with GuardedRedis(tmp_path_factory.mktemp("guarded")) as redis:
        yield redis
