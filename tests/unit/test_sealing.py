"""Jobs' secrets, encrypted: for one job, with one of several keys, in a format that others can make."""

import json

import pytest
from cryptography.fernet import Fernet

from cronium_worker.errors import SecretsUnreadable
from cronium_worker.sealing import SecretBox, new_key

OLD, NEW = new_key(), new_key()
SECRETS = {"TOKEN": "hunter2", "KEY": "päss\nwörd"}


def test_what_is_sealed_can_be_opened_and_shows_nothing() -> None:
    token = SecretBox([NEW]).seal("j", SECRETS)

    assert SecretBox([NEW]).open("j", token) == SECRETS
    assert "hunter2" not in token
    assert token != SecretBox([NEW]).seal("j", SECRETS)


def test_the_first_key_encrypts_and_each_decrypts() -> None:
    before = SecretBox([OLD]).seal("j", SECRETS)

    assert SecretBox([NEW, OLD]).open("j", before) == SECRETS
    assert SecretBox([NEW]).open("j", SecretBox([NEW, OLD]).seal("j", SECRETS)) == SECRETS


@pytest.mark.parametrize("keys", [[], [OLD]], ids=["no key", "another key"])
def test_without_the_key_nothing_is_opened(keys: list[str]) -> None:
    token = SecretBox([NEW]).seal("j", SECRETS)

    with pytest.raises(SecretsUnreadable, match="CRONIUM_SECRET_KEYS"):
        SecretBox(keys).open("j", token)


def test_of_another_job_they_are_of_no_use() -> None:
    token = SecretBox([NEW]).seal("j", SECRETS)

    with pytest.raises(SecretsUnreadable, match="another job"):
        SecretBox([NEW]).open("k", token)


@pytest.mark.parametrize(
    "content",
    [b"", b"no JSON", b"[]", b'{"TOKEN": "hunter2"}', b'{"job_id": "j"}', b'{"job_id": "j", "secrets": ["hunter2"]}'],
)
def test_other_content_is_refused_without_showing_it(content: bytes) -> None:
    with pytest.raises(SecretsUnreadable) as caught:
        SecretBox([NEW]).open("j", Fernet(NEW).encrypt(content).decode())

    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("token", ["", "hunter2", "gAAAAA==", "ü" * 50, "\ud800"])
def test_what_is_no_token_is_refused_without_showing_it(token: str) -> None:
    with pytest.raises(SecretsUnreadable) as caught:
        SecretBox([NEW]).open("j", token)

    assert "hunter2" not in str(caught.value)


def test_a_changed_token_is_refused() -> None:
    token = bytearray(SecretBox([NEW]).seal("j", SECRETS).encode())
    token[50] = ord("B") if token[50] == ord("A") else ord("A")

    with pytest.raises(SecretsUnreadable):
        SecretBox([NEW]).open("j", token.decode())


def test_whoever_has_the_key_can_make_them() -> None:
    content = json.dumps({"job_id": "j", "secrets": SECRETS}, ensure_ascii=False).encode()

    assert SecretBox([NEW]).open("j", Fernet(NEW).encrypt(content).decode()) == SECRETS
