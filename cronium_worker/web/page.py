"""The page: static files, which any browser may have; what they show they ask the API for."""

import base64
import hashlib
import re
from importlib.resources.abc import Traversable
from typing import Any

from starlette.responses import Response
from starlette.staticfiles import StaticFiles

_HEADERS = {
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    # Asked for again each time, and sent only after an upgrade.
    "Cache-Control": "no-cache",
}


class Page(StaticFiles):
    """The files of a directory, `index.html` at its root."""

    def __init__(self, directory: Traversable) -> None:
        super().__init__(directory=str(directory), html=True)
        # Nothing but what is served here; nothing inline but what loads the page; and in no frame of another site.
        self._headers = _HEADERS | {
            "Content-Security-Policy": f"default-src 'self'; script-src 'self' {_loader(directory)}; base-uri 'none'; "
            "form-action 'none'; frame-ancestors 'none'"
        }

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        """As Starlette's, with what browsers are to hold to."""
        response = super().file_response(*args, **kwargs)
        response.headers.update(self._headers)
        return response


def _loader(directory: Traversable) -> str:
    """The source expression of the one inline script (CSP level 3, 2.3.1)."""
    index = (directory / "index.html").read_text(encoding="utf-8")
    [script] = re.findall(r"<script>(.*?)</script>", index, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
