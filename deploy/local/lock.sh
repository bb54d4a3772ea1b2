#!/usr/bin/env bash
# Writes requirements.txt and requirements-dev.txt anew from pyproject.toml: exact versions of
# everything, for every supported Python. Versions already locked are kept where they still fit;
# `lock.sh --upgrade` takes the newest. Run it through `make lock`.
set -euo pipefail

cd "$(dirname -- "${BASH_SOURCE[0]}")/../.."

readonly OPTIONS=(
    --quiet --universal --python-version 3.11 --no-emit-index-url --no-emit-find-links --no-header
)

header() { # header WHAT
    printf '# %s: exact versions, written by "make lock" from pyproject.toml.\n' "$1"
    printf '# Change pyproject.toml and run it again; "make lock UPGRADE=1" takes newer versions.\n'
}

# The new lock goes to a file of its own; the old one in its place is what uv keeps versions from.
compile() { # compile OUTPUT OLD_LOCK ARGUMENTS...
    local output=$1 old=$2
    shift 2
    if [ -f "$old" ]; then grep -v '^-r ' "$old" >"$output"; fi
    "$tools/bin/uv" pip compile "${OPTIONS[@]}" "$@" pyproject.toml --output-file "$output" >/dev/null
}

tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
python3 -m venv "$tools"
"$tools/bin/pip" install --quiet --disable-pip-version-check uv

compile "$tools/runtime.txt" requirements.txt "$@"
compile "$tools/all.txt" requirements-dev.txt "$@" --extra dev --extra docs --no-annotate --constraint "$tools/runtime.txt"

{
    header "What the worker and its clients run with"
    cat "$tools/runtime.txt"
} >requirements.txt
{
    header "What the project is developed, checked and tested with"
    printf -- '-r requirements.txt\n'
    grep -vxFf "$tools/runtime.txt" "$tools/all.txt" | grep -v '^-r '
} >requirements-dev.txt
