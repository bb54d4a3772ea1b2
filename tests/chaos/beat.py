"""Beat with a short lock: how long nobody leads after a leader's death is 25 seconds else, most of a run's faults."""

from cronium_worker.app import app


def main() -> None:
    app.conf.update(redbeat_lock_timeout=4, beat_max_loop_interval=1)
    app.start(["beat", "--loglevel", "INFO"])


if __name__ == "__main__":
    main()
