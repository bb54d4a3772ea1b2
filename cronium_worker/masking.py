"""Secrets, replaced by `***` wherever a job's words leave the worker. Pure."""

import re
from collections.abc import Iterable, Iterator
from typing import Any

MASK = "***"


class Masker:
    """Replaces every occurrence of the secrets' values; empty values hide nothing."""

    def __init__(self, secrets: Iterable[str]) -> None:
        # The longest first: a secret that begins like another is hidden whole.
        self._values = sorted({value for value in secrets if value}, key=len, reverse=True)
        pattern = "|".join(re.escape(value) for value in self._values)
        self._pattern = re.compile(pattern) if pattern else None

    def text(self, text: str) -> str:
        return self._pattern.sub(MASK, text) if self._pattern else text

    def json(self, value: Any) -> Any:
        """A JSON value with the secrets hidden in its strings, keys and numbers."""
        if self._pattern is None:
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

    def stream(self) -> "StreamMasker":
        return StreamMasker(value.encode() for value in self._values)


class StreamMasker:
    """The same for a stream of bytes in chunks. Holds back only what may be the beginning of a secret."""

    def __init__(self, secrets: Iterable[bytes]) -> None:
        self._secrets = list(secrets)
        pattern = b"|".join(re.escape(secret) for secret in self._secrets)
        self._pattern = re.compile(pattern) if pattern else None
        self._held = b""

    @property
    def held_bytes(self) -> int:
        return len(self._held)

    def feed(self, data: bytes) -> bytes:
        if self._pattern is None:
            return data
        data, self._held = self._held + data, b""
        return b"".join(self._replaced(data, self._pattern))

    def finish(self) -> bytes:
        """What is still held back. It may hold a whole secret that could have become a longer one."""
        data, self._held = self._held, b""
        return self._pattern.sub(MASK.encode(), data) if self._pattern else data

    def drop(self) -> None:
        """Forget what is held back: the stream is cut here, and it may be most of a secret."""
        self._held = b""

    def _replaced(self, data: bytes, pattern: re.Pattern[bytes]) -> Iterator[bytes]:
        position, hold = 0, self._possible_start(data, 0)
        while True:
            if hold < position:  # the last match took the beginning that was held for
                hold = self._possible_start(data, position)
            match = pattern.search(data, position)
            # A complete secret that may yet turn out to be the beginning of a longer one waits, too.
            if match is None or hold <= match.start():
                yield data[position:hold]
                self._held = data[hold:]
                return
            yield data[position : match.start()] + MASK.encode()
            position = match.end()

    def _possible_start(self, data: bytes, position: int) -> int:
        """Where the first beginning of a secret starts that runs into the end of the data."""
        longest = 0
        for secret in self._secrets:
            for length in range(min(len(secret) - 1, len(data) - position), longest, -1):
                if data.endswith(secret[:length]):
                    longest = length
                    break
        return len(data) - longest
