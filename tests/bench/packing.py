"""`python -m tests.bench packing`: every target of the packer as a row: instance, figure, target, how far within it.

Seconds are CPU seconds of this process, so that a busy machine changes them little. Rows that need CP-SAT say so where
OR-tools is not installed. `--quick` takes few instances, `--only NAME` one section.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from cotenant import solver
from cotenant.core.packing.adopt import adopt
from cotenant.core.packing.packer import Plan, Problem, Running, pack
from cotenant.core.packing.problemfile import answer, read_problem
from tests.bench import openb, policies
from tests.bench.instances import fresh
from tests.bench.random_clusters import cluster
from tests.core.check_plan import check

ONE = ["H100-80GB"]
MIXED = ["L40S-48GB", "H100-80GB", "RTX-PRO-6000-96GB", "H200-141GB"]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table; `within`: the figure met its target, None where there is none to meet."""

    section: str
    instance: str
    figure: str
    target: str
    ratio: float | None = None
    within: bool | None = None


@dataclass(frozen=True, slots=True)
class Options:
    """How much to run."""

    quick: bool
    seeds: int
    seconds: float


def timed(problem: Problem, seconds: float | None = None) -> tuple[Plan, float]:
    """A plan and the CPU seconds it took; `seconds` ends the improvement."""
    began = time.process_time()
    going = None if seconds is None else (lambda: time.process_time() - began < seconds)
    plan = pack(problem, going)
    return plan, time.process_time() - began


def at_most(section: str, instance: str, figure: float, target: float, unit: str) -> Row:
    """A row whose figure should not be above its target."""
    return Row(section, instance, f"{figure:.3g} {unit}", f"<= {target:g} {unit}", figure / target, figure <= target)


def at_least(section: str, instance: str, figure: float, target: float, unit: str) -> Row:
    """A row whose figure should not be below its target."""
    return Row(section, instance, f"{figure:.2f} {unit}", f">= {target:g} {unit}", figure / target, figure >= target)


# ------------------------------------------------------------------------------------------------------------- scale
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


def scale(options: Options) -> Iterator[Row]:
    """Speed and memory at 10,000 replicas on 8,000 GPUs."""
    eight = [*MIXED, "L4-24GB", "A100-40GB", "A100-80GB", "L40S-48GB"]
    for name, products in (("one product", ONE), ("seven products", sorted(set(eight)))):
        problem = large(products, 1)
        count = sum(w.replicas for w in problem.workloads)
        instance = f"{count} replicas, 8000 GPUs, {name}"
        plan, seconds = timed(problem)
        yield at_most("scale", f"{instance}: one pass", seconds, 1, "s")
        _, seconds = timed(replace(problem, iterations=20_000), 2.5)
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
    yield at_most("scale", "memory of this process, its instances included", peak, 200, "MB")


# ----------------------------------------------------------------------------------------------------------- quality
def bounded(options: Options) -> Iterator[Row]:
    """Fresh plans against the proven minimum."""
    sizes = (16, 64) if options.quick else (64, 128, 512)
    for name, products, target in (("one product", ONE, 1.0), ("four products", MIXED, 5.0)):
        for gpus in sizes:
            gaps = []
            for seed in range(options.seeds):
                problem = read_problem(fresh(seed, gpus, products, 0.7, strangers=0.05)).problem
                plan, _ = timed(replace(problem, iterations=10**9), options.seconds)
                if plan.bound:
                    gaps.append(100 * (plan.key.cost - plan.bound) / plan.bound)
            if gaps:
                instance = f"{name}, {gpus} GPUs, {len(gaps)} seeds, {options.seconds:g} s: mean above the bound"
                yield at_most("bound", instance, statistics.mean(gaps), target, "%")


def against_cp_sat(options: Options) -> Iterator[Row]:
    """Fresh plans up to 128 GPUs against CP-SAT with six times the seconds."""
    if not solver.is_installed():
        yield Row("cp-sat", "fresh plans", "OR-tools is not installed", "mean <= +0.1 %, worst <= +2 %")
        return
    gaps = []
    for seed in range(options.seeds):
        for products in (ONE, MIXED):
            gpus = (8, 16, 32) if options.quick else (16, 32, 64, 128)
            problem = read_problem(fresh(seed, gpus[seed % len(gpus)], products, 0.6)).problem
            plan, _ = timed(replace(problem, iterations=10**9), options.seconds)
            places, _ = solver.ask(problem, None, 6 * options.seconds)
            reference = adopt(problem, places) if places else None
            if reference and reference.key.unplaced == plan.key.unplaced and reference.key.splits == plan.key.splits:
                gaps.append(100 * (plan.key.cost - reference.key.cost) / max(1, reference.key.cost))
    if gaps:
        yield at_most("cp-sat", f"{len(gaps)} fresh plans: mean above CP-SAT", statistics.mean(gaps), 0.1, "%")
        yield at_most("cp-sat", f"{len(gaps)} fresh plans: worst above CP-SAT", max(gaps), 2, "%")


# ------------------------------------------------------------------------------------------------------------ events
def event(seed: int, gpus: int) -> Problem:
    """A packed cluster to which something happens: a node is lost, a model grows, or one is added."""
    chance = random.Random(seed)
    data = fresh(seed, gpus, ONE if seed % 2 else MIXED, chance.uniform(0.5, 0.85), 0.05, 4, (0, 0, 1, 2))
    file = read_problem(data)
    before = pack(file.problem)
    found = answer(before, file)
    data["running"] = [{k: p[k] for k in ("model", "node", "gpus")} for p in found["placements"]]  # type: ignore[attr-defined]
    what = seed % 3
    if what == 0:
        chance.choice(data["nodes"])["ready"] = False
    elif what == 1:
        chance.choice(data["models"])["replicas"] += chance.randint(1, 3)
    else:
        data["models"].append({**chance.choice(data["models"]), "name": "new", "replicas": chance.randint(1, 3)})
    return replace(read_problem(data).problem, moves=100)


def events(options: Options) -> Iterator[Row]:
    """Node loss, growth and addition up to 64 GPUs: what is placed and moved, against CP-SAT."""
    if not solver.is_installed():
        yield Row("events", "node loss, growth, addition", "OR-tools is not installed", ">= 95 % placed as CP-SAT")
        return
    same = moves = least = worst = count = 0.0
    for seed in range(6 * options.seeds):
        problem = event(seed, (16, 32, 64)[seed // 3 % 3])
        plan, seconds = timed(replace(problem, iterations=30_000), 5)
        places, _ = solver.ask(problem, None, 20)
        reference = adopt(problem, places)
        if reference is None:
            continue
        count += 1
        worst = max(worst, seconds)
        if plan.key.unplaced <= reference.key.unplaced:
            same += 1
            moves, least = moves + plan.key.moves, least + reference.key.moves
    if count:
        yield at_least("events", f"{count:g} events: as many placed as CP-SAT", 100 * same / count, 95, "%")
        yield at_most(
            "events", "moves above CP-SAT's, where as many are placed", 100 * (moves - least) / max(1, least), 5, "%"
        )
        yield at_most("events", "longest", worst, 5, "s")


def needless(options: Options) -> Iterator[Row]:
    """Random clusters up to 16 GPUs: no rule broken, and no move where CP-SAT needs none."""
    moved = broken = count = 0
    known = solver.is_installed()
    for seed in range(1_000_000, 1_000_000 + 100 * options.seeds):
        data = cluster(seed)
        file = read_problem(data)
        plan = pack(replace(file.problem, moves=100))
        count += 1
        try:
            check(data, answer(plan, file))
        except AssertionError as e:
            broken += 1
            print(f"seed {seed} breaks a rule: {e}", file=sys.stderr)
        if known and (plan.key.moves or plan.key.unplaced) and fits_without_moves(file.problem):
            moved += 1
            print(f"seed {seed} moves or leaves out without need: {plan.key}", file=sys.stderr)
    yield at_most("rules", f"{count} random clusters: rules broken", broken, 1e-9, "plans")
    if known:
        yield at_most("rules", f"{count} random clusters: needless moves", moved, 1e-9, "plans")


def fits_without_moves(problem: Problem) -> bool:
    """Whether CP-SAT places everything and leaves all that runs where it is."""
    from cotenant.solver_model import Model

    still = replace(problem, moves=0)
    places, _ = Model(still, []).solve(5)
    found = adopt(still, places) if places else None
    return found is not None and not found.key.unplaced and not found.key.moves


# ---------------------------------------------------------------------------------------------------------- policies
def baselines(options: Options) -> Iterator[Row]:
    """Never worse than what schedulers do, in (placed by priority, cost)."""
    names: dict[str, Callable[[Problem], object]] = {
        "KAI binpack": lambda p: policies.run(p, policies.kai_binpack),
        "MostAllocated": lambda p: policies.run(p, policies.most_allocated),
        "best-fit decreasing": lambda p: policies.run(p, policies.best_fit, largest_first=True),
    }
    for name, policy in names.items():
        worse, count, ratios = 0, 0, []
        for seed in range(3 * options.seeds):
            for products in (ONE, MIXED):
                gpus, fill = (16, 64, 128)[seed % 3], (0.6, 0.9, 1.2)[seed // 3 % 3]
                problem = read_problem(fresh(seed, gpus, products, fill, 0.05, 12, (0, 1))).problem
                theirs = policy(problem)
                plan, _ = timed(replace(problem, iterations=10_000))
                count += 1
                worse += (plan.key.unplaced, plan.key.cost) > (theirs.unplaced, theirs.cost)  # type: ignore[attr-defined]
                if plan.key.unplaced == theirs.unplaced:  # type: ignore[attr-defined]
                    ratios.append(theirs.cost / max(1, plan.key.cost))  # type: ignore[attr-defined]
        mean = f", costs {100 * (statistics.mean(ratios) - 1):.1f} % more" if ratios else ""
        yield at_most("baselines", f"{name}, {count} instances{mean}: better than us", worse, 1e-9, "times")


def trace(options: Options) -> Iterator[Row]:
    """The public trace, online and known in advance."""
    seeds = range(1 if options.quick else options.seeds)
    known = openb.published()
    for name in openb.TRACES:
        figure = statistics.mean(openb.online(name, seed) for seed in seeds)
        yield at_least("openb", f"{name}, online, {len(seeds)} seeds", figure, known[name, "FGD"], "%")
    figure = statistics.mean(openb.known_in_advance("default", seed) for seed in seeds)
    yield at_least("openb", f"default, known in advance, {len(seeds)} seeds", figure, 97.9, "%")


def sameness(options: Options) -> Iterator[Row]:
    """The same plan byte for byte."""
    different = 0
    for seed in range(5 * options.seeds):
        data = cluster(seed)
        file = read_problem(data)
        texts = {json.dumps(answer(pack(replace(file.problem, iterations=2000, moves=9)), file)) for _ in range(2)}
        different += len(texts) > 1
    yield at_most("determinism", f"{5 * options.seeds} clusters packed twice: differences", different, 1e-9, "plans")


SECTIONS: dict[str, Callable[[Options], Iterator[Row]]] = {
    "scale": scale, "bound": bounded, "cp-sat": against_cp_sat, "events": events, "rules": needless,
    "baselines": baselines, "openb": trace, "determinism": sameness,
}  # fmt: skip


def main(argv: list[str]) -> int:
    """Prints the rows as they are known."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench packing", description=__doc__)
    parser.add_argument("--only", choices=tuple(SECTIONS))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seeds", type=int, default=3, help="instances of each kind (default: 3)")
    parser.add_argument("--seconds", type=float, default=10, help="improvement of each fresh plan (default: 10)")
    chosen = parser.parse_args(argv)
    options = Options(chosen.quick, chosen.seeds, min(chosen.seconds, 2) if chosen.quick else chosen.seconds)
    print(f"{'':4}{'section':12} {'instance':82} {'figure':>14} {'target':>14} {'ratio':>7}")
    for name, section in SECTIONS.items():
        if chosen.only not in (None, name):
            continue
        for row in section(options):
            mark = {True: "ok", False: "MISS", None: "-"}[row.within]
            ratio = "" if row.ratio is None or row.ratio > 1e6 else f"{row.ratio:.3f}"
            print(
                f"{mark:4}{row.section:12} {row.instance:82} {row.figure:>14} {row.target:>14} {ratio:>7}", flush=True
            )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
