"""The marks at the end of a run's output, by which its end is known before the engine has said so."""

from cronium_worker.models import Stream


class EndMarks:
    """Takes them out of the streams: the launcher writes one to each when its script has ended and nothing else runs in
    the container (workspace.staging). Only what a stream ends with is a mark.
    """

    def __init__(self, mark: bytes) -> None:
        self._mark = mark
        self._held: dict[Stream, bytes] = {"stdout": b"", "stderr": b""}

    def feed(self, stream: Stream, data: bytes) -> bytes:
        """What of the output is certainly none."""
        data = self._held[stream] + data
        begin = data.find(self._mark[:1], max(0, len(data) - len(self._mark)))
        while begin > -1 and not self._mark.startswith(data[begin:]):
            begin = data.find(self._mark[:1], begin + 1)
        self._held[stream] = data[begin:] if begin > -1 else b""
        return data[:begin] if begin > -1 else data

    @property
    def seen(self) -> bool:
        """On both streams, and nothing after it."""
        return all(held == self._mark for held in self._held.values())

    def rest(self) -> list[tuple[Stream, bytes]]:
        """At the end of the output: what only began like one."""
        rest = [(stream, held) for stream, held in self._held.items() if held not in (b"", self._mark)]
        self.forget()
        return rest

    def forget(self) -> None:
        """What is held back will be read again."""
        self._held = {"stdout": b"", "stderr": b""}
