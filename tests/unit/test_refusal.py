"""Why a pull failed. The texts are those of Engine 20.10, and of 28.5 with the containerd image store.

test_pulls.py provokes what can be provoked.
"""

import pytest

from cronium_worker.engine.refusal import refusal

DIAL = 'Get "https://r.example/v2/": dial tcp'


@pytest.mark.parametrize(
    ("code", "text", "reason", "retryable"),
    [
        (500, "unauthorized: authentication required", "denied", False),
        (500, 'Head "http://r/v2/x/manifests/1": no basic auth credentials', "denied", False),
        (500, 'error parsing HTTP 403 response body: unexpected end of JSON input: ""', "denied", False),
        (404, "pull access denied for x, repository does not exist or may require 'docker login'", "denied", False),
        (500, "unexpected status from HEAD request to http://r/v2/x/manifests/1: 401 Unauthorized", "denied", False),
        (500, "unexpected status from HEAD request to http://r/v2/x/manifests/1: 403 Forbidden", "denied", False),
        (500, "unexpected status from HEAD request to http://r/v2/x: 503 Service Unavailable", "unreachable", True),
        (500, "unexpected status from HEAD request to http://r/v2/x: 502 Bad Gateway", "unreachable", True),
        (401, "no", "denied", False),
        (403, "no", "denied", False),
        (404, "manifest for r/x:1 not found: manifest unknown: manifest unknown", "not_found", False),
        (400, "invalid reference format: repository name must be lowercase", "other", False),
        (None, "write /var/lib/docker/tmp/GetImageBlob1: no space left on device", "no_space", True),
        (
            None,
            "failed to register layer: Error processing tar file(exit status 1): no space left on device",
            "no_space",
            True,
        ),
        (500, f"{DIAL} 127.0.0.1:9: connect: connection refused", "unreachable", True),
        (None, "dial tcp 127.0.0.1:9: connect: connection refused", "unreachable", True),
        (500, f"{DIAL}: lookup r.example on 127.0.0.53:53: no such host", "unreachable", True),
        (500, f"{DIAL} 198.51.100.1:443: i/o timeout", "unreachable", True),
        (500, f"{DIAL} 198.51.100.1:443: connect: no route to host", "unreachable", True),
        (
            500,
            f"{DIAL}: net/http: request canceled (Client.Timeout exceeded while awaiting headers)",
            "unreachable",
            True,
        ),
        (500, "received unexpected HTTP status: 503 Service Unavailable", "unreachable", True),
        (500, f"{DIAL}: http: server gave HTTP response to HTTPS client", "unreachable", False),
        (500, f"{DIAL}: x509: certificate is valid for 127.0.0.1, not 172.17.0.1", "unreachable", False),
        (500, 'error parsing HTTP 429 response body: unexpected end of JSON input: ""', "other", True),
        (None, "something new", "other", True),
        (500, "something new", "other", True),
    ],
)
def test_what_the_engine_says_becomes_a_reason(code: int | None, text: str, reason: str, retryable: bool) -> None:
    error = refusal("r/x:1", text, code)

    assert (error.details["reason"], error.retryable) == (reason, retryable)
    assert error.details["image"] == "r/x:1"


def test_the_message_is_one_line_with_the_engines_words_and_a_remedy() -> None:
    error = refusal("r/x:1", "unauthorized:\n  authentication required", 500)

    assert str(error) == (
        "image r/x:1: unauthorized: authentication required "
        "(check CRONIUM_REGISTRY__USERNAME and __PASSWORD, or `docker login` on this host)"
    )
