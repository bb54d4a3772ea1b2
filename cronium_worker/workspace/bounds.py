"""What of an output has room in a result, so that each of its copies has a bound: the record's, the last event's, and
Celery's. Contents of files have theirs already (`Limits`)."""

from typing import NamedTuple

from pydantic_core import to_json

from cronium_worker.errors import OutputError
from cronium_worker.models import Output, OutputFile
from cronium_worker.models.fields import MIB
from cronium_worker.workspace.walk import Notes

DATA_BYTES = 8 * MIB
VARIABLES_BYTES = MIB
NAMES_BYTES = MIB


class Bounded(NamedTuple):
    output: Output
    errors: tuple[OutputError, ...]


def bounded(output: Output) -> Bounded:
    """To be called when secrets are masked: a mask may be longer, and so may a number."""
    errors = []
    data, variables = output.data, output.variables
    if (size := len(to_json(data))) > DATA_BYTES:
        errors.append(_too_large("output.json", size, DATA_BYTES))
        data = None
    if (size := len(to_json(variables))) > VARIABLES_BYTES:
        errors.append(_too_large("variables.json", size, VARIABLES_BYTES))
        variables = {}
    notes = Notes()
    files = _with_names(output.files, notes)
    if not errors and files is output.files:
        return Bounded(output, ())
    changes = {"data": data, "variables": variables, "files": files, "notes": (*output.notes, *notes.texts())}
    return Bounded(output.model_copy(update=changes), tuple(errors))


def _too_large(file: str, size: int, limit: int) -> OutputError:
    return OutputError(f"{file} has {size} bytes as JSON of the result, at most {limit} are allowed", file=file)


def _with_names(files: dict[str, OutputFile], notes: Notes) -> dict[str, OutputFile]:
    sizes = {name: len(to_json(name)) for name in files}
    if sum(sizes.values()) <= NAMES_BYTES:
        return files
    kept, left = {}, NAMES_BYTES
    for name, file in files.items():
        if sizes[name] <= left:
            kept[name] = file
            left -= sizes[name]
        else:
            notes.add(f"names over {NAMES_BYTES} bytes in all: not collected", name.encode())
    return kept
