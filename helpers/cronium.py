"""Cronium's functions for Python jobs: input, output, variables, condition and event of the running job.

A job has this module as `cronium` with no import. Everything is a JSON file under `$CRONIUM_DATA_DIR`
(/workspace/data) or `$CRONIUM_OUTPUT_DIR` (/workspace/output), so with these two set it works anywhere; they
are read at each call. Values are whatever JSON holds: dict, list, str, int, float, bool, None. Files are
replaced whole or not at all, and changes of variables are serialised between threads and processes.
Whatever goes wrong is a `CroniumError`.
"""

# Loaded at every interpreter start, so without pathlib, contextlib and the worker's settings:
# ruff: noqa: PTH103, PTH105, PTH108, PTH110, PTH118, PTH119, PTH123, SIM105, TID251
import os

TYPE_CHECKING = False  # type checkers know the name; typing itself is too slow to import
if TYPE_CHECKING:
    from typing import Any

    StrPath = str | os.PathLike[str]

__all__ = [
    "Cronium",
    "CroniumError",
    "deleteVariable",
    "delete_variable",
    "event",
    "getCondition",
    "getVariable",
    "get_condition",
    "get_variable",
    "incrementVariable",
    "increment_variable",
    "input",
    "output",
    "setCondition",
    "setVariable",
    "set_condition",
    "set_variable",
    "variables",
]

_CONDITION_WORDS = {"true": True, "1": True, "yes": True, "on": True}
_CONDITION_WORDS.update({"false": False, "0": False, "no": False, "off": False})


class CroniumError(Exception):
    """A file of the job cannot be read or written, or a value cannot be stored as JSON."""


class Cronium:
    """The helper functions over one pair of directories; the module's functions are one of these.

    Without arguments the environment decides at each call.
    """

    def __init__(self, data_dir: "StrPath | None" = None, output_dir: "StrPath | None" = None) -> None:
        self._data_dir = data_dir
        self._output_dir = output_dir

    def input(self) -> "Any":
        """Return the job's input, any JSON value; {} when none was given."""
        return _read(os.path.join(self._data(), "input.json"), {})

    def output(self, data: "Any") -> None:
        """Set the job's result, any JSON value. The last call wins."""
        _write(os.path.join(self._output(), "output.json"), data)

    def variables(self) -> "dict[str, Any]":
        """Return all variables; a change of the dict changes no variable."""
        return _read_object(os.path.join(self._data(), "variables.json"))

    def get_variable(self, key: str, default: "Any" = None) -> "Any":
        """Return a variable's value, `default` if there is none of that name."""
        return self.variables().get(key, default)

    def set_variable(self, key: str, value: "Any") -> None:
        """Set a variable to any JSON value."""
        if not isinstance(key, str):
            raise CroniumError(f"a variable's name is a string, not {type(key).__name__}")
        with _Lock(self._data()):
            self._write_variables({**self.variables(), key: value})

    def delete_variable(self, key: str) -> bool:
        """Remove a variable and return whether there was one."""
        with _Lock(self._data()):
            variables = self.variables()
            if key not in variables:
                return False
            del variables[key]
            self._write_variables(variables)
            return True

    def increment_variable(self, key: str, by: "float" = 1) -> "Any":
        """Add a number to a variable and return the new value; a missing variable counts as 0.

        Raises CroniumError if the variable or `by` is not a number.
        """
        with _Lock(self._data()):
            variables = self.variables()
            old = variables.get(key, 0)
            for what, value in ((f"variable {key!r}", old), ("the increment", by)):
                if isinstance(value, bool) or not isinstance(value, (int, float)):
                    raise CroniumError(f"{what} is not a number but {type(value).__name__}")
            variables[key] = old + by
            self._write_variables(variables)
            return variables[key]

    def set_condition(self, condition: "Any") -> None:
        """Set the job's condition to the truth of a value.

        A string must be one of true, 1, yes, on, false, 0, no, off (any case), so that "false" is not true.
        """
        if isinstance(condition, str):
            result = _CONDITION_WORDS.get(condition.lower())
            if result is None:
                raise CroniumError("a condition is one of true, 1, yes, on, false, 0, no, off")
        else:
            result = bool(condition)
        _write(os.path.join(self._output(), "condition.json"), {"result": result})

    def get_condition(self) -> bool:
        """Return the condition as set so far, False when it was not."""
        path = os.path.join(self._output(), "condition.json")
        result = _read_object(path, {"result": False}).get("result")
        if not isinstance(result, bool):
            raise CroniumError(f"{path} does not hold a condition")
        return result

    def event(self) -> "dict[str, Any]":
        """Return the event that started the job, with its jobId, attempt and host; {} without one.

        Without the file it is the JSON in `$CRONIUM_EVENT_METADATA`.
        """
        path = os.path.join(self._data(), "event.json")
        metadata = os.environ.get("CRONIUM_EVENT_METADATA")
        if metadata and not os.path.exists(path):
            return _object(_parse(metadata, "CRONIUM_EVENT_METADATA"), "CRONIUM_EVENT_METADATA")
        return _read_object(path)

    getVariable = get_variable
    setVariable = set_variable
    deleteVariable = delete_variable
    incrementVariable = increment_variable
    getCondition = get_condition
    setCondition = set_condition

    def _data(self) -> str:
        return os.fspath(self._data_dir or os.environ.get("CRONIUM_DATA_DIR") or "/workspace/data")

    def _output(self) -> str:
        return os.fspath(self._output_dir or os.environ.get("CRONIUM_OUTPUT_DIR") or "/workspace/output")

    def _write_variables(self, variables: "dict[str, Any]") -> None:
        _write(os.path.join(self._data(), "variables.json"), variables)


class _Lock:
    """Keeps other threads and processes from changing the variables; Bash jobs lock the same directory."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def __enter__(self) -> None:
        try:
            os.makedirs(self._directory, exist_ok=True)
            self._descriptor = os.open(self._directory, os.O_RDONLY)
        except OSError as error:
            raise CroniumError(f"cannot write {self._directory}: {error.strerror}") from error
        try:
            import fcntl

            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        except OSError:  # a file system without locks: the last writer wins
            pass

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)


def _read(path: str, default: "Any") -> "Any":
    try:
        with open(path, "rb") as file:
            content = file.read()
    except FileNotFoundError:
        return default
    except OSError as error:
        raise CroniumError(f"cannot read {path}: {error.strerror}") from error
    return _parse(content, path)


def _read_object(path: str, default: "dict[str, Any] | None" = None) -> "dict[str, Any]":
    return _object(_read(path, default or {}), path)


def _object(value: "Any", where: str) -> "dict[str, Any]":
    if not isinstance(value, dict):
        raise CroniumError(f"{where} does not hold a JSON object")
    return value


def _parse(content: "bytes | str", where: str) -> "Any":
    import json

    try:
        text = content if isinstance(content, str) else content.decode()
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise CroniumError(f"{where} does not hold valid JSON: {error}") from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _write(path: str, value: "Any") -> None:
    content = _serialise(value, os.path.basename(path))
    import _thread

    directory, name = os.path.split(path)
    # Not tempfile: its files ignore the umask, and it is slow to import.
    temporary = os.path.join(directory, f".{name}.{os.getpid()}-{_thread.get_ident()}.tmp")
    try:
        os.makedirs(directory, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                file.write(content)
            os.replace(temporary, path)
        except BaseException:
            _remove(temporary)
            raise
    except OSError as error:
        raise CroniumError(f"cannot write {path}: {error.strerror}") from error


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:  # it was never made
        pass


def _serialise(value: "Any", name: str) -> bytes:
    import json

    try:
        try:
            return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
        except UnicodeEncodeError:  # half a surrogate pair, as in names of files: UTF-8 has no bytes for it
            return json.dumps(value, allow_nan=False).encode()
    except ValueError as error:
        raise CroniumError(f"cannot write {name}: {error} (JSON has no NaN, infinity or cycle)") from error
    except (TypeError, RecursionError) as error:  # "Object of type set is not JSON serializable"
        raise CroniumError(f"cannot write {name}: {error}") from error


_default = Cronium()
input = _default.input
output = _default.output
variables = _default.variables
getVariable = get_variable = _default.get_variable
setVariable = set_variable = _default.set_variable
deleteVariable = delete_variable = _default.delete_variable
incrementVariable = increment_variable = _default.increment_variable
getCondition = get_condition = _default.get_condition
setCondition = set_condition = _default.set_condition
event = _default.event
