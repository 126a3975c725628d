"""Speed and memory of the packer at 10,000 replicas on 8,000 GPUs."""

from __future__ import annotations

import random
import resource
from collections.abc import Iterator
from dataclasses import replace

from cotenant.core.packing.packer import Problem, Running
from cotenant.core.packing.problemfile import read_problem
from tests.bench.instances import MEMORY, MIXED, ONE, fresh
from tests.bench.table import Options, Row, at_most, improved, timed


def large(products: list[str], seed: int) -> Problem:
    """10,000 replicas on 8,000 GPUs."""
    data = fresh(seed, 8000, products, fill=0.9, most_replicas=30)
    left, models = 10_000, []
    for model in data["models"]:
        model["replicas"] = min(model["replicas"], left)
        left -= model["replicas"]
        models.append(model)
        if not left:
            break
    return read_problem({**data, "models": models}).problem


def one(options: Options) -> Iterator[Row]:
    """One product."""
    yield from _scale(options, ONE, "one product")


def seven(options: Options) -> Iterator[Row]:
    """Seven products."""
    assert set(MIXED) < set(MEMORY)
    yield from _scale(options, sorted(MEMORY), "seven products")


def _scale(options: Options, products: list[str], name: str) -> Iterator[Row]:
    problem = large(products, 1)
    instance = f"{sum(w.replicas for w in problem.workloads)} replicas, 8000 GPUs, {name}"
    plan, seconds = timed(problem)
    yield at_most("scale", f"{instance}: one pass", seconds, 1, "s")
    _, seconds = improved(problem, 2.5)
    yield at_most("scale", f"{instance}: portfolio", seconds, 3, "s")
    running = tuple(Running(p.workload, p.replica, p.host, p.gpus) for p in plan.placements)
    chance, taken = random.Random(2), []
    for _ in range(10 if options.quick else 100):
        changed = list(problem.workloads)
        at = chance.randrange(len(changed))
        changed[at] = replace(changed[at], replicas=changed[at].replicas + 1)
        _, seconds = timed(replace(problem, workloads=tuple(changed), running=running, moves=10))
        taken.append(seconds)
    p99 = sorted(taken)[int(0.99 * (len(taken) - 1))]
    yield at_most("scale", f"{instance}: re-plan after one change, p99 of {len(taken)}", p99, 0.25, "s")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    yield at_most("scale", f"{instance}: memory of the process, instance included", peak, 200, "MB")
