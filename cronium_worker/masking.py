"""Secrets, replaced by `***` wherever a job's words leave the worker. Pure.

What is looked for: the values, their lines, and what `disguises` makes of them. All forms are searched at once
(Aho and Corasick), so that the work does not grow with their number. A form of more than BLOCK_BYTES is searched in
blocks of that length: memory and what a stream holds back stay small, and a large part of a secret is hidden, too.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

from ahocorasick_rs import BytesAhoCorasick

from cronium_worker.disguises import ENCODED_MAX_BYTES, encoded, parts, written

MASK = "***"
CUT = "…"
BLOCK_BYTES = 32

_MASK = MASK.encode()
_BREAKS = b"\r\n"
_BREAK = re.compile(rb"[\r\n]")
# A shorter end of a stream that may be the beginning of base64 is given out: nearly every line ends like that.
_ENCODED_HOLD = 4
# However many line breaks follow what may be the beginning of base64.
_ENCODED_HOLD_MAX = 1024
_SLICE_BYTES = 8 * 1024

Span = tuple[int, int]


class _Forms:
    """Byte strings that are searched for at once."""

    def __init__(self, forms: Iterable[bytes]) -> None:
        self._blocks = sorted({block for form in forms for block in _blocks(form)})
        self._automaton = BytesAhoCorasick(self._blocks) if self._blocks else None
        self._longest = max(map(len, self._blocks), default=0)
        self._beginnings = {block[:length] for block in self._blocks for length in range(1, min(4, len(block)))}

    def spans(self, data: bytes) -> Iterator[Span]:
        """In order, apart from each other."""
        if self._automaton is None:
            return iter(())
        return _joined(chain.from_iterable(self._slices(data, self._automaton)))

    def _slices(self, data: bytes, automaton: BytesAhoCorasick) -> Iterator[list[Span]]:
        # No other thread runs meanwhile: a text of nothing but secrets in secrets has 32 matches for each byte.
        for at in range(0, len(data), _SLICE_BYTES):
            part = data[at : at + _SLICE_BYTES + self._longest - 1]
            found = automaton.find_matches_as_indexes(part, overlapping=True)
            if found:
                yield sorted((at + start, at + end) for _, start, end in found if start < _SLICE_BYTES)

    def unfinished(self, data: bytes, *, at_least: int = 1) -> int:
        """Where the first beginning of a form starts that runs into the end of the data, `at_least` so many bytes."""
        for start in range(max(0, len(data) - self._longest + 1), len(data) - at_least + 1):
            if data[start : start + 3] in self._beginnings and self._is_beginning(data[start:]):
                return start
        return len(data)

    def _is_beginning(self, data: bytes) -> bool:
        at = bisect_left(self._blocks, data)
        if at < len(self._blocks) and self._blocks[at] == data:
            at += 1
        return at < len(self._blocks) and self._blocks[at].startswith(data)


def _blocks(form: bytes) -> Iterator[bytes]:
    last = max(0, len(form) - BLOCK_BYTES)
    for at in (*range(0, last, BLOCK_BYTES), last):
        # None begins with a line break: the one at the end of a line would be held back until the next line.
        if block := form[at : at + BLOCK_BYTES].lstrip(_BREAKS):
            yield block


class _Unbroken:
    """Data without its line breaks, after some that was before it; and where a place in it is in the data."""

    def __init__(self, before: bytes, data: bytes) -> None:
        self.view = before + data.translate(None, _BREAKS)
        self._before = len(before)
        self._data = data
        self._breaks: list[int] | None = None

    def place(self, at: int) -> int:
        """Of the character `at` in the view: 0 for what was before the data."""
        if self._breaks is None:
            found = enumerate(match.start() for match in _BREAK.finditer(self._data))
            self._breaks = [position - count for count, position in found]
        at -= self._before
        return at + bisect_right(self._breaks, at) if at >= 0 else 0

    def spans(self, forms: _Forms) -> list[Span]:
        found = forms.spans(self.view)
        return [(self.place(start), self.place(end - 1) + 1) for start, end in found if end > self._before]


class Finder:
    """Where secrets stand in bytes."""

    def __init__(self, secrets: Iterable[str]) -> None:
        found = parts(secrets)
        if sum(len(part.encode()) for part in found) <= ENCODED_MAX_BYTES:
            text = {form for part in found for form in written(part)}
            code = {form for part in found for form in encoded(part.encode())}
        else:
            text, code = {part.encode() for part in found}, set()
        self._text = _Forms(text)
        self._code = _Forms(code)
        self.shortest = min(map(len, text | code), default=0)

    def __bool__(self) -> bool:
        return self.shortest > 0

    def spans(self, data: bytes) -> list[Span]:
        """In order, apart from each other."""
        return self._spans(data, _Unbroken(b"", data))

    def look(self, data: bytes, before: bytes) -> tuple[list[Span], int]:
        """The spans, and up to where the data can be given out: what follows may be the beginning of a secret.
        `before`: of the data before it, without line breaks."""
        unbroken = _Unbroken(before, data)
        hold = self._text.unfinished(data)
        start = self._code.unfinished(unbroken.view, at_least=_ENCODED_HOLD)
        if start < len(unbroken.view):
            place = unbroken.place(start)
            if len(data) - place <= _ENCODED_HOLD_MAX:
                hold = min(hold, place)
        return self._spans(data, unbroken), hold

    def _spans(self, data: bytes, unbroken: _Unbroken) -> list[Span]:
        text, code = list(self._text.spans(data)), unbroken.spans(self._code)
        return list(_joined(sorted(text + code))) if text and code else text or code


def _joined(spans: Iterable[Span]) -> Iterator[Span]:
    start = end = -1
    for first, last in spans:
        if first > end:
            if end > 0:
                yield start, end
            start = first
        end = max(end, last)
    if end > 0:
        yield start, end


class Masker:
    """Replaces every occurrence of the secrets' values in any of their forms; empty values hide nothing."""

    def __init__(self, secrets: Iterable[str]) -> None:
        self._finder = Finder(secrets)

    def text(self, text: str) -> str:
        longest = len(text) if text.isascii() else 4 * len(text)
        if not self._finder or longest < self._finder.shortest:
            return text
        data = text.encode(errors="replace")
        spans = self._finder.spans(data)
        return b"".join(_replaced(data, spans)).decode(errors="replace") if spans else text

    def message(self, text: str) -> str:
        """A message of the worker's own, in which names of a job's may be cut short, and end with "…"."""
        *cut, rest = self.text(text).split(CUT)
        return CUT.join([*map(self._without_beginning, cut), rest]) if self._finder else text

    def _without_beginning(self, text: str) -> str:
        data = text.encode(errors="replace")
        _, hold = self._finder.look(data, b"")
        return text if hold == len(data) else data[:hold].decode(errors="replace") + MASK

    def json(self, value: Any) -> Any:
        """A JSON value with the secrets hidden in its strings, keys and numbers."""
        if not self._finder:
            return value
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, int | float):
            shown = str(value)
            return value if self.text(shown) == shown else MASK
        if isinstance(value, list):
            return [self.json(item) for item in value]
        if isinstance(value, dict):
            return {self.text(key): self.json(item) for key, item in value.items()}
        return value

    def found_in(self, data: bytes) -> bool:
        """Whether there is a secret in the content of a file."""
        return bool(self._finder and self._finder.spans(data))

    def stream(self) -> "StreamMasker":
        return StreamMasker(self._finder)


def _replaced(data: bytes, spans: Iterable[Span]) -> Iterator[bytes]:
    position = 0
    for start, end in spans:
        yield data[position:start]
        yield _MASK
        position = end
    yield data[position:]


class StreamMasker:
    """The same for a stream of bytes in chunks. Holds back only what may be the beginning of a secret: at most a block
    of it, and line breaks."""

    def __init__(self, finder: Finder) -> None:
        self._finder = finder
        self._held = b""
        self._covered = 0  # so much of what is held belongs to a secret for which the mask was given out
        self._begun = 0  # so much of that secret stands before what is held
        self._masked = False  # whether the last thing given out was a mask
        self._before = b""  # the end of what was given out, without line breaks

    @property
    def held_bytes(self) -> int:
        return len(self._held)

    @property
    def open_bytes(self) -> int:
        """How far back another must begin to read, who goes on here: never in the middle of a secret."""
        return len(self._held) + self._begun

    def feed(self, data: bytes) -> bytes:
        if not self._finder:
            return data
        data = self._held + data
        return self._give(data, *self._finder.look(data, self._before))

    def finish(self) -> bytes:
        """What is still held back. It may hold a whole secret that could have become a longer one."""
        spans, _ = self._finder.look(self._held, self._before)
        return self._give(self._held, spans, len(self._held))

    def drop(self) -> None:
        """Forget what is held back: the stream is cut here, and it may be most of a secret."""
        self._held, self._covered, self._begun = b"", 0, 0

    def _give(self, data: bytes, spans: list[Span], hold: int) -> bytes:
        if self._covered:
            spans = list(_joined([(0, self._covered), *spans]))
        self._held, self._covered = data[hold:], max(0, self._covered - hold)
        begun, self._begun = self._begun, self._begun if hold == 0 else 0
        out, position = [], 0
        for start, end in spans:
            if start >= hold:
                break
            if start > position:
                out.append(data[position:start])
                self._masked = False
            if not self._masked:
                out.append(_MASK)
                self._masked = True
            position = min(end, hold)
            self._covered = end - position
            if end > hold:
                self._begun = hold - start + (begun if start == 0 else 0)
        if position < hold:
            out.append(data[position:hold])
            self._masked = False
        self._remember(data, hold)
        return b"".join(out)

    def _remember(self, data: bytes, hold: int) -> None:
        fresh = data[max(0, hold - _ENCODED_HOLD_MAX) : hold].translate(None, _BREAKS)
        self._before = (self._before + fresh)[-BLOCK_BYTES:]
