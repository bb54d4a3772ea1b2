#!/bin/sh
# The first program of every container: waits at the gate, then has the job's script run, and ends as that ends.
#
# /run/cronium is the control directory, read-only here and written by the worker:
#   gate         FIFO; the first line is the mark that ends both streams, the next comes when there is a job; the end of
#                the file comes when the worker has read what the container has used, or is gone
#   ending       FIFO; takes a line when the script has ended: the mark, the exit code, 1 if it was told to end
#   released     there before the gate opens: whoever finds it will start, so the next worker need not guess
#   start.sh     becomes the script: environment, directory and command line; there before the gate opens
#   environment  environment and directory for an interpreter that was started in advance, for Bash as commands;
#                without it, this one is of no use for the job
# $1: the interpreter. It is looked up before anything of the job is read.
# $2…: the arguments of an interpreter that is started in advance and waits at the gate itself, before it opens the
# script, if it is the image's way (preamble.bash, cronium_gate.py, node/gate.js). Nothing: it is started when the gate
# is open.
# $0: `cronium` in the image's copy of the shell.

# The mark must stay in this process's memory. The kernel shows the memory and the descriptors of a program that its
# user may not read to nobody of that user; images of ours have such a copy of their shell. Elsewhere it depends on Yama.
if [ "$0" != cronium ] && [ ! -r /usr/local/lib/cronium/sh ] && /usr/local/lib/cronium/sh -c : 2>/dev/null; then
    exec /usr/local/lib/cronium/sh -c '. /run/cronium/launcher.sh' cronium "$@"
fi

# An image may have set these: what is read into an exported variable would be in the script's environment.
set +a
unset CRONIUM_GATE cronium_mark cronium_told cronium_word cronium_code cronium_open
cronium_told=
cronium_word=
cronium_open=
exec 3</run/cronium/gate # a shell that cannot open it ends here: it must not take that for the end of the file
if read -r cronium_mark <&3; then # before any other program runs: then it is in no file or pipe
    if [ "$cronium_mark" = go ]; then
        # A worker of version 0.1.0 has taken over before this was read. It has no mark, and does not read at `ending`: to
        # open that would wait for a reader.
        cronium_mark=
        cronium_open=1
    else
        # `command`, so that it goes on without where that cannot be opened: gVisor opens no FIFO for writing.
        { command exec 6>/run/cronium/ending; } 2>/dev/null
    fi
fi

can_wait() { # certainly: whoever does not wait would take the script for its own before the gate is open
    [ "$1" != bash ] || export BASH_ENV=/usr/local/lib/cronium/preamble.bash
    case $1 in
        bash | python3) [ "$(CRONIUM_GATE='' "$CRONIUM_INTERPRETER" -c '' 2>&1)" = waits ] ;;
        node) [ -e /node_modules/cronium/gate.js ] && [ -z "${NODE_OPTIONS-}${NODE_EXTRA_CA_CERTS-}${NODE_DEBUG-}" ] ;;
        *) false ;;
    esac
}

# Both streams get their end, unless a process is left that could write there. One that has just ended is gone when
# process 1 has had its turn.
end_streams() {
    for _ in 1 2 3 4 5; do
        ! kill -0 -1 && printf %s "$cronium_mark" && printf %s "$cronium_mark" >&4 && return
        (:)
    done
    return 1
}

# The script has signals for itself. Not '': it would ignore them as well.
be_deaf() { trap cronium_told=1 HUP INT QUIT PIPE ALRM TERM USR1 USR2; }

# $1: the script's exit code. The worker is told, and whether anybody had told the script to end (an engine that is stopped
# does).
end() {
    [ "$1$cronium_told" = 0 ] && end_streams && set -- "$1" marked # the usual end: the marks go on their way at once
    # A worker of version 0.1.0 that has taken over does not read there, and holds the gate to the container's end. Others
    # that have taken over have written into the gate. They all believe no mark.
    if printf '%s %s %s\n' "$cronium_mark" "$1" "$cronium_told" >&6; then
        while read -r _ <&3; do set -- "$1" adopted; done
        [ $# = 2 ] || end_streams
    fi
    exit "$1"
}

if ! CRONIUM_INTERPRETER=$(command -v "$1"); then
    echo "cronium: this image has no $1" >&2
    exit 127
fi
exec 4>&2 2>/dev/null # the shell's own words on how a program died go nowhere

if [ $# -gt 1 ] && [ -z "$cronium_open" ] && can_wait "$1"; then
    shift
    be_deaf
    exec 5>&1
    # Says on its descriptor 4 how far it comes: a, at the gate; then s, it becomes the script, or f, a fresh one must.
    cronium_word=$(
        export CRONIUM_GATE=/run/cronium
        exec 2>&4 4>&1 1>&5 5>&- 6>&-
        exec "$CRONIUM_INTERPRETER" "$@"
    )
    cronium_code=$?
    exec 5>&-
    [ "$cronium_word" != as ] || end "$cronium_code"
    if [ "$cronium_word" != af ]; then
        # It died. Told so, or when it may have read the line: so does this. Otherwise the job has not lost anything.
        if [ -n "$cronium_told" ] || { [ -n "$cronium_word" ] && [ -e /run/cronium/released ]; }; then
            exit "$cronium_code"
        fi
        trap - HUP INT QUIT PIPE ALRM TERM USR1 USR2
    fi
fi

if [ "$cronium_word" != af ] && [ -z "$cronium_open" ]; then
    read -r _ <&3 || [ -e /run/cronium/released ] || exit 75
fi
be_deaf
(
    exec 2>&4 4>&- 3<&- 6>&-
    # shellcheck source=/dev/null
    . /run/cronium/start.sh
)
end $?
