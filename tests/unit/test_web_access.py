"""Who may use the API: tokens, cookies, delays, and what is refused before a body is read. ASGI without a server."""

import asyncio
import hashlib
import hmac
from http.cookies import SimpleCookie
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI, HTTPException, Request

from cronium_worker.envelope import MAX_MESSAGE_BYTES
from cronium_worker.web import access, guard
from cronium_worker.web.access import Access, Guesses, is_of_this_site
from cronium_worker.web.guard import Guard

TOKEN = "a token: ä"
SESSION = hmac.new(TOKEN.encode(), b"cronium web session", hashlib.sha256).hexdigest()
BEARER = {"Authorization": f"Bearer {TOKEN}"}


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(round(seconds, 3))


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(access, "time", SimpleNamespace(monotonic=clock.monotonic))
    monkeypatch.setattr(access, "asyncio", SimpleNamespace(sleep=clock.sleep))
    return clock


class Answer:
    def __init__(self, messages: list[Any]) -> None:
        self.status = messages[0]["status"]
        self.headers = {name.decode(): value.decode() for name, value in messages[0]["headers"]}
        self.body = b"".join(message.get("body", b"") for message in messages[1:])


class Site:
    """The guard before an application that says what has come through to it."""

    def __init__(self, token: str = TOKEN) -> None:
        self.app = FastAPI()
        own = Access(token)
        self.app.include_router(own.routes("/flower"))
        self.app.add_api_route("/page", lambda: "page")
        self.app.add_api_route("/page", lambda: "changed", methods=["POST"])
        for path in ("/jobs", "/schedules", "/jobs/j/cancel"):
            self.app.add_api_route(path, self.count, methods=["GET", "POST"])
        self.entry = Guard(self.app, access=own, public=frozenset({"/page"}))

    @staticmethod
    async def count(request: Request) -> int:
        return len(await request.body())

    def ask(
        self, method: str, path: str, headers: dict[str, str] | None = None, *body: bytes, scheme: str = "http"
    ) -> Answer:
        return asyncio.run(self.call(method, path, headers or {}, *body, scheme=scheme))

    async def call(self, method: str, path: str, headers: dict[str, str], *body: bytes, scheme: str = "http") -> Answer:
        sent: list[Any] = []
        coming = [{"type": "http.request", "body": part, "more_body": True} for part in body]
        coming.append({"type": "http.request", "body": b"", "more_body": False})

        async def receive() -> Any:
            return coming.pop(0) if coming else {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        await self.entry(scope(method, path, headers, scheme=scheme), receive, send)
        return Answer(sent)


def scope(method: str, path: str, headers: dict[str, str], *, scheme: str = "http", client: str = "") -> Any:
    raw = [(name.lower().encode(), value.encode("latin-1", "replace")) for name, value in headers.items()]
    return {
        "type": "http", "http_version": "1.1", "method": method, "path": path, "raw_path": path.encode(),
        "root_path": "", "scheme": scheme, "query_string": b"", "headers": raw, "server": ("h", 80),
        "client": (client, 5) if client else None,
    }  # fmt: skip


# ---- token and cookie


@pytest.mark.parametrize(
    ("token", "headers", "status"),
    [
        ("t", {"Authorization": "Bearer t"}, 200),
        ("t", {"Cookie": f"cronium_session={hmac.new(b't', b'cronium web session', hashlib.sha256).hexdigest()}"}, 200),
        ("t", {"Authorization": "Bearer x", "Cookie": "cronium_session=x"}, 401),
        ("t", {"Authorization": "Bearer T"}, 401),
        ("t", {"Cookie": "cronium_session=t"}, 401),
        ("t", {"Cookie": f"cronium_session={SESSION}"}, 401),
        ("t", {}, 401),
        ("", {}, 200),
        ("", {"Authorization": "Bearer x"}, 200),
    ],
)
def test_the_token_or_its_cookie_opens(token: str, headers: dict[str, str], status: int, clock: Clock) -> None:
    answer = Site(token).ask("GET", "/jobs", headers)

    assert answer.status == status
    assert clock.slept == [0.1] * (status == 401 and headers != {})
    if status == 401:
        assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(("scheme", "secure"), [("http", ""), ("https", True)])
def test_the_cookie_is_for_this_site_alone_and_no_script(scheme: str, secure: str | bool) -> None:
    body = f'{{"token": "{TOKEN}"}}'.encode()

    answer = Site().ask("POST", "/session", {"Content-Type": "application/json"}, body, scheme=scheme)

    morsel = SimpleCookie(answer.headers["set-cookie"])["cronium_session"]
    assert (answer.status, morsel.value) == (204, SESSION)
    assert (morsel["secure"], morsel["httponly"], morsel["samesite"]) == (secure, True, "strict")
    assert (morsel["max-age"], morsel["path"]) == (str(7 * 24 * 3600), "/")


def test_a_wrong_token_gives_no_cookie(clock: Clock) -> None:
    answer = Site().ask("POST", "/session", {"Content-Type": "application/json"}, b'{"token": "x"}')

    assert (answer.status, "set-cookie" in answer.headers, clock.slept) == (401, False, [0.1])


def test_logging_out_takes_the_cookie_away() -> None:
    answer = Site().ask("DELETE", "/session")

    morsel = SimpleCookie(answer.headers["set-cookie"])["cronium_session"]
    assert (answer.status, morsel.value, morsel["max-age"]) == (204, "", "0")
    assert (morsel["httponly"], morsel["samesite"]) == (True, "strict")


@pytest.mark.parametrize(("token", "said"), [("t", b'{"token":true'), ("", b'{"token":false')])
def test_the_page_learns_whether_there_is_a_token_once_it_is_in(token: str, said: bytes) -> None:
    answer = Site(token).ask("GET", "/session", {"Authorization": "Bearer t"})

    assert answer.body == said + b',"flower":"/flower"}'


# ---- wrong tokens


def test_each_wrong_token_of_an_address_waits_longer_and_a_minute_later_it_is_forgotten(clock: Clock) -> None:
    guesses = Guesses()

    assert [round(guesses.note("a"), 1) for _ in range(7)] == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]
    assert guesses.note("b") == 0.1
    clock.now += 59.9
    assert guesses.note("a") == 2.0
    clock.now += 60
    assert guesses.note("a") == 0.1


@pytest.mark.parametrize("count", [16, 40])
def test_the_longest_delay_stays(count: int) -> None:
    guesses = Guesses()

    assert [guesses.note("a") for _ in range(count)][-1] == 2.0


def test_the_oldest_address_is_forgotten_when_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "_MOST_ADDRESSES", 2)
    guesses = Guesses()

    for client in ("a", "b", "a", "c"):
        guesses.note(client)

    assert list(guesses._wrong) == ["a", "c"]


@pytest.mark.parametrize(
    ("others", "own", "status"), [(0, 19, 401), (0, 20, 429), (99, 0, 401), (98, 1, 401), (99, 1, 429)]
)
def test_few_answers_wait_at_once(others: int, own: int, status: int) -> None:
    gate = Access("t")
    waiting = {str(number): 1 for number in range(others)} | ({"10.0.0.1": own} if own else {})
    gate._guesses._delayed = dict(waiting)
    request = Request(scope("GET", "/", {"Authorization": "Bearer x"}, client="10.0.0.1"))

    with pytest.raises(HTTPException) as refused:
        asyncio.run(gate.check(request))

    assert refused.value.status_code == status
    assert gate._guesses._delayed == waiting


@pytest.mark.parametrize(
    ("address", "client"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::9", "2001:db8:1:3::/64"),
        ("", ""),
        ("a socket", ""),
    ],
)
def test_who_counts_as_one_client(address: str, client: str) -> None:
    gate = Access("t")
    headers = {"Cookie": "cronium_session=x"}

    with pytest.raises(HTTPException):
        asyncio.run(gate.check(Request(scope("GET", "/", headers, client=address))))

    assert list(gate._guesses._wrong) == [client]


# ---- other sites


@pytest.mark.parametrize(
    ("headers", "own"),
    [
        ({}, True),
        ({"Sec-Fetch-Site": "same-origin"}, True),
        ({"Sec-Fetch-Site": "none"}, True),
        ({"Sec-Fetch-Site": "same-site"}, False),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "http://h:8000"}, False),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "http://other"}, True),
        ({"Origin": "http://h:8000"}, True),
        ({"Origin": "http://h"}, False),
        ({"Origin": "null"}, False),
        ({"Origin": "http://other:8000"}, False),
    ],
)
def test_pages_of_other_sites_change_nothing(headers: dict[str, str], own: bool) -> None:
    headers = {"Host": "h:8000"} | headers
    assert is_of_this_site(Request(scope("POST", "/jobs", headers))) is own
    site = Site("")
    assert site.ask("POST", "/jobs/j/cancel", headers).status == (200 if own else 403)
    assert site.ask("GET", "/jobs", headers).status == 200


# ---- what is let through


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/page", 200),
        ("HEAD", "/page", 405),  # let through, to a route that does not know it
        ("POST", "/page", 401),
        ("GET", "/jobs", 401),
        ("POST", "/jobs", 401),
        ("GET", "/session", 401),
        ("PUT", "/session", 401),
        ("DELETE", "/session", 204),
        ("GET", "/none", 401),
    ],
)
def test_without_the_token_only_the_page_and_the_log_in(method: str, path: str, status: int) -> None:
    answer = Site().ask(method, path)

    assert answer.status == status
    assert {name: answer.headers[name] for name in answer.headers if name.startswith(("x-", "cross-"))} == {
        "x-content-type-options": "nosniff",
        "x-frame-options": "DENY",
        "cross-origin-resource-policy": "same-origin",
    }


@pytest.mark.parametrize(
    ("method", "path", "limit"),
    [
        ("POST", "/jobs", MAX_MESSAGE_BYTES),
        ("POST", "/schedules", MAX_MESSAGE_BYTES),
        ("POST", "/jobs/j/cancel", 4096),
        ("GET", "/jobs", 4096),
    ],
)
@pytest.mark.parametrize("told", [True, False])
def test_bodies_have_a_longest_length_told_or_not(method: str, path: str, limit: int, told: bool) -> None:
    site = Site("")
    for size, status in ((limit, 200), (limit + 1, 413)):
        headers = {"Content-Length": str(size)} if told else {}
        half = bytes(size // 2)

        answer = site.ask(method, path, headers, half, half, bytes(size - 2 * len(half)))

        assert (answer.status, answer.body == str(size).encode()) == (status, status == 200), size


def test_a_body_that_says_it_is_too_long_is_not_read() -> None:
    for size, status in ((4096, 200), (4097, 413)):
        assert Site("").ask("POST", "/jobs/j/cancel", {"Content-Length": str(size)}).status == status


def test_a_length_that_lies_is_no_way_around_the_limit() -> None:
    answer = Site("").ask("POST", "/jobs/j/cancel", {"Content-Length": "5"}, bytes(5000))

    assert answer.status == 413


@pytest.mark.parametrize(
    ("path", "headers", "is_whole"),
    [
        ("/jobs", {}, True),
        ("/jobs", {"Content-Length": "262144"}, False),
        ("/jobs", {"Content-Length": "262145"}, True),
        ("/jobs", {"Content-Length": "x"}, True),
        ("/jobs/j/cancel", {}, False),
    ],
)
def test_large_jobs_are_read_whole_and_wait_in_line(path: str, headers: dict[str, str], is_whole: bool) -> None:
    site = Site("")

    async def both() -> bool:
        for _ in range(guard._LARGE_AT_ONCE):
            await site.entry._large.acquire()
        call = asyncio.ensure_future(site.call("POST", path, headers, b"abc"))
        done, _ = await asyncio.wait([call], timeout=0.05 if is_whole else 10)
        site.entry._large.release()
        assert (await call).body == b"3"
        return not done

    assert asyncio.run(both()) is is_whole


def test_a_body_that_ends_early_is_refused() -> None:
    site = Site("")
    said: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        said.append(message)

    asyncio.run(site.entry(scope("POST", "/jobs", {}), receive, send))

    assert said[0]["status"] == 400
