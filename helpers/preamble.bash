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

# Started before its job, with CRONIUM_GATE: wait for it here (launcher.sh, where the protocol is), before Bash opens the
# script. Nothing of this is left in it but what /proc shows of its start. Empty: only say that this is there.
if [[ -n ${CRONIUM_GATE+set} ]]; then
    if [[ -z $CRONIUM_GATE ]]; then
        printf waits
        exit 0
    fi
    printf a >&4
    read -r -u 3 _ || [[ -e $CRONIUM_GATE/released ]] || exit 75
    # shellcheck source=/dev/null
    if ! [[ -r $CRONIUM_GATE/environment ]] || ! source "$CRONIUM_GATE/environment" 2>/dev/null; then
        printf f >&4 # not for this process, or a directory of which the launcher's shell has something to say
        exit 0
    fi
    printf s >&4
    exec 3<&- 4>&-
    SECONDS=0
    unset CRONIUM_GATE
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
