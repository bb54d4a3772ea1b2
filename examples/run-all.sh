#!/usr/bin/env bash
# Runs the three demo jobs on the fleet: live log, then output, condition, variables and files of each.
# Needs a running worker and CRONIUM_REDIS_URL (or Redis on its usual port). Exit code 0 only if all three
# completed with the condition they should have.
set -euo pipefail

cd "$(dirname -- "${BASH_SOURCE[0]}")"
PATH=$PWD/../.venv/bin:$PATH
failed=0
trap 'exit 130' INT # Ctrl-C cancels the job that is shown; the others shall not follow

# as_json KEY FILE [KEY=JSON...]: an input in which FILE's text is the value of KEY.
as_json() {
    python3 -c '
import json, sys
key, file, *more = sys.argv[1:]
data = {key: open(file, encoding="utf-8").read()}
for pair in more:
    name, _, value = pair.partition("=")
    data[name] = json.loads(value)
json.dump(data, sys.stdout)' "$@"
}

# show CONDITION: a result (JSON, from stdin) on a few lines. Status 1 if it is not what it should be.
show() {
    python3 -c '
import json, sys
expected = json.loads(sys.argv[1])
result = json.load(sys.stdin)
output = result["output"]

def short(value):
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 100 else text[:99] + "…"

print("output")
data = output["data"]
for name, value in data.items() if isinstance(data, dict) else [("", data)]:
    print(f"  {name:<15} {short(value)}")
print("condition:", json.dumps(output["condition"]))
print("variables:", json.dumps(output["variables"], ensure_ascii=False))
for name, file in sorted(output["files"].items()):
    print("file:     ", name, "(%d bytes)" % file["size"])
if result["status"] != "completed":
    sys.exit("FAILED: " + result["status"])
if output["condition"] is not expected:
    sys.exit("FAILED: the condition should be " + sys.argv[1])' "$1"
}

# job TITLE CONDITION FILE [OPTION...]: the job's input is on stdin.
job() {
    local title=$1 condition=$2 file=$3 id
    shift 3
    printf '\n=== %s: examples/%s ===\n' "$title" "$file"
    id=$(cronium run "$file" --input @/dev/stdin --detach "$@") || { failed=1; return; }
    cronium logs -f "$id" || true # how it ended is judged by its result
    cronium result "$id" --json | show "$condition" || failed=1
}

job Bash true bash/log-report.sh --var reports=41 --var last_error_rate=0.031 \
    < <(as_json log bash/access.log max_error_rate=0.05)
job Python true python/sales-summary.py --var target=25000 < <(as_json csv python/sales.csv)
job Node.js false node/reshape-orders.js --var last_order_id=1006 < node/orders.json

printf '\n'
if ((failed)); then
    echo "At least one job did not end as it should."
    exit 1
fi
echo "All three jobs completed as they should."
