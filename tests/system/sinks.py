"""Every place where a job's words could end up, and whether a secret is there."""

import base64
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread
from typing import Self
from urllib.parse import quote, quote_plus

import psutil
from redis import Redis


def traces(secret: str) -> set[bytes]:
    """What of a secret must be nowhere: it and its lines as text, in addresses, and in base64 at three alignments."""
    found: set[bytes] = set()
    for part in {secret, *(line for line in secret.splitlines() if len(line) >= 8)}:
        text = {part, json.dumps(part)[1:-1], quote(part, safe=""), quote(part), quote_plus(part)}
        found |= {form.encode() for form in text} | {part.encode().hex().encode()}
        for before in range(3):
            code = base64.b64encode(b"\0" * before + part.encode())
            own = code[(before * 8 + 5) // 6 : (before + len(part.encode())) * 8 // 6]
            found |= {own, own.replace(b"+", b"-").replace(b"/", b"_")}
    return found


def hits(secrets: Iterable[str], data: bytes) -> list[bytes]:
    unwrapped = data.replace(b"\n", b"")
    return [trace for secret in secrets for trace in traces(secret) if trace in data or trace in unwrapped]


def redis_contents(redis: "Redis") -> Iterator[tuple[str, bytes]]:
    """Every key of the database with all that it holds. (DUMP compresses.)"""
    for key in redis.scan_iter(count=1000):
        kind = redis.type(key)
        if kind == "string":
            value = redis.get(key)
        elif kind == "hash":
            value = redis.hgetall(key)
        elif kind == "list":
            value = redis.lrange(key, 0, -1)
        elif kind == "set":
            value = list(redis.smembers(key))
        elif kind == "zset":
            value = redis.zrange(key, 0, -1)
        else:
            assert kind in {"stream", "none"}, kind
            value = redis.xrange(key) if kind == "stream" else ""
        yield f"Redis {key}", f"{key} {json.dumps(value, ensure_ascii=False)}".encode()


class Listener:
    """Hears all that is published: job events, and Celery's (which are in base64)."""

    def __init__(self, redis: "Redis") -> None:
        self.heard: list[bytes] = []
        self._pubsub = redis.pubsub(ignore_subscribe_messages=True)
        self._pubsub.psubscribe("*")
        self._end = Event()
        self._thread = Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while not self._end.is_set():
            message = self._pubsub.get_message(timeout=0.1)
            if message is not None:
                self.heard.append(f"{message['channel']} {message['data']}".encode())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        self._pubsub.close()


def files_below(*directories: Path) -> Iterator[tuple[str, bytes]]:
    """The names of all files, and what is in them."""
    for directory in directories:
        for path in directory.rglob("*"):
            content = b""
            with suppress(OSError):  # it may be a socket, or gone
                content = path.read_bytes() if path.is_file() else b""
            yield str(path), os.fsencode(path) + b" " + content


def process_lists(not_of: set[int]) -> Iterator[tuple[str, bytes]]:
    """Command lines and environments of the host's processes, but for those of a container and this one."""
    for pid in psutil.pids():
        if pid in not_of or pid == os.getpid():
            continue
        for name in ("cmdline", "environ"):
            with suppress(OSError):
                yield f"{name} of {pid}", Path(f"/proc/{pid}/{name}").read_bytes()
