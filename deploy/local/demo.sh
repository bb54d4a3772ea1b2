#!/usr/bin/env bash
# A fleet on this machine, the three example jobs on it, and all down again: run by `make demo`, which gives
# it a Docker Engine and a Redis (with-services.sh). Exit code 0 only if all three completed.
set -euo pipefail

cd "$(dirname -- "${BASH_SOURCE[0]}")/../.."

readonly READY_S=90 STOP_S=90
log=$(mktemp "${TMPDIR:-/tmp}/cronium-demo.XXXXXXXX")
fleet_pid=''

say() { printf 'demo: %s\n' "$*" >&2; }

fleet_runs() { kill -0 "$fleet_pid" 2>/dev/null; }

stop_fleet() {
    [ -n "$fleet_pid" ] || return 0
    say "taking the fleet down"
    kill -TERM "$fleet_pid" 2>/dev/null || true
    local deadline=$((SECONDS + STOP_S))
    while fleet_runs && ((SECONDS < deadline)); do sleep 0.1; done
    if fleet_runs; then
        say "it does not end on SIGTERM: SIGQUIT"
        kill -QUIT "$fleet_pid" 2>/dev/null || true
    fi
    wait "$fleet_pid" || true
    fleet_pid=''
}

clean_up() {
    local code=$?
    set +e
    trap '' INT TERM HUP QUIT
    stop_fleet
    if ((code != 0)); then
        say "the end of the fleet's log:"
        tail -n 30 "$log" >&2
    fi
    rm -f "$log"
    exit "$code"
}

wait_for_workers() {
    local deadline=$((SECONDS + READY_S)) findings
    until findings=$(cronium doctor --workers 2>&1); do
        fleet_runs || return 1
        if ((SECONDS >= deadline)); then
            printf '%s\n' "$findings" >&2
            say "the fleet is not ready after $READY_S s"
            return 1
        fi
        sleep 0.2
    done
}

trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP QUIT

cronium images build
say "starting the fleet of the Procfile"
# In a session of its own: a Ctrl-C is for this script, which tells the fleet once.
setpriv --pdeathsig TERM setsid python -m cronium_worker.cli.supervise Procfile >"$log" 2>&1 </dev/null &
fleet_pid=$!
wait_for_workers
examples/run-all.sh
