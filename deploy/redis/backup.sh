#!/usr/bin/env bash
# Writes all that a running Redis has into a file, and looks whether it can be read: backup.sh FILE [REDIS-CLI-OPTION...]
#
#   REDISCLI_AUTH=PASSWORD backup.sh /var/backups/cronium.rdb -h redis.example --user admin --tls --cacert … --cert … --key …
#
# It is one moment's state, and no process waits for it. FILE is there whole or not at all, for its owner alone: it has
# scripts, inputs and results in the clear. Back again: restore.sh.
set -euo pipefail

die() {
    printf 'backup.sh: %s\n' "$*" >&2
    exit 1
}

[ $# -ge 1 ] || die "usage: backup.sh FILE [REDIS-CLI-OPTION...]"
for program in redis-cli redis-check-rdb; do
    command -v "$program" >/dev/null || die "$program is missing: apt-get install redis-tools"
done
file=$1
shift
umask 077
trap 'rm -f -- "$file.new"' EXIT
redis-cli "$@" --rdb "$file.new" >&2 || die "Redis gave no copy (above)"
redis-check-rdb "$file.new" >/dev/null || die "the copy cannot be read"
mv -- "$file.new" "$file"
