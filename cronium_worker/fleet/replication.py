"""Writes that replicas have before anybody acts on them (CRONIUM_REDIS_WAIT_REPLICAS)."""

from collections.abc import Sequence
from typing import Any

from redis import Redis
from redis.commands.core import Script
from redis.exceptions import NoScriptError, ResponseError

from cronium_worker.fleet.keys import is_wrong_type, named

_WAIT_MS = 1000


class NotReplicated(ResponseError):
    """Too few replicas have a write. Its text begins as Redis's own error of this kind (`min-replicas-to-write`), so
    that it is tried again, as that is (Patience)."""


class Replication:
    """Runs scripts and waits until `replicas` replicas have what they wrote."""

    def __init__(self, redis: "Redis", replicas: int) -> None:
        self._redis = redis
        self._replicas = replicas

    def run(self, script: Script, keys: Sequence[str], arguments: Sequence[str | int | bytes]) -> Any:
        """Return the script's reply. The script must be one that may be run twice: until enough replicas have what it
        wrote, it is run again. Raises NotReplicated."""
        retry = self._redis.get_retry()
        if retry is None:
            return self._run(script, keys, arguments)
        return retry.call_with_retry(lambda: self._run(script, keys, arguments), lambda _: None)

    def _run(self, script: Script, keys: Sequence[str], arguments: Sequence[str | int | bytes]) -> Any:
        results = self._send(script, keys, arguments)
        if isinstance(results[0], NoScriptError):  # the first time, and after a failover
            self._redis.script_load(script.script)
            results = self._send(script, keys, arguments)
        for error in results:
            if is_wrong_type(error):
                raise named(self._redis, error, keys) from None
            if isinstance(error, Exception):
                raise error
        reply, _, acknowledged = results
        if acknowledged < self._replicas:
            raise NotReplicated(
                f"NOREPLICAS {acknowledged} of {self._replicas} replicas have the write (CRONIUM_REDIS_WAIT_REPLICAS)"
            )
        return reply

    def _send(self, script: Script, keys: Sequence[str], arguments: Sequence[str | int | bytes]) -> list[Any]:
        """In one go: WAIT looks at what this very connection has written. It may be a new one, whose script finds that
        its write was made over the one before, and writes nothing; PUBLISH goes to the replicas as a write does."""
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.evalsha(script.sha, len(keys), *keys, *arguments)
            pipe.publish(f"{keys[0]}:replicated", "")
            pipe.wait(self._replicas, _WAIT_MS)
            return list(pipe.execute(raise_on_error=False))
