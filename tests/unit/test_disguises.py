"""Secrets as other programs write them: quoted, escaped, encoded, cut into lines."""

import base64
import html
import json
import quopri
import re
import shlex
import subprocess
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cronium_worker.masking import MASK, Masker

PLAIN = "hunter2-Tr0ub4dor"
ODD = "pä$$ w/o'rd+\"&<x>\\=%2F"
LINES = "-----BEGIN KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSj\nAgEAAoIBAQC7\n-----END KEY-----\n"
LONG = "".join(f"{number:x}." for number in range(200))
SECRETS = [PLAIN, ODD, LINES, LONG]
_quick = settings(deadline=None, database=None, max_examples=100)


def shell(script: str, secret: str, locale: str = "C.UTF-8") -> str:
    environment = {"S": secret, "LC_ALL": locale, "PATH": "/usr/bin:/bin"}
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, check=True, timeout=20)
    return (done.stdout + done.stderr).decode()


def node(script: str, secret: str) -> str:
    return subprocess.run(["node", "-e", script], env={"S": secret, "PATH": "/usr/bin:/bin"}, capture_output=True,
                          check=True, text=True, timeout=20).stdout  # fmt: skip


def upper(text: str) -> str:
    return re.sub(r"\\\\|\\[ux][0-9a-f]+", lambda match: match[0][:2] + match[0][2:].upper(), text)


def mixed(match: re.Match[str]) -> str:
    return "".join(c.upper() if at % 2 else c.lower() for at, c in enumerate(match[0]))


def core(secret: str) -> str:
    """What must not be seen of it: the part that no encoding changes."""
    return max("".join(c if c.isalnum() and c.isascii() else " " for c in secret).split(), key=len)


WRITERS: dict[str, Callable[[str], str]] = {
    "itself": str,
    "repr": repr,
    "ascii": ascii,
    "repr of bytes": lambda s: repr(s.encode()),
    "in a dict": lambda s: repr({"a": [s]}),
    "JSON": json.dumps,
    "JSON in UTF-8": lambda s: json.dumps(s, ensure_ascii=False),
    "JSON with escaped slashes": lambda s: json.dumps(s).replace("/", "\\/"),
    "URL": lambda s: quote(s, safe=""),
    "URL path": quote,
    "URL query": quote_plus,
    "URL in lower case": lambda s: re.sub("%..", lambda match: match[0].lower(), quote(s, safe="")),
    "URL in both cases": lambda s: re.sub("%..", mixed, quote(s, safe="")),
    "JSON in upper case": lambda s: upper(json.dumps(s)),
    "JSON in both cases": lambda s: re.sub(r"\\u....", mixed, json.dumps(s)),
    "ASCII in upper case": lambda s: upper(ascii(s)),
    "bytes in upper case": lambda s: upper(repr(s.encode())),
    "code points": lambda s: re.sub(
        "[^\0-\x7f]", lambda match: f"\\u{{{ord(match[0]):X}}}", json.dumps(s, ensure_ascii=False)
    ),
    "decimal entities": lambda s: html.escape(s).encode("ascii", "xmlcharrefreplace").decode(),
    "hexadecimal entities": lambda s: re.sub("[^\0-\x7f]", lambda match: f"&#x{ord(match[0]):X};", html.escape(s)),
    "numbered quotes": lambda s: html.escape(s).replace("&#x27;", "&#39;").replace("&quot;", "&#34;"),
    "octal": lambda s: shell('printf %q "$S"', s, "C"),
    "mail": lambda s: quopri.encodestring(s.encode()).decode() if len(s) < 70 else s,
    "CSV": lambda s: s.replace('"', '""'),
    "SQL": lambda s: s.replace("'", "''"),
    "URL with little encoded": lambda s: quote(s, safe="!'()*;,/?:@&=+$#"),
    "shlex": shlex.quote,
    "shell %q": lambda s: shell('printf %q "$S"', s),
    "shell @Q": lambda s: shell('echo "${S@Q}"', s),
    "shell declare": lambda s: shell("declare -p S", s),
    "shell trace": lambda s: shell('set -x; : "$S"', s),
    "CRLF": lambda s: s.replace("\n", "\r\n"),
    "prefixed lines": lambda s: "".join(f"2026-11-24 INFO: {line}\n" for line in s.splitlines()),
    "indented lines": lambda s: "".join(f"    {line}   \n" for line in s.splitlines()),
    "reversed lines": lambda s: "\n".join(reversed(s.splitlines())),
}


@pytest.mark.parametrize("secret", SECRETS, ids=["plain", "odd", "lines", "long"])
@pytest.mark.parametrize("writer", WRITERS)
def test_written_by_programs(writer: str, secret: str) -> None:
    text = WRITERS[writer](secret)

    masked = Masker([secret]).text(f"a {text} b")

    assert MASK in masked
    assert secret not in masked
    assert [line for line in secret.splitlines() if core(line) in masked and secret != LONG] == []
    assert masked.startswith("a ")
    assert masked.endswith(" b")


@pytest.mark.parametrize("option", ["-b", "-Q"])
@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_names_as_ls_writes_them(tmp_path: Path, option: str, locale: str) -> None:
    secret = ODD.replace("/", "")
    (tmp_path / secret).touch()

    masked = Masker([secret]).text(shell(f"ls {option} {tmp_path}", secret, locale))

    assert masked.strip('"\n') == MASK


@pytest.mark.parametrize(
    "command", ["od -An -v -tx1", "od -An -v -tx1 -w8", "od -An -v -tx1 | tr ' ' :", "od -An -v -tx1 | tr a-f A-F"]
)
def test_digits_as_od_and_openssl_write_them(command: str) -> None:
    masked = Masker([PLAIN]).text(shell(f'printf "<%s>" "$S" | {command}', PLAIN))

    assert masked.upper().replace(":", " ").split() == ["3C", MASK, "3E"]


NODE = [
    "[process.env.S]",
    "encodeURIComponent(process.env.S)",
    "encodeURI(process.env.S)",
    "JSON.stringify(process.env.S)",
    "new URLSearchParams({s: process.env.S}).toString()",
]


@pytest.mark.parametrize("expression", NODE)
@pytest.mark.parametrize("secret", [PLAIN, ODD, LINES], ids=["plain", "odd", "lines"])
def test_written_by_node(expression: str, secret: str) -> None:
    text = node(f"console.log({expression})", secret)

    masked = Masker([secret]).text(text)

    assert MASK in masked
    assert core(secret) not in masked


@pytest.mark.parametrize("secret", [*SECRETS, "pw42"], ids=["plain", "odd", "lines", "long", "short"])
@pytest.mark.parametrize("before", range(5))
@pytest.mark.parametrize("after", ["", "x", "\n"])
@pytest.mark.parametrize("wrap", [0, 76, 64, 20])
@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode, bytes.hex], ids=["std", "url", "hex"])
def test_base64_and_hex_at_every_alignment_and_wrapped(
    secret: str, before: int, after: str, wrap: int, encode: Callable[[bytes], bytes | str]
) -> None:
    def code(data: bytes) -> str:
        text = encode(data)
        return text if isinstance(text, str) else text.decode()

    whole = code(b"z" * before + secret.encode() + after.encode())
    text = "\n".join(whole[at : at + wrap] for at in range(0, len(whole), wrap)) if wrap else whole

    masked = Masker([secret]).text(f"<{text}>")

    own = code(secret.encode()).rstrip("=")[:-1] if before % 3 == 0 or encode is bytes.hex else ""
    left = "".join(masked.split(MASK)).replace("\n", "").strip("<=>")
    assert MASK in masked
    assert own == "" or own not in masked.replace("\n", "")
    # What is before and after, and a character at each end that has bits of both.
    assert len(left) <= len(code(b"z" * before)) + len(code(after.encode())) + 2


@pytest.mark.parametrize(("before", "shown"), [("", "***"), ("z", "en***g%3d%3d"), ("zz", "enp***4%3d")])
@pytest.mark.parametrize("write", [str.upper, str.lower])
def test_base64_in_an_address(before: str, shown: str, write: Callable[[str], str]) -> None:
    """Its + and / are escaped there, in digits of either case."""
    secret = "~~~???>>>"
    code = base64.b64encode((before + secret).encode()).decode()
    assert {"+", "/"} < set(code)
    text = re.sub("%..", lambda match: write(match[0]), quote_plus(code))

    masked = Masker([secret]).text(f"https://r.example/?s={text}&n=1")

    assert re.sub("%..", lambda match: match[0].lower(), masked) == f"https://r.example/?s={shown}&n=1"


@pytest.mark.parametrize(
    ("secret", "text"),
    [
        ("a\x01y'z\"w", r"a\x01y\'z" + '"w'),
        ("a\x01y'z\"w", r"a\x01y'z" + '"w'),
        ("a\x01y'zw", r"a\x01y\'zw"),
        ("ä\x01bcd", r"ä\u0001bcd"),
        ("ä\x01bcd", r"\u00e4\u0001bcd"),
        ("dcb\x01ä", r"dcb\u0001ä"),
        ("<\x01b/d>", r"\u003c\u0001b/d\u003e"),
        ("<\x01bä>", r"\u003c\u0001bä\u003e"),
        ("/\x01bä", r"\/\u0001b\u00e4"),
    ],
)
def test_each_escape_beside_others(secret: str, text: str) -> None:
    assert Masker([secret]).text(f"<{text}>") == f"<{MASK}>"


@_quick
@given(st.sampled_from(SECRETS), st.sampled_from(sorted(WRITERS)), st.lists(st.integers(0, 10**4), max_size=8))
def test_forms_are_found_however_a_stream_is_cut(secret: str, writer: str, cuts: list[int]) -> None:
    data = f"a {WRITERS[writer](secret)} b|".encode()
    masker = Masker([secret])
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    stream = masker.stream()

    out = b"".join(stream.feed(data[start:end]) for start, end in pairwise(edges)) + stream.finish()

    assert out.decode() == masker.text(data.decode())


@_quick
@given(st.sampled_from([PLAIN, LINES, LONG]), st.integers(0, 2), st.integers(0, 10**4), st.sampled_from([0, 20, 76]))
def test_base64_is_found_however_a_stream_is_cut(secret: str, before: int, cut: int, wrap: int) -> None:
    code = base64.b64encode(b"z" * before + secret.encode())
    data = b"\n".join(code[at : at + wrap] for at in range(0, len(code), wrap)) if wrap else code
    cut %= len(data) + 1
    stream = Masker([secret]).stream()

    out = stream.feed(data[:cut]) + stream.feed(data[cut:]) + stream.finish()

    # Up to three characters at the end of a chunk are given out before it is known what they begin.
    left = out.replace(MASK.encode(), b"").replace(b"\n", b"")
    assert MASK.encode() in out
    assert len(left) <= (before * 8 + 5) // 6 + 3 + 4


@pytest.mark.parametrize("line", [b"YWJ\n", b"done a\n", b"6\n", b"$ "])
def test_lines_come_out_at_once(line: bytes) -> None:
    stream = Masker([PLAIN, LINES, "abcdef", "jklmno"]).stream()

    assert stream.feed(line) == line


def test_no_more_than_a_block_is_held_back() -> None:
    stream = Masker([LONG]).stream()

    for at in range(len(LONG)):
        stream.feed(LONG[at : at + 1].encode())
        assert stream.held_bytes < 32

    assert stream.finish() in {b"", MASK.encode()}


def test_line_breaks_are_not_held_back_for_ever() -> None:
    stream = Masker([PLAIN]).stream()
    stream.feed(base64.b64encode(PLAIN.encode())[:8])

    for _ in range(100):
        stream.feed(b"\n" * 100)

    assert stream.held_bytes <= 1100


@pytest.mark.parametrize(
    ("secrets", "text", "masked"),
    [
        (["abcdef", "defghi"], "xabcdefghix", "x***x"),
        (["abcdef", "defghi", "hijkl"], "xabcdefghijklx", "x***x"),
        ([LONG, LONG[300:] + "tail"], f"<{LONG}tail>", "<***>"),
    ],
)
def test_secrets_that_overlap_are_hidden_whole(secrets: list[str], text: str, masked: str) -> None:
    masker = Masker(secrets)

    assert masker.text(text) == masked
    for cut in range(len(text)):
        stream = masker.stream()
        assert (
            stream.feed(text[:cut].encode()) + stream.feed(text[cut:].encode()) + stream.finish()
        ).decode() == masked


@pytest.mark.parametrize("before", range(8192 - len(PLAIN), 8193))
def test_a_secret_is_found_wherever_it_stands_in_a_long_text(before: int) -> None:
    assert Masker([PLAIN]).text("." * before + PLAIN + "." * 9000) == "." * before + MASK + "." * 9000


@pytest.mark.parametrize("text", ["a } b", "no way", "{}", "YWIx", "616231"])
def test_words_that_are_in_every_text_are_left(text: str) -> None:
    """Of short lines nothing, of short values no encoding is looked for."""
    assert Masker(["ab1", "{\n  no,\n}\n"]).text(text) == text


def test_names_that_are_cut_short_show_no_beginning() -> None:
    masker = Masker([LONG])

    assert masker.message(f"not collected: 'a{LONG[:25]}…' and 3 more") == "not collected: 'a***…' and 3 more"
    assert masker.message("nothing…") == "nothing…"


@pytest.mark.parametrize("secrets", [[LONG + "x" * 70_000], [f"line {n}\n" * 3000 for n in range(3)]])
def test_of_many_secrets_the_values_themselves_are_hidden(secrets: list[str]) -> None:
    masker = Masker(secrets)

    assert masker.text(f"<{secrets[0]}>") == "<***>"


def test_a_text_of_nothing_but_secrets_does_not_stop_the_worker() -> None:
    stream = Masker(["a" * length for length in range(1, 33)]).stream()
    started = time.process_time()

    stream.feed(b"a" * 16384)

    assert time.process_time() - started < 5


def test_the_rate_with_many_secrets_is_above_that_of_the_attached_stream() -> None:
    block = b"2026-11-24 12:00:00 INFO request handled in 12 ms by worker 3, path /api/v1/items?x=1\n" * 770
    stream = Masker(
        [f"{ODD}{number}" for number in range(10)] + [f"{number}\n{LINES}" for number in range(10)]
    ).stream()
    started = time.process_time()

    for _ in range(64):
        stream.feed(block)

    assert 64 * len(block) / (time.process_time() - started) > 20e6


@pytest.mark.attack
@pytest.mark.parametrize(
    "text",
    [
        r"p\u00e4\u00fc€",
        r"p\u00E4\u00FC\u20AC",
        r"p\u00e4\u00FC\u20Ac",
        "p%c3%a4%c3%bc%e2%82%ac",
        "p%C3%a4%c3%BC%e2%82%AC",
        r"p\xe4\xfc\u20ac",
        r"p\xC3\xA4\xC3\xBC\xE2\x82\xAC",
        r"p\303\244\303\274\342\202\254",
        "p&#228;&#252;&#8364;",
        "p&#xE4;&#xfc;&#x20AC;",
        r"p\u{e4}\u{FC}\u{20ac}",
        "p=C3=A4=C3=BC=E2=82=AC",
        "70 c3 a4 c3 bc e2 82 ac",
        "70:C3:A4:C3:BC:E2:82:AC",
    ],
)
def test_other_characters_than_ascii_are_hidden_in_any_escapes(text: str) -> None:
    text = text.replace("€", r"\u20ac")

    assert Masker(["päü€"]).text(f"<{text}>") == f"<{MASK}>"
