"""The address of a Redis behind Sentinel, and what each library makes of it. Pure."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import parse_qsl, quote, unquote

SCHEME = "sentinel://"
_FORM = "sentinel://[USER:PASSWORD@]HOST[:PORT],HOST[:PORT]/DATABASE?service=NAME"
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?")
_PORT = 26379
_LOGIN = ("sentinel_username", "sentinel_password")
_TLS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname")
_TLS_VALUES = {"ssl_cert_reqs": ("required", "optional", "none"), "ssl_check_hostname": ("true", "false")}
# A sentinel that is away must not hold up the next one's answer.
_SENTINEL_TIMEOUT_S = 1.0


@dataclass(frozen=True, kw_only=True)
class SentinelAddress:
    """`login` is that of the Redis, `sentinel_login` that of the sentinels: both have `username` and `password`, as far
    as they are given. `tls`: redis-py's options of both; none: no TLS."""

    sentinels: tuple[tuple[str, int], ...]
    service: str
    database: int
    login: Mapping[str, str] = field(default_factory=dict, repr=False)
    sentinel_login: Mapping[str, str] = field(default_factory=dict, repr=False)
    tls: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, url: str) -> Self:
        """Raise ValueError with the reason, in which there is no password."""
        place, _, options = url.removeprefix(SCHEME).partition("?")
        authority, _, database = place.partition("/")
        login, _, hosts = authority.rpartition("@")
        query = dict(parse_qsl(options, keep_blank_values=True))
        if unknown := query.keys() - {"service", *_LOGIN, *_TLS}:
            raise ValueError(f"{', '.join(sorted(unknown))}: no option of sentinel://")
        if not query.get("service"):
            raise ValueError("must name the service that the sentinels watch: ?service=NAME")
        if not re.fullmatch(r"[0-9]{0,5}", database):
            raise ValueError(f"must have the number of a database after the hosts: {_FORM}")
        username, _, password = login.partition(":")
        return cls(
            sentinels=tuple(map(_host, hosts.split(","))),
            service=query["service"],
            database=int(database or 0),
            login=_given(username=unquote(username), password=unquote(password)),
            sentinel_login=_given(username=query.get(_LOGIN[0], ""), password=query.get(_LOGIN[1], "")),
            tls={name: _tls(name, query[name]) for name in _TLS if name in query},
        )

    @property
    def redis_options(self) -> dict[str, Any]:
        """redis-py's, of connections to the Redis."""
        return {"db": self.database, **self.login, **self._ssl}

    @property
    def sentinel_options(self) -> dict[str, Any]:
        """redis-py's, of connections to a sentinel."""
        times = {"socket_timeout": _SENTINEL_TIMEOUT_S, "socket_connect_timeout": _SENTINEL_TIMEOUT_S}
        return {**times, "retry": None, **self.sentinel_login, **self._ssl}

    @property
    def transport_options(self) -> dict[str, Any]:
        """What Celery takes beside the address, for the broker and for results."""
        return {"master_name": self.service, "sentinel_kwargs": self.sentinel_options}

    def broker_url(self) -> str:
        """As kombu takes it, which reads the login of whichever sentinel's turn it is."""
        return ";".join(self._url(number, with_login=True) for number in range(len(self.sentinels)))

    def result_backend(self) -> str:
        """As Celery takes it. It reads the login of the first one, and masks no other where it shows the address."""
        return ";".join(self._url(number, with_login=number == 0) for number in range(len(self.sentinels)))

    @property
    def _ssl(self) -> dict[str, Any]:
        return {"ssl": True, **self.tls} if self.tls else {}

    def _url(self, number: int, *, with_login: bool) -> str:
        host, port = self.sentinels[number]
        login = ""
        if self.login and with_login:
            user, password = (quote(self.login.get(name, ""), safe="") for name in ("username", "password"))
            login = f"{user}:{password}@"
        return f"{SCHEME}{login}{f'[{host}]' if ':' in host else host}:{port}/{self.database}"


def sentinel_address(url: str) -> SentinelAddress | None:
    """None: the address is of another kind. Raises ValueError."""
    return SentinelAddress.parse(url) if url.startswith(SCHEME) else None


def _host(text: str) -> tuple[str, int]:
    found = _HOST.fullmatch(text)
    port = int(found[2] or _PORT) if found else 0
    if found is None or not 1 <= port <= 65535:
        raise ValueError(f"{ascii(text)[1:-1][:80]}: must be the host of a sentinel, and maybe its port")
    return found[1].strip("[]"), port


def _given(**values: str) -> dict[str, str]:
    return {name: value for name, value in values.items() if value}


def _tls(name: str, value: str) -> str | bool:
    if value not in _TLS_VALUES.get(name, (value,)) or not value:
        raise ValueError(f"{name}: must be {' or '.join(_TLS_VALUES.get(name, ('a file',)))}")
    return value == "true" if name == "ssl_check_hostname" else value
