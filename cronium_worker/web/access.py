"""Who may use the API and its page: whoever has the token, in a header or, in a browser, in a cookie made with it."""

import hashlib
import hmac
from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import APIRouter, Body, Depends, HTTPException, Request, Response

_COOKIE = "cronium_session"
_SESSION_S = 7 * 24 * 3600
_SAFE_METHODS = ("GET", "HEAD")
_REFUSED = HTTPException(401, "give the token: Authorization: Bearer …", {"WWW-Authenticate": "Bearer"})


class Access:
    """The rules for one token; "": there is none, and everybody who gets here may."""

    def __init__(self, token: str) -> None:
        self._token = token
        self._session = hmac.new(token.encode(), b"cronium web session", hashlib.sha256).hexdigest()

    def __call__(self, request: Request) -> None:
        """A dependency of FastAPI. Raises HTTPException."""
        if request.method not in _SAFE_METHODS and not _is_of_this_site(request):
            raise HTTPException(403, "a page of another site may not")
        if not self._token:
            return
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if not _same(given, self._token) and not _same(request.cookies.get(_COOKIE, ""), self._session):
            raise _REFUSED

    def routes(self, flower_url: str) -> APIRouter:
        """The log-in of the page, which must not need one itself."""
        router = APIRouter(prefix="/session", tags=["session"])

        @router.get("", dependencies=[Depends(self)])
        def get_session() -> dict[str, Any]:
            """What the page has to know: whether there is a token, and where Flower is."""
            return {"token": bool(self._token), "flower": flower_url or None}

        @router.post("", status_code=204)
        def log_in(request: Request, response: Response, token: Annotated[str, Body(embed=True)]) -> None:
            """Exchange the token for a cookie: for browsers."""
            if not _is_of_this_site(request) or not _same(token, self._token):
                raise _REFUSED
            encrypted = request.url.scheme == "https"
            response.set_cookie(
                _COOKIE, self._session, max_age=_SESSION_S, httponly=True, samesite="strict", secure=encrypted
            )

        @router.delete("", status_code=204)
        def log_out(response: Response) -> None:
            response.delete_cookie(_COOKIE, httponly=True, samesite="strict")

        return router


def _same(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode(), wanted.encode())


def _is_of_this_site(request: Request) -> bool:
    """Not sent by a page of another site; whatever is no browser says neither."""
    origin = request.headers.get("Origin")
    fetched_by = request.headers.get("Sec-Fetch-Site")
    if fetched_by is not None:
        return fetched_by in ("same-origin", "none")
    return origin is None or urlsplit(origin).netloc == request.headers.get("Host")
