"""`python -m tests.bench packing`: every target of the packer as a row: instance, figure, target, how far within it.

Seconds are CPU seconds of this process, so that a busy machine changes them little. Rows that need CP-SAT say so where
OR-tools is not installed. `--quick` takes few instances, `--only NAME` one group of rows.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator

from tests.bench import openb, packing_quality, packing_rules, packing_scale
from tests.bench.table import Options, Row

GROUPS: dict[str, Callable[[Options], Iterator[Row]]] = {
    "scale-one": packing_scale.one,
    "scale-seven": packing_scale.seven,
    "bound-one": packing_quality.bound_one,
    "bound-mixed": packing_quality.bound_mixed,
    "bound-mixed-small": packing_quality.bound_mixed_small,
    "cp-sat": packing_quality.against_cp_sat,
    "events": packing_rules.events,
    "rules": packing_rules.needless,
    "baselines": packing_quality.baselines,
    **{f"openb-{name}": packing_quality.trace(name) for name in openb.TRACES},
    "openb-known": packing_quality.known,
    "determinism": packing_rules.sameness,
    "killed": packing_rules.killed,
}


def main(argv: list[str]) -> int:
    """Prints the rows as they are known."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench packing", description=__doc__)
    parser.add_argument("--only", choices=tuple(GROUPS), action="append", help="one group of rows; may be repeated")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seeds", type=int, default=2, help="instances of each kind (default: 2)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default: 0)")
    parser.add_argument("--seconds", type=float, help="improvement of each fresh plan (default: what the target says)")
    parser.add_argument("--gpus", type=int, action="append", help="only instances of this size; may be repeated")
    chosen = parser.parse_args(argv)
    options = Options(chosen.quick, chosen.seeds, chosen.first, chosen.seconds, tuple(chosen.gpus or ()))
    print(f"{'':5}{'section':13} {'instance':86} {'figure':>12} {'target':>12} {'ratio':>7}", flush=True)
    for name, group in GROUPS.items():
        if not chosen.only or name in chosen.only:
            for row in group(options):
                print(row, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
