#!/usr/bin/env bash
# Makes this machine a host of the fleet, or brings it up to this version: install.sh [OPTION...]
#
#   --dry-run        say what would be done, and do nothing
#   --wheel FILE     install this wheel; without it, the check-out that this script is in
#   --env-file FILE  the fleet's settings, for a host that has none yet (as another host's, with its own name)
#
# Debian or Ubuntu, root. Installed is what is missing: engine, nftables, Python's venv; the program in /opt/cronium,
# its settings in /etc/cronium/cronium.env, runner images, systemd units. The worker is enabled when `cronium doctor`
# finds nothing that fails. It can be called again at any time; running jobs run on.
set -euo pipefail

cd "$(dirname -- "${BASH_SOURCE[0]}")/.."

readonly PROGRAM=/opt/cronium SETTINGS=/etc/cronium/cronium.env UNITS=/etc/systemd/system

dry_run=no wheel='' env_file=''

say() { printf 'install: %s\n' "$*" >&2; }

die() {
    say "$*"
    exit 1
}

has() { command -v "$1" >/dev/null 2>&1; }

systemd_is_pid_1() { [ -d /run/systemd/system ]; }

# act WHAT COMMAND...: say it, and do it unless this is a dry run.
act() {
    local what=$1
    shift
    if [ "$dry_run" = yes ]; then
        say "would: $what"
        return 0
    fi
    say "$what"
    "$@" || die "failed (above): $what"
}

# The settings are in .env of the directory from which it is started: no shell reads them, which would trip over
# the & in an address.
cronium() { (cd "${SETTINGS%/*}" && "$PROGRAM/bin/cronium" "$@"); }

# --- Packages ---------------------------------------------------------------------------------------------

check_distribution() {
    local names
    # shellcheck source=/dev/null
    names=$(. /etc/os-release 2>/dev/null && echo "${ID:-} ${ID_LIKE:-}") || names=''
    case " $names " in
    *" debian "* | *" ubuntu "*) ;;
    *) die "this is neither Debian nor Ubuntu (${names:-no /etc/os-release}): see docs/operations.md, Add a host" ;;
    esac
    [ "$dry_run" = yes ] || [ "$(id -u)" = 0 ] || die "run it as root: it writes to $PROGRAM, $SETTINGS and $UNITS"
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
        die "Python 3.11 or newer is missing: install it, or take a newer release of the distribution"
}

engine_is_there() { has dockerd || [ -S /var/run/docker.sock ] || [ -n "${DOCKER_HOST:-}" ]; }

missing_packages() {
    python3 -c 'import ensurepip, venv' 2>/dev/null || echo python3-venv
    engine_is_there || echo docker.io
    # The engine refuses to start containers where the kernel has AppArmor and its parser is missing.
    if grep -qs Y /sys/module/apparmor/parameters/enabled; then has apparmor_parser || echo apparmor; fi
    has nft || echo nftables
    # Of a registry the runner images are pulled; without one, they are built of the distribution's packages.
    setting CRONIUM_REGISTRY__PREFIX >/dev/null || has mmdebstrap || echo mmdebstrap
}

# The value of a setting in the settings' file. Status 1: it has none.
setting() { # setting NAME
    local file=$SETTINGS
    [ -e "$file" ] || file=$env_file
    [ -e "$file" ] || return 1
    sed -n "s/^$1=\(..*\)/\1/p" "$file" | grep .
}

apt_install() {
    export DEBIAN_FRONTEND=noninteractive
    apt-get -qq update && apt-get -qq -y -o Dpkg::Use-Pty=0 install --no-install-recommends "$@" >/dev/null
}

install_packages() {
    local -a packages
    mapfile -t packages < <(missing_packages)
    if ((${#packages[@]} == 0)); then return 0; fi
    act "install the packages ${packages[*]}" apt_install "${packages[@]}"
}

# --- Program ------------------------------------------------------------------------------------------------

# What the program was made from: the same again needs nothing.
sources_stamp() {
    if [ -n "$wheel" ]; then
        sha256sum -- "$wheel" | cut -d ' ' -f 1
    else
        find LICENSE README.md pyproject.toml requirements.txt cronium_worker/ helpers images -type f \
            ! -name '*.pyc' -print0 | sort -z | xargs -0 sha256sum | sha256sum | cut -d ' ' -f 1
    fi
}

make_program() {
    [ -x "$PROGRAM/bin/python" ] || python3 -m venv "$PROGRAM" || return 1
    local -a pip=("$PROGRAM/bin/pip" install --quiet --disable-pip-version-check --no-input)
    rm -f "$PROGRAM/.made-from"
    if [ -n "$wheel" ]; then
        # With the locked versions, if there are some beside this script.
        "${pip[@]}" ${constraints:+--constraint "$constraints"} --force-reinstall --no-deps "$wheel" &&
            "${pip[@]}" ${constraints:+--constraint "$constraints"} "$wheel" || return 1
    else
        "${pip[@]}" --requirement requirements.txt && "${pip[@]}" --no-deps . || return 1
    fi
    sources_stamp >"$PROGRAM/.made-from"
}

install_program() {
    if [ "$(cat "$PROGRAM/.made-from" 2>/dev/null)" = "$(sources_stamp)" ]; then
        say "$PROGRAM is up to date"
        return 0
    fi
    act "install ${wheel:-this check-out} in $PROGRAM" make_program
    program_is_new=yes
}

# --- Settings -----------------------------------------------------------------------------------------------

make_settings() {
    install -d -m 700 "${SETTINGS%/*}" || return 1
    install -m 600 -- "${env_file:-deploy/cronium.env.example}" "$SETTINGS" || return 1
    ln -sf cronium.env "${SETTINGS%/*}/.env"
    if [ -z "$env_file" ]; then sed -i "s/^CRONIUM_HOST_NAME=.*/CRONIUM_HOST_NAME=$(uname -n)/" "$SETTINGS"; fi
}

install_settings() {
    if [ -e "$SETTINGS" ]; then
        act "keep $SETTINGS, readable for root alone" secure_settings
        return 0
    fi
    act "make $SETTINGS from ${env_file:-deploy/cronium.env.example}" make_settings
    if [ -n "$env_file" ]; then return 0; fi
    if [ "$dry_run" = yes ]; then
        say "would stop here until that file is filled in"
        return 0
    fi
    die "fill in $SETTINGS (address of Redis, key of secrets, this host's name), then call this again"
}

secure_settings() {
    chmod 600 "$SETTINGS" && chown root:root "$SETTINGS" && ln -sf cronium.env "${SETTINGS%/*}/.env"
}

# --- Host ---------------------------------------------------------------------------------------------------

start_engine() {
    if systemd_is_pid_1 && [ -z "${DOCKER_HOST:-}" ]; then act "start the Docker Engine" systemctl enable --quiet --now docker; fi
}

install_images() {
    if setting CRONIUM_REGISTRY__PREFIX >/dev/null; then
        act "pull the runner images" cronium images pull --local
    else
        act "build the runner images" cronium images build
    fi
}

ask_doctor() {
    if [ "$dry_run" = yes ]; then
        say "would: ask cronium doctor, and stop if it says FAIL"
        return 0
    fi
    cronium doctor >&2 || die "not enabled: mend what says FAIL, then call this again"
}

copy_units() { install -m 644 deploy/systemd/*.service "$UNITS/" && systemctl daemon-reload; }

# A worker that is told to stop leaves its jobs to the one that is started after it.
start_worker() {
    systemctl enable --quiet cronium-worker || return 1
    if [ "$program_is_new" = yes ]; then systemctl restart cronium-worker; else systemctl start cronium-worker; fi
}

install_units() {
    if ! systemd_is_pid_1; then
        say "there is no systemd here: no unit is installed or enabled; have something else keep running:"
        say "  cd ${SETTINGS%/*} && $PROGRAM/bin/cronium worker"
        return 0
    fi
    act "copy the units to $UNITS" copy_units
    act "enable and start cronium-worker" start_worker
    say "beat belongs on two hosts, Flower and the HTTP API on one: systemctl enable --now cronium-beat (-flower, -web)"
}

main() {
    while (($#)); do
        case $1 in
        --dry-run) dry_run=yes ;;
        --wheel | --env-file)
            [ -f "${2:-}" ] || die "$1: no such file: ${2:-}"
            if [ "$1" = --wheel ]; then wheel=$(realpath -- "$2"); else env_file=$(realpath -- "$2"); fi
            shift
            ;;
        *) die "unknown option '$1': --dry-run, --wheel FILE, --env-file FILE" ;;
        esac
        shift
    done
    PATH=$PATH:/usr/sbin:/sbin
    program_is_new=no constraints=''
    if [ -e requirements.txt ]; then constraints=$PWD/requirements.txt; fi

    check_distribution
    install_packages
    install_program
    install_settings
    start_engine
    install_images
    ask_doctor
    install_units
}

main "$@"
