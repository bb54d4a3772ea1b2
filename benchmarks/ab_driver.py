"""Submits jobs for `ab.py`, in the Python environment of the tree that is measured. It uses the public API alone, so
that it runs with any commit.

Reads one JSON object a line, `{"script": …, "count": n}`; answers each with the milliseconds from the first submission
to the last result.
"""

import json
import sys
import time

from cronium_worker import execute_job

_TIMEOUT_S = 600


def main(queue: str) -> None:
    for line in sys.stdin:
        asked = json.loads(line)
        began = time.perf_counter()
        sent = [execute_job.delay({"script": asked["script"], "queue": queue}) for _ in range(asked["count"])]
        for one in sent:
            one.get(timeout=_TIMEOUT_S)
        print(json.dumps((time.perf_counter() - began) * 1000), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
