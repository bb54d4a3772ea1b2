"""The server of the HTTP API: one process, until a signal."""

import asyncio
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from cronium_worker.errors import ConfigurationError
from cronium_worker.settings import Web, is_loopback
from cronium_worker.web.api import make_api
from cronium_worker.web.log import BoundedLog
from cronium_worker.web.places import BACKLOG, HEADER_S, Places, count_places

# Those who follow a job keep their connection open: they go on elsewhere with their last event's id.
_SHUTDOWN_S = 3
_WAITING = 1024


def serve(section: Web, *, report: Callable[[str], Any]) -> None:
    """Serve until SIGTERM or SIGINT; `report` gets the address. Raises ConfigurationError."""
    if not section.token.get_secret_value() and not is_loopback(section.address):
        raise ConfigurationError(
            f"the API does not listen on {section.address or 'every address'} without a token: set CRONIUM_WEB__TOKEN, "
            "for example to what `cronium key` prints"
        )
    family = socket.AF_INET6 if ":" in section.address else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    with listener:
        try:
            listener.bind((section.address, section.port))
            listener.listen(BACKLOG)
        except OSError as error:
            where = f"{section.address}:{section.port}"
            raise ConfigurationError(f"CRONIUM_WEB__PORT: cannot listen on {where}: {error.strerror}") from None
        host = f"[{section.address}]" if family == socket.AF_INET6 else section.address
        report(f"Page and API: http://{host}:{listener.getsockname()[1]}")
        logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
        for handler in logging.getLogger().handlers:
            handler.addFilter(BoundedLog())
        places = Places(count_places())
        config = uvicorn.Config(
            make_api(section),
            http=places.protocol(),
            ws="none",
            backlog=BACKLOG,
            timeout_keep_alive=int(HEADER_S),
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=_SHUTDOWN_S,
        )
        _Server(config, places).run(sockets=[listener])


class _Server(uvicorn.Server):
    """Ends well when it is told to, where uvicorn would die of the signal, and looks after its connections."""

    def __init__(self, config: uvicorn.Config, places: Places) -> None:
        super().__init__(config)
        self._places = places

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Let more connections wait than are accepted in one turn: asyncio takes one number for both."""
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(_WAITING)

    async def on_tick(self, counter: int) -> bool:
        """uvicorn calls this ten times a second."""
        if counter % 10 == 0:
            self._places.sweep()
        return await super().on_tick(counter)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        for signum in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(signum, self.handle_exit, signum, None)
        yield
