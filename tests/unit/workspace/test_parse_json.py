"""Strict JSON from files that a job has written."""

import json
import math
import re
import time
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cronium_worker.errors import OutputError
from cronium_worker.models import JobResult, Output
from cronium_worker.workspace import parse_json

MIB = 1024 * 1024
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=20,
)

REFUSED = {
    "empty": (b"", "output.json is empty"),
    "blank": (b" \n", "not JSON: Expecting value at line 2, column 1"),
    "half written": (b'{"a": [1, 2', "not JSON: Expecting ',' delimiter at line 1, column 12"),
    "half a string": (b'{"a": "tex', "not JSON: Unterminated string"),
    "trailing data": (b"{}\n{}", "not JSON: Extra data at line 2, column 1"),
    "comment": (b"{} // x", "not JSON: Extra data"),
    "trailing comma": (b"[1,]", "not JSON"),
    "single quotes": (b"{'a': 1}", "not JSON"),
    "leading zero": (b"01", "not JSON"),
    "control character": (b'"a\nb"', "not JSON: Invalid control character"),
    "byte order mark": (b"\xef\xbb\xbf{}", "byte order mark"),
    "UTF-16 with mark": ("{}".encode("utf-16"), "byte order mark"),
    "UTF-16 without mark": ('{"a":1}'.encode("utf-16-le"), "not JSON"),
    "not UTF-8": (b'{"a":"\xff"}', "not UTF-8: byte 0xff at offset 6"),
    "surrogate in UTF-8": (b'"\xed\xa0\x80"', "not UTF-8"),
    "NaN": (b'["NaN", NaN]', "NaN is not JSON at line 1, column 9"),
    "Infinity": (b"Infinity", "Infinity is not JSON at line 1, column 1"),
    "-Infinity": (b"[-Infinity]", "-Infinity is not JSON at line 1, column 2"),
    "1e999": (b'["1e999",\n -1e999]', "number is too large at line 2, column 2"),
    "4301 digits": (b'{"a": ' + b"1" * 4301 + b"}", "more than 4300 digits at line 1, column 7"),
    "8 MiB of digits": (b"[" + b"1" * (8 * MIB) + b"]", "more than 4300 digits at line 1, column 2"),
    "8 MiB of decimals": (b"0." + b"1" * (8 * MIB), "more than 4300 digits at line 1, column 1"),
    "name twice": (b'[{"a": 1, "b": 2, "a\\u000a": 0, "a": 3}]', "the name 'a' is given twice"),
    "odd name twice": (b'{"\\u001b\\ud800": 1, "\\u001b\\ud800": 3}', r"the name '\x1b?' is given twice"),
    "lone high": (b'{"a": "x\\ud800"}', "lone surrogate is not text at line 1, column 9"),
    "lone low": (b'"\\\\\\uDFFF"', "lone surrogate is not text at line 1, column 4"),
    "two highs": (b'"\\ud83d\\ud83d\\ude00"', "lone surrogate is not text at line 1, column 2"),
    "surrogate in a name": (b'{"\\ud800": 1}', "lone surrogate"),
    "181 levels": (b"[" * 181 + b"]" * 181, "more than 180 levels deep at line 1, column 181"),
    "181 levels after text": (
        b'["\xc3\xa9]]]\\"",' + b'{"a":' * 180,
        "more than 180 levels deep at line 1, column 906",
    ),
    "100,000 lists": (b"[" * 100_000 + b"]" * 100_000, "levels deep"),
    "8 MiB of objects": (b'{"a":' * (8 * MIB // 5), "levels deep"),
}


@pytest.mark.parametrize(("data", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refused_with_file_reason_and_position(data: bytes, message: str) -> None:
    with pytest.raises(OutputError, match=re.escape(message)) as caught:
        parse_json(data)
    assert str(caught.value).startswith("output.json")
    assert caught.value.details == {"file": "output.json"}
    assert not caught.value.retryable
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


ACCEPTED = {
    "null": (b"null", None),
    "white space": (b" \t\r\n{}\n", {}),
    "64 bits and more": (b"[18446744073709551616, -1]", [2**64, -1]),
    "4300 digits": (b"9" * 4300, 10**4300 - 1),
    "the largest double": (b"1.7976931348623157e308", 1.7976931348623157e308),
    "too small": (b"1e-999", 0.0),
    "NUL in a name": (b'{"a\\u0000b": 1}', {"a\0b": 1}),
    "__proto__": (b'{"__proto__": 1}', {"__proto__": 1}),
    "a pair": (b'"\\ud83d\\uDE00"', "\U0001f600"),
    "an escaped backslash before u": (b'"\\\\ud800"', "\\ud800"),
    "one name in two objects": (b'[{"a": 1}, {"a": {"a": 2}}]', [{"a": 1}, {"a": {"a": 2}}]),
    "brackets in text": (b'"' + b"[" * 500 + b'\\"{{"', "[" * 500 + '"{{'),
    "many lists in a row": (b"[" + b"[]," * 500 + b"[]]", [[]] * 501),
}


@pytest.mark.parametrize(("data", "value"), ACCEPTED.values(), ids=ACCEPTED.keys())
def test_accepted(data: bytes, value: object) -> None:
    assert parse_json(data) == value


def test_what_is_accepted_fits_through_every_reader_of_a_result() -> None:
    value = parse_json(b"[" * 179 + b'{"a": ' + b"9" * 4300 + b"}" + b"]" * 179)
    result = JobResult(job_id="x", status="completed", output=Output(data=value))
    event = json.dumps({"result": result.model_dump(mode="json")})
    assert JobResult.model_validate_json(result.model_dump_json()) == result
    assert JobResult.model_validate(json.loads(event)["result"]) == result


@pytest.mark.parametrize(
    "data",
    [
        b"[" + b"[]," * 200 + b'"' + b'\\"' * (4 * MIB - 400),
        b'["' + b'\\"' * (4 * MIB - 4) + b'"]',
        b'"' * (8 * MIB),
        b"\\" * (8 * MIB),
        b'["' + b"\\n" * (4 * MIB - 8) + b'\\ud800"]',
        b"{" + b",".join(b'"%x":0' % number for number in range(500_000)) + b"}",
        b"[" + b'"x",' * (2 * MIB - 1) + b"NaN]",
    ],
    ids=["unterminated", "escapes", "quotes", "backslashes", "lone surrogate late", "500,000 names", "NaN late"],
)
def test_time_is_linear(data: bytes) -> None:
    started = time.process_time()
    with suppress(OutputError):
        parse_json(data)
    assert time.process_time() - started < 5


def test_a_full_stack_is_no_crash() -> None:
    def descend() -> object:
        try:
            return descend()
        except RecursionError:
            return parse_json(b"[" * 180 + b"]" * 180)

    # The test's own frames may be what overflows; nothing else may be raised.
    with suppress(OutputError, RecursionError):
        descend()


@given(VALUES, st.booleans())
def test_round_trip(value: Any, ascii_only: bool) -> None:
    assert parse_json(json.dumps(value, ensure_ascii=ascii_only).encode()) == value


@given(VALUES.map(lambda value: json.dumps(value).encode()), st.data())
def test_a_part_of_a_document_is_refused_or_a_document(data: bytes, draw: st.DataObject) -> None:
    cut = data[: draw.draw(st.integers(0, len(data)))]
    try:
        value = parse_json(cut)
    except OutputError:
        return
    assert json.loads(cut) == value


@given(st.binary() | st.text('[]{}:,"\\ud8cfDC01eE+-.NaInfinty tru \n').map(str.encode))
@example(b'"\\ud800\\udc00\\ud800"')
@example(b"-" * 20)
@example(b'{"":0,"":0}')
def test_any_bytes_are_refused_or_strict_json(data: bytes) -> None:
    try:
        value = parse_json(data)
    except OutputError:
        return
    assert _is_strict(value)
    assert parse_json(json.dumps(value, ensure_ascii=False, allow_nan=False).encode()) == value


def _is_strict(value: Any) -> bool:
    match value:
        case dict():
            return all(_is_strict(key) and _is_strict(item) for key, item in value.items())
        case list():
            return all(map(_is_strict, value))
        case str():
            return not re.search("[\ud800-\udfff]", value)
        case float():
            return math.isfinite(value)
        case _:
            return value is None or isinstance(value, int)
