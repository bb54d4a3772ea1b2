"""The first to see a request: before anything reads its body or knows its route, it says who may and how much."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, nullcontext

from fastapi import HTTPException, Request
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cronium_worker.envelope import MAX_MESSAGE_BYTES
from cronium_worker.web.access import Access, is_of_this_site
from cronium_worker.web.problems import refuse

_SAFE_METHODS = ("GET", "HEAD")
# Calls with a job in their body, which is no larger than the message that it becomes.
_JOB_CALLS = {("POST", "/jobs"), ("POST", "/schedules")}
_SMALL_BYTES = 4096
_SESSION_CALLS = {("POST", "/session"), ("DELETE", "/session")}
# Larger ones are read whole, and then dealt with a few at a time: what is made of them is many times their size.
_LARGE_BYTES = 256 * 1024
_LARGE_AT_ONCE = 2

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Guard:
    """ASGI middleware. Without the token it lets nothing through but the page's files (`public`) and the log-in."""

    def __init__(self, app: ASGIApp, *, access: Access, public: frozenset[str]) -> None:
        self._app = app
        self._access = access
        self._public = public
        self._large = asyncio.Semaphore(_LARGE_AT_ONCE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer what may not pass; hand on the rest with its body counted."""
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        request = Request(scope)
        body = _Body(receive, _limit(request))
        try:
            await self._check(request)
            body.check_length(request)
            line: AbstractAsyncContextManager[object] = nullcontext()
            if (request.method, request.url.path) in _JOB_CALLS and not _is_small(request):
                await body.read()
                line = self._large
            async with line:
                await self._app(scope, body.receive, body.sends(send))
        except HTTPException as error:
            if not body.is_answered:
                await refuse(request, error)(scope, receive, body.sends(send))

    async def _check(self, request: Request) -> None:
        if request.method not in _SAFE_METHODS and not is_of_this_site(request):
            raise HTTPException(403, "a page of another site may not")
        method, path = request.method, request.url.path
        is_public = path in self._public if method in _SAFE_METHODS else (method, path) in _SESSION_CALLS
        if not is_public:
            await self._access.check(request)


class _Body:
    """A request's body, of which no more than `limit` bytes are handed on, whatever its headers say."""

    def __init__(self, receive: Receive, limit: int) -> None:
        self._receive = receive
        self._limit = limit
        self._taken = 0
        self._kept: list[Message] = []
        self.is_answered = False

    def check_length(self, request: Request) -> None:
        """Raises HTTPException if it is too long by its header."""
        length = request.headers.get("Content-Length", "")
        if length.isdecimal() and int(length[:20]) > self._limit:
            raise self._too_large()

    async def read(self) -> None:
        """Keep the whole of it. Raises HTTPException."""
        body, more = bytearray(), True
        while more:
            message = await self.receive()
            if message["type"] != "http.request":
                raise HTTPException(400, "the body has ended early")
            body += message.get("body", b"")
            more = message.get("more_body", False)
        self._kept.append({"type": "http.request", "body": bytes(body), "more_body": False})

    async def receive(self) -> Message:
        """ASGI's. Raises HTTPException."""
        if self._kept:
            return self._kept.pop()
        message = await self._receive()
        self._taken += len(message.get("body", b"")) if message["type"] == "http.request" else 0
        if self._taken > self._limit:
            if self.is_answered:
                return {"type": "http.disconnect"}
            raise self._too_large()
        return message

    def sends(self, send: Send) -> Callable[[Message], Awaitable[None]]:
        """ASGI's, with the headers that every answer has."""

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.is_answered = True
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        return answer

    def _too_large(self) -> HTTPException:
        return HTTPException(413, f"the body is larger than {self._limit} bytes")


def _limit(request: Request) -> int:
    return MAX_MESSAGE_BYTES if (request.method, request.url.path) in _JOB_CALLS else _SMALL_BYTES


def _is_small(request: Request) -> bool:
    length = request.headers.get("Content-Length", "")
    return length.isdecimal() and int(length[:20]) <= _LARGE_BYTES
