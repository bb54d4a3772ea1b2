#!/usr/bin/env bash
# Makes what a fleet's own Redis needs for TLS and users: make.sh DIRECTORY NAME...
#
#   make.sh /root/fleet-redis redis.example 192.0.2.1
#
# NAMEs are what others call this Redis: host names and IP addresses. In DIRECTORY, which only its owner can read:
#
#   ca.pem, ca.key          the authority; its key belongs on no host of the fleet
#   server.pem, server.key  for Redis
#   client.pem, client.key  for the fleet's processes, beside ca.pem in /etc/cronium
#   cronium.conf            for Redis, with a password for each of admin, worker, producer and reader
#   addresses               CRONIUM_REDIS_URL of each of them
#
# What is there is kept: without server.pem, a second call makes a new certificate of the same authority.
set -euo pipefail

readonly DAYS=3650 CLIENT_FILES=/etc/cronium
readonly USERS=(admin worker producer reader)

die() {
    printf 'make.sh: %s\n' "$*" >&2
    exit 1
}

make_authority() {
    [ -e ca.pem ] || openssl req -x509 "${NEW_KEY[@]}" -keyout ca.key -out ca.pem -days "$DAYS" \
        -subj '/CN=cronium: Redis of the fleet' -addext keyUsage=critical,keyCertSign,cRLSign 2>openssl.log
}

make_certificate() { # make_certificate server|client [NAME...]
    local who=$1
    shift
    [ -e "$who.pem" ] && return 0
    local names='' name
    for name in "$@"; do
        if [[ $name =~ ^[0-9.]+$ || $name == *:* ]]; then names+=,IP:$name; else names+=,DNS:$name; fi
    done
    {
        echo "extendedKeyUsage=${who}Auth"
        if [ -n "$names" ]; then echo "subjectAltName=${names#,}"; fi
    } >extensions
    openssl req "${NEW_KEY[@]}" -keyout "$who.key" -out request.pem -subj "/CN=${1:-$who}" 2>openssl.log
    openssl x509 -req -in request.pem -out "$who.pem" -CA ca.pem -CAkey ca.key -CAcreateserial -days "$DAYS" \
        -extfile extensions 2>openssl.log
}

make_users() { # make_users NAME
    if [ -e cronium.conf ]; then return 0; fi
    local user password address
    local files="ssl_ca_certs=$CLIENT_FILES/ca.pem&ssl_certfile=$CLIENT_FILES/client.pem&ssl_keyfile=$CLIENT_FILES/client.key"
    cp "$TEMPLATE" cronium.conf.new
    for user in "${USERS[@]}"; do
        password=$(openssl rand -hex 32)
        sed -i "s/>${user^^}-PASSWORD/>$password/" cronium.conf.new
        address=$1
        if [[ $address == *:* ]]; then address="[$address]"; fi
        printf 'rediss://%s:%s@%s:6379/0?%s\n' "$user" "$password" "$address" "$files"
    done >addresses
    mv cronium.conf.new cronium.conf
}

[ $# -ge 2 ] || die "usage: make.sh DIRECTORY NAME..."
command -v openssl >/dev/null || die "openssl is missing: apt-get install openssl"
TEMPLATE=$(cd "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)/cronium.conf
readonly TEMPLATE NEW_KEY=(-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes)

umask 077
mkdir -p -- "$1"
cd -- "$1"
shift
trap 'code=$?; if ((code)) && [ -s openssl.log ]; then cat openssl.log >&2; fi; rm -f request.pem extensions openssl.log' EXIT
make_authority
make_certificate server "$@"
make_certificate client
make_users "$1"
