"""A log that cannot be filled from outside: of lines that are the same but for their details, a few in a minute."""

import logging
import time

_IN_A_MINUTE = 5
_MOST_KINDS = 200


class BoundedLog(logging.Filter):
    """For a handler. A kind of line is its logger and its text before details are filled in."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[tuple[str, str], tuple[float, int]] = {}  # since when, how many

    def filter(self, record: logging.LogRecord) -> bool:
        """Let the line through, with how many were left out before it."""
        kind = (record.name, str(record.msg)[:200])
        now = time.monotonic()
        since, count = self._seen.get(kind, (now, 0))
        left_out = count - _IN_A_MINUTE
        if now - since >= 60:
            since, count = now, 0
            if left_out > 0:
                record.msg = f"{record.msg} ({left_out} like it were left out)"
        if kind not in self._seen and len(self._seen) >= _MOST_KINDS:
            self._seen.clear()
        self._seen[kind] = (since, count + 1)
        return count < _IN_A_MINUTE
