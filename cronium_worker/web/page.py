"""The page: static files, which any browser may have; what they show they ask the API for."""

from importlib.resources.abc import Traversable
from typing import Any

from starlette.responses import Response
from starlette.staticfiles import StaticFiles

_HEADERS = {
    # Nothing but what is served here; nothing inline, and in no frame of another site.
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    # Asked for again each time, and sent only after an upgrade.
    "Cache-Control": "no-cache",
}


class Page(StaticFiles):
    """The files of a directory, `index.html` at its root."""

    def __init__(self, directory: Traversable) -> None:
        super().__init__(directory=str(directory), html=True)

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        """As Starlette's, with what browsers are to hold to."""
        response = super().file_response(*args, **kwargs)
        response.headers.update(_HEADERS)
        return response
