"""What beat sends, and for how long it is worth doing."""

from cronium_worker.beat_schedule import CLEANUP, ON_EVERY_HOST, PREPULL, RECOVER, beat_schedule
from cronium_worker.settings import Schedule, Settings


def test_every_turn_is_for_all_hosts_or_for_any_agent_and_is_dropped_when_the_next_one_is_due() -> None:
    turns = beat_schedule(Settings()).values()

    assert [(turn["task"], turn["args"], turn["schedule"]) for turn in turns] == [
        (ON_EVERY_HOST, [CLEANUP], 300),
        (ON_EVERY_HOST, [PREPULL], 3600),
        (RECOVER, [], 5),
    ]
    for turn in turns:
        assert turn["options"] == {"queue": "cronium.fleet", "expires": turn["schedule"], "ignore_result": True}


def test_its_times_are_settings() -> None:
    changed = Settings(schedule=Schedule(cleanup=10, prepull=20, recovery=30))

    assert [turn["schedule"] for turn in beat_schedule(changed).values()] == [10, 20, 30]
