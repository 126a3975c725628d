"""What a plan must never do, and what it must do as well as CP-SAT when something happens to a cluster."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from cotenant import solver
from cotenant.core.packing.adopt import adopt
from cotenant.core.packing.answerfile import answer
from cotenant.core.packing.board import order
from cotenant.core.packing.packer import Problem, pack
from cotenant.core.packing.problemfile import read_problem
from tests.bench.instances import MIXED, ONE, fresh
from tests.bench.needless import judge
from tests.bench.packing_quality import NO_SOLVER
from tests.bench.random_clusters import cluster
from tests.bench.table import Options, Row, at_least, at_most, timed
from tests.core.check_plan import check

EVENTS = ("node loss", "growth", "addition")


def event(seed: int, gpus: int) -> Problem:
    """A packed cluster to which something happens: a node is lost, a model grows, or one is added."""
    chance = random.Random(seed)
    data = fresh(seed, gpus, ONE if seed % 2 else MIXED, chance.uniform(0.5, 0.85), 0.05, 4, (0, 0, 1, 2))
    file = read_problem(data)
    before = pack(file.problem)
    found = answer(before, file)
    data["running"] = [{k: p[k] for k in ("model", "node", "gpus")} for p in found["placements"]]  # type: ignore[attr-defined]
    what = EVENTS[seed % 3]
    if what == "node loss":
        chance.choice(data["nodes"])["ready"] = False
    elif what == "growth":
        chance.choice(data["models"])["replicas"] += chance.randint(1, 3)
    else:
        data["models"].append({**chance.choice(data["models"]), "name": "new", "replicas": chance.randint(1, 3)})
    return replace(read_problem(data).problem, moves=100)


def events(options: Options) -> Iterator[Row]:
    """Node loss, growth and addition up to 64 GPUs: what is placed and moved, against CP-SAT."""
    if not solver.is_installed():
        yield Row("events", "node loss, growth, addition", NO_SOLVER, ">= 95 %")
        return
    same = better = moves = least = count = unproven = 0
    worst = 0.0
    for seed in options.span(12):
        problem = event(seed, (16, 32, 64)[seed // 3 % 3])
        plan, seconds = timed(replace(problem, iterations=30_000), 4.5)
        places, proven = solver.ask(problem, None, 20)
        theirs = adopt(problem, places)
        worst = max(worst, seconds)
        if theirs is None:
            print(f"seed {seed}: nothing of use from CP-SAT", file=sys.stderr)
            continue
        count, unproven = count + 1, unproven + (not proven)
        if plan.key.unplaced <= theirs.key.unplaced:
            same, better = same + 1, better + (plan.key.unplaced < theirs.key.unplaced)
            moves, least = moves + plan.key.moves, least + theirs.key.moves
        else:
            print(f"seed {seed}, {EVENTS[seed % 3]}: {plan.key} CP-SAT {theirs.key}", file=sys.stderr)
    what = f"{count} events ({unproven} where CP-SAT proved nothing in 20 s, {better} where it placed less)"
    yield at_least("events", f"{what}: as many placed", 100 * same / max(1, count), 95, "%")
    above = 100 * (moves - least) / max(1, least)
    yield at_most("events", f"moves where as many are placed: {moves} against {least}", above, 5, "%")
    yield at_most("events", "longest", worst, 5, "s")


def needless(options: Options) -> Iterator[Row]:
    """Random clusters up to 16 GPUs: no rule broken, and no move where CP-SAT needs none."""
    known = solver.is_installed()
    found = [
        judge(seed, known) for seed in range(1_000_000, 1_000_000 + (50 if options.quick else 200) * options.seeds)
    ]
    broken, moved = [f.seed for f in found if f.broken], [f.seed for f in found if f.needless]
    many = f"{len(found)} random clusters (10,000: python -m tests.bench.needless)"
    yield at_most("rules", f"{many}: rules broken", len(broken), 0, "plans", f"seeds {broken}")
    if known:
        yield at_most("rules", f"{many}: needless moves", len(moved), 0, "plans", f"seeds {moved}")
    else:
        yield Row("rules", f"{many}: needless moves", NO_SOLVER, "<= 0 plans")


def sameness(options: Options) -> Iterator[Row]:
    """The same plan byte for byte."""
    different = 0
    seeds = options.span(20)
    for seed in seeds:
        file = read_problem(cluster(seed))
        texts = {json.dumps(answer(pack(replace(file.problem, iterations=2000, moves=9)), file)) for _ in range(2)}
        different += len(texts) > 1
    yield at_most("determinism", f"{len(seeds)} clusters packed twice: differences", different, 0, "plans")


def _kill_children() -> None:
    """Kill the programs this process has started."""
    for task in Path("/proc/self/task").iterdir():
        for child in (task / "children").read_text().split():
            with suppress(ProcessLookupError):
                os.kill(int(child), signal.SIGKILL)


def killed(options: Options) -> Iterator[Row]:
    """CP-SAT's child killed at any moment: the plan breaks no rule and is no worse."""
    if not solver.is_installed():
        yield Row("killed", "CP-SAT killed at any moment", NO_SOLVER, "<= 0 plans")
        return
    bad = 0
    seeds = options.span(10)
    for seed in seeds:
        data = cluster(seed)
        file = read_problem(data)
        problem = replace(file.problem, moves=9)
        before = pack(problem)
        killing = threading.Timer(random.Random(seed).uniform(0.05, 2), _kill_children)
        killing.start()
        after = solver.improve(problem, before, 2)
        killing.cancel()
        try:
            check(data, answer(after, file))
            bad += order(after.key) > order(before.key)
        except AssertionError as e:
            bad += 1
            print(f"seed {seed}: {e}", file=sys.stderr)
    yield at_most("killed", f"{len(seeds)} plans whose solver was killed at a random moment: worse", bad, 0, "plans")
