"""The forms in which a secret may stand in what a script prints or leaves: itself, quoted, escaped, encoded. Pure."""

import base64
import html
import json
import re
from collections.abc import Iterable, Iterator
from urllib.parse import quote

# Shorter lines of a secret of several lines are words like "}" or "no", which are everywhere.
LINE_MIN_BYTES = 4
# Of shorter values base64 and hexadecimal digits have too few characters to be told from others.
ENCODED_MIN_BYTES = 4
# With more than this of secrets, values and lines are looked for as they are: searching for a megabyte of forms
# takes half a second to prepare.
ENCODED_MAX_BYTES = 64 * 1024

_LINE_BREAK = re.compile(r"\r\n|\r|\n")
_NOT_HTML_SAFE = re.compile(r"[<>&]")
_SHELL_SPECIAL = r"[\s\"'\\|&;()<>!{}*\[\]?^$`%s]"
_CONTROL = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\x1b": "\\E", "\a": "\\a", "\b": "\\b", "\f": "\\f", "\v": "\\v"}
# What the encoders of Python, browsers, curl and jq leave as it is, beside letters, digits and "_.-~".
_URL_SAFE = ("", "/", "!'()*", "!'()*;,/?:@&=+$#")
_PERCENT = re.compile(rb"%[0-9A-F]{2}")


def parts(secrets: Iterable[str]) -> set[str]:
    """The values, and the lines of those that have several, without the white space around them."""
    found: set[str] = set()
    for value in secrets:
        lines = [line.strip() for line in _LINE_BREAK.split(value) if line.strip()]
        shortest = LINE_MIN_BYTES if len(lines) > 1 else 1
        found.update(line for line in lines if len(line.encode()) >= shortest)
        found.update((value, "\r\n".join(_LINE_BREAK.split(value))))
    return found - {""}


def written(part: str) -> set[bytes]:
    """As text: in JSON, program text, shell commands, addresses and HTML, beside the text itself."""
    forms = {part, *_in_programs(part), *_in_shells(part), html.escape(part), html.escape(part, quote=False)}
    return {form.encode() for form in forms} | set(_in_addresses(part.encode()))


def encoded(part: bytes) -> set[bytes]:
    """In base64 and hexadecimal digits, whatever stands before and after it: what its own bytes alone decide. Line
    breaks may stand anywhere in these."""
    if len(part) < ENCODED_MIN_BYTES:
        return set()
    digits = part.hex().encode()
    forms = {digits, digits.upper()}
    for before in range(3):
        text = base64.b64encode(bytes(before) + part)
        # A character has six bits; the first and the last one may be others' in part.
        standard = text[-(-before * 8 // 6) : (before + len(part)) * 8 // 6]
        forms |= {standard, standard.replace(b"+", b"-").replace(b"/", b"_")}
    return forms


def _in_programs(part: str) -> Iterator[str]:
    for text in (json.dumps(part)[1:-1], json.dumps(part, ensure_ascii=False)[1:-1]):
        yield text
        yield text.replace("/", "\\/")
        yield _NOT_HTML_SAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
    for text in (repr(part)[1:-1], ascii(part)[1:-1], repr(part.encode())[2:-1]):
        yield text
        yield text.replace("\\'", "'")
        yield text.replace("\\'", "'").replace("'", "\\'")


def _in_shells(part: str) -> Iterator[str]:
    """In single quotes (two ways), in double quotes, with backslashes, and as `$'…'`."""
    yield part.replace("'", "'\"'\"'")
    yield part.replace("'", "'\\''")
    yield re.sub(r'(["$`\\])', r"\\\1", part)
    for also in ("", ",", ",~#"):
        yield re.sub(f"({_SHELL_SPECIAL % also})", r"\\\1", part)
    escaped = part.replace("\\", "\\\\").replace("'", "\\'")
    yield "".join(_CONTROL.get(character, character) for character in escaped)


def _in_addresses(part: bytes) -> Iterator[bytes]:
    for safe in _URL_SAFE:
        text = quote(part, safe=safe).encode()
        for form in (text, text.replace(b"%20", b"+")):
            yield form
            yield _PERCENT.sub(lambda match: match[0].lower(), form)
    for form in encoded(part):
        if b"+" in form or b"/" in form:
            text = form.replace(b"+", b"%2B").replace(b"/", b"%2F")
            yield text
            yield text.replace(b"%2B", b"%2b").replace(b"%2F", b"%2f")
