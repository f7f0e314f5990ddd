"""Error rate and power of the tables' marks, in simulated studies.

    python benchmarks/significance.py [--studies N] [--json]

Each study draws the values of a table (rows by repetitions, the same spread in all rows), marks it
as `intl-transfer collect --baseline` does, and counts marks. With all rows equal, any mark is
false: the fraction of studies with one should be at most 5 %. With one row better by some standard
deviations, the fraction in which it is marked is the power.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

try:
    from intl_transfer.places import use_own_sources

    use_own_sources(__name__, __file__)
except ModuleNotFoundError:
    sys.exit("error: not set up; run `make setup`, then use .venv/bin/python or activate .venv")

import numpy as np

from intl_transfer.results.rows import Row, Table
from intl_transfer.results.significance import compare_with_baseline
from intl_transfer.results.statistics import summarize

ROWS, SPREAD = (2, 5, 9), 0.2
SEEDS = (3, 5, 10)


def study(
    rng: np.random.Generator, rows: int, seeds: int, better: float, shared: float
) -> list[bool]:
    """Draws one table; tells of each row but the first, the baseline, whether it is marked.

    Args:
        rng: the randomness of the study.
        rows: of the table, the baseline among them.
        seeds: repetitions of each row.
        better: advantage of the last row, in points.
        shared: fraction of the variance that rows of one seed share.
    """
    common = rng.normal(0, SPREAD * shared**0.5, seeds)
    own = rng.normal(0, SPREAD * (1 - shared) ** 0.5, (rows, seeds))
    values = 40 + common + own
    values[-1] += better
    made = [
        Row(f"m{i}", "", {("box", "AP"): summary}, seeds)
        for i, row in enumerate(values)
        if (summary := summarize(list(row), range(seeds))) is not None
    ]
    table = Table("simulated", ("box",), made, metrics={"box": ("AP",)})
    (marked,) = compare_with_baseline([table], "m0")
    comparisons = [row.marks[("box", "AP")].comparison for row in marked.rows[1:]]
    return [c is not None and c.significant() for c in comparisons]


def main() -> int:
    """Simulates, and prints the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--studies", type=int, default=2000, help="number of simulated studies per case"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    cases: list[dict[str, Any]] = []
    for shared in (0.0, 0.5):
        for rows in ROWS:
            for seeds in SEEDS:
                repeats = range(arguments.studies)
                false = [any(study(rng, rows, seeds, 0.0, shared)) for _ in repeats]
                found = [study(rng, rows, seeds, 0.5, shared)[-1] for _ in repeats]
                case: dict[str, Any] = {
                    "case": f"{rows} rows, n = {seeds}, {100 * shared:.0f} % shared by seeds",
                    "rows": rows,
                    "seeds": seeds,
                    "shared": shared,
                    "false": float(np.mean(false)),
                    "found": float(np.mean(found)),
                }
                cases.append(case)
    if arguments.json:
        print(json.dumps({"benchmark": "significance", "cases": cases}))
        return 0
    print(
        f"{arguments.studies} studies each, spread {SPREAD} over seeds, one row 0.5 points better"
    )
    print(f"{'table':38s} {'any false mark':>15s} {'better row found':>17s}")
    for case in cases:
        print(f"{case['case']:38s} {100 * case['false']:13.1f} % {100 * case['found']:15.1f} %")
    return 0


if __name__ == "__main__":
    sys.exit(main())
