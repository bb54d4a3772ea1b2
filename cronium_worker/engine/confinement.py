"""What confines containers by settings: looked at before a worker takes jobs.

An engine takes a label or a profile of a system that it does not have without a word, so what was asked for and is not
there must be told before.
"""

import json
import pwd
from pathlib import Path
from typing import Any

from cronium_worker.engine import seccomp
from cronium_worker.engine.client import Engine
from cronium_worker.errors import ConfigurationError
from cronium_worker.settings import Security

_APPARMOR_PROFILES = Path("/sys/kernel/security/apparmor/profiles")


def confinement(engine: Engine, security: Security) -> str | None:
    """Return the seccomp profile as JSON text; None for the engine's own.

    Without a setting it is Cronium's profile where the engine can use it, else the engine's own. Raises
    ConfigurationError, one line that names the setting, when this host cannot give what the settings ask for, and
    DaemonError.
    """
    info = engine.info()
    options = {option.partition(",")[0].removeprefix("name=") for option in info.get("SecurityOptions") or ()}
    if remapped := options & {"userns", "rootless"}:
        raise ConfigurationError(
            f"Docker Engine: it maps the users of containers ({remapped.pop()}): jobs could not write into their "
            "directories; use an engine without userns-remap that runs as root"
        )
    if security.apparmor_profile:
        _check_apparmor(security.apparmor_profile, options)
    if security.selinux_label and "selinux" not in options:
        raise _wrong("SELINUX_LABEL", "the engine runs without SELinux; start it with --selinux-enabled, or unset it")
    if security.runtime:
        _check_runtime(security.runtime, info)
    if security.uids is not None:
        _check_uids(security.uids)
    if security.seccomp_profile == "engine":
        return None
    if security.seccomp_profile is None:
        if seccomp.why_not_ours(info, engine.components(), runtime=security.runtime):
            return None
        return seccomp.PROFILE.read_text()
    if "seccomp" not in options:
        raise _wrong("SECCOMP_PROFILE", "the engine has no seccomp; use a kernel and an engine with it, or unset it")
    return _seccomp(security.seccomp_profile)


def _wrong(setting: str, reason: str) -> ConfigurationError:
    return ConfigurationError(f"CRONIUM_SECURITY__{setting}: {reason}")


def _check_apparmor(profile: str, options: set[str]) -> None:
    if "apparmor" not in options:
        raise _wrong("APPARMOR_PROFILE", "the engine runs without AppArmor; turn it on in the kernel, or unset it")
    try:
        loaded = _APPARMOR_PROFILES.read_text().splitlines()
    except OSError:
        return  # not to be seen from here (a worker in a container): then the engine refuses to start containers
    if profile not in {line.rpartition(" (")[0] for line in loaded}:
        raise _wrong("APPARMOR_PROFILE", f"{profile} is not loaded; load it with apparmor_parser")


def _check_runtime(runtime: str, info: dict[str, Any]) -> None:
    runtimes = sorted(info.get("Runtimes") or ())
    if runtime not in runtimes:
        has = ", ".join(runtimes)
        raise _wrong("RUNTIME", f"the engine has no runtime {runtime} (but {has}); add it to its daemon.json")


def _check_uids(uids: range) -> None:
    """Whatever a job leaves would be that account's, and the account could signal the job's processes."""
    for account in pwd.getpwall():
        if account.pw_uid in uids:
            raise _wrong("UID_POOL", f"{account.pw_uid} is the account {account.pw_name}; choose uids without accounts")


def _seccomp(path: Path) -> str:
    try:
        text = path.read_text()
        profile = json.loads(text)
    except OSError as error:
        raise _wrong("SECCOMP_PROFILE", f"{path}: {error.strerror}; set it to a readable file") from None
    except (ValueError, RecursionError):
        raise _wrong("SECCOMP_PROFILE", f"{path} is not JSON; set it to a profile as the engine takes them") from None
    action = profile.get("defaultAction") if isinstance(profile, dict) else None
    if not (isinstance(action, str) and action.startswith("SCMP_ACT_")):
        raise _wrong("SECCOMP_PROFILE", f'{path} is no profile: it must be an object with a "defaultAction" SCMP_ACT_…')
    return text
