"""The HTTP API and its page: jobs and hosts, for programs in any language and for people. What it offers programs is at
/openapi.json."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files

from fastapi import FastAPI
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from cronium_worker import __version__
from cronium_worker.fleet.connections import async_client
from cronium_worker.settings import Web, get_settings
from cronium_worker.web.access import Access
from cronium_worker.web.fleet import fleet
from cronium_worker.web.guard import Guard
from cronium_worker.web.jobs import jobs
from cronium_worker.web.page import Page
from cronium_worker.web.problems import CODES, answer, refuse
from cronium_worker.web.results import Results
from cronium_worker.web.schedules import schedules

_LOOPBACK = ["localhost", "127.0.0.1", "[::1]"]


def make_api(section: Web) -> FastAPI:
    """The application, for one server process."""
    token = section.token.get_secret_value()
    access = Access(token)

    @asynccontextmanager
    async def lifespan(api: FastAPI) -> AsyncIterator[None]:
        url = get_settings().redis_url.get_secret_value()
        async with async_client(url, decode_responses=True) as redis, async_client(url) as raw:
            api.state.redis = redis
            api.state.results = Results(raw)
            yield

    api = FastAPI(title="cronium", version=__version__, lifespan=lifespan, redoc_url=None, docs_url=None)
    static = files("cronium_worker.web") / "static"
    public = frozenset({"/", "/openapi.json", *(f"/{file.name}" for file in static.iterdir())})
    api.add_middleware(Guard, access=access, public=public)
    if not token:
        # A page of somebody else's may have a name of its own that leads here.
        api.add_middleware(TrustedHostMiddleware, allowed_hosts=_LOOPBACK)
    api.add_exception_handler(StarletteHTTPException, refuse)
    for error, code in CODES.items():
        api.add_exception_handler(error, answer(code))
    for router in (jobs, schedules, fleet):
        api.include_router(router)
    api.include_router(access.routes(get_settings().flower.url))
    api.mount("/", Page(static))
    return api
