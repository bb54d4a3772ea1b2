"""Secrets in text, in JSON values and in streams of bytes, however they are cut."""

import base64
import json
import time
from itertools import pairwise, product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cronium_worker.masking import MASK, Masker, StreamMasker, StreamState, _blocks, _Forms, _replaced

# Few letters, so that secrets overlap, contain and repeat each other.
_words = st.text("ab", min_size=1, max_size=6)
_secrets = st.lists(_words, min_size=1, max_size=4)
_long = st.text("abc", max_size=40)
_nested = st.lists(st.text("ab", min_size=1, max_size=40), min_size=1, max_size=12)
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


def hidden_one_by_one(blocks: set[bytes], data: bytes) -> bytes:
    """Each occurrence of each of them, the naive way; a run of what is hidden is one mask."""
    hidden = bytearray(len(data))
    for block in blocks:
        at = data.find(block)
        while at >= 0:
            hidden[at : at + len(block)] = b"\1" * len(block)
            at = data.find(block, at + 1)
    out, masked = bytearray(), False
    for byte, is_hidden in zip(data, hidden, strict=True):
        if not is_hidden:
            out.append(byte)
        elif not masked:
            out += MASK.encode()
        masked = bool(is_hidden)
    return bytes(out)


@settings(deadline=None, database=None, max_examples=150)
@given(_nested, st.text("abc", max_size=120), st.integers(0, 3))
def test_what_is_hidden_is_every_occurrence_of_every_block(secrets: list[str], text: str, repeat: int) -> None:
    # Of a slice's length and more, so that occurrences lie on its edges too.
    data = (text + "ab" * (2040 * (repeat == 3)) + text).encode()
    blocks = {block for secret in secrets for block in _blocks(secret.encode())}

    masked = b"".join(_replaced(data, _Forms(secret.encode() for secret in secrets).spans(data)))

    assert masked == hidden_one_by_one(blocks, data)


@pytest.mark.parametrize("before", range(4070, 4100))
def test_secrets_on_the_edge_of_a_slice_are_hidden_whole(before: int) -> None:
    data = b"." * before + b"abcdefghijkl" + b"." * 5000

    masked = b"".join(_replaced(data, _Forms([b"abcdefghij", b"cd", b"ijkl"]).spans(data)))

    assert masked == b"." * before + MASK.encode() + b"." * 5000


@_quick
@given(_secrets, _long, st.lists(st.integers(0, 100), max_size=6))
def test_another_goes_on_with_a_stream(secrets: list[str], text: str, cuts: list[int]) -> None:
    data, masker = f"{text}|".encode(), Masker(secrets)
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    state, out = StreamState(), b""

    for start, end in pairwise(edges):
        stream = masker.stream(state)
        out += stream.feed(data[start:end])
        state = stream.state

    assert (out + masker.stream(state).finish()).decode() == masker.text(f"{text}|")


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


def fibonacci(size: int) -> str:
    shorter, longer = "a", "ab"
    while len(longer) < size:
        shorter, longer = longer, longer + shorter
    return longer[:size]


_PERIODIC = "abcdefghijklmnopqrstuvw" * 4
_B64 = base64.b64encode(b"hunter2-Tr0ub4dor")
# Of secrets that are accepted, and what is printed to make their search slow.
_SLOW: dict[str, tuple[list[str], bytes]] = {
    "nested lines": (["\n".join("a" * length for length in range(1, 290))], b"a" * 65536),
    "nested secrets": (["a" * length for length in range(1, 33)], b"a" * 65536),
    "prefixes": (["\n".join(fibonacci(400)[:length] for length in range(4, 300))], fibonacci(65536).encode()),
    "factors": (
        ["\n".join({fibonacci(300)[at : at + length] for length in range(4, 33) for at in range(200)})],
        fibonacci(65536).encode(),
    ),
    "periodic": (
        ["\n".join(_PERIODIC[at : at + length] for at in range(23) for length in range(4, 33))],
        _PERIODIC.encode() * 700,
    ),
    "every word": (
        ["\n".join("".join(word) for length in range(4, 11) for word in product("ab", repeat=length))],
        fibonacci(65536).encode(),
    ),
    "many secrets": ([f"{number:04d}" for number in range(3000)], b"0123456789" * 6000),
    "many bytes": ([fibonacci(65536)[at:] for at in range(8)], fibonacci(65536).encode()),
    "odd characters": (["'\"<>&\\$`ä" * length for length in range(1, 100)], "'\"<>&\\$`ä".encode() * 6000),
    "base64, a character a line": (["hunter2-Tr0ub4dor"], b"\n".join(_B64[at : at + 1] for at in range(24)) * 1400),
    "nothing but line breaks": (["hunter2-Tr0ub4dor"], b"\n" * 65536),
}


def rate(secrets: list[str], data: bytes, *, chunk: int = 65536) -> float:
    """Bytes in a second of this process."""
    masker = Masker(secrets)
    best = 0.0
    for _ in range(3):
        stream, started = masker.stream(), time.process_time()
        for at in range(0, len(data), chunk):
            stream.feed(data[at : at + chunk])
        best = max(best, len(data) / (time.process_time() - started))
    return best


@pytest.mark.attack
@pytest.mark.parametrize("attack", _SLOW)
def test_no_secrets_make_masking_slow(attack: str) -> None:
    secrets, data = _SLOW[attack]

    # Of what is nothing but the plainest secret.
    assert rate(secrets, data) > rate(["a"], b"a" * 65536) / 8


@pytest.mark.attack
@pytest.mark.parametrize(
    ("secrets", "data"),
    [
        (["\n".join("a" * length for length in range(1, 290))], b"a" * 1000),
        (["hunter2-Tr0ub4dor"], (_B64[:12] + b"\n" * 488) * 2),
    ],
)
def test_no_secrets_make_single_bytes_slow(secrets: list[str], data: bytes) -> None:
    assert rate(secrets, data, chunk=1) > rate(["hunter2-Tr0ub4dor"], b"INFO request handled\n" * 50, chunk=1) / 8


@pytest.mark.attack
@pytest.mark.parametrize(
    "value",
    [["a", "b"] * 50_000, [{"k": 1}] * 50_000, ["pw"] * 100_000, {str(number): [] for number in range(50_000)}],
    ids=["strings", "objects", "secrets", "keys"],
)
def test_many_small_values_are_not_slow(value: Any) -> None:
    masker, size = Masker(["pw", "q"]), len(json.dumps(value))
    started = time.process_time()

    masker.json(value)

    assert size / (time.process_time() - started) > rate(["a"], b"a" * 65536) / 8


@pytest.mark.parametrize(
    "value", [["a\xffb", {"\xff": "pw", "x": ["\xff", 1.5, None, True]}, "\n", ""], ["\n", "pw\n", ""]]
)
def test_json_values_keep_their_shape(value: Any) -> None:
    masked = Masker(["pw"]).json(value)

    assert masked == json.loads(json.dumps(value).replace("pw", MASK))


@pytest.mark.attack
def test_preparing_the_largest_secrets_takes_no_longer_than_a_second_or_two() -> None:
    started = time.process_time()

    Masker(["'\"<>&\\$`ä" * 7 + f"{number:04d}" for number in range(750)])
    Masker([f"variable {number:050d}" for number in range(8000)])

    assert time.process_time() - started < 6
