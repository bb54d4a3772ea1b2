#!/usr/bin/env bash
# Reports on a web server's access log (combined log format).
#
# input      {"log": the log's text, "max_error_rate": share of 5xx answers that is still fine (0.05)}
# variables  reports: how many were made; last_error_rate: of the run before, to tell the trend
# output     totals, answers by status, the most asked-for paths, errors by path
# condition  true while the error rate is at most max_error_rate
# file       report.txt: the same for people

cronium_input | jq -j .log > access.log
limit=$(cronium_input | jq -r '.max_error_rate // 0.05')
before=$(cronium_getVariable last_error_rate)
total=$(wc -l < access.log)
echo "read $total requests"

# One TAB-separated line a request: status, method, path without its query.
awk -F '"' '{ split($3, answer, " "); split($2, request, " "); sub(/\?.*/, "", request[2])
              print answer[1] "\t" request[1] "\t" request[2] }' access.log > requests.tsv

# count FROM TO FIELDS: the requests answered with a status FROM to TO, counted by FIELDS, as a JSON object.
count() {
    awk -F '\t' -v from="$1" -v to="$2" '$1 >= from && $1 <= to' requests.tsv |
        cut -f "$3" | sort | uniq -c | sort -k1,1nr -k2 |
        jq -Rn '[inputs | capture("^ *(?<value>[0-9]+) (?<key>.*)$") | .value |= tonumber] | from_entries'
}

echo "counting by status"
statuses=$(count 100 599 1)
sleep 0.2
echo "counting by path"
paths=$(count 100 399 3)
sleep 0.2
echo "looking for errors"
errors=$(count 500 599 2,3 | jq 'with_entries(.key |= sub("\t"; " "))')

report=$(jq -n --argjson total "$total" --argjson limit "$limit" \
    --argjson statuses "$statuses" --argjson paths "$paths" --argjson errors "$errors" '
    ($errors | add // 0) as $failed
    | { requests: $total, failed: $failed,
        error_rate: (if $total > 0 then ($failed / $total * 10000 | round / 10000) else 0 end),
        max_error_rate: $limit, statuses: $statuses,
        top_paths: ($paths | to_entries | sort_by(-.value, .key) | .[:5] | from_entries),
        errors: $errors }')
rate=$(jq .error_rate <<< "$report")

jq -r '
    "requests    \(.requests)", "failed      \(.failed) (\(.error_rate * 10000 | round / 100) %)",
    "", "by status", (.statuses | to_entries[] | "  \(.key)  \(.value)"),
    "", "most asked for", (.top_paths | to_entries[] | "  \(.value)\t\(.key)"),
    "", "errors", (.errors | to_entries[] | "  \(.value)\t\(.key)")' <<< "$report" > "$CRONIUM_OUTPUT_DIR/report.txt"

cronium_output "$report"
cronium_setVariable --json last_error_rate "$rate"
number=$(cronium_increment_variable reports)
if jq -e '.error_rate <= .max_error_rate' <<< "$report" > /dev/null; then
    cronium_setCondition true
else
    cronium_setCondition false
    echo "warning: the error rate is over the limit" >&2
fi
echo "report $number: error rate $rate (limit $limit, before: ${before:-unknown})"
