"""One sweep of the host that the environment names, as its agent does it: `python -m tests.chaos.sweep`."""

import json
import sys
from contextlib import closing

from cronium_worker.engine.client import Engine
from cronium_worker.janitor import Janitor
from cronium_worker.settings import get_settings
from cronium_worker.tasks import make_store


def main() -> None:
    with closing(Engine()) as engine:
        report = Janitor(engine, make_store(), get_settings()).sweep().report()
    json.dump(report, sys.stdout)


if __name__ == "__main__":
    main()
