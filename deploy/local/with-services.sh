#!/usr/bin/env bash
# Runs a command with a Docker Engine and a Redis: with-services.sh [--state DIRECTORY] COMMAND...
#
# What answers already is used as it is. What is missing is started, and stopped again whatever way the
# command ends; the last of several callers stops the engine. The exit code is the command's; INT, TERM,
# HUP and QUIT are passed on to it, and the services stay until it has ended.
#
#   engine  DOCKER_HOST or the default socket, if it answers; else systemd's docker; else dockerd here
#   Redis   CRONIUM_REDIS_URL (environment or .env); else one of its own on 127.0.0.1
#
# Without --state all is in a temporary directory, under a fleet name of its own, and gone in the end with
# that fleet's containers. With it, Redis, the key of jobs' secrets and the jobs' directories stay there for
# the next time.
#
# shellcheck disable=SC2317  # what traps and wait_until call looks unreachable to it
set -euo pipefail

cd "$(dirname -- "${BASH_SOURCE[0]}")/../.."

readonly ENGINE_START_S=60 ENGINE_STOP_S=40 REDIS_START_S=30 PREFERRED_REDIS_PORT=6390
# Shared by all callers on this machine; gone when the last one is.
readonly ENGINE_STATE=/run/cronium-engine
readonly PYTHON=$PWD/.venv/bin/python

state='' state_is_temporary=no command_pid='' redis_pid='' engine_in_use=no

say() { printf 'services: %s\n' "$*" >&2; }

die() {
    say "$*"
    exit 1
}

has() { command -v "$1" >/dev/null 2>&1; }

systemd_is_pid_1() { [ -d /run/systemd/system ]; }

# Whether a process runs; one that has ended and that nobody has asked for does not.
alive() { # alive PID
    local stat
    stat=$(cat "/proc/$1/stat" 2>/dev/null) && [[ ${stat##*) } != Z* ]]
}

program_of() { # program_of PID
    cat "/proc/$1/comm" 2>/dev/null
}

wait_until() { # wait_until SECONDS COMMAND...
    local deadline=$((SECONDS + $1))
    shift
    until "$@"; do
        if ((SECONDS >= deadline)); then return 1; fi
        sleep 0.1
    done
}

gone() { ! alive "$1"; }

# A setting of the environment or of the file .env, which the settings read as well.
given() { [ -n "${!1:-}" ] || grep -Eqs "^[[:space:]]*(export[[:space:]]+)?$1=" .env; }

# --- Docker Engine ------------------------------------------------------------------------------------

engine_answers() {
    "$PYTHON" -c 'import docker; docker.from_env(timeout=5).ping()' 2>/dev/null
}

# Only the engine of this machine's default socket is ever started. The state directory has:
#   users    every caller holds a shared lock on it
#   started  what was started: a pid, or "systemd"
#   links    the network interfaces from before
# All changes are made under a lock on the program file itself, which is always there.
lock_engine() {
    exec 8<"$(command -v dockerd)"
    flock 8
}

unlock_engine() { exec 8<&-; }

start_engine() {
    if { [ ! -d "$ENGINE_STATE" ] || [ "$(id -u)" != 0 ]; } && engine_answers; then return 0; fi
    if [ -n "${DOCKER_HOST:-}" ]; then
        die "the Docker Engine at DOCKER_HOST=$DOCKER_HOST does not answer: start it, or unset DOCKER_HOST"
    fi
    has dockerd || die "Docker Engine is missing: run deploy/local/setup.sh services"
    [ "$(id -u)" = 0 ] || die "no Docker Engine answers, and starting one needs root: run as root, or start it (and join its group)"
    lock_engine
    mkdir -p "$ENGINE_STATE"
    exec 7>>"$ENGINE_STATE/users"
    flock --shared 7
    engine_in_use=yes
    engine_answers || launch_engine
    unlock_engine
}

launch_engine() {
    network_links >"$ENGINE_STATE/links"
    if systemd_is_pid_1; then
        say "starting docker.service"
        systemctl start docker.service || die "systemd could not start docker.service: journalctl -u docker"
        echo systemd >"$ENGINE_STATE/started"
        wait_until "$ENGINE_START_S" engine_answers || die "the Docker Engine does not answer: journalctl -u docker"
        return 0
    fi
    say "starting dockerd"
    # A dockerd started soon after the last one was killed can stumble over a stale pid file, once.
    launch_dockerd || launch_dockerd ||
        die "dockerd did not start; the end of its log: $(tail -n 5 "$ENGINE_STATE/dockerd.log")"
}

# In a session of its own, so that the terminal's Ctrl-C does not reach it.
launch_dockerd() {
    setsid dockerd >"$ENGINE_STATE/dockerd.log" 2>&1 </dev/null 7>&- 8<&- &
    local pid=$!
    echo "$pid" >"$ENGINE_STATE/started"
    local deadline=$((SECONDS + ENGINE_START_S))
    until engine_answers; do
        if gone "$pid"; then return 1; fi
        if ((SECONDS >= deadline)); then
            stop_dockerd "$pid"
            return 1
        fi
        sleep 0.1
    done
}

release_engine() {
    [ "$engine_in_use" = yes ] || return 0
    engine_in_use=no
    lock_engine
    flock --unlock 7
    if flock --exclusive --nonblock 7; then
        stop_engine
        rm -rf "$ENGINE_STATE"
    fi
    exec 7>&-
    unlock_engine
}

stop_engine() {
    local started
    started=$(cat "$ENGINE_STATE/started" 2>/dev/null) || return 0
    if [ "$started" = systemd ]; then
        systemctl stop docker.service docker.socket || say "systemd could not stop docker.service"
    elif [ -n "$started" ] && [ "$(program_of "$started")" = dockerd ]; then
        stop_dockerd "$started"
    fi
    remove_bridges
}

stop_dockerd() { # stop_dockerd PID
    local containerd
    containerd=$(cat /run/docker/containerd/containerd.pid 2>/dev/null) || true
    kill -TERM "$1" 2>/dev/null || true
    if ! wait_until "$ENGINE_STOP_S" gone "$1"; then
        say "dockerd $1 does not end on SIGTERM: killing it"
        kill -KILL "$1" 2>/dev/null || true
    fi
    if [ -z "$containerd" ] || [ "$(program_of "$containerd")" != containerd ]; then return 0; fi
    if ! wait_until 5 gone "$containerd"; then
        kill -TERM "$containerd" 2>/dev/null || true
        wait_until 5 gone "$containerd" || kill -KILL "$containerd" 2>/dev/null || true
    fi
}

network_links() {
    if has ip; then ip -brief link | cut -d ' ' -f 1 | cut -d @ -f 1; fi
}

# dockerd leaves the bridges of its networks behind, and makes them again when it starts.
remove_bridges() {
    local link
    for link in $(network_links); do
        if [[ $link =~ ^(docker0|br-cronium|br-c-[0-9a-f]{8}|br-[0-9a-f]{12})$ ]] && ! grep -qx -- "$link" "$ENGINE_STATE/links"; then
            ip link delete "$link" 2>/dev/null || true
        fi
    done
}

# The workers' firewall rules stay as long as there is the bridge that they are for.
remove_rules() {
    has nft || return 0
    local table bridge
    for table in $(nft list tables inet 2>/dev/null | grep -Eo 'cronium(_[0-9a-f]{8})?$'); do
        if [ "$table" = cronium ]; then bridge=br-cronium; else bridge=br-c-${table#cronium_}; fi
        [ -e "/sys/class/net/$bridge" ] || nft delete table inet "$table" 2>/dev/null || true
    done
}

# --- Redis ----------------------------------------------------------------------------------------------

start_redis() {
    if given CRONIUM_REDIS_URL; then return 0; fi
    has redis-server || die "Redis is missing: run deploy/local/setup.sh services"
    mkdir -p "$state/redis"
    chmod 700 "$state/redis"
    local port try
    for try in 1 2 3; do
        port=$(free_port "$try")
        launch_redis "$port"
        if wait_until "$REDIS_START_S" redis_decided "$port" && alive "$redis_pid"; then
            export CRONIUM_REDIS_URL="redis://127.0.0.1:$port/0"
            return 0
        fi
    done
    die "redis-server did not start; the end of its log: $(tail -n 5 "$state/redis/redis.log")"
}

free_port() { # free_port TRY
    "$PYTHON" - "$([ "$state_is_temporary$1" = no1 ] && echo "$PREFERRED_REDIS_PORT" || echo 0)" <<'END'
import socket
import sys

with socket.socket() as probe:
    try:
        probe.bind(("127.0.0.1", int(sys.argv[1])))
    except OSError:
        probe.bind(("127.0.0.1", 0))
    print(probe.getsockname()[1])
END
}

# It ends with this script even if that is killed, and not by the terminal's Ctrl-C. It keeps descriptor 6,
# the lock of a state directory that stays: as long as it writes there, no other may.
launch_redis() { # launch_redis PORT
    setpriv --pdeathsig TERM setsid redis-server --bind 127.0.0.1 --port "$1" --daemonize no \
        --dir "$state/redis" --logfile "$state/redis/redis.log" --pidfile "" \
        --save "" --appendonly yes --auto-aof-rewrite-min-size 256mb \
        --maxmemory-policy noeviction </dev/null >/dev/null 2>&1 7>&- &
    redis_pid=$!
}

redis_decided() { # redis_decided PORT
    gone "$redis_pid" || [ "$(redis-cli -h 127.0.0.1 -p "$1" ping 2>/dev/null)" = PONG ]
}

stop_redis() {
    [ -n "$redis_pid" ] || return 0
    kill -TERM "$redis_pid" 2>/dev/null || true
    wait_until 20 gone "$redis_pid" || kill -KILL "$redis_pid" 2>/dev/null || true
    redis_pid=
}

# --- State -------------------------------------------------------------------------------------------------

make_state() { # make_state [DIRECTORY]
    local fleet
    if [ $# -gt 0 ]; then
        mkdir -p "$1"
        state=$(cd "$1" && pwd)
        exec 6>>"$state/lock"
        flock --nonblock 6 || die "$state is in use by another caller (see: fuser $state/lock): stop that one first"
        fleet=local-$(printf %s "$state" | sha256sum | head -c 8)
    else
        state=$(mktemp -d "${TMPDIR:-/tmp}/cronium.XXXXXXXX")
        state_is_temporary=yes
        fleet=local-${state##*.}
        # What the command leaves in its temporary directory is gone with the rest.
        export TMPDIR=$state/tmp
        mkdir "$TMPDIR"
        chmod 711 "$state" "$TMPDIR"  # what drops its rights must still get there
    fi
    given CRONIUM_BASE_PATH || export CRONIUM_BASE_PATH="$state/base"
    given CRONIUM_FLEET || export CRONIUM_FLEET="$fleet"
}

# Of jobs' secrets: in Redis they are of no use without it.
make_key() {
    if given CRONIUM_SECRET_KEYS; then return 0; fi
    if [ ! -s "$state/secret-key" ]; then
        (umask 077 && head -c 32 /dev/urandom | base64 | tr '+/' '-_' >"$state/secret-key")
    fi
    CRONIUM_SECRET_KEYS=$(cat "$state/secret-key")
    export CRONIUM_SECRET_KEYS
}

# The containers and networks of a fleet whose records are about to be thrown away.
remove_fleet() {
    [ "$state_is_temporary" = yes ] && [[ ${CRONIUM_FLEET:-} == local-* ]] || return 0
    "$PYTHON" - "$CRONIUM_FLEET" 2>/dev/null <<'END' || say "not all of fleet $CRONIUM_FLEET could be removed"
import sys
from contextlib import suppress

import docker

client = docker.from_env(timeout=60)
ours = {"label": f"cronium.fleet={sys.argv[1]}"}
for container in client.containers.list(all=True, filters=ours, ignore_removed=True):
    with suppress(docker.errors.NotFound):
        container.remove(force=True, v=True)
for network in client.networks.list(filters=ours):
    with suppress(docker.errors.APIError):  # containers of another fleet are still in it
        network.remove()
END
}

clean_up() {
    local code=$?
    # Every part is tried, whatever became of the ones before.
    set +e
    trap '' INT TERM HUP QUIT
    if [ -n "$state" ]; then remove_fleet; fi
    stop_redis
    release_engine
    remove_rules
    if [ "$state_is_temporary" = yes ]; then rm -rf --one-file-system -- "$state"; fi
    exit "$code"
}

# --- Command -----------------------------------------------------------------------------------------------

pass_on() { # pass_on SIGNAL
    if [ -n "$command_pid" ]; then
        # Its whole group, as a terminal does.
        kill -s "$1" -- "-$command_pid" 2>/dev/null || kill -s "$1" "$command_pid" 2>/dev/null || true
    else
        exit $((128 + $(kill -l "$1")))
    fi
}

# In a session of its own: the terminal's Ctrl-C comes to this script alone, and to the command once.
# Bash has the background ignore INT and QUIT; `env` takes that back.
run_command() {
    setpriv --pdeathsig TERM env --default-signal=INT,QUIT setsid "$@" <&0 6>&- 7>&- &
    command_pid=$!
    local code=0
    while wait "$command_pid" && code=0 || code=$?; alive "$command_pid"; do :; done
    # A signal ends `wait` early, and the command may have ended right after: Bash still knows how.
    if ((code > 128)); then wait "$command_pid" 2>/dev/null && code=0 || code=$?; fi
    command_pid=
    return "$code"
}

main() {
    local -a state_directory=()
    if [ "${1:-}" = --state ]; then
        state_directory=("${2:?--state needs a directory}")
        shift 2
    fi
    [ $# -gt 0 ] || die "usage: with-services.sh [--state DIRECTORY] COMMAND..."
    [ -x "$PYTHON" ] || die "there is no .venv: run deploy/local/setup.sh"
    PATH=$PWD/.venv/bin:$PATH:/usr/sbin:/sbin

    local signal
    trap clean_up EXIT
    for signal in INT TERM HUP QUIT; do
        # shellcheck disable=SC2064  # the name is meant to be put in now
        trap "pass_on $signal" "$signal"
    done
    start_engine
    make_state "${state_directory[@]}"
    make_key
    start_redis
    if [ "$state_is_temporary" = no ]; then
        say "in another terminal: export CRONIUM_REDIS_URL=$CRONIUM_REDIS_URL"
        if [ -e "$state/secret-key" ]; then
            say "and for jobs with secrets: export CRONIUM_SECRET_KEYS=\$(cat '$state/secret-key')"
        fi
    fi
    local code=0
    run_command "$@" || code=$?
    exit "$code"
}

main "$@"
