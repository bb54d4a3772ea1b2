"""The API's calls for the fleet: its hosts, what happens on all of them, and how much."""

from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Header, HTTPException, Request, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent
from prometheus_client.exposition import choose_encoder

from cronium_worker.housekeeping import hosts
from cronium_worker.web import live, metrics

fleet = APIRouter(tags=["fleet"])


@fleet.get("/hosts")
def list_hosts() -> list[dict[str, Any]]:
    """The hosts of the fleet, with their load, images and housekeeping."""
    return [asdict(host) for host in hosts().hosts()]


@fleet.put("/hosts/{host}/drain", status_code=204)
def drain(host: str) -> None:
    """Let the host take no more jobs, also after a restart of its worker; what runs there runs on."""
    _known(host)
    hosts().drain(host)


@fleet.delete("/hosts/{host}/drain", status_code=204)
def undrain(host: str) -> None:
    """Let the host take jobs again."""
    _known(host)
    hosts().undrain(host)


def _known(host: str) -> None:
    names = {view.name for view in hosts().hosts()} | hosts().drained()
    if host not in names:
        raise HTTPException(404, f"no host {host}: the fleet has {', '.join(sorted(names)) or 'none'}")


@fleet.get("/events", response_class=EventSourceResponse)
async def follow_all(request: Request) -> AsyncIterator[ServerSentEvent]:
    """Every change of any job's status, as it happens; what was missed while not connected is not repeated.

    `event` is `listening`, once, when nothing is missed any more; then `status`, `data` its JSON without the result.
    """
    async for kind, text in live.statuses(request.app.state.redis):
        yield ServerSentEvent(event=kind, raw_data=text)


@fleet.get("/metrics", response_class=Response)
def get_metrics(accept: Annotated[str, Header()] = "") -> Response:
    """What the fleet's Redis knows, for Prometheus."""
    encode, content_type = choose_encoder(accept)
    return Response(encode(metrics.registry()), media_type=content_type)
