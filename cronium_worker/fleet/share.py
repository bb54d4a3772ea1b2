"""A job's share of Redis: what its events take there, over all its attempts, and how much they may.

The owner of a claim counts what it writes (`Claim.stored`), and the record keeps the count for whoever claims next.
"""

from typing import cast

from pydantic_core import to_json

from cronium_worker.errors import ClaimLost
from cronium_worker.fleet.events import BESIDE_BODY_BYTES, cut_body
from cronium_worker.fleet.store import Claim, JobStore, record_key

# Earlier attempts keep this part of the cap together; samples and progress may take this part beyond it.
_EARLIER = 1 / 4
_BESIDE_LOG = 1 / 8
# Entries that Redis looks at in one call: all of it waits.
_AT_ONCE = 100
_FIRST_EVENTS = 2  # of a job that nobody had before: `pending`, `preparing`


def json_length(text: str) -> int:
    """Bytes of the text as it stands in an event."""
    return len(to_json(text)) - 2


def with_others(max_bytes: int) -> int:
    """What all events of a job may take, those beside its log among them."""
    return max_bytes + int(max_bytes * _BESIDE_LOG)


def make_room(store: JobStore, claim: Claim, max_bytes: int) -> None:
    """Find out what the job's events take already, and have earlier attempts leave room for this one.

    To be called before the claim's first write. Of a job that nobody had before, nothing is asked. Raises ClaimLost.
    """
    if claim.progress is None and claim.seq <= _FIRST_EVENTS:
        return
    _count(store, claim)
    keep = int(max_bytes * _EARLIER)
    if claim.progress is None and claim.stored > keep:
        _cut(store, claim, keep)


def _count(store: JobStore, claim: Claim) -> None:
    stored, cut = cast("list[str | None]", store.redis.hmget(record_key(claim.job.id), "stored", "cut_seq"))
    claim.stored, claim.earlier_cut = int(stored or 0), cut is not None
    if claim.progress is not None:  # a worker of before counted its text alone
        claim.stored = max(claim.stored, claim.progress.stdout_offset + claim.progress.stderr_offset)


def _cut(store: JobStore, claim: Claim, keep: int) -> None:
    marker = cut_body().json
    place: list[str] = ["-", "", ""]
    outcome = "more"
    while outcome == "more":
        reply = store.run("cut", claim.job.id, claim.token, keep, BESIDE_BODY_BYTES, marker, _AT_ONCE, *place)
        outcome, stored, *place = reply
        if outcome == "lost":
            raise ClaimLost(f"job {claim.job.id} attempt {claim.attempt} is no longer this worker's")
        claim.stored = int(stored)
    claim.earlier_cut = claim.earlier_cut or place[1] != ""
