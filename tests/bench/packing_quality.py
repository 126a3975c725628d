"""How good fresh plans are: against the proven bound, CP-SAT, what schedulers do, and the public trace."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace

from cotenant import solver
from cotenant.core.packing.adopt import adopt
from cotenant.core.packing.packer import Key, Problem
from cotenant.core.packing.problemfile import read_problem
from tests.bench import openb, policies
from tests.bench.instances import MIXED, ONE, fresh
from tests.bench.table import Options, Row, at_least, at_most, improved, timed

NO_SOLVER = "OR-tools is not installed: pip install cotenant[solver]"


# ------------------------------------------------------------------------------------------------------------ bounds
def bound_one(options: Options) -> Iterator[Row]:
    """One product, any size: 10 s."""
    yield from _bounded(options, "one product", ONE, options.sizes((64, 128, 512, 2000, 8000), (16, 64)), 10, 1.0)


def bound_mixed(options: Options) -> Iterator[Row]:
    """Four products: 60 s."""
    yield from _bounded(options, "four products", MIXED, options.sizes((512, 2000, 8000), (64,)), 60, 5.0)


def bound_mixed_small(options: Options) -> Iterator[Row]:
    """Four products on few GPUs, where the bound itself is loose: no target."""
    for gpus in options.sizes((16, 32, 64, 128), (16,)):
        seconds = options.time(10)
        gaps = _gaps(options, gpus, MIXED, seconds)
        figure = f"{statistics.mean(gaps):.3g} %"
        yield Row("bound", f"four products, {gpus} GPUs, {len(gaps)} seeds, {seconds:g} s: mean above it", figure, "-")


def _bounded(
    options: Options, name: str, products: list[str], sizes: tuple[int, ...], usual: float, target: float
) -> Iterator[Row]:
    for gpus in sizes:
        seconds = options.time(usual)
        gaps = _gaps(options, gpus, products, seconds)
        instance = f"{name}, {gpus} GPUs, {len(gaps)} seeds, {seconds:g} s: worst above the bound"
        yield at_most("bound", instance, max(gaps), target, "%")


def _gaps(options: Options, gpus: int, products: list[str], seconds: float) -> list[float]:
    found = []
    for seed in options.span():
        problem = read_problem(fresh(seed, gpus, products, 0.7, strangers=0.05)).problem
        plan, _ = improved(problem, seconds)
        assert plan.bound, "a fresh plan has a bound"
        found.append(100 * (plan.key.cost - plan.bound) / plan.bound)
    return found


# ------------------------------------------------------------------------------------------------------------ CP-SAT
def against_cp_sat(options: Options) -> Iterator[Row]:
    """Fresh plans up to 128 GPUs against CP-SAT with six times the seconds."""
    if not solver.is_installed():
        yield Row("cp-sat", "fresh plans", NO_SOLVER, "<= 0.1 %")
        return
    gaps, worse = [], 0
    for gpus in options.sizes((16, 32, 64, 128), (8, 16)):
        for seed in options.span():
            for products in (ONE, MIXED):
                problem = read_problem(fresh(seed, gpus, products, 0.6)).problem
                seconds = options.time(10)
                plan, _ = improved(problem, seconds)
                places, _ = solver.ask(problem, None, 6 * seconds)
                theirs = adopt(problem, places) if places else None
                if theirs is None:
                    continue
                worse += (plan.key.unplaced, plan.key.splits) > (theirs.key.unplaced, theirs.key.splits)
                if (plan.key.unplaced, plan.key.splits) == (theirs.key.unplaced, theirs.key.splits):
                    gaps.append(100 * (plan.key.cost - theirs.key.cost) / max(1, theirs.key.cost))
    yield at_most("cp-sat", f"{len(gaps)} fresh plans: mean cost above CP-SAT's", statistics.mean(gaps), 0.1, "%")
    yield at_most("cp-sat", f"{len(gaps)} fresh plans: worst cost above CP-SAT's", max(gaps), 2, "%")
    yield at_most("cp-sat", "fresh plans that place less or split more", worse, 0, "plans")


# ---------------------------------------------------------------------------------------------------------- policies
POLICIES: dict[str, Callable[[Problem], Key]] = {
    "KAI binpack": lambda p: policies.run(p, policies.kai_binpack),
    "kube-scheduler MostAllocated": lambda p: policies.run(p, policies.most_allocated),
    "best-fit decreasing": lambda p: policies.run(p, policies.best_fit, largest_first=True),
}


def baselines(options: Options) -> Iterator[Row]:
    """Never worse than what schedulers do, in (placed by priority, cost); also with the fast pass only."""
    worse = dict.fromkeys(POLICIES, 0)
    worse_fast = dict.fromkeys(POLICIES, 0)
    more: dict[str, list[float]] = {name: [] for name in POLICIES}
    count = 0
    for seed in options.span(9):
        for products in (ONE, MIXED):
            gpus, fill = (16, 64, 128)[seed % 3], (0.6, 0.9, 1.2)[seed // 3 % 3]
            problem = read_problem(fresh(seed, gpus, products, fill, 0.05, 12, (0, 1))).problem
            fast = timed(problem)[0].key
            plan = timed(replace(problem, iterations=10_000))[0].key
            count += 1
            for name, policy in POLICIES.items():
                theirs = policy(problem)
                worse[name] += (plan.unplaced, plan.cost) > (theirs.unplaced, theirs.cost)
                worse_fast[name] += (fast.unplaced, fast.cost) > (theirs.unplaced, theirs.cost)
                if plan.unplaced == theirs.unplaced:
                    more[name].append(100 * (theirs.cost / max(1, plan.cost) - 1))
    for name in POLICIES:
        mean = f", costs {statistics.mean(more[name]):.1f} % more" if more[name] else ""
        yield at_most("baselines", f"{name}, {count} instances{mean}: better than us", worse[name], 0, "times")
        yield at_most(
            "baselines", f"{name}, {count} instances: better than our fast pass", worse_fast[name], 0, "times"
        )


# ------------------------------------------------------------------------------------------------------------- trace
def trace(name: str) -> Callable[[Options], Iterator[Row]]:
    """One workload of the public trace, online."""

    def rows(options: Options) -> Iterator[Row]:
        seeds = options.span(1 if options.quick else 5)
        figure = statistics.mean(openb.online(name, seed) for seed in seeds)
        target = openb.published()[name, "FGD"]
        yield at_least("openb", f"{name}, online, mean of {len(seeds)} seeds; target: FGD's", figure, target, "%")

    return rows


def known(options: Options) -> Iterator[Row]:
    """The public trace, known in advance."""
    seeds = options.span(1 if options.quick else 2)
    figure = statistics.mean(openb.known_in_advance("default", seed) for seed in seeds)
    yield at_least("openb", f"default, known in advance, mean of {len(seeds)} seeds", figure, 97.9, "%")
