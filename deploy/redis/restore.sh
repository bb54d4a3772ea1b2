#!/usr/bin/env bash
# Makes the data directory of a Redis (7 or newer) that does not run from a backup: restore.sh FILE DIRECTORY
#
#   restore.sh /var/backups/cronium.rdb /var/lib/redis
#
# With `appendonly yes` Redis reads nothing but its append-only file, so the backup becomes the first part of one.
# DIRECTORY must have none: move an old `appendonlydir` away first.
set -euo pipefail

die() {
    printf 'restore.sh: %s\n' "$*" >&2
    exit 1
}

[ $# -eq 2 ] || die "usage: restore.sh FILE DIRECTORY"
command -v redis-check-rdb >/dev/null || die "redis-check-rdb is missing: apt-get install redis-tools"
redis-check-rdb "$1" >/dev/null || die "$1 is no backup that can be read"
[ -d "$2" ] || die "there is no directory $2"
new=$2/appendonlydir
[ ! -e "$new" ] || die "$new is there: stop Redis, and move it away"

umask 027
trap 'rm -rf -- "$new.new"' EXIT
mkdir -- "$new.new"
cp -- "$1" "$new.new/appendonly.aof.1.base.rdb"
printf 'file appendonly.aof.1.base.rdb seq 1 type b\n' >"$new.new/appendonly.aof.manifest"
chown -R --reference="$2" -- "$new.new"
mv -- "$new.new" "$new"
