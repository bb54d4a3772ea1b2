"""A Redis with the users and the TLS of deploy/redis/cronium.conf, and the certificates for it."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest
from redis import Redis

from tests.own_redis import OwnRedis

CONFIGURATION = Path(__file__).parents[1] / "deploy" / "redis" / "cronium.conf"
_KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]


def make_certificates(directory: Path) -> None:
    """ca.pem, and server and client with their keys, for 127.0.0.1 and a day."""

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True, timeout=30)

    openssl("req", "-x509", *_KEY, "-keyout", "ca.key", "-out", "ca.pem", "-days", "1", "-subj", "/CN=ca")
    (directory / "names").write_text("subjectAltName=IP:127.0.0.1")
    for name in ("server", "client"):
        openssl("req", *_KEY, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        signed = ["-in", f"{name}.csr", "-out", f"{name}.pem", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"]
        openssl("x509", "-req", *signed, "-days", "1", "-extfile", "names")


class GuardedRedis(OwnRedis):
    """Each user's password is the user's name."""

    def __init__(self, directory: Path) -> None:
        make_certificates(directory)
        text = CONFIGURATION.read_text().replace("/etc/redis/tls/", f"{directory}/")
        (directory / "cronium.conf").write_text(re.sub(r"([A-Z]+)-PASSWORD", lambda user: user[1].lower(), text))
        super().__init__(directory, "--include", str(directory / "cronium.conf"))
        self._options = (*self._options, "--port", "0", "--tls-port", str(self.port))
        self._certificates = directory
        self.url = self.address("admin")

    def address(self, user: str, *, password: str | None = None, certificate: bool = True) -> str:
        files = {"ssl_ca_certs": self._certificates / "ca.pem"}
        if certificate:
            files["ssl_certfile"] = self._certificates / "client.pem"
            files["ssl_keyfile"] = self._certificates / "client.key"
        return f"rediss://{user}:{password or user}@127.0.0.1:{self.port}/0?{urlencode(files)}"

    def of(self, user: str) -> Redis:
        return Redis.from_url(self.address(user), decode_responses=True, socket_timeout=5)


@pytest.fixture(scope="module")
def guarded_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardedRedis]:
    with GuardedRedis(tmp_path_factory.mktemp("guarded")) as redis:
        yield redis
