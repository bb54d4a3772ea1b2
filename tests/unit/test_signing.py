"""Signatures of jobs: with one of several keys, of the very text, in a form that others can make."""

import hashlib
import hmac
import json
import subprocess

import pytest

from cronium_worker.errors import NotSigned
from cronium_worker.sealing import new_key
from cronium_worker.signing import Signer

OLD, NEW = new_key(), new_key()
JOB = {"id": "j", "script": {"type": "bash", "content": "echo päss"}}
TEXT = json.dumps(JOB, ensure_ascii=False)


def test_others_can_make_one() -> None:
    signature = hmac.new(NEW.encode(), TEXT.encode(), hashlib.sha256).hexdigest()
    openssl = subprocess.run(
        ["openssl", "dgst", "-sha256", "-hmac", NEW], input=TEXT.encode(), capture_output=True, check=True
    )

    assert Signer([NEW]).sign(TEXT) == signature == openssl.stdout.split()[-1].decode()
    Signer([NEW]).verify(TEXT, signature.upper())


def test_the_first_key_signs_and_each_is_taken() -> None:
    Signer([NEW, OLD]).verify(TEXT, Signer([OLD]).sign(TEXT))
    Signer([NEW]).verify(TEXT, Signer([NEW, OLD]).sign(TEXT))
    with pytest.raises(NotSigned, match="none of this fleet's"):
        Signer([NEW]).verify(TEXT, Signer([OLD]).sign(TEXT))


@pytest.mark.parametrize("text", [TEXT + " ", TEXT.replace("j", "k"), "", "\ud800"])
def test_of_another_text_it_is_none(text: str) -> None:
    with pytest.raises(NotSigned, match="none of this fleet's: set CRONIUM_SIGNING_KEYS"):
        Signer([NEW]).verify(text, Signer([NEW]).sign(TEXT))


@pytest.mark.parametrize("signature", ["0" * 64, "x", "é"])
def test_what_is_none(signature: str) -> None:
    with pytest.raises(NotSigned, match="none of this fleet's"):
        Signer([NEW]).verify(TEXT, signature)


def test_without_one() -> None:
    with pytest.raises(NotSigned, match="it is not signed: set CRONIUM_SIGNING_KEYS"):
        Signer([NEW]).verify(TEXT, "")


def test_without_keys_everything_is_taken() -> None:
    nobody = Signer([])

    assert not nobody.in_use
    assert nobody.sign(TEXT) == ""
    nobody.verify(TEXT, "")
    assert nobody.unwrap(JOB, required=True) == JOB
    assert nobody.unwrap(Signer([NEW]).wrap(TEXT), required=True) == JOB


def test_in_a_message() -> None:
    signer = Signer([NEW])

    assert signer.unwrap(signer.wrap(TEXT), required=True) == JOB
    assert signer.unwrap(JOB, required=False) == JOB
    with pytest.raises(NotSigned, match="it is not signed"):
        signer.unwrap(JOB, required=True)
    with pytest.raises(NotSigned, match="none of this fleet's"):
        signer.unwrap({**signer.wrap(TEXT), "signature": "0" * 64}, required=False)


@pytest.mark.parametrize("more", [{"x": ""}, {"signature": 1}, {"job": {}}])
def test_what_only_looks_like_it(more: dict[str, object]) -> None:
    signer = Signer([NEW])
    with pytest.raises(NotSigned, match="it is not signed"):
        signer.unwrap({**signer.wrap(TEXT), **more}, required=True)


@pytest.mark.parametrize(
    ("text", "reason"),
    [("{", "not JSON"), ("[" * 100_000, "not JSON"), ("[]", "no id"), ("{}", "no id"), ('{"id": 1}', "no id")],
)
def test_what_must_not_be_signed(text: str, reason: str) -> None:
    with pytest.raises(NotSigned, match=reason):
        Signer([NEW]).unwrap(Signer([NEW]).wrap(text), required=True)
