"""Sum up the CSVs of aquarium.py, losses.py, replay.py, unlabelled.py: means, paired differences, 95 % t intervals.

python examples/benchmarks/summary.py examples/benchmarks/results/aquarium.csv[,results/losses.csv] [column] [against]

``against`` is the arm with which the others are compared, seed by seed: plain, or say native. Of unlabelled.py's rows
an arm is "p7 all 10", under the teacher of all labels and with 10 % of them; "plain 10" is compared with those of 10 %.
"""

import csv
import statistics
import sys
from pathlib import Path

from scipy.special import stdtrit  # the quantile of Student's t


def main(tables: str, column: str = "both_map", against: str = "plain") -> None:
    runs: dict[str, dict[str, float]] = {}
    shares: dict[str, str | None] = {}  # of the labels; only unlabelled.py's tables have it
    for table in tables.split(","):
        for row in csv.DictReader(Path(table).read_text(encoding="utf-8").splitlines()):
            arm = " ".join(row[key] for key in ("arm", "case", "share") if row.get(key, "-") != "-")
            runs.setdefault(arm, {})[row["seed"]] = 100 * float(row[column])
            shares[arm] = row.get("share")
    for arm, by_seed in runs.items():
        shared = sorted(set(by_seed) & set(runs[against]))
        if not shared or shares[against] not in (None, shares[arm]):
            continue
        gains = [by_seed[seed] - runs[against][seed] for seed in shared]
        line = f"{arm:16} {len(by_seed)} seed(s)  mean {statistics.mean(by_seed.values()):5.1f}"
        line += f"  to {against} {statistics.mean(gains):+.2f} ({', '.join(f'{gain:+.2f}' for gain in gains)})"
        if len(gains) > 2:
            half = stdtrit(len(gains) - 1, 0.975) * statistics.stdev(gains) / len(gains) ** 0.5
            line += f"  95 % interval {statistics.mean(gains) - half:+.2f} to {statistics.mean(gains) + half:+.2f}"
        print(line)


if __name__ == "__main__":
    main(*sys.argv[1:])
