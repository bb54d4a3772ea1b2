"""A job's secrets as they lie in Redis and in messages: encrypted, and of use for that job alone. Pure.

The format is a Fernet token (https://github.com/fernet/spec) of the JSON object `{"job_id": …, "secrets": {…}}`:
whoever has a key of the fleet can make one in any language.
"""

import json
from collections.abc import Mapping, Sequence

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from cronium_worker.errors import SecretsUnreadable

NO_KEY = "there is no key to encrypt them: make one with `cronium key`, and set CRONIUM_SECRET_KEYS for the whole fleet"


def new_key() -> str:
    """32 random bytes in URL-safe base64."""
    return Fernet.generate_key().decode()


class SecretBox:
    """Encrypts with the first key, decrypts with each of them."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._fernet = MultiFernet([Fernet(key) for key in keys]) if keys else None

    def seal(self, job_id: str, secrets: Mapping[str, str]) -> str:
        """Raises SecretsUnreadable without a key."""
        if self._fernet is None:
            raise SecretsUnreadable(f"secrets: {NO_KEY}")
        content = {"job_id": job_id, "secrets": dict(secrets)}
        return self._fernet.encrypt(json.dumps(content).encode()).decode()

    def open(self, job_id: str, token: str) -> dict[str, str]:
        """The secrets of this job. Raises SecretsUnreadable, which says what to do."""
        if self._fernet is None:
            raise SecretsUnreadable("its secrets cannot be decrypted: set CRONIUM_SECRET_KEYS as its producer has it")
        try:
            content = json.loads(self._fernet.decrypt(token.encode()))
        except (InvalidToken, ValueError):
            raise SecretsUnreadable(
                "its secrets cannot be decrypted: CRONIUM_SECRET_KEYS has not the key that they were encrypted with"
            ) from None
        match content:
            case {"job_id": str(sealed_for), "secrets": dict(secrets)} if len(content) == 2:
                if sealed_for != job_id:
                    raise SecretsUnreadable("its secrets were encrypted for another job: encrypt them for this id")
                return secrets
        raise SecretsUnreadable('its secrets are not {"job_id": …, "secrets": {…}}')
