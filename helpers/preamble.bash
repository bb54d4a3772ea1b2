# shellcheck shell=bash
# BASH_ENV of a Bash job: Bash reads this file before the script, which keeps its own $0, line numbers and text.
# It gives the script Cronium's functions and then takes itself out of the way of child processes.
# It leaves no variable behind and holds under `set -euo pipefail`.

if [[ -r /usr/local/bin/cronium.sh ]]; then
    # shellcheck source=/dev/null
    source /usr/local/bin/cronium.sh
else # outside an image
    # shellcheck source=/dev/null
    source "${BASH_SOURCE[0]%/*}/cronium.sh"
fi

# The worker keeps the user's own BASH_ENV in CRONIUM_USER_BASH_ENV.
if [[ -z ${CRONIUM_USER_BASH_ENV+set} ]]; then
    unset BASH_ENV
else
    export BASH_ENV=$CRONIUM_USER_BASH_ENV
    unset CRONIUM_USER_BASH_ENV
    if [[ -r $BASH_ENV ]]; then
        # shellcheck source=/dev/null
        source "$BASH_ENV"
    fi
fi
