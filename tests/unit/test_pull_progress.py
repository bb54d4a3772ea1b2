"""What the engine says of a pull, summed up: what of it is progress, and what only sounds like it."""

from typing import Any

import pytest

from cronium_worker.engine.progress import PullProgress, Tally

MB = 1_000_000


def says(status: str, layer: str = "", current: int | None = None, total: int | None = None) -> dict[str, Any]:
    detail = {} if current is None else {"current": current, "total": total}
    return {"status": status, "id": layer, "progressDetail": detail}


def taken(*messages: dict[str, Any]) -> tuple[list[bool], PullProgress]:
    tally = Tally("r.example/tools:1")
    return [tally.take(message) for message in messages], tally.progress()


def test_layers_and_bytes_are_summed_up() -> None:
    _, progress = taken(
        says("Pulling from tools", "1"),
        says("Already exists", "a"),
        says("Pulling fs layer", "b"),
        says("Pulling fs layer", "c"),
        says("Pulling fs layer", "d"),
        says("Downloading", "b", 100 * MB, 100 * MB),
        says("Download complete", "b"),
        says("Extracting", "b", 10 * MB, 100 * MB),
        says("Downloading", "c", 20 * MB, 80 * MB),
        says("Downloading", "d", 5 * MB, 5 * MB),
        says("Pull complete", "d"),
    )

    assert progress.message == "pulling r.example/tools:1: 2 of 4 layers, 125 of 185 MB"
    assert progress.fields == {
        "image": "r.example/tools:1",
        "layers": 4,
        "layers_done": 2,
        "bytes": 125 * MB,
        "bytes_total": 185 * MB,
    }


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "pulling r.example/tools:1"),
        ([says("Pulling from tools", "1")], "pulling r.example/tools:1"),
        ([says("Pulling fs layer", "a")], "pulling r.example/tools:1: 0 of 1 layers"),
        ([says("Already exists", "a"), says("Digest: sha256:1")], "pulling r.example/tools:1: 1 of 1 layers"),
    ],
)
def test_only_what_is_known_is_said(messages: list[dict[str, Any]], message: str) -> None:
    assert taken(*messages)[1].message == message


def test_waiting_for_another_try_is_no_progress() -> None:
    messages = [says(f"Retrying in {seconds} second{'s' * (seconds > 1)}", "a") for seconds in (3, 2, 1)]

    assert taken(says("Pulling fs layer", "a"), *messages)[0] == [True, False, False, False]


def test_what_was_said_before_is_no_progress() -> None:
    again = [
        says("Downloading", "a", 5, 9),
        says("Waiting", "a"),
        says("Pulling from tools", "1"),
        says("Strange", "a"),
    ]

    assert taken(*again, *again)[0] == [True, False, True, True] + [False] * 4


def test_a_download_that_begins_again_has_to_catch_up() -> None:
    progress, state = taken(
        says("Downloading", "a", 500, 900),
        says("Retrying in 5 seconds", "a"),
        says("Downloading", "a", 100, 900),
        says("Downloading", "a", 500, 900),
        says("Downloading", "a", 501, 900),
    )

    assert progress == [True, False, False, False, True]
    assert (state.bytes_done, state.bytes_total) == (501, 900)


def test_bytes_never_become_fewer() -> None:
    _, state = taken(says("Downloading", "a", 500, 900), says("Downloading", "a", 100, 900))

    assert (state.bytes_done, state.bytes_total) == (500, 900)


@pytest.mark.parametrize("status", ["Download complete", "Extracting", "Pull complete"])
def test_a_layer_that_is_here_was_pulled_whole(status: str) -> None:
    _, state = taken(says("Downloading", "a", 500, 900), says(status, "a"))

    assert (state.bytes_done, state.bytes_total) == (900, 900)


def test_extracting_is_progress() -> None:
    messages = [says("Download complete", "a"), says("Extracting", "a", 1, 9), says("Extracting", "a", 2, 9)]

    assert taken(*messages)[0] == [True, True, True]


def test_every_layer_has_its_own() -> None:
    assert taken(says("Waiting", "a"), says("Waiting", "b"), says("Waiting", "a"))[0] == [True, True, False]
