"""Text for a terminal that is not ours: names, messages and output of jobs, which could steer it or mislead its reader.

Escaped are control characters (C0 but tab and line feed, DEL, C1), what turns the direction of writing (Unicode TR 36,
3.1), Unicode's line ends, invisible tags and halves of characters: as JSON escapes them, so that JSON stays JSON.
"""

import json
import re
from typing import TextIO

import click

_UNSAFE = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff"
    "\U000e0000-\U000e007f"
)
_ESCAPED = re.compile(f"[{_UNSAFE}]")
_ESCAPED_IN_LINE = re.compile(f"[\t\n{_UNSAFE}]")
# Colours, and the rest of the line erased; a carriage return and a backspace, which bars of progress need.
_HARMLESS = r"\x1b\[[0-9;:]{0,64}m|\x1b\[[0-2]?K|[\r\b]"
_ESCAPED_IN_OUTPUT = re.compile(rf"({_HARMLESS})|[{_UNSAFE}]")
_UNFINISHED = re.compile(r"\x1b(?:\[[0-9;:]{0,64})?\Z")


def printable(text: str) -> str:
    """Text of several lines, or JSON."""
    return _ESCAPED.sub(_escape, text)


def one_line(text: object) -> str:
    """Text that stands in a line of ours."""
    return _ESCAPED_IN_LINE.sub(_escape, str(text))


def echo(text: object = "", *, err: bool = False, nl: bool = True) -> None:
    """Click's, of text that may be somebody else's."""
    click.echo(printable(str(text)), err=err, nl=nl)  # noqa: TID251 - here it is


class Output:
    """What a script prints, as it is. On a terminal, sequences that do more than colour are escaped."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._is_terminal = stream.isatty()
        self._pending = ""  # the beginning of a sequence

    def write(self, text: str) -> None:
        if self._is_terminal:
            text = self._pending + text
            unfinished = _UNFINISHED.search(text)
            self._pending = unfinished[0] if unfinished else ""
            text = _ESCAPED_IN_OUTPUT.sub(_escape_output, text.removesuffix(self._pending))
        self._stream.write(text)

    def flush(self) -> None:
        self._stream.flush()


def _escape(found: re.Match[str]) -> str:
    return json.dumps(found[0])[1:-1]


def _escape_output(found: re.Match[str]) -> str:
    return found[1] or _escape(found)
