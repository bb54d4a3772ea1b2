#!/usr/bin/env bash
# Makes this machine ready, without questions: setup.sh [PART...]
#
#   venv      .venv with the locked Python packages and this package in editable form
#   services  Docker Engine, Redis, nftables and mmdebstrap from the distribution, each only if it is missing
#   tests     what the tests run outside of containers: node, jq, gcc, openssl, curl, docker-registry, RabbitMQ, Prometheus
#   vm        an emulator of machines
#   check     shellcheck
#
# Default: venv services. What is there is not touched, so a second call takes a fraction of a second.
# A thing that cannot be had ends it with one line that names it and the remedy.
set -euo pipefail

cd "$(dirname -- "${BASH_SOURCE[0]}")/../.."

say() { printf 'setup: %s\n' "$*" >&2; }

die() {
    say "$*"
    exit 1
}

has() { command -v "$1" >/dev/null 2>&1; }

systemd_is_pid_1() { [ -d /run/systemd/system ]; }

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

may_be_root() { [ "$(id -u)" = 0 ] || { has sudo && sudo -n true 2>/dev/null; }; }

# --- Packages of the distribution ---------------------------------------------------------------

apt_list_is_fresh=no

apt_get() {
    # Errors are told by the caller in one line; the whole output is shown only then.
    local log
    log=$(mktemp)
    if ! as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get -qq -y -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 "$@" >"$log" 2>&1 </dev/null; then
        tail -n 15 "$log" >&2
        rm -f "$log"
        return 1
    fi
    rm -f "$log"
}

apt_install() { # apt_install WHAT_FOR PACKAGE...
    local what=$1
    shift
    has apt-get || die "$what is missing and there is no apt-get: install it by hand, then try again"
    may_be_root || die "$what is missing, and installing it needs root: run as root, or run 'sudo -v' first"
    say "installing $what ($*)"
    if [ "$apt_list_is_fresh" = no ]; then
        apt_get update || die "apt-get update failed (above): check the package sources, then try again"
        apt_list_is_fresh=yes
    fi
    apt_get install --no-install-recommends "$@" ||
        die "$what could not be installed (above): apt-get install $*"
}

# A package of a service starts it. Ours are started by those who use them, and on demand.
stop_service() { # stop_service NAME
    if systemd_is_pid_1; then
        as_root systemctl disable --quiet --now "$1" || say "could not stop the service $1, which was just installed"
    elif has service; then
        as_root service "$1" stop >/dev/null 2>&1 || true
    fi
}

# --- Parts -----------------------------------------------------------------------------------------

find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11; do
        if has "$candidate" && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
            printf '%s\n' "$candidate"
            return 0
        fi
    done
    die "Python 3.11 or newer is missing: install it (apt-get install python3), or name it with PYTHON=/path/to/python3"
}

make_venv() { # make_venv PYTHON
    if ! "$1" -c 'import ensurepip, venv' 2>/dev/null; then
        local version
        version=$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
        apt_install "Python's venv" "python$version-venv"
    fi
    say "making .venv with $("$1" --version)"
    "$1" -m venv --clear .venv || die "python -m venv failed: see above"
}

# What .venv was made from. It holds absolute paths, so its place is a part of that.
venv_stamp() {
    local interpreter
    interpreter=$(readlink -f .venv/bin/python) || return 1
    [ -x "$interpreter" ] || return 1
    printf '%s\n%s\n' "$PWD" "$interpreter"
    sha256sum pyproject.toml requirements.txt requirements-dev.txt
}

setup_venv() {
    if [ -L .venv ]; then return 0; fi # another checkout's: not ours to make anew
    local stamp=.venv/.made-from python
    if [ -f "$stamp" ] && [ "$(venv_stamp)" = "$(cat "$stamp")" ]; then return 0; fi
    if ! { [ -f "$stamp" ] && [ "$(venv_stamp | head -n 2)" = "$(head -n 2 "$stamp")" ]; }; then
        python=$(find_python)
        make_venv "$python"
    fi
    rm -f "$stamp"
    say "installing the Python packages of requirements-dev.txt"
    .venv/bin/python -m pip --disable-pip-version-check install -qq --no-input -r requirements-dev.txt ||
        die "pip could not install requirements-dev.txt (above): check the connection to the package index"
    .venv/bin/python -m pip --disable-pip-version-check install -qq --no-input \
        --no-build-isolation --no-deps --editable . || die "pip could not install this package: see above"
    venv_stamp >"$stamp"
}

setup_services() {
    if ! has dockerd; then
        apt_install "Docker Engine" docker.io ca-certificates iproute2
        # With systemd it stays enabled: that is what one expects of an installed Docker Engine.
        systemd_is_pid_1 || stop_service docker
    fi
    # The engine refuses to start containers where the kernel has AppArmor and its parser is missing.
    if grep -qs Y /sys/module/apparmor/parameters/enabled && ! has apparmor_parser; then
        apt_install "AppArmor's parser" apparmor
    fi
    if ! has redis-server; then
        apt_install "Redis" redis-server
        stop_service redis-server
    fi
    has nft || apt_install "nft" nftables
    has mmdebstrap || apt_install "mmdebstrap" mmdebstrap
}

setup_tests() {
    has node || apt_install "Node.js" nodejs
    has jq || apt_install "jq" jq
    # For the probe that tries the isolation from inside; the headers come with the C library's static part.
    { has gcc && [ -e /usr/include/linux/keyctl.h ]; } || apt_install "a C compiler" gcc libc6-dev
    has openssl || apt_install "OpenSSL" openssl
    has curl || apt_install "curl" curl
    if ! has docker-registry; then
        apt_install "a registry" docker-registry
        stop_service docker-registry
    fi
    if ! [ -x /usr/lib/rabbitmq/bin/rabbitmq-server ]; then
        apt_install "RabbitMQ" rabbitmq-server
        stop_service rabbitmq-server
        # Erlang's port mapper stays behind and listens on all addresses; it refuses while others use it.
        as_root epmd -kill >/dev/null 2>&1 || true
    fi
    if ! has promtool; then
        apt_install "Prometheus" prometheus
        stop_service prometheus
    fi
    has runsc || apt_install "gVisor" runsc
    has podman || apt_install "Podman" podman
    has docker-compose || apt_install "Docker Compose" docker-compose
    has chromium || apt_install "Chromium" chromium
    has systemd-analyze || apt_install "systemd's checker" systemd
}

setup_vm() {
    has qemu-system-x86_64 || apt_install "QEMU" qemu-system-x86
    has ssh || apt_install "an SSH client" openssh-client
}

setup_check() {
    has shellcheck || apt_install "shellcheck" shellcheck
}

main() {
    # Two calls at once must not make the same .venv: the lock is on the directory itself.
    exec 9<.
    flock 9
    # Programs of root are not on every user's path.
    PATH=$PATH:/usr/sbin:/sbin
    local part
    [ $# -gt 0 ] || set -- venv services
    for part in "$@"; do
        case $part in
        venv | services | tests | vm | check) "setup_$part" ;;
        *) die "unknown part '$part': venv, services, tests, vm or check" ;;
        esac
    done
}

main "$@"
