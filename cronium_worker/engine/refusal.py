"""Why a pull failed, from what the engine says: its status and code first, its text where only that tells."""

from typing import Literal, NamedTuple

import requests

from cronium_worker.errors import ImagePullError

Reason = Literal["denied", "not_found", "no_space", "unreachable", "stalled", "timeout", "other"]


class _Verdict(NamedTuple):
    reason: Reason
    retryable: bool


_BY_CODE = {
    requests.codes.bad_request: _Verdict("other", retryable=False),
    requests.codes.unauthorized: _Verdict("denied", retryable=False),
    requests.codes.forbidden: _Verdict("denied", retryable=False),
    requests.codes.not_found: _Verdict("not_found", retryable=False),
}

# Engines answer 500, or give no code at all, for these: 20.10, and in words of their own those with the containerd
# image store. The first that is in the text counts.
_BY_TEXT = (
    # The Docker Hub's word for what is not there or not for everybody; the engine makes a 404 of it.
    ("pull access denied", _Verdict("denied", retryable=False)),
    ("unauthorized", _Verdict("denied", retryable=False)),
    ("no basic auth credentials", _Verdict("denied", retryable=False)),
    ("401 Unauthorized", _Verdict("denied", retryable=False)),
    ("HTTP 403", _Verdict("denied", retryable=False)),
    ("403 Forbidden", _Verdict("denied", retryable=False)),
    ("no space left on device", _Verdict("no_space", retryable=True)),
    ("connection refused", _Verdict("unreachable", retryable=True)),
    ("connection reset", _Verdict("unreachable", retryable=True)),
    ("no such host", _Verdict("unreachable", retryable=True)),
    ("no route to host", _Verdict("unreachable", retryable=True)),
    ("i/o timeout", _Verdict("unreachable", retryable=True)),
    ("Client.Timeout exceeded", _Verdict("unreachable", retryable=True)),
    ("EOF", _Verdict("unreachable", retryable=True)),
    ("unexpected HTTP status: 5", _Verdict("unreachable", retryable=True)),
    ("500 Internal Server Error", _Verdict("unreachable", retryable=True)),
    ("502 Bad Gateway", _Verdict("unreachable", retryable=True)),
    ("503 Service Unavailable", _Verdict("unreachable", retryable=True)),
    ("504 Gateway Timeout", _Verdict("unreachable", retryable=True)),
    # One of the two speaks TLS: an operator has to tell the engine (`insecure-registries`, or the certificate).
    ("server gave HTTP response to HTTPS client", _Verdict("unreachable", retryable=False)),
    ("x509:", _Verdict("unreachable", retryable=False)),
)

_REMEDIES: dict[Reason, str] = {
    "denied": "check CRONIUM_REGISTRY__USERNAME and __PASSWORD, or `docker login` on this host",
    "no_space": "the Docker Engine's disk is full",
}


def refusal(reference: str, text: str, code: int | None) -> ImagePullError:
    """The typed error for what the engine said of a pull; `code`: an HTTP status, None if it gave none."""
    verdict = next((verdict for part, verdict in _BY_TEXT if part in text), None)
    if code in _BY_CODE and (verdict is None or verdict.reason != "denied"):
        verdict = _BY_CODE[code]
    reason, retryable = verdict or _Verdict("other", retryable=True)
    said = " ".join(text.split())
    remedy = f" ({_REMEDIES[reason]})" if reason in _REMEDIES else ""
    return pull_error(reference, said + remedy, reason, retryable=retryable)


def pull_error(reference: str, text: str, reason: Reason, *, retryable: bool) -> ImagePullError:
    return ImagePullError(f"image {reference}: {text}", retryable=retryable, reason=reason, image=reference)
