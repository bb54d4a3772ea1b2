"""Who may use the API: whoever has the token, in a header or, in a browser, in a cookie made with it."""

import asyncio
import hashlib
import hmac
import time
from collections import OrderedDict
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import APIRouter, Body, HTTPException, Request, Response

_COOKIE = "cronium_session"
_SESSION_S = 7 * 24 * 3600

_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.1, 2.0
_FORGET_S = 60.0
_MOST_ADDRESSES = 10_000
_MOST_DELAYED, _MOST_DELAYED_OF_ONE = 100, 20


class Access:
    """The rules for one token; "": there is none, and everybody who gets here may."""

    def __init__(self, token: str) -> None:
        self._token = token
        self._session = hmac.new(token.encode(), b"cronium web session", hashlib.sha256).hexdigest()
        self._guesses = Guesses()

    async def check(self, request: Request) -> None:
        """Raises HTTPException, after a delay if the token is a wrong one."""
        if not self._token:
            return
        bearer = request.headers.get("Authorization", "").removeprefix("Bearer ")
        cookie = request.cookies.get(_COOKIE, "")
        if _same(bearer, self._token) or _same(cookie, self._session):
            return
        await self._refuse(request, guessed=bool(bearer or cookie))

    def routes(self, flower_url: str) -> APIRouter:
        """The log-in of the page."""
        router = APIRouter(prefix="/session", tags=["session"])

        @router.get("")
        def get_session() -> dict[str, Any]:
            """What the page has to know: whether there is a token, and where Flower is."""
            return {"token": bool(self._token), "flower": flower_url or None}

        @router.post("", status_code=204)
        async def log_in(request: Request, response: Response, token: Annotated[str, Body(embed=True)]) -> None:
            """Exchange the token for a cookie: for browsers."""
            if not _same(token, self._token):
                await self._refuse(request, guessed=True)
            encrypted = request.url.scheme == "https"
            response.set_cookie(
                _COOKIE, self._session, max_age=_SESSION_S, httponly=True, samesite="strict", secure=encrypted
            )

        @router.delete("", status_code=204)
        def log_out(response: Response) -> None:
            response.delete_cookie(_COOKIE, httponly=True, samesite="strict")

        return router

    async def _refuse(self, request: Request, *, guessed: bool) -> None:
        if guessed:
            await self._guesses.delay(request.client.host if request.client else "")
        raise HTTPException(401, "give the token: Authorization: Bearer …", {"WWW-Authenticate": "Bearer"})


class Guesses:
    """Delays answers to wrong tokens, the longer the more of them an address has sent.

    The right token is never delayed, so nobody is locked out. What is remembered and how many answers wait is bounded:
    beyond that the answer is 429, at once.
    """

    def __init__(self) -> None:
        self._wrong: OrderedDict[str, tuple[int, float]] = OrderedDict()  # by address: how many, when the last
        self._delayed: dict[str, int] = {}

    async def delay(self, address: str) -> None:
        """Raises HTTPException."""
        client = _network(address)
        delay_s = self.note(client)
        if sum(self._delayed.values()) >= _MOST_DELAYED or self._delayed.get(client, 0) >= _MOST_DELAYED_OF_ONE:
            raise HTTPException(429, "too many wrong tokens: try again later", {"Retry-After": "2"})
        self._delayed[client] = self._delayed.get(client, 0) + 1
        try:
            await asyncio.sleep(delay_s)
        finally:
            self._delayed[client] -= 1
            if not self._delayed[client]:
                del self._delayed[client]

    def note(self, client: str) -> float:
        """Count a wrong token and return the seconds that its answer is delayed."""
        now = time.monotonic()
        count, last = self._wrong.pop(client, (0, 0.0))
        count = count if now - last < _FORGET_S else 0
        self._wrong[client] = (min(count + 1, 16), now)
        if len(self._wrong) > _MOST_ADDRESSES:
            self._wrong.popitem(last=False)
        return min(_LONGEST_DELAY_S, _FIRST_DELAY_S * (1 << count))


def _network(address: str) -> str:
    """The address, of IPv6 the /64 that one client usually has."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return ""
    return str(ip_network((parsed, 64), strict=False)) if isinstance(parsed, IPv6Address) else address


def _same(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), wanted.encode())


def is_of_this_site(request: Request) -> bool:
    """Return whether a page of another site has not sent this; a program says neither."""
    origin = request.headers.get("Origin")
    fetched_by = request.headers.get("Sec-Fetch-Site")
    if fetched_by is not None:
        return fetched_by in ("same-origin", "none")
    return origin is None or urlsplit(origin).netloc == request.headers.get("Host")
