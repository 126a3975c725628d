"""Random clusters against CP-SAT: no rule broken, and no move, and nothing left out, where everything fits without.

`python -m tests.bench.needless --first SEED --count N --log FILE` goes on where the log ends, so that it may be stopped.
CP-SAT is asked only where the packer moves something or leaves something out; what the volume or a replica alone forbids
needs no solver.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

from cotenant.core.packing.adopt import adopt
from cotenant.core.packing.answerfile import answer
from cotenant.core.packing.board import Board
from cotenant.core.packing.packer import Plan, Problem, pack
from cotenant.core.packing.pins import pin
from cotenant.core.packing.problemfile import read_problem
from tests.bench.random_clusters import cluster
from tests.core.check_plan import check

SECONDS = 5.0
"""What CP-SAT may take for one cluster."""


@dataclass(frozen=True, slots=True)
class Found:
    """One cluster: what was wrong with its plan, '' where nothing was."""

    seed: int
    broken: str = ""
    needless: bool = False
    asked: bool = False
    """Whether CP-SAT was asked."""
    proven: bool = True
    """Whether it was sure."""


def judge(seed: int, known: bool) -> Found:
    """The packer's plan of one cluster; `known`: OR-tools is installed."""
    data = cluster(seed)
    file = read_problem(data)
    plan = pack(replace(file.problem, moves=100))
    try:
        check(data, answer(plan, file))
    except AssertionError as e:
        return Found(seed, broken=str(e) or "a rule")
    if not known or not (plan.key.moves or plan.key.unplaced) or hopeless(file.problem):
        return Found(seed)
    return against_cp_sat(seed, file.problem, plan)


def hopeless(problem: Problem) -> bool:
    """Whether some replica fits nowhere even alone: then something must move or wait."""
    board = Board(problem)
    pin(board)
    return any(not board.index.spot(w) for w in sorted({board.owner[r] for r in board.unplaced()}))


def against_cp_sat(seed: int, problem: Problem, plan: Plan) -> Found:
    """Whether CP-SAT places everything and moves only what must move, and the plan does not."""
    from cotenant.solver_model import Model

    still = replace(problem, moves=0)
    places, proven = Model(still, []).place_all(SECONDS)
    found = adopt(still, places) if places else None
    if places and found is None:
        return Found(seed, broken="CP-SAT's placements break a rule", asked=True)
    needless = (
        found is not None and not found.key.unplaced and (plan.key.unplaced, plan.key.moves) > ((), found.key.moves)
    )
    return Found(seed, needless=needless, asked=True, proven=proven)


def main(argv: list[str]) -> int:
    """Goes on where the log ends; prints a line per thousand and the sums."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.needless", description=__doc__)
    parser.add_argument("--first", type=int, default=1_000_000)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--log", type=Path, required=True)
    options = parser.parse_args(argv)
    lines = options.log.read_text().splitlines() if options.log.exists() else []
    done = [Found(**json.loads(line)) for line in lines if line.startswith("{")]
    began = time.monotonic()
    with options.log.open("a") as log:
        for seed in range(options.first + len(done), options.first + options.count):
            found = judge(seed, True)
            done.append(found)
            print(json.dumps({k: getattr(found, k) for k in found.__slots__}), file=log, flush=True)
            if len(done) % 1000 == 0:
                print(f"{len(done)} clusters, {time.monotonic() - began:.0f} s", flush=True)
    said = {
        "clusters": len(done),
        "asked": sum(f.asked for f in done),
        "unsure": sum(not f.proven for f in done),
        "needless": [f.seed for f in done if f.needless],
        "broken": [f.seed for f in done if f.broken],
    }
    print(json.dumps(said))
    return 1 if said["needless"] or said["broken"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
