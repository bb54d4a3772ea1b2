"""Settings from the environment and from `.env`; wrong ones end the start with one line."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from cronium_worker.errors import ConfigurationError
from cronium_worker.settings import Settings, caller_variable, load_settings


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither this process's settings nor a `.env` of the check-out."""
    for name in [name for name in os.environ if name.upper().startswith("CRONIUM_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def value_of(settings: Settings, path: str) -> Any:
    value: Any = settings
    for name in path.split("."):
        value = getattr(value, name)
    return value.get_secret_value() if hasattr(value, "get_secret_value") else value


SETTINGS = [
    ("CRONIUM_REDIS_URL", "rediss://h:6380/1", "redis_url", "rediss://h:6380/1"),
    ("CRONIUM_REDIS_URL", "unix:///run/redis.sock", "redis_url", "unix:///run/redis.sock"),
    ("CRONIUM_REDIS_URL", "sentinel://h/0?service=s", "redis_url", "sentinel://h/0?service=s"),
    ("CRONIUM_REDIS_WAIT_REPLICAS", "1", "redis_wait_replicas", 1),
    ("CRONIUM_BROKER_URL", "amqp://h", "broker_url", "amqp://h"),
    ("CRONIUM_RESULT_BACKEND", "redis://h/2", "result_backend", "redis://h/2"),
    ("CRONIUM_FLEET", "blue", "fleet", "blue"),
    ("CRONIUM_HOST_NAME", "build-7.example", "host_name", "build-7.example"),
    ("CRONIUM_BASE_PATH", "/srv/cronium", "base_path", Path("/srv/cronium")),
    ("CRONIUM_CONTAINER_USER", "2000:3000", "container_uid_gid", (2000, 3000)),
    ("CRONIUM_IMAGES__BASH", "tools:1", "images.bash", "tools:1"),
    ("CRONIUM_IMAGES__PYTHON", "tools:2", "images.python", "tools:2"),
    ("CRONIUM_IMAGES__NODE", "tools:3", "images.node", "tools:3"),
    ("CRONIUM_REGISTRY__PREFIX", "r.example:5000/team", "registry.prefix", "r.example:5000/team"),
    ("CRONIUM_REGISTRY__SERVER", "r.example:5000", "registry.server", "r.example:5000"),
    ("CRONIUM_REGISTRY__PASSWORD", "pw", "registry.password", "pw"),
    ("CRONIUM_REGISTRY__PULL_IDLE_TIMEOUT", "5", "registry.pull_idle_timeout", 5.0),
    ("CRONIUM_REGISTRY__PULL_TIMEOUT", "50", "registry.pull_timeout", 50.0),
    ("CRONIUM_PULL_POLICY", "always", "pull_policy", "always"),
    ("CRONIUM_ALLOWED_IMAGES", '["a:1", "b"]', "allowed_images", ("a:1", "b")),
    ("CRONIUM_ALLOWED_NETWORKS", '["team"]', "allowed_networks", ("team",)),
    ("CRONIUM_DEFAULTS__MEMORY", "1g", "defaults.memory", 2**30),
    ("CRONIUM_DEFAULTS__DISK_IO", "5m", "defaults.disk_io", 5 * 2**20),
    ("CRONIUM_DEFAULTS__DISK", "2g", "defaults.disk", 2**31),
    ("CRONIUM_DEFAULTS", '{"pids": 7, "cpu": 1}', "defaults.pids", 7),
    ("CRONIUM_MAXIMA__CPU", "8", "maxima.cpu", 8.0),
    ("CRONIUM_MAXIMA__MEMORY", "4g", "maxima.memory", 2**32),
    ("CRONIUM_MAXIMA__MEMORY", "4294967296", "maxima.memory", 2**32),
    ("CRONIUM_MAXIMA__PIDS", "5", "maxima.pids", 5),
    ("CRONIUM_MAXIMA__DISK_IO", "5m", "maxima.disk_io", 5 * 2**20),
    ("CRONIUM_MAXIMA__DISK", "1t", "maxima.disk", 2**40),
    ("CRONIUM_MAXIMA__INODES", "5000", "maxima.inodes", 5000),
    ("CRONIUM_SECURITY__SECCOMP_PROFILE", "/etc/p.json", "security.seccomp_profile", Path("/etc/p.json")),
    ("CRONIUM_SECURITY__SECCOMP_PROFILE", "engine", "security.seccomp_profile", "engine"),
    ("CRONIUM_SECURITY__APPARMOR_PROFILE", "strict", "security.apparmor_profile", "strict"),
    ("CRONIUM_SECURITY__SELINUX_LABEL", "type:x_t", "security.selinux_label", "type:x_t"),
    ("CRONIUM_SECURITY__RUNTIME", "runsc", "security.runtime", "runsc"),
    ("CRONIUM_SECURITY__UID_POOL", "20000-20063", "security.uids", range(20000, 20064)),
    ("CRONIUM_SECURITY__FIREWALL", "require", "security.firewall", "require"),
    ("CRONIUM_SECURITY__BLOCK_PRIVATE", "true", "security.block_private", True),
    (
        "CRONIUM_SECURITY__ALLOWED_ADDRESSES",
        '["10.1.0.0/16", "10.1.2.3:443"]',
        "security.allowed_addresses",
        ("10.1.0.0/16", "10.1.2.3:443"),
    ),
    ("CRONIUM_LOG__DRIVER", "json-file", "log.driver", "json-file"),
    ("CRONIUM_LOG__MAX_BYTES", "1m", "log.max_bytes", 2**20),
    ("CRONIUM_LOG__CHUNK_BYTES", "1k", "log.chunk_bytes", 1024),
    ("CRONIUM_LOG_FORMAT", "json", "log_format", "json"),
    ("CRONIUM_METRICS__ADDRESS", "192.0.2.1", "metrics.address", "192.0.2.1"),
    ("CRONIUM_METRICS__PORT", "9464", "metrics.port", 9464),
    ("CRONIUM_METRICS_INTERVAL", "3", "metrics_interval", 3.0),
    ("CRONIUM_RESULT_TTL", "60", "result_ttl", 60),
    ("CRONIUM_CONCURRENCY", "32", "concurrency", 32),
]


@pytest.mark.parametrize(("variable", "text", "path", "value"), SETTINGS)
def test_a_setting_is_read_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, variable: str, text: str, path: str, value: Any
) -> None:
    assert value_of(load_settings(), path) != value

    monkeypatch.setenv(variable, text)

    assert value_of(load_settings(), path) == value


@pytest.mark.parametrize(("variable", "text", "path", "value"), SETTINGS)
def test_a_setting_is_read_from_a_file(tmp_path: Path, variable: str, text: str, path: str, value: Any) -> None:
    tmp_path.joinpath(".env").write_text(f"# ours\nOTHER=1\n{variable}={text}\n")

    assert value_of(load_settings(), path) == value


def test_the_environment_wins_over_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tmp_path.joinpath(".env").write_text("CRONIUM_FLEET=file\nCRONIUM_MAXIMA__PIDS=3\n")
    monkeypatch.setenv("CRONIUM_FLEET", "environment")
    monkeypatch.setenv("CRONIUM_MAXIMA__CPU", "3")

    settings = load_settings()

    assert settings.fleet == "environment"
    assert (settings.maxima.pids, settings.maxima.cpu) == (3, 3)


def test_one_nested_setting_keeps_the_defaults_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = load_settings()
    monkeypatch.setenv("CRONIUM_DEFAULTS__MEMORY", "1g")
    monkeypatch.setenv("CRONIUM_LOG__DRIVER", "json-file")

    settings = load_settings()

    assert settings.defaults.model_dump(exclude={"memory"}) == plain.defaults.model_dump(exclude={"memory"})
    assert settings.log.max_bytes == plain.log.max_bytes


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("CRONIUM_REDIS_URL", "http://h"),
        ("CRONIUM_REDIS_URL", ""),
        ("CRONIUM_FLEET", ""),
        ("CRONIUM_FLEET", "a b"),
        ("CRONIUM_FLEET", "a\n"),
        ("CRONIUM_FLEET", "x" * 64),
        ("CRONIUM_HOST_NAME", "-x"),
        ("CRONIUM_BASE_PATH", "var/cronium"),
        ("CRONIUM_CONTAINER_USER", "0:0"),
        ("CRONIUM_CONTAINER_USER", "1000"),
        ("CRONIUM_CONTAINER_USER", "1000:0"),
        ("CRONIUM_CONTAINER_USER", "root:root"),
        ("CRONIUM_CONTAINER_USER", "1000:1000\n"),
        ("CRONIUM_IMAGES__BASH", "Tools:1"),
        ("CRONIUM_IMAGES__RUBY", "tools:1"),
        ("CRONIUM_REGISTRY__PREFIX", "team"),
        ("CRONIUM_REGISTRY__PREFIX", "team/r.example"),
        ("CRONIUM_REGISTRY__PREFIX", "https://r.example"),
        ("CRONIUM_REGISTRY__PREFIX", "r.example/"),
        ("CRONIUM_REGISTRY__PREFIX", "r.example/team:1"),
        ("CRONIUM_REGISTRY__PREFIX", "r.example/Team"),
        ("CRONIUM_REGISTRY__PREFIX", "r.example\n"),
        ("CRONIUM_REGISTRY__SERVER", "registry"),
        ("CRONIUM_REGISTRY__SERVER", "https://r.example"),
        ("CRONIUM_REGISTRY__SERVER", "r.example/team"),
        ("CRONIUM_REGISTRY__USERNAME", "ada"),
        ("CRONIUM_REGISTRY__PULL_TIMEOUT", "0"),
        ("CRONIUM_REGISTRY__PULL_IDLE_TIMEOUT", "nan"),
        ("CRONIUM_PULL_POLICY", "sometimes"),
        ("CRONIUM_DEFAULTS__MEMORY", "lots"),
        ("CRONIUM_DEFAULTS__MEMORY", "1m"),
        ("CRONIUM_DEFAULTS__GPUS", "1"),
        ("CRONIUM_MAXIMA", "5"),
        ("CRONIUM_MAXIMA__CPU", "0"),
        ("CRONIUM_MAXIMA__CPU", "many"),
        ("CRONIUM_MAXIMA__MEMORY", "-1"),
        ("CRONIUM_MAXIMA__PIDS", "0"),
        ("CRONIUM_MAXIMA__INODES", "999"),
        ("CRONIUM_MAXIMA__DISK_IO", ""),
        ("CRONIUM_SECURITY__SECCOMP_PROFILE", "default"),
        ("CRONIUM_SECURITY__APPARMOR_PROFILE", "unconfined"),
        ("CRONIUM_SECURITY__APPARMOR_PROFILE", "a b"),
        ("CRONIUM_SECURITY__SELINUX_LABEL", "disable"),
        ("CRONIUM_SECURITY__SELINUX_LABEL", "type:"),
        ("CRONIUM_SECURITY__RUNTIME", "runsc\n"),
        ("CRONIUM_SECURITY__UID_POOL", "20000"),
        ("CRONIUM_SECURITY__UID_POOL", "0-20000"),
        ("CRONIUM_SECURITY__UID_POOL", "20063-20000"),
        ("CRONIUM_SECURITY__UID_POOL", "20000-20063\n"),
        ("CRONIUM_SECURITY__FIREWALL", "on"),
        ("CRONIUM_SECURITY__BLOCK_PRIVATE", "rfc1918"),
        ("CRONIUM_SECURITY__ALLOWED_ADDRESSES", '["10.1.0.0/16", "10.1.0.1/16"]'),
        ("CRONIUM_SECURITY__ALLOWED_ADDRESSES", '["mirror.example"]'),
        ("CRONIUM_SECURITY__ALLOWED_ADDRESSES", '["10.1.2.3:"]'),
        ("CRONIUM_SECURITY__ALLOWED_ADDRESSES", '["10.1.2.3:65536"]'),
        ("CRONIUM_SECURITY__ALLOWED_ADDRESSES", '["10.1.2.3:0"]'),
        ("CRONIUM_SECURITY__ALLOWED_ADDRESSES", '["10.1.2.3:80 accept"]'),
        ("CRONIUM_SECURITY__ALLOWED_ADDRESSES", '["10.1.2.3\\n"]'),
        ("CRONIUM_SECURITY__ALLOWED_ADDRESSES", '["fd00::1"]'),
        ("CRONIUM_LOG__DRIVER", "syslog"),
        ("CRONIUM_LOG__CHUNK_BYTES", "100"),
        ("CRONIUM_LOG__CHUNK_BYTES", "2m"),
        ("CRONIUM_RESULT_TTL", "0"),
        ("CRONIUM_RESULT_TTL", "7d"),
        ("CRONIUM_CONCURRENCY", "0"),
        ("CRONIUM_CONCURRENCY", "1025"),
        ("CRONIUM_CONCURRENCY", "1.5"),
    ],
)
def test_a_wrong_value_is_one_line_that_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str, text: str
) -> None:
    monkeypatch.setenv(variable, text)

    with pytest.raises(ConfigurationError) as caught:
        load_settings()

    message = str(caught.value)
    assert message.startswith(f"{variable}: ")
    assert len(message.splitlines()) == 1


def test_a_uid_pool_has_one_for_each_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRONIUM_POOL__SIZE", "4")
    monkeypatch.setenv("CRONIUM_SECURITY__UID_POOL", "20000-20011")
    assert load_settings().concurrency == 8

    monkeypatch.setenv("CRONIUM_POOL__SIZE", "5")
    with pytest.raises(ConfigurationError, match=r"^CRONIUM_CONCURRENCY: 8 slots and CRONIUM_POOL__SIZE=5 .* 12 uids"):
        load_settings()


def test_all_wrong_values_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRONIUM_CONCURRENCY", "x")
    monkeypatch.setenv("CRONIUM_MAXIMA__MEMORY", "y")

    with pytest.raises(ConfigurationError, match=r"(?=.*CRONIUM_CONCURRENCY: )(?=.*CRONIUM_MAXIMA__MEMORY: )"):
        load_settings()


def test_a_list_that_is_no_json_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRONIUM_ALLOWED_IMAGES", "[")

    with pytest.raises(ConfigurationError, match=r"(?i)allowed_images") as caught:
        load_settings()

    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "url", ["http://:hunter2@h", "sentinel://ada:hunter2@h1:x/0?service=fleet&sentinel_password=hunter3"]
)
def test_a_wrong_password_is_not_in_the_message(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("CRONIUM_REDIS_URL", url)

    with pytest.raises(ConfigurationError) as caught:
        load_settings()

    assert "hunter" not in str(caught.value)
    with pytest.raises(ValidationError) as raw:
        Settings()
    assert "hunter" not in str(raw.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379/0"),
        ("redis://:hunter2@h:6379/0", "redis://:***@h:6379/0"),
        ("rediss://ada:hunter2@h/0", "rediss://ada:***@h/0"),
        ("unix://:hunter2@/run/redis.sock?db=1", "unix://:***@/run/redis.sock?db=1"),
    ],
)
def test_passwords_are_masked_for_display(monkeypatch: pytest.MonkeyPatch, url: str, shown: str) -> None:
    for variable in ("CRONIUM_REDIS_URL", "CRONIUM_BROKER_URL", "CRONIUM_RESULT_BACKEND"):
        monkeypatch.setenv(variable, url)
    monkeypatch.setenv("CRONIUM_REGISTRY__PASSWORD", "hunter2")

    settings = load_settings()
    masked = settings.masked()

    assert [masked[name] for name in ("redis_url", "broker_url", "result_backend")] == [shown] * 3
    assert masked["registry"]["password"] == "***"  # type: ignore[index]
    assert "hunter2" not in repr(masked) + repr(settings)


def test_what_is_not_set_is_not_shown_as_masked() -> None:
    masked = load_settings().masked()

    assert masked["broker_url"] is None
    assert masked["registry"]["password"] == ""  # type: ignore[index]


def test_the_own_host_name_is_fit_for_queues_and_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, expected in (("büro 7", "b-ro-7"), ("-_.", "localhost"), ("x" * 70, "x" * 63), ("a.b", "a.b")):
        monkeypatch.setattr("socket.gethostname", lambda name=name: name)

        assert load_settings().host_name == expected


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_settings().fleet = "other"


def test_a_callers_own_variable_is_read_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", " x ")

    assert caller_variable("TOKEN") == " x "
    assert caller_variable("NO_SUCH_VARIABLE") is None


@pytest.mark.parametrize(("name", "text", "value"), [("cpu", "1.5", 1.5), ("cpu", "2", 2.0), ("pids", "50", 50)])
def test_default_resources_come_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str, value: Any
) -> None:
    monkeypatch.setenv(f"CRONIUM_DEFAULTS__{name.upper()}", text)
    assert getattr(load_settings().defaults, name) == value


@pytest.mark.parametrize("variable", ["CRONIUM_ALLOWED_IMAGES", "CRONIUM_ALLOWED_NETWORKS", "CRONIUM_MAXIMA"])
def test_a_list_that_is_no_json_names_its_variable(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "[")
    with pytest.raises(ConfigurationError, match=rf"^{variable}: "):
        load_settings()


def test_an_endless_size_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRONIUM_MAXIMA__MEMORY", "9" * 400)
    with pytest.raises(ConfigurationError, match=r"^CRONIUM_MAXIMA__MEMORY: "):
        load_settings()


@pytest.mark.parametrize(
    "url",
    [
        "redis://:hunter2:x@h/0",
        "redis://:hunter2@x@h/0",
        "redis://:x@hunter2@h/0",
        "redis://u:hunter2/x@h/0",
        "redis://h/0?password=hunter2",
        "redis://h/0?username=u&password=hunter2&db=1",
    ],
)
def test_odd_passwords_are_masked_too(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("CRONIUM_REDIS_URL", url)
    assert "hunter2" not in json.dumps(load_settings().masked())


def test_keys_are_written_with_commas_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = ["A" * 43 + "=", "-_" * 21 + "8="]
    monkeypatch.setenv("CRONIUM_SECRET_KEYS", f" {keys[0]},{keys[1]}, ")

    settings = load_settings()

    assert [key.get_secret_value() for key in settings.secret_keys] == keys
    assert settings.masked()["secret_keys"] == "***,***"
    assert not any(key in repr(settings) + settings.model_dump_json() for key in keys)


@pytest.mark.parametrize("value", ["x", "A" * 44, '["' + "A" * 43 + '="]', "A" * 43 + "=;" + "A" * 43 + "="])
def test_a_wrong_key_is_named_by_its_place_alone(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("CRONIUM_SECRET_KEYS", f"{'A' * 43}=,{value}")

    with pytest.raises(ConfigurationError) as caught:
        load_settings()

    assert str(caught.value).startswith("CRONIUM_SECRET_KEYS: key 2 is none: make one with `cronium key`")
    assert value not in str(caught.value)
    assert "AAA" not in str(caught.value)
