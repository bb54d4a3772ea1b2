# Adds up a shop's sales.
#
# input      {"csv": text with the columns date, region, product, quantity, unit_price}
# variables  target: the turnover to reach; summaries: how many were made; best_region: set by this script
# output     turnover in all, by region, by month and by product; the rows that were left out
# condition  true when the turnover reaches the target
# files      by-region.csv, and rejected.csv when rows were left out

import csv
import io
import os
import sys
import time
from collections import defaultdict
from decimal import Decimal, InvalidOperation
from pathlib import Path

import cronium

OUTPUT = Path(os.environ["CRONIUM_OUTPUT_DIR"])


def amount(row):
    return int(row["quantity"]) * Decimal(row["unit_price"])


def ranked(sums):
    """As JSON likes it: the largest first, numbers instead of decimals."""
    return {name: float(total) for name, total in sorted(sums.items(), key=lambda item: -item[1])}


rows = list(csv.DictReader(io.StringIO(cronium.input()["csv"])))
print(f"read {len(rows)} rows")

sums = {field: defaultdict(Decimal) for field in ("region", "month", "product")}
total = Decimal(0)
rejected = []
for line, row in enumerate(rows, start=2):
    if line % 60 == 0:
        time.sleep(0.3)
        print(f"line {line}: {total:,.2f} so far")
    try:
        value = amount(row)
    except (ValueError, InvalidOperation):
        print(f"line {line} left out: {row['quantity']!r} × {row['unit_price']!r}", file=sys.stderr)
        rejected.append({"line": line, **row})
        continue
    total += value
    sums["region"][row["region"]] += value
    sums["month"][row["date"][:7]] += value
    sums["product"][row["product"]] += value

regions = ranked(sums["region"])
with (OUTPUT / "by-region.csv").open("w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["region", "turnover", "share"])
    writer.writerows([name, f"{value:.2f}", f"{value / float(total):.1%}"] for name, value in regions.items())
if rejected:
    with (OUTPUT / "rejected.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rejected[0])
        writer.writeheader()
        writer.writerows(rejected)

target = cronium.get_variable("target", 0)
cronium.output(
    {
        "turnover": float(total),
        "target": target,
        "by_region": regions,
        "by_month": dict(sorted(ranked(sums["month"]).items())),
        "by_product": ranked(sums["product"]),
        "rows": len(rows),
        "left_out": [row["line"] for row in rejected],
    }
)
cronium.set_condition(total >= target)
cronium.set_variable("best_region", next(iter(regions)))
number = cronium.increment_variable("summaries")
print(f"summary {number}: turnover {total:,.2f}, target {target:,.2f}")
