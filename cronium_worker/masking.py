"""Secrets, replaced by `***` wherever a job's words leave the worker. Pure.

What is looked for: the values, their lines, and what `disguises` makes of them. All forms are searched at once
(Aho and Corasick), so that the work does not grow with their number. A form of more than BLOCK_BYTES is searched in
blocks of that length: memory and what a stream holds back stay small, and a large part of a secret is hidden, too.
A block that shorter ones cover is not searched: what is left matches a byte of any text a few times at most, so
that the work does not grow with secrets in secrets either.
"""

import re
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import chain
from typing import Any, NamedTuple

from ahocorasick_rs import BytesAhoCorasick

from cronium_worker.disguises import ENCODED_MAX_BYTES, encoded, escaped, hexadecimal, parts, written

MASK = "***"
CUT = "…"
BLOCK_BYTES = 32

_MASK = MASK.encode()
_BREAKS = b"\r\n"
_BETWEEN_DIGITS = b"\r\n :"
# In no form and in no text: it keeps the strings of a JSON value apart, which are searched at once.
_APART = b"\xff"
# A shorter end of a stream that may be the beginning of base64 is given out: nearly every line ends like that.
_ENCODED_HOLD = 4
# However many line breaks follow what may be the beginning of base64.
_ENCODED_HOLD_MAX = 1024
_SLICE_BYTES = 4 * 1024

Span = tuple[int, int]
# For each search the end of what was given out, as the search sees it.
Before = tuple[bytes, ...]


class _Forms:
    """Byte strings that are searched for at once."""

    def __init__(self, forms: Iterable[bytes]) -> None:
        blocks = {block for form in forms for block in _blocks(form)}
        lengths = sorted(set(map(len, blocks)), reverse=True)
        self._blocks = sorted(block for block in blocks if not _is_covered(block, blocks, lengths))
        self._automaton = BytesAhoCorasick(self._blocks)
        self._longest = max(map(len, self._blocks), default=0)
        self._beginnings = {block[:length] for block in self._blocks for length in range(1, min(4, len(block)))}

    def __bool__(self) -> bool:
        return bool(self._blocks)

    def spans(self, data: bytes) -> Iterator[Span]:
        """In order, apart from each other."""
        return _joined(chain.from_iterable(self._slices(data)))

    def _slices(self, data: bytes) -> Iterator[Iterable[Span]]:
        # No other thread runs meanwhile.
        for at in range(0, len(data), _SLICE_BYTES):
            part = data[at : at + _SLICE_BYTES + self._longest - 1]
            if found := self._automaton.find_matches_as_indexes(part, overlapping=True):
                spans = _united(found, at)
                while spans and spans[-1][0] >= at + _SLICE_BYTES:  # the next slice has them whole
                    spans.pop()
                yield spans

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


def _is_covered(block: bytes, blocks: set[bytes], lengths: list[int]) -> bool:
    """Whether each byte of it is in a shorter block: then whatever has it is hidden without it. `lengths`: those that
    there are, the longest first."""
    size, covered = len(block), 0
    for start in range(size):
        for length in lengths:
            end = start + length
            if end <= covered:
                break
            if end <= size and length < size and block[start:end] in blocks:
                covered = end
                break
        if covered == size:
            return True
        if covered <= start:
            return False
    return False


def _united(found: list[tuple[int, int, int]], at: int) -> list[Span]:
    """The matches, which come in the order of their ends."""
    spans = []
    _, first, last = found[-1]
    for _, start, end in reversed(found):
        if end < first:
            spans.append((at + first, at + last))
            first, last = start, end
        elif start < first:
            first = start
    spans.append((at + first, at + last))
    spans.reverse()
    return spans


class _Search:
    """Forms, and what is nothing to them: the case of letters, and the bytes `between` theirs."""

    def __init__(self, forms: Iterable[bytes], *, any_case: bool = False, between: bytes = b"") -> None:
        self.forms = _Forms(map(bytes.lower, forms) if any_case else forms)
        self.between = between
        self._any_case = any_case
        self._at = re.compile(b"[%b]" % re.escape(between)) if between else None

    def seen(self, data: bytes) -> bytes:
        """The data as the forms are written."""
        data = data.lower() if self._any_case else data
        return data.translate(None, self.between) if self.between else data

    def places(self, data: bytes) -> "array[int]":
        """For each byte between, which of what is seen comes after it."""
        found = self._at.finditer(data) if self._at else ()
        return array("Q", (match.start() - count for count, match in enumerate(found)))


class _View:
    """What a search sees of data, after some that was before it; and where a place in it is in the data."""

    def __init__(self, search: _Search, before: bytes, data: bytes) -> None:
        self.view = before + search.seen(data)
        self._search = search
        self._before = len(before)
        self._data = data
        self._places: array[int] | None = None

    def place(self, at: int) -> int:
        """Of the byte `at` in the view: 0 for what was before the data."""
        if self._places is None:
            self._places = self._search.places(self._data)
        at -= self._before
        return at + bisect_right(self._places, at) if at >= 0 else 0

    def spans(self) -> list[Span]:
        found = self._search.forms.spans(self.view)
        if not self._search.between:
            return list(found)
        return [(self.place(start), self.place(end - 1) + 1) for start, end in found if end > self._before]

    def hold(self) -> int:
        """Up to where the data can be given out: what follows may be the beginning of a form."""
        if not self._search.between:
            return self._search.forms.unfinished(self.view)
        start = self._search.forms.unfinished(self.view, at_least=_ENCODED_HOLD)
        if start < len(self.view) and len(self._data) - (place := self.place(start)) <= _ENCODED_HOLD_MAX:
            return place
        return len(self._data)


class Finder:
    """Where secrets stand in bytes."""

    def __init__(self, secrets: Iterable[str]) -> None:
        found = parts(secrets)
        searches: tuple[_Search, ...] = ()
        if found and sum(len(part.encode()) for part in found) <= ENCODED_MAX_BYTES:
            searches = (
                _Search({form for part in found for form in written(part)}),
                _Search({form for part in found for form in escaped(part)}, any_case=True),
                _Search({form for part in found for form in encoded(part.encode())}, between=_BREAKS),
                _Search(
                    {form for part in found for form in hexadecimal(part.encode())},
                    any_case=True,
                    between=_BETWEEN_DIGITS,
                ),
            )
        elif found:
            searches = (_Search({part.encode() for part in found}),)
        self._searches = [search for search in searches if search.forms]
        self.shortest = min((len(part.encode()) for part in found), default=0)
        self.nothing_before: Before = (b"",) * len(self._searches)

    def __bool__(self) -> bool:
        return bool(self._searches)

    def spans(self, data: bytes) -> list[Span]:
        """In order, apart from each other."""
        return _merged([_View(search, b"", data).spans() for search in self._searches])

    def is_in(self, data: bytes, before: Before) -> tuple[bool, Before]:
        """Whether there is a secret; and what is before that which comes after the data."""
        views = [end + search.seen(data) for search, end in zip(self._searches, before, strict=True)]
        found = any(next(search.forms.spans(view), None) for search, view in zip(self._searches, views, strict=True))
        return found, tuple(view[-BLOCK_BYTES:] for view in views)

    def look(self, data: bytes, before: Before) -> tuple[list[Span], int]:
        """The spans, and up to where the data can be given out: what follows may be the beginning of a secret."""
        views = [_View(search, end, data) for search, end in zip(self._searches, before, strict=True)]
        return _merged([view.spans() for view in views]), min(view.hold() for view in views)

    def remember(self, before: Before, data: bytes) -> Before:
        """What is before that which comes after the data."""
        fresh = data[-_ENCODED_HOLD_MAX:]
        return tuple(
            (end + search.seen(fresh))[-BLOCK_BYTES:] if search.between else b""
            for search, end in zip(self._searches, before, strict=True)
        )


def _merged(found: list[list[Span]]) -> list[Span]:
    some = [spans for spans in found if spans]
    return list(_joined(sorted(chain.from_iterable(some)))) if len(some) > 1 else some[0] if some else []


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
        self._secrets = tuple(secrets)

    @cached_property
    def finder(self) -> Finder:
        return Finder(self._secrets)

    def text(self, text: str) -> str:
        longest = len(text) if text.isascii() else 4 * len(text)
        if not self.finder or longest < self.finder.shortest:
            return text
        data = text.encode(errors="replace")
        spans = self.finder.spans(data)
        return b"".join(_replaced(data, spans)).decode(errors="replace") if spans else text

    def message(self, text: str) -> str:
        """A message of the worker's own, in which names of a job's may be cut short, and end with "…"."""
        *cut, rest = self.text(text).split(CUT)
        return CUT.join([*map(self._without_beginning, cut), rest]) if self.finder else text

    def _without_beginning(self, text: str) -> str:
        data = text.encode(errors="replace")
        _, hold = self.finder.look(data, self.finder.nothing_before)
        return text if hold == len(data) else data[:hold].decode(errors="replace") + MASK

    def json(self, value: Any) -> Any:
        """A JSON value with the secrets hidden in its strings, keys and numbers."""
        if not self.finder:
            return value
        texts: list[str] = []
        _gather(value, texts)
        data = _APART.join([text.encode(errors="replace") for text in texts])
        if not (spans := self.finder.spans(data)):
            return value
        return _rebuilt(value, iter(b"".join(_replaced(data, spans)).split(_APART)))

    def scanner(self) -> "Scanner":
        return Scanner(self.finder)

    def stream(self, state: "StreamState | None" = None) -> "StreamMasker":
        """`state`: of one that another has left."""
        return StreamMasker(self, state or StreamState())


def _gather(value: Any, texts: list[str]) -> None:
    """The strings, keys and numbers of a JSON value."""
    if isinstance(value, str):
        texts.append(value)
    elif isinstance(value, int | float):
        texts.append(str(value))
    elif isinstance(value, list):
        for item in value:
            _gather(item, texts)
    elif isinstance(value, dict):
        for key, item in value.items():
            texts.append(key)
            _gather(item, texts)


def _rebuilt(value: Any, texts: Iterator[bytes]) -> Any:
    """The value with other strings, keys and numbers."""
    if isinstance(value, str):
        return next(texts).decode(errors="replace")
    if isinstance(value, int | float):
        return value if next(texts).decode() == str(value) else MASK
    if isinstance(value, list):
        return [_rebuilt(item, texts) for item in value]
    if isinstance(value, dict):
        return {next(texts).decode(errors="replace"): _rebuilt(item, texts) for item in value.values()}
    return value


def _replaced(data: bytes, spans: Iterable[Span]) -> Iterator[bytes]:
    position = 0
    for start, end in spans:
        yield data[position:start]
        yield _MASK
        position = end
    yield data[position:]


class Scanner:
    """Whether there is a secret in bytes that come in chunks."""

    def __init__(self, finder: Finder) -> None:
        self._finder = finder
        self._before = finder.nothing_before
        self.found = False

    def feed(self, data: bytes) -> None:
        if not self.found:
            self.found, self._before = self._finder.is_in(data, self._before)


class StreamState(NamedTuple):
    """Between two chunks of a stream: all that another masker of the same secrets must know to go on."""

    held: bytes = b""
    covered: int = 0  # so much of what is held belongs to a secret for which the mask was given out
    begun: int = 0  # so much of that secret stands before what is held
    masked: bool = False  # whether the last thing given out was a mask
    before: Before | None = None  # of what was given out


class StreamMasker:
    """The same for a stream of bytes in chunks. Holds back only what may be the beginning of a secret: at most a block
    of it, and line breaks."""

    def __init__(self, masker: Masker, state: StreamState) -> None:
        self._masker = masker
        self.state = state

    @property
    def state(self) -> StreamState:
        return StreamState(self._held, self._covered, self._begun, self._masked, self._before)

    @state.setter
    def state(self, state: StreamState) -> None:
        self._held, self._covered, self._begun, self._masked, self._before = state

    @property
    def held_bytes(self) -> int:
        return len(self._held)

    @property
    def open_bytes(self) -> int:
        """How far back another must begin to read, who goes on here: never in the middle of a secret."""
        return len(self._held) + self._begun

    def feed(self, data: bytes) -> bytes:
        finder = self._masker.finder
        if not finder:
            return data
        data = self._held + data
        return self._give(data, *finder.look(data, self._before or finder.nothing_before))

    def finish(self) -> bytes:
        """What is still held back. It may hold a whole secret that could have become a longer one."""
        finder = self._masker.finder
        if not finder:
            return b""
        spans, _ = finder.look(self._held, self._before or finder.nothing_before)
        return self._give(self._held, spans, len(self._held))

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
        finder = self._masker.finder
        self._before = finder.remember(self._before or finder.nothing_before, data[:hold])
        return b"".join(out)
