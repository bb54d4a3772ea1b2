"""Signatures of jobs: whoever can write to Redis and the broker, but has no key, makes no worker run a script. Pure.

A signature is the HMAC-SHA256 (RFC 2104) of a job's JSON, byte for byte, in lower-case hex; the key is the text of the
setting. In a message a signed job is the object `{"job": its JSON as text, "signature": …}`: whoever has a key of the
fleet can make one in any language.
"""

import hmac
import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from cronium_worker.errors import NotSigned

_REMEDY = "set CRONIUM_SIGNING_KEYS for its producer as its workers have it, and submit it again under a new id"


class Signer:
    """Signs with the first key, takes the signatures of each of them; without keys it takes everything."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._keys = [key.encode() for key in keys]

    @property
    def in_use(self) -> bool:
        return bool(self._keys)

    def sign(self, text: str) -> str:
        """Empty without a key."""
        return _hmac(self._keys[0], text).decode() if self._keys else ""

    def verify(self, text: str, signature: str) -> None:
        """Raises NotSigned."""
        given = _bytes(signature.lower())
        if self._keys and not any(hmac.compare_digest(_hmac(key, text), given) for key in self._keys):
            fault = "its signature is none of this fleet's" if signature else "it is not signed"
            raise NotSigned(f"{fault}: {_REMEDY}")

    def wrap(self, text: str) -> dict[str, str]:
        """A signed job as it stands in a message."""
        return {"job": text, "signature": self.sign(text)}

    def unwrap(self, value: Any, *, required: bool) -> Any:
        """The job in what a message has in its place; what is not signed as it is. `required`: with keys, that is
        refused. Raises NotSigned."""
        if not is_signed(value):
            if required and self._keys:
                raise NotSigned(f"it is not signed: {_REMEDY}")
            return value
        self.verify(value["job"], value["signature"])
        try:
            job = json.loads(value["job"])
        except (ValueError, RecursionError):
            raise NotSigned("what was signed is not JSON: sign the job's JSON as it is sent") from None
        if not (isinstance(job, Mapping) and isinstance(job.get("id"), str)):
            raise NotSigned("what was signed has no id: a signature is for one job alone, give it one")
        return job


def is_signed(value: object) -> TypeGuard[Mapping[str, str]]:
    """Whether it has the form of a signed job."""
    return (
        isinstance(value, Mapping)
        and value.keys() == {"job", "signature"}
        and all(isinstance(part, str) for part in value.values())
    )


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.digest(key, _bytes(text), "sha256").hex().encode()


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")  # JSON can have halves of a character
