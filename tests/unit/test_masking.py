"""Secrets in text, in JSON values and in streams of bytes, however they are cut."""

import time
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cronium_worker.masking import MASK, Masker, StreamMasker

# Few letters, so that secrets overlap, contain and repeat each other.
_words = st.text("ab", min_size=1, max_size=6)
_secrets = st.lists(_words, min_size=1, max_size=4)
_long = st.text("abc", max_size=40)
_quick = settings(deadline=None, database=None, max_examples=150)


def streamed(masker: StreamMasker, data: bytes, cuts: list[int]) -> list[bytes]:
    """The chunks that come out; the last one is what was held back to the end."""
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [masker.feed(data[start:end]) for start, end in pairwise(edges)] + [masker.finish()]


@_quick
@given(_secrets, _long)
def test_no_secret_is_left_in_a_text(secrets: list[str], text: str) -> None:
    masked = Masker(secrets).text(text)

    assert not any(secret in piece for piece in masked.split(MASK) for secret in secrets)


@_quick
@given(_secrets, _long, st.lists(st.integers(0, 100), max_size=6))
def test_a_stream_is_masked_like_the_whole_text(secrets: list[str], text: str, cuts: list[int]) -> None:
    # What follows the text is the beginning of no secret, so that nothing is held back at its end.
    data = f"{text}|".encode()

    out = streamed(Masker(secrets).stream(), data, cuts)

    assert b"".join(out).decode() == Masker(secrets).text(f"{text}|")
    assert out[-1] == b""


@_quick
@given(_secrets, st.binary(max_size=40), st.lists(st.integers(0, 100), max_size=6))
def test_bytes_that_are_no_text_go_through(secrets: list[str], data: bytes, cuts: list[int]) -> None:
    out = b"".join(streamed(Masker(secrets).stream(), data + b"|", cuts))

    assert not any(secret.encode() in piece for piece in out.split(MASK.encode()) for secret in secrets)
    if not any(secret.encode() in data for secret in secrets):
        assert out == data + b"|"


@_quick
@given(_secrets, _long)
def test_only_what_may_begin_a_secret_is_held_back(secrets: list[str], text: str) -> None:
    masker = Masker(secrets).stream()
    given_out = b""

    for index in range(len(text)):
        given_out += masker.feed(text[index].encode())

        held = text[: index + 1][-masker.held_bytes :] if masker.held_bytes else ""
        assert masker.held_bytes < max(map(len, secrets))
        assert not held or any(secret.startswith(held) and secret != held for secret in secrets)


@_quick
@given(st.binary(max_size=60), st.lists(st.integers(0, 100), max_size=6))
def test_without_secrets_every_byte_comes_out_at_once(data: bytes, cuts: list[int]) -> None:
    masker = Masker(["", ""]).stream()

    out = streamed(masker, data, cuts)

    assert b"".join(out) == data
    assert masker.held_bytes == 0
    assert out[-1] == b""


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_a_secret_in_several_chunks_is_hidden(size: int) -> None:
    masker = Masker(["pässwörd\n1"]).stream()
    data = "before pässwörd\n1 after pässwört".encode()

    out = b"".join(masker.feed(data[i : i + size]) for i in range(0, len(data), size)) + masker.finish()

    assert out.decode() == "before *** after pässwört"


@pytest.mark.parametrize("cut", range(19))
@pytest.mark.parametrize(
    ("secrets", "masked"),
    [
        (["abc", "abcdef"], "x***y***deg***|"),
        (["abc", "abcdeg"], "x***defy***|"),
        (["bcd", "abcdef"], "x***ya***egabc|"),
    ],
)
def test_a_secret_that_begins_or_holds_another_is_hidden_whole(secrets: list[str], masked: str, cut: int) -> None:
    text = b"xabcdefyabcdegabc|"
    masker = Masker(secrets).stream()

    out = masker.feed(text[:cut]) + masker.feed(text[cut:]) + masker.finish()

    assert out.decode() == masked


@pytest.mark.parametrize(
    ("secrets", "text", "masked"),
    [
        (["abc"], "abc", "***"),
        (["abc"], "xabcx", "x***x"),
        (["abc"], "abcabc", "***"),
        (["ab", "abc"], "abc", "***"),
        (["a.c", "$", "["], "a.c abc $1 [", "*** abc ***1 ***"),
        (["\\d"], "1 \\d", "1 ***"),
        (["", "a"], "ba", "b***"),
        (["ü"], "über", "***ber"),
        (["line\nbreak"], "line\nbreak", "***"),
        ([], "abc", "abc"),
        ([""], "abc", "abc"),
    ],
)
def test_texts(secrets: list[str], text: str, masked: str) -> None:
    assert Masker(secrets).text(text) == masked


@pytest.mark.parametrize(
    ("value", "masked"),
    [
        ("a pw b", "a *** b"),
        (["pw", ["pw"]], ["***", ["***"]]),
        ({"pw": {"x": "pw"}, "n": 5}, {"***": {"x": "***"}, "n": 5}),
        (None, None),
        (True, True),
        (1.5, 1.5),
        ([], []),
    ],
)
def test_json_values_are_masked_in_keys_and_strings(value: Any, masked: Any) -> None:
    assert Masker(["pw"]).json(value) == masked
    assert Masker([]).json(value) == value


def test_a_large_stream_without_secrets_in_it_is_quick() -> None:
    masker = Masker(["a" * 1000, "correct horse battery staple"]).stream()
    block = b"x" * 65536

    assert sum(len(masker.feed(block)) for _ in range(64)) == 64 * 65536


@settings(deadline=None, max_examples=300)
@given(
    st.lists(st.text("ab", min_size=1, max_size=6), min_size=1, max_size=4),
    st.text("abc", max_size=40),
    st.lists(st.integers(0, 100), max_size=6),
)
def test_a_stream_that_ends_is_masked_like_the_whole_text(secrets: list[str], text: str, cuts: list[int]) -> None:
    masker, data = Masker(secrets).stream(), text.encode()
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    out = b"".join(masker.feed(data[a:b]) for a, b in pairwise(edges)) + masker.finish()
    assert out.decode() == Masker(secrets).text(text)


def test_a_long_secret_does_not_make_masking_slow() -> None:
    masker = Masker(["p", "S" + "x1" * 8192]).stream()
    started = time.process_time()
    masker.feed(b"px" * 2048)
    assert time.process_time() - started < 0.5
