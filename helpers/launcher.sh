#!/bin/sh
# The first program of every container: waits at the gate, then becomes the job's script.
#
# /run/cronium is the control directory, read-only here and written by the worker:
#   gate      FIFO; a line comes when there is a job, the end of the file when the worker is gone
#   released  there before the gate opens: whoever finds it will start, so the next worker need not guess
#   start.sh  environment, directory and command line of the job, there before the gate opens
# $1: the interpreter. It is looked up before anything of the job is read.
# shellcheck disable=SC2034  # start.sh uses it
if ! CRONIUM_INTERPRETER=$(command -v "$1"); then
    echo "cronium: this image has no $1" >&2
    exit 127
fi
exec 3</run/cronium/gate # a shell that cannot open it ends here: it must not take that for the end of the file
read -r _ <&3 || [ -e /run/cronium/released ] || exit 75
exec 3<&-
# shellcheck source=/dev/null
. /run/cronium/start.sh
