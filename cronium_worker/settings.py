"""The fleet's settings: environment `CRONIUM_*` or a `.env` file. The only reader of the environment."""

import os
import re
import socket
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from ipaddress import IPv4Network, ip_address
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError

from cronium_worker.errors import ConfigurationError, validation_message
from cronium_worker.models.fields import MIB, ImageReference, Size, is_image
from cronium_worker.models.job import PullPolicy, QueueName, Resources, ScriptType
from cronium_worker.models.reference import HUB, canonical_registry, is_registry, named_registry
from cronium_worker.models.sentinel import sentinel_address

_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$"
SHORTEST_TOKEN = 16
FLAVOURS = ("alpine", "debian")
OWN_NAMES = "cronium/"  # what our images' names begin with where they are built
# All between the first colon and the last @, so that no odd password is shown in part; redis-py reads queries, too.
_PASSWORD_IN_URL = re.compile(r"(?<=//)([^:@/]*:).*@")
_PASSWORD_IN_QUERY = re.compile(r"([?&](?:sentinel_)?password=)[^&]*")


def _own_host_name() -> str:
    """The machine's name as a label and queue name can hold it."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", socket.gethostname())[:63].strip("-._") or "localhost"


def _redis_url(value: SecretStr) -> SecretStr:
    if not re.match(r"(rediss?|unix|sentinel)://", value.get_secret_value()):
        raise ValueError("must begin with redis://, rediss://, unix:// or sentinel://")
    return _sentinel(value)


def _sentinel(value: SecretStr) -> SecretStr:
    """Other addresses are looked at by those who use them."""
    sentinel_address(value.get_secret_value())
    return value


def _absolute(value: Path) -> Path:
    if not value.is_absolute():
        raise ValueError("must be an absolute path")
    return value


def _profile(value: Path | Literal["engine"]) -> Path | Literal["engine"]:
    if value != "engine" and not Path(value).is_absolute():
        raise ValueError("must be `engine` or an absolute path")
    return value


def _confining(value: str) -> str:
    if value == "unconfined":
        raise ValueError("must name a profile: jobs are never without one where AppArmor is on")
    return value


def _uid_pool(value: str) -> str:
    found = re.fullmatch(r"([1-9][0-9]{0,8})-([1-9][0-9]{0,8})", value)
    if value and not (found and int(found[1]) <= int(found[2])):
        raise ValueError('must be the first and the last uid like "20000-20063"')
    return value


def _destinations(values: tuple[str, ...]) -> tuple[str, ...]:
    for number, value in enumerate(values, 1):
        address, colon, port = value.partition(":")
        try:
            IPv4Network(address)
        except ValueError:
            address = ""
        if not address or (colon and not (re.fullmatch(r"[0-9]{1,5}", port) and 1 <= int(port) <= 65535)):
            what = "must be an IPv4 address or network, maybe with a port, as 10.1.0.0/16 or 10.1.2.3:443"
            raise ValueError(f"entry {number} {what}")
    return values


def _ascii(value: SecretStr) -> SecretStr:
    if not (value.get_secret_value().isascii() and value.get_secret_value().isprintable()):
        raise ValueError("must be printable ASCII")
    return value


def _unguessable(value: SecretStr) -> SecretStr:
    if value.get_secret_value() and len(value.get_secret_value()) < SHORTEST_TOKEN:
        raise ValueError(f"must have at least {SHORTEST_TOKEN} characters: `cronium key` prints one of 256 random bits")
    return _ascii(value)


def _registry_server(value: str) -> str:
    if value and not (
        is_registry(value) and re.fullmatch(r"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?(?::\d{1,5})?", value)
    ):
        raise ValueError('must be the host of a registry like "registry.example:5000"')
    return value


def _registry_prefix(value: str) -> str:
    host, _, _ = value.partition("/")
    if value and not (is_registry(host) and is_image(f"{value}/name")):
        raise ValueError('must be a registry and maybe a path like "registry.example:5000/team"')
    return value


def _listed(value: object) -> object:
    """Written with commas between them."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _keys(values: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
    for number, value in enumerate(values, 1):
        if not re.fullmatch(r"[A-Za-z0-9_-]{43}=", value.get_secret_value()):  # 32 bytes
            raise ValueError(f"key {number} is none: make one with `cronium key`, and put commas between several")
    return values


_Keys = Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(_listed), AfterValidator(_keys)]


def is_loopback(address: str) -> bool:
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def without_password(url: str) -> str:
    """An address for display."""
    return _PASSWORD_IN_URL.sub(r"\1***@", _PASSWORD_IN_QUERY.sub(r"\1***", url))


def _numbers(value: object) -> object:
    """A job's numbers must be numbers; those of the environment are text."""
    if isinstance(value, Mapping):
        return {name: _number(text) if name in {"cpu", "pids"} else text for name, text in value.items()}
    return value


def _number(value: object) -> object:
    if isinstance(value, str):
        for kind in (int, float):
            with suppress(ValueError):
                return kind(value)
    return value


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class Images(_Section):
    """The image of each script type. None: the runner image of the flavour that the host has."""

    bash: ImageReference | None = None
    python: ImageReference | None = None
    node: ImageReference | None = None

    def candidates(self, script_type: ScriptType) -> tuple[str, ...]:
        """The images that may serve a script type, the preferred one first."""
        chosen: str | None = getattr(self, script_type)
        return (chosen,) if chosen else tuple(f"{OWN_NAMES}runner:{script_type}-{f}" for f in FLAVOURS)


class Registry(_Section):
    """Where images are pulled from, and who asks. The login is for `server` alone (the prefix's host if that is not
    given); for other registries the host's Docker config is used."""

    prefix: Annotated[str, AfterValidator(_registry_prefix)] = ""
    server: Annotated[str, AfterValidator(_registry_server)] = ""
    username: str = ""
    password: SecretStr = SecretStr("")
    pull_idle_timeout: float = Field(default=60, gt=0, description="seconds without progress")
    pull_timeout: float = Field(default=1800, gt=0, description="seconds in all")

    @field_validator("username")
    @classmethod
    def _belongs_to_a_registry(cls, value: str, info: ValidationInfo) -> str:
        # A prefix or server that is wrong in itself is not in the data, and has an error of its own.
        if value and info.data.get("prefix") == info.data.get("server") == "":
            raise ValueError("belongs to no registry: set CRONIUM_REGISTRY__SERVER or CRONIUM_REGISTRY__PREFIX as well")
        return value

    def resolve(self, reference: str) -> str:
        """The reference as it is pulled: with the prefix, unless it names a registry itself."""
        return f"{self.prefix}/{reference}" if self.prefix and named_registry(reference) is None else reference

    def login(self, reference: str) -> tuple[str, str] | None:
        """Username and password for a reference's registry; None: they are another registry's."""
        own = canonical_registry(self.server or self.prefix.partition("/")[0])
        if not self.username or (named_registry(reference) or HUB) != own:
            return None
        return self.username, self.password.get_secret_value()


class Maxima(_Section):
    """What a job may ask for at most; a job above any of these is refused. None: no limit.

    `inodes` is no job's to ask for: it holds for each of them."""

    cpu: float = Field(default=2, gt=0)
    memory: Size = 2048 * MIB
    pids: int = Field(default=1000, ge=1)
    disk_io: Size | None = None
    disk: Size = 10 * 1024 * MIB
    inodes: int = Field(default=1_000_000, ge=1000, description="files and directories that a job may have")


class Security(_Section):
    """The container's profile beyond what is fixed (no capabilities, no new privileges, no swap, read-only root)."""

    seccomp_profile: Annotated[Literal["engine"] | Path, AfterValidator(_profile)] | None = Field(
        default=None, description="file; engine: the engine's own profile; None: Cronium's, where the engine can use it"
    )
    apparmor_profile: Annotated[str, AfterValidator(_confining)] = Field(
        default="", pattern=r"^[!-~]*$", description="empty: the engine's default where AppArmor is on"
    )
    selinux_label: str = Field(default="", pattern=r"^((user|role|type|level):[!-~]+)?$", description="as type:x_t")
    runtime: str = Field(
        default="", pattern=r"^[A-Za-z0-9_./-]*$", description="required runtime, as runsc; empty: the engine's default"
    )
    uid_pool: Annotated[str, AfterValidator(_uid_pool)] = Field(
        default="", description="first and last of the uids of which each sandbox has its own, as 20000-20063"
    )

    firewall: Literal["auto", "require", "off"] = Field(
        default="auto", description="auto: rules where they can be had; require: no jobs without; off: somebody else's"
    )
    block_private: bool = Field(default=False, description="no private networks for jobs on the isolated network")
    allowed_addresses: Annotated[tuple[str, ...], AfterValidator(_destinations)] = Field(
        default=(), description="what jobs reach all the same, as 10.1.0.0/16 or 10.1.2.3:443"
    )

    @property
    def uids(self) -> range | None:
        """The uid pool; None: every sandbox has the uid of `container_user`."""
        first, _, last = self.uid_pool.partition("-")
        return range(int(first), int(last) + 1) if self.uid_pool else None


class Log(_Section):
    """The job's log. What would take more than `max_bytes` of Redis, over all attempts, is read and dropped; the result
    says `truncated`. `spool_bytes`: of a file in `base_path` that takes what is printed while Redis is away; beyond it
    the script is slowed."""

    driver: Literal["local", "json-file"] = "local"
    max_bytes: Size = 16 * MIB
    chunk_bytes: Annotated[Size, Field(ge=1024, le=MIB)] = 64 * 1024
    spool_bytes: Size = 64 * MIB


class Pool(_Section):
    """Sandboxes that wait for jobs on a worker: `size` at most, however many jobs come; `minimum` for each type of
    script whose image is here, whether jobs come or not. `size` 0: each job's own is made when it comes.
    `interpreters`: Bash, Python and Node.js are started in them before there is a job."""

    size: int = Field(default=32, ge=0, le=256)
    minimum: int = Field(default=1, ge=0, le=256)
    interpreters: bool = True


class Capacity(_Section):
    """How many times what a host has its jobs may have at once: of its cores, and of nine tenths of its memory. Jobs
    seldom take all that they may; of memory, who has promised too much has to kill."""

    cpu_overcommit: float = Field(default=4, gt=0, le=1000)
    memory_overcommit: float = Field(default=1, gt=0, le=1000)


class Schedule(_Section):
    """How often beat has every host do its housekeeping, and one host look for lost jobs, in seconds. None is done
    that is older than that."""

    cleanup: float = Field(default=300, ge=1)
    prepull: float = Field(default=3600, ge=1)
    recovery: float = Field(default=5, ge=1)


_LINK = r"^(https?://[^\s]+)?$"


class Web(_Section):
    """Where the HTTP API and its page listen, and the token that callers give. Beyond loopback it needs one.
    `url`: where browsers find the page, for a link on Flower's."""

    address: str = "127.0.0.1"
    port: int = Field(default=8700, ge=0, le=65535, description="0: any that is free")
    token: Annotated[SecretStr, AfterValidator(_unguessable)] = SecretStr("")
    url: str = Field(default="", pattern=_LINK)


class Metrics(_Section):
    """Where this host's nodes answer Prometheus: the jobs node at `port`, the agent at the one after it. There is no
    login: it is for who may see it. 0: nowhere."""

    address: str = "127.0.0.1"
    port: int = Field(default=0, ge=0, le=65534)


class Flower(_Section):
    """Where the web page listens, and who may see it. Beyond loopback it needs a login. `url`: where browsers find it,
    for a link on the page of jobs."""

    address: str = "127.0.0.1"
    port: int = Field(default=5555, ge=0, le=65535, description="0: any that is free")
    # What basic authentication can carry, and what Flower can compare.
    username: str = Field(default="", pattern=r"^[!-9;-~]*$")
    password: Annotated[SecretStr, AfterValidator(_unguessable)] = SecretStr("")
    url: str = Field(default="", pattern=_LINK)

    @model_validator(mode="after")
    def _both_or_none(self) -> "Flower":
        if bool(self.username) != bool(self.password.get_secret_value()):
            raise ValueError("set both __USERNAME and __PASSWORD, or neither")
        return self

    @property
    def login(self) -> str | None:
        """`username:password`, or None when there is no login."""
        return f"{self.username}:{self.password.get_secret_value()}" if self.username else None


class Settings(BaseSettings):
    """All settings. Nested ones are written with two underscores: `CRONIUM_MAXIMA__MEMORY=4g`."""

    model_config = SettingsConfigDict(
        env_prefix="CRONIUM_",
        env_nested_delimiter="__",
        env_file=".env",
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
    )

    redis_url: Annotated[SecretStr, AfterValidator(_redis_url)] = SecretStr("redis://127.0.0.1:6379/0")
    redis_wait_replicas: int = Field(
        default=0, ge=0, le=100, description="how many of Redis's replicas must have what somebody acts on"
    )
    broker_url: Annotated[SecretStr, AfterValidator(_sentinel)] | None = None
    result_backend: Annotated[SecretStr, AfterValidator(_sentinel)] | None = None
    fleet: str = Field(default="default", pattern=_NAME)
    host_name: str = Field(default_factory=_own_host_name, pattern=_NAME)
    secret_keys: _Keys = Field(default=(), description="the first one encrypts jobs' secrets, each decrypts them")
    signing_keys: _Keys = Field(
        default=(), description="the first one signs jobs, each is taken; with none, jobs need no signature"
    )
    secret_ttl: int = Field(
        default=7 * 24 * 3600, ge=60, description="seconds that secrets are kept for a job that no worker has"
    )
    base_path: Annotated[Path, AfterValidator(_absolute)] = Path("/var/lib/cronium")
    container_user: str = Field(default="1000:1000", pattern=r"^[1-9]\d{0,8}:[1-9]\d{0,8}$")
    images: Images = Images()
    registry: Registry = Registry()
    pull_policy: PullPolicy = "if-not-present"
    allowed_images: tuple[str, ...] = ()
    allowed_networks: tuple[str, ...] = ()
    queues: Annotated[tuple[QueueName, ...], NoDecode, BeforeValidator(_listed)] = Field(
        default=(), description="the queues of jobs besides cronium.jobs; with none here, a job may name any"
    )
    defaults: Annotated[Resources, BeforeValidator(_numbers)] = Resources()
    maxima: Maxima = Maxima()
    security: Security = Security()
    log: Log = Log()
    pool: Pool = Pool()
    capacity: Capacity = Capacity()
    flower: Flower = Flower()
    web: Web = Web()
    metrics: Metrics = Metrics()
    log_format: Literal["text", "json"] = Field(default="text", description="of the lines that workers log")
    schedule: Schedule = Schedule()
    result_ttl: int = Field(default=7 * 24 * 3600, ge=1)
    lease_ttl: float = Field(default=30, ge=1, description="seconds a worker may be silent before it counts as gone")
    metrics_interval: float = Field(
        default=10, ge=0, le=3600, description="seconds between two samples of what a job uses; 0: none"
    )
    drain_timeout: float = Field(default=30, ge=0, description="seconds that a stopping worker waits for its jobs")
    orphan_retention: float = Field(default=3600, ge=1, description="seconds before what nobody claims is removed")
    min_free_disk: Size = 1024 * MIB
    concurrency: int = Field(default=8, ge=1, le=1024)

    @field_validator("concurrency")
    @classmethod
    def _has_uids(cls, value: int, info: ValidationInfo) -> int:
        security: Security | None = info.data.get("security")
        pool: Pool = info.data.get("pool", Pool())
        uids = security.uids if security is not None else None
        if uids is not None and len(uids) < value + pool.size:
            each = f"{value} slots and CRONIUM_POOL__SIZE={pool.size} sandboxes that wait"
            raise ValueError(f"{each} are more than the {len(uids)} uids of CRONIUM_SECURITY__UID_POOL: give it more")
        return value

    @property
    def container_uid_gid(self) -> tuple[int, int]:
        uid, gid = self.container_user.split(":")
        return int(uid), int(gid)

    @property
    def sandboxes_path(self) -> Path:
        """Where this host keeps the files of its running jobs: fleets and hosts may share a `base_path`."""
        return self.base_path / f"{self.fleet}@{self.host_name}"

    def masked(self) -> dict[str, object]:
        """The effective settings for display: JSON types, passwords and passwords in addresses as `***`."""
        data = self.model_dump(mode="json")
        for name in ("redis_url", "broker_url", "result_backend"):
            secret: SecretStr | None = getattr(self, name)
            data[name] = without_password(secret.get_secret_value()) if secret else None
        for name in ("secret_keys", "signing_keys"):
            data[name] = ",".join("***" for _ in getattr(self, name))
        data["registry"]["password"] = "***" if self.registry.password.get_secret_value() else ""
        data["flower"]["password"] = "***" if self.flower.login else ""
        data["web"]["token"] = "***" if self.web.token.get_secret_value() else ""
        return data


def load_settings(**given: object) -> Settings:
    """Read the environment; what is `given` wins. Raises ConfigurationError with one line that names the wrong
    variable."""
    try:
        return Settings(**given)  # type: ignore[arg-type]
    except ValidationError as error:
        raise ConfigurationError(validation_message(error, prefix="CRONIUM_")) from None
    except SettingsError as error:  # a list or a section that is not JSON; the field is in the message alone
        name = re.search(r'field "(\w+)"', str(error))
        variable = f"CRONIUM_{name[1].upper()}" if name else "settings"
        raise ConfigurationError(f'{variable}: is not JSON; write lists like ["a", "b"]') from None


def caller_variable(name: str) -> str | None:
    """A variable of the caller's own environment: where `cronium run --secret NAME` finds the value."""
    return os.environ.get(name)  # noqa: TID251 - this module is the one that reads it


def wants_tracing() -> bool:
    """Whether the environment has something for OpenTelemetry, which reads its variables itself."""
    names = [name for name in os.environ if name.startswith("OTEL_")]  # noqa: TID251
    disabled = os.environ.get("OTEL_SDK_DISABLED", "")  # noqa: TID251
    return bool(names) and disabled.lower() != "true"


_given: dict[str, object] = {}


def override(**given: object) -> Settings:
    """The settings of this process, from now on with what the command line says. Raises ConfigurationError."""
    settings = load_settings(**given)
    _given.update(given)
    get_settings.cache_clear()
    return settings


@cache
def get_settings() -> Settings:
    """The settings of this process, read once."""
    return load_settings(**_given)
