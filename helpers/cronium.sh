# shellcheck shell=bash
# Cronium's functions for Bash jobs: source /usr/local/bin/cronium.sh (a job's script has them already).
#
#   cronium_input                          prints the job's input as JSON; {} when none was given
#   cronium_output [JSON]                  sets the result, from the argument or from stdin; last call wins
#   cronium_getVariable K                  prints a variable: a string raw, all else as JSON, nothing if missing
#   cronium_setVariable [--json] K V       stores V as a string, with --json as the JSON value it spells
#   cronium_variable_exists K              exit status 0 if there is such a variable, else 1
#   cronium_delete_variable K              removes a variable; a missing one is no error
#   cronium_increment_variable K [N]       adds the number N (default 1) and prints the new value; missing is 0
#   cronium_append_variable K V [SEP]      appends text, with SEP (default nothing) between two non-empty parts
#   cronium_setCondition B                 true, 1, yes, on or false, 0, no, off, in any case
#   cronium_getCondition                   prints true or false; false when it was never set
#   cronium_event                          prints the event as a JSON object; {} without one
#   cronium_event_field F                  prints one top-level field, like cronium_getVariable
#
# get_variable, set_variable, get_condition and set_condition are other spellings of the same functions.
# An error is exit status 1 and one line on stderr. Files are in $CRONIUM_DATA_DIR (/workspace/data) and
# $CRONIUM_OUTPUT_DIR (/workspace/output); both are read at each call. Needs Bash 4.4 and jq 1.6; changes of
# variables are serialised between processes where flock is installed.
#
# Every public function is a subshell: nothing in here can reach the caller's variables, options or traps.
# Names begin with _c_ because the caller may have a read-only variable of any plainer name.
# jq before 1.7 keeps whole numbers exact up to 2^53 only.

# What every jq program below begins with. $text is a document, $file what to call it in an error.
# jq also takes nan, 007 or 1. for numbers: `json` takes a lone literal only if JSON has it.
# shellcheck disable=SC2016  # the dollars are jq's
_CRONIUM_JQ='
    def die($message): "cronium: \($message)\n" | halt_error(1);
    def json($text):
        if $text | test("\\A[ \\t\\r\\n]*([\\[{\"]|(true|false|null|"
            + "-?(0|[1-9][0-9]*)(\\.[0-9]+)?([eE][-+]?[0-9]+)?)[ \\t\\r\\n]*\\z)")
        then try [$text | fromjson] catch [] else [] end;
    def document: json($text) | if length == 1 then .[0] else die("\($file) does not hold valid JSON") end;
    def object: document | if type == "object" then . else die("\($file) does not hold a JSON object") end;
'

# First line of every public function: calm the subshell, whatever the caller's options and traps are.
_cronium_begin() {
    set +eux -o pipefail
    trap - DEBUG ERR RETURN
    command -v jq >/dev/null || _cronium_die "jq is not installed"
}

_cronium_die() {
    printf 'cronium: %s\n' "$1" >&2
    exit 1
}

_cronium_data() { printf '%s/%s' "${CRONIUM_DATA_DIR:-/workspace/data}" "$1"; }
_cronium_out() { printf '%s/%s' "${CRONIUM_OUTPUT_DIR:-/workspace/output}" "$1"; }

# _cronium_query FILE DEFAULT FILTER [JQ-OPTION...]: runs FILTER with FILE, or DEFAULT if it is missing, as $text.
# Texts go to jq as files: arguments end at 128 KiB, and jq 1.6 breaks UTF-8 in long raw standard input.
_cronium_query() {
    local _c_file=$1 _c_default=$2 _c_filter=$3
    shift 3
    if [[ ! -e $_c_file ]]; then
        set -- --arg text "$_c_default" "$@"
    elif [[ -f $_c_file && -r $_c_file ]]; then
        set -- --rawfile text "$_c_file" "$@"
    else
        _cronium_die "cannot read $_c_file"
    fi
    # Of two options with one name jq takes the first.
    command jq -nc "$@" --arg file "$_c_file" "$_CRONIUM_JQ $_c_filter" || exit 1
}

# _cronium_replace FILE COMMAND...: puts what COMMAND prints into FILE, whole or not at all.
_cronium_replace() {
    local _c_file=$1 _c_directory=${1%/*} _c_temp
    shift
    _c_temp=$_c_directory/.${_c_file##*/}.$BASHPID.tmp
    command mkdir -p -- "$_c_directory" 2>/dev/null
    if [[ -d $_c_file ]] || ! { : >|"$_c_temp"; } 2>/dev/null; then
        _cronium_die "cannot write $_c_file"
    fi
    # shellcheck disable=SC2064  # expanded now: the trap may run when the local is gone
    trap "command rm -f -- ${_c_temp@Q}" EXIT
    "$@" >|"$_c_temp" || exit 1
    command mv -f -- "$_c_temp" "$_c_file" 2>/dev/null || _cronium_die "cannot write $_c_file"
    trap - EXIT
}

# _cronium_locked COMMAND...: runs COMMAND while no other process changes the variables.
_cronium_locked() {
    local _c_directory=${CRONIUM_DATA_DIR:-/workspace/data}
    command mkdir -p -- "$_c_directory" 2>/dev/null
    [[ -d $_c_directory && -r $_c_directory ]] || _cronium_die "cannot write $_c_directory"
    {
        command flock 9 2>/dev/null # no flock here: the last writer wins
        "$@"
    } 9<"$_c_directory"
}

# _cronium_update FILTER [JQ-OPTION...]: replaces the variables by what FILTER makes of them.
_cronium_update() {
    local _c_filter=$1 _c_variables
    shift
    _c_variables=$(_cronium_data variables.json)
    _cronium_replace "$_c_variables" _cronium_query "$_c_variables" '{}' "object | $_c_filter" "$@"
}

_cronium_increment() {
    _cronium_update '
        (if has($k) then .[$k] else 0 end) as $old
        # Bash stores text, so a string that spells a number counts as one here.
        | ($old | if type == "string" then json(.)[0] else . end) as $old
        | if ($old | type) == "number" then .[$k] = $old + $n
          else die("variable \($k | tojson) is not a number") end' --arg k "$1" --argjson n "$2"
    _cronium_query "$(_cronium_data variables.json)" '{}' 'object | .[$k]' --arg k "$1"
}

# _cronium_of_event FILTER [JQ-OPTION...]
_cronium_of_event() {
    local _c_filter=$1 _c_event
    shift
    _c_event=$(_cronium_data event.json)
    if [[ -e $_c_event || -z ${CRONIUM_EVENT_METADATA-} ]]; then
        _cronium_query "$_c_event" '{}' "object | $_c_filter" "$@"
    else
        _cronium_query "$_c_event" "$CRONIUM_EVENT_METADATA" "object | $_c_filter" "$@" --arg file CRONIUM_EVENT_METADATA
    fi
}

cronium_input() (
    _cronium_begin
    (($# == 0)) || _cronium_die "usage: cronium_input"
    _cronium_query "$(_cronium_data input.json)" '{}' document
)

# Text that is not JSON becomes a JSON string. From stdin it loses its trailing newlines, as in $(...).
cronium_output() (
    _cronium_begin
    (($# <= 1)) || _cronium_die "usage: cronium_output [JSON]"
    _c_text=${1-$(command tr -d '\0')}
    printf '%s' "$_c_text" | _cronium_replace "$(_cronium_out output.json)" command jq -nc --rawfile text /dev/stdin \
        "$_CRONIUM_JQ"'json($text) | if length == 1 then .[0] else $text end' || exit 1
)

cronium_get_variable() (
    _cronium_begin
    (($# == 1)) || _cronium_die "usage: cronium_getVariable K"
    _cronium_query "$(_cronium_data variables.json)" '{}' \
        'object | if has($k) then .[$k] else empty end' --arg k "$1" -r
)
cronium_getVariable() { cronium_get_variable "$@"; }

# --json may come first or last; it needs the third argument, so that a key or a value may be called --json.
cronium_set_variable() (
    _cronium_begin
    _c_form=text
    if (($# == 3)) && [[ $1 == --json ]]; then
        _c_form=json
        shift
    elif (($# == 3)) && [[ $3 == --json ]]; then
        _c_form=json
    elif (($# != 2)); then
        _cronium_die "usage: cronium_setVariable [--json] K V"
    fi
    printf '%s' "$2" | _cronium_locked _cronium_update '
        (if $form == "json" then json($v) else [$v] end) as $value
        | if $value == [] then die("the value of \($k | tojson) is not valid JSON")
          else .[$k] = $value[0] end' --arg form "$_c_form" --arg k "$1" --rawfile v /dev/stdin || exit 1
)
cronium_setVariable() { cronium_set_variable "$@"; }

# A corrupt file is status 1 too, with its line on stderr.
cronium_variable_exists() (
    _cronium_begin
    (($# == 1)) || _cronium_die "usage: cronium_variable_exists K"
    _c_exists=$(_cronium_query "$(_cronium_data variables.json)" '{}' 'object | has($k)' --arg k "$1")
    [[ $_c_exists == true ]] || exit 1
)

cronium_delete_variable() (
    _cronium_begin
    (($# == 1)) || _cronium_die "usage: cronium_delete_variable K"
    _cronium_locked _cronium_update 'delpaths([[$k]])' --arg k "$1"
)

cronium_increment_variable() (
    _cronium_begin
    _c_number='^[-+]?[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]+)?$'
    (($# == 1 || $# == 2)) || _cronium_die "usage: cronium_increment_variable K [N]"
    [[ ${2-1} =~ $_c_number ]] || _cronium_die "the increment is not a number"
    _c_n=${2-1}
    _cronium_locked _cronium_increment "$1" "${_c_n#+}"
)

# A missing variable counts as empty; one that is not a string is an error.
cronium_append_variable() (
    _cronium_begin
    (($# == 2 || $# == 3)) || _cronium_die "usage: cronium_append_variable K V [SEP]"
    printf '%s' "$2" | _cronium_locked _cronium_update '
        (if has($k) then .[$k] else "" end) as $old
        | if ($old | type) != "string" then die("variable \($k | tojson) is not a string")
          elif $old == "" or $v == "" then .[$k] = $old + $v
          else .[$k] = $old + $separator + $v end' \
        --arg k "$1" --rawfile v /dev/stdin --arg separator "${3-}" || exit 1
)

cronium_set_condition() (
    _cronium_begin
    (($# == 1)) || _cronium_die "usage: cronium_setCondition true|1|yes|on|false|0|no|off"
    case ${1,,} in
        true | 1 | yes | on) _c_result=true ;;
        false | 0 | no | off) _c_result=false ;;
        *) _cronium_die "a condition is one of true, 1, yes, on, false, 0, no, off" ;;
    esac
    _cronium_replace "$(_cronium_out condition.json)" printf '{"result":%s}\n' "$_c_result"
)
cronium_setCondition() { cronium_set_condition "$@"; }

cronium_get_condition() (
    _cronium_begin
    (($# == 0)) || _cronium_die "usage: cronium_getCondition"
    _cronium_query "$(_cronium_out condition.json)" '{"result":false}' \
        'object.result | if type == "boolean" then . else die("\($file) does not hold a condition") end'
)
cronium_getCondition() { cronium_get_condition "$@"; }

cronium_event() (
    _cronium_begin
    (($# == 0)) || _cronium_die "usage: cronium_event"
    _cronium_of_event .
)

cronium_event_field() (
    _cronium_begin
    (($# == 1)) || _cronium_die "usage: cronium_event_field F"
    _cronium_of_event 'if has($f) then .[$f] else empty end' --arg f "$1" -r
)
