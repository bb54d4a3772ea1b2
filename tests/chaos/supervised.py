"""A host's processes under the project's own supervisor, which never waits for long here: they are killed all the
time, and a fault is over when they run again. `python -m tests.chaos.supervised Procfile`."""

import sys
from pathlib import Path

from cronium_worker.cli import supervise

_LONGEST_DELAY_S = 0.5


def main() -> int:
    supervise.MAX_RESTART_DELAY_S = _LONGEST_DELAY_S
    commands = supervise.parse_procfile(Path(sys.argv[1]).read_text())
    return supervise.supervise(commands, restart_delay_s=0.1)


if __name__ == "__main__":
    sys.exit(main())
