"""Where a Python that was started before its job waits for it. No module: 0-cronium.pth runs this text at the start,
before the rest of the site's paths and before the script's file is opened.

It runs if the environment has CRONIUM_GATE, the control directory, which the launcher (launcher.sh, where the
protocol is) gives to the one process that is to become the script. Nothing of this is left in it but what
/proc shows of its start. With CRONIUM_GATE empty it only says that it is there.
"""

# Runs at an interpreter's start, so without pathlib and the worker's settings:
# ruff: noqa: PTH103, PTH109, PTH110, PTH123, TID251
import os

_GATE, _WORD = 3, 4  # descriptors


def _wait(control: str) -> None:
    """Return as the job's process, or end: nobody but the job may go on from here."""
    os.write(_WORD, b"a")
    if not os.read(_GATE, 64) and not os.path.exists(f"{control}/released"):
        os._exit(75)
    try:
        with open(f"{control}/environment", "rb") as file:
            directory, *variables = file.read().split(b"\0")
        before = os.environb.get(b"PWD") or os.getcwdb()
        _enter(directory)
    except OSError:  # not for this process, or a directory of which the shell has something to say
        os.write(_WORD, b"f")
        os._exit(0)
    os.write(_WORD, b"s")
    os.close(_GATE)
    os.close(_WORD)
    os.environb.update({b"OLDPWD": before, b"PWD": directory})  # as `cd` does
    for variable in variables:
        name, _, value = variable.partition(b"=")
        os.environb[name] = value


def _enter(directory: bytes) -> None:
    try:
        os.chdir(directory)
    except FileNotFoundError:
        os.makedirs(directory, exist_ok=True)
        os.chdir(directory)


try:
    _control = os.environ.pop("CRONIUM_GATE")
    if _control:
        _wait(_control)
    else:
        os.write(1, b"waits")
        os._exit(0)
except BaseException:  # noqa: BLE001 - whatever it is: the script is not to be run
    os._exit(1)
