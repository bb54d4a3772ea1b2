"""Flower with our pages, our events and our settings; nothing of it is read from elsewhere."""

import asyncio
import logging
import signal
from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any

from flower.app import Flower
from flower.inspector import Inspector
from flower.options import options
from flower.urls import settings as flower_settings
from flower.views import BaseHandler
from redis.exceptions import RedisError
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPHeaders
from tornado.ioloop import IOLoop, PeriodicCallback
from tornado.log import enable_pretty_logging
from tornado.netutil import bind_sockets
from tornado.template import Loader, Template
from tornado.web import ErrorHandler, OutputTransform

from cronium_worker.app import app
from cronium_worker.dashboard.events import FleetEvents
from cronium_worker.dashboard.views import HANDLERS, is_loopback_name
from cronium_worker.descriptors import raise_limit
from cronium_worker.errors import ConfigurationError
from cronium_worker.settings import Flower as Section
from cronium_worker.settings import is_loopback, without_password
from cronium_worker.tasks import store

logger = logging.getLogger(__name__)

_TEMPLATES = files("cronium_worker.dashboard") / "templates"
# Some kilobytes each; the oldest are dropped.
_MOST_TASKS = 20_000
_REMEMBERED_JOBS = 1000
_LOOK_EVERY_S = 5.0
# A worker that is gone is shown as offline for so long.
_GONE_AFTER_S = 3600


_MOST_BODY_BYTES = 256 * 1024
# For a request, from the last answer on, and for its body.
_IDLE_S = 15
_RESERVED_DESCRIPTORS = 224
_HEADERS = {
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}


class _Server(HTTPServer):
    """Tornado's, with fewer connections than it has descriptors."""

    most = 1000

    def handle_stream(self, stream: Any, address: Any) -> None:
        if len(self._connections) >= self.most:
            stream.close()
        else:
            super().handle_stream(stream, address)


class _Unframed(OutputTransform):
    """Puts on every answer, whoever gives it, that it is in no frame of another site."""

    def transform_first_chunk(
        self, status_code: int, headers: HTTPHeaders, chunk: bytes, finishing: bool
    ) -> tuple[int, HTTPHeaders, bytes]:
        for name, value in _HEADERS.items():
            headers[name] = value
        return status_code, headers, chunk


class _Inspector(Inspector):
    """Flower's knowledge of the workers: their Celery configuration has addresses with passwords."""

    def _on_update(self, workername: str, method: str, response: Any) -> None:
        super()._on_update(workername, method, masked(response) if method == "conf" else response)


def masked(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Celery masks the addresses that it knows itself; beat's, for one, it does not."""
    return {name: without_password(v) if isinstance(v, str) else v for name, v in configuration.items()}


class _Templates(Loader):
    """Ours before Flower's of the same name."""

    def _create_template(self, name: str) -> Template:
        own = _TEMPLATES / name
        return Template(own.read_bytes(), name=name, loader=self) if own.is_file() else super()._create_template(name)


class Dashboard(Flower):
    """Flower's application on our Celery app."""

    def __init__(self, io_loop: IOLoop) -> None:
        self.store = store()
        events = FleetEvents(
            app,
            io_loop=io_loop,
            enable_events=False,  # our workers send them anyhow
            max_workers_in_memory=options.max_workers,
            max_tasks_in_memory=_MOST_TASKS,
        )
        loader = _Templates(flower_settings["template_path"])
        super().__init__(
            capp=app, options=options, events=events, io_loop=io_loop, **flower_settings, template_loader=loader
        )
        self.inspector = _Inspector(io_loop, app, options.inspect_timeout / 1000)
        # Tornado asks these before the handlers that Flower has just given it.
        self.add_handlers(r".*", HANDLERS)
        self.transforms.append(_Unframed)
        self._looks = PeriodicCallback(self._look, _LOOK_EVERY_S * 1000)

    def find_handler(self, request: Any, **options: Any) -> Any:
        """Without a login, a page of another site whose name leads here gets nothing."""
        if not self.options.basic_auth and not is_loopback_name(request.host):
            return self.get_handler_delegate(request, ErrorHandler, {"status_code": 400})
        return super().find_handler(request, **options)

    def start_http_server(self) -> int:
        """As Flower's, with limits. Returns the port."""
        sockets = bind_sockets(self.options.port, address=self.options.address)
        server = _Server(self, max_body_size=_MOST_BODY_BYTES, idle_connection_timeout=_IDLE_S, body_timeout=_IDLE_S)
        server.most = max(8, min(server.most, raise_limit() - _RESERVED_DESCRIPTORS))
        server.add_sockets(sockets)
        return int(sockets[0].getsockname()[1])

    def start(self) -> None:
        """Blocks until `stop`."""
        self.io_loop.add_callback(self._look)
        self._looks.start()
        super().start()

    async def _look(self) -> None:
        """Compare with the records."""
        try:
            records = await self.io_loop.run_in_executor(None, self.store.recent, _REMEMBERED_JOBS)
        except RedisError as error:
            logger.warning("job records cannot be read: Redis: %s", error)
        else:
            self.events.remember(records)


def serve(section: Section, *, report: Callable[[str], Any]) -> None:
    """Serve the page until SIGTERM or SIGINT; `report` gets its address. Raises ConfigurationError."""
    if section.login is None and not is_loopback(section.address):
        raise ConfigurationError(
            f"Flower does not listen on {section.address or 'every address'} without a login: "
            "set CRONIUM_FLOWER__USERNAME and CRONIUM_FLOWER__PASSWORD"
        )
    options.address, options.port = section.address, section.port
    options.basic_auth = [section.login] if section.login else []
    options.purge_offline_workers = _GONE_AFTER_S
    # Flower asks the environment whether calls need no login.
    BaseHandler.unauthenticated_api = False
    enable_pretty_logging()
    logging.getLogger("tornado.access").setLevel(logging.ERROR)  # no line for every request
    logging.getLogger("flower.inspector").setLevel(logging.ERROR)  # nor for every question that no worker answers

    asyncio.set_event_loop(asyncio.new_event_loop())
    io_loop = IOLoop.current()
    dashboard = Dashboard(io_loop)
    try:
        port = dashboard.start_http_server()
    except OSError as error:
        where = f"{section.address}:{section.port}"
        raise ConfigurationError(f"CRONIUM_FLOWER__PORT: cannot listen on {where}: {error.strerror}") from None
    host = f"[{section.address}]" if ":" in section.address else section.address
    report(f"Flower: http://{host}:{port}")
    for signum in (signal.SIGTERM, signal.SIGINT):
        io_loop.asyncio_loop.add_signal_handler(signum, dashboard.stop)  # type: ignore[attr-defined]
    dashboard.start()
