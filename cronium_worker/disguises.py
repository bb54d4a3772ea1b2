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
_NOT_ASCII = re.compile(r"[^\0-\x7f]")
_NOT_IN_MAIL = frozenset((*range(32), ord("="), *range(127, 256)))
_SHELL_SPECIAL = r"[\s\"'\\|&;()<>!{}*\[\]?^$`%s]"
_CONTROL = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\x1b": "\\E", "\a": "\\a", "\b": "\\b", "\f": "\\f", "\v": "\\v"}
# What the encoders of Python, browsers, curl and jq leave as it is, beside letters, digits and "_.-~".
_URL_SAFE = ("", "/", "!'()*", "!'()*;,/?:@&=+$#")
_NUMBERED_QUOTES = (str.maketrans({"'": "&#39;", '"': "&#34;"}), str.maketrans({"'": "&#39;", '"': "&quot;"}))


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
    """As text: in program text, JSON, shell commands, HTML and tables, beside the text itself."""
    return {form.encode() for form in (part, *_in_programs(part), *_in_shells(part), *_in_html(part), *_doubled(part))}


def escaped(part: str) -> set[bytes]:
    """With characters as numbers, the digits in either case: in addresses, mail, JSON, program text and HTML."""
    forms = {form.encode() for form in (*_in_ascii(part), *_as_entities(part))}
    forms.update(_in_addresses(part.encode()))
    if not part.isascii() or "=" in part:
        forms.add(b"".join(b"=%02x" % byte if byte in _NOT_IN_MAIL else bytes((byte,)) for byte in part.encode()))
    return forms - {part.encode()}


def encoded(part: bytes) -> set[bytes]:
    """In base64, whatever stands before and after it: what its own bytes alone decide. Line breaks may stand anywhere
    in it."""
    if len(part) < ENCODED_MIN_BYTES:
        return set()
    forms = set()
    for before in range(3):
        text = base64.b64encode(bytes(before) + part)
        # A character has six bits; the first and the last one may be others' in part.
        standard = text[-(-before * 8 // 6) : (before + len(part)) * 8 // 6]
        forms |= {standard, standard.replace(b"+", b"-").replace(b"/", b"_")}
    return forms


def hexadecimal(part: bytes) -> set[bytes]:
    """In hexadecimal digits of either case. Line breaks, blanks and colons may stand anywhere in them."""
    return {part.hex().encode()} if len(part) >= ENCODED_MIN_BYTES else set()


def _in_programs(part: str) -> Iterator[str]:
    text = json.dumps(part, ensure_ascii=False)[1:-1]
    yield text
    yield text.replace("/", "\\/")
    for text in (repr(part)[1:-1], repr(part.encode())[2:-1]):
        yield from _requoted(text)


def _requoted(text: str) -> Iterator[str]:
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
    text = "".join(_CONTROL.get(character, character) for character in part.replace("\\", "\\\\"))
    # Also as Git and ls write names: other bytes as octal digits.
    for form in (text, text.replace("'", "\\'"), text.replace('"', '\\"'), text.replace(" ", "\\ ")):
        yield from (form, _octal(form))


def _octal(text: str) -> str:
    return "".join(chr(byte) if 32 <= byte < 127 else f"\\{byte:03o}" for byte in text.encode())


def _in_html(part: str) -> Iterator[str]:
    safe = html.escape(part, quote=False)
    yield safe
    yield html.escape(part)
    for quotes in _NUMBERED_QUOTES:
        yield safe.translate(quotes)


def _doubled(part: str) -> Iterator[str]:
    """Quotes as in CSV, SQL and YAML."""
    yield part.replace('"', '""')
    yield part.replace("'", "''")


def _in_ascii(part: str) -> Iterator[str]:
    text = json.dumps(part)[1:-1]
    yield text
    yield text.replace("/", "\\/")
    yield _NOT_HTML_SAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", json.dumps(part, ensure_ascii=False)[1:-1])
    yield _NOT_HTML_SAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
    for text in (repr(part)[1:-1], ascii(part)[1:-1], repr(part.encode())[2:-1]):
        yield from _requoted(text)
    if not part.isascii():
        yield _NOT_ASCII.sub(lambda match: f"\\u{{{ord(match[0]):x}}}", json.dumps(part, ensure_ascii=False)[1:-1])


def _as_entities(part: str) -> Iterator[str]:
    for text in (part, *_in_html(part)):
        if not text.isascii():
            yield _NOT_ASCII.sub(lambda match: f"&#{ord(match[0])};", text)
            yield _NOT_ASCII.sub(lambda match: f"&#x{ord(match[0]):x};", text)


def _in_addresses(part: bytes) -> Iterator[bytes]:
    for safe in _URL_SAFE:
        text = quote(part, safe=safe).encode()
        yield text
        yield text.replace(b"%20", b"+")
    for form in encoded(part):
        if b"+" in form or b"/" in form:
            yield form.replace(b"+", b"%2B").replace(b"/", b"%2F")
