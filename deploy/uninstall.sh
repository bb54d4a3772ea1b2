#!/usr/bin/env bash
# Takes this machine out of its fleet, and away what install.sh has made: uninstall.sh [OPTION...]
#
#   --dry-run   say what would be done, and do nothing
#   --purge     also remove the settings in /etc/cronium and the runner images
#
# The host takes no more jobs, and those that run here are waited for. Then systemd units, containers, network and
# firewall rules of the fleet, and the program go. Docker Engine and other packages stay. It can be called again.
set -euo pipefail

readonly PROGRAM=/opt/cronium SETTINGS=/etc/cronium/cronium.env UNITS=/etc/systemd/system
readonly -a SERVICES=(cronium-worker cronium-beat cronium-web cronium-flower cronium-firewall)

dry_run=no purge=no

say() { printf 'uninstall: %s\n' "$*" >&2; }

die() {
    say "$*"
    exit 1
}

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

cronium() { (cd "${SETTINGS%/*}" && "$PROGRAM/bin/cronium" "$@"); }

has_systemd() { [ -d /run/systemd/system ]; }

drain() {
    local host
    host=$(sed -n 's/^CRONIUM_HOST_NAME=//p' "$SETTINGS")
    : "${host:=$(uname -n)}"
    # A host that the fleet does not know any more has left it already.
    if cronium hosts | cut -d ' ' -f 1 | grep -qxF -- "$host"; then cronium drain "$host" --wait; fi
}

stop_units() {
    local -a there=()
    local name
    for name in "${SERVICES[@]}"; do
        if [ -e "$UNITS/$name.service" ]; then there+=("$name"); fi
    done
    if ((${#there[@]})); then systemctl disable --quiet --now "${there[@]}"; fi
}

remove_units() {
    local name
    for name in "${SERVICES[@]}"; do rm -f -- "$UNITS/$name.service"; done
    systemctl daemon-reload
}

remove_images() {
    "$PROGRAM/bin/python" -c '
import docker
client = docker.from_env()
ours = client.images.list() # also those from a registry, which have its name before ours
for tag in [tag for image in ours if "cronium.image.flavour" in image.labels for tag in image.tags]:
    client.images.remove(tag)'
}

main() {
    while (($#)); do
        case $1 in
        --dry-run) dry_run=yes ;;
        --purge) purge=yes ;;
        *) die "unknown option '$1': --dry-run, --purge" ;;
        esac
        shift
    done
    [ "$dry_run" = yes ] || [ "$(id -u)" = 0 ] || die "run it as root"
    PATH=$PATH:/usr/sbin:/sbin
    if [ -x "$PROGRAM/bin/cronium" ] && [ -e "$SETTINGS" ]; then
        act "let this host take no more jobs, and wait for those that run here" drain
        if has_systemd; then act "stop the services" stop_units; fi
        act "remove what the fleet has on this host's engine" cronium leave
    fi
    if [ "$purge" = yes ] && [ -x "$PROGRAM/bin/python" ]; then act "remove the runner images" remove_images; fi
    if has_systemd; then act "remove the units" remove_units; fi
    act "remove $PROGRAM" rm -rf -- "$PROGRAM"
    if [ "$purge" = yes ]; then act "remove ${SETTINGS%/*}" rm -rf -- "${SETTINGS%/*}"; fi
    say "this machine is no host any more"
}

main "$@"
