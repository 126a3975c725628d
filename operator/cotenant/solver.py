"""Exact help for the packer, where OR-tools is installed: CP-SAT in a child process, with limits of time and memory.

The child may die or be killed at any moment: what it has not said is not used, and what it says is taken only when it
breaks no rule (core.packing.adopt) and betters the key. `python -m cotenant.solver` is that child.
"""

from __future__ import annotations

import importlib.util
import json
import pickle
import resource
import subprocess
import sys
import time
from dataclasses import replace
from typing import cast

from cotenant.core.packing.adopt import Place, adopt, part
from cotenant.core.packing.board import order
from cotenant.core.packing.problem import Plan, Problem

WHOLE = 64
"""GPUs up to which the whole problem is solved; beyond, a neighbourhood at a time."""
NEIGHBOURHOOD = 40
"""GPUs of one neighbourhood."""
MEMORY = 4 << 30
"""Bytes of address space the child may have; a 64-GPU problem needs about 1 GiB with OR-tools itself mapped."""
GRACE = 3.0
"""Seconds on top of its time limit, and a quarter of it, until the child is killed: it may be slow to say what it found
on a busy machine."""


def is_installed() -> bool:
    """Whether the extra is there (`pip install cotenant[solver]`)."""
    return importlib.util.find_spec("ortools") is not None


def improve(problem: Problem, plan: Plan, seconds: float) -> Plan:
    """A plan at least as good, within about this many seconds; the same plan where the child fails."""
    end = time.monotonic() + seconds
    if sum(len(host.bins) for host in problem.hosts) <= WHOLE:
        places, _ = ask(problem, plan, seconds)
        return _better(problem, plan, places)
    names = _by_waste(problem, plan)
    at = 0
    while names and time.monotonic() < end - GRACE / 2:
        chosen, gpus = set[str](), 0
        for step in range(len(names)):
            name, count = names[(at + step) % len(names)]
            if gpus + count > NEIGHBOURHOOD:
                break
            chosen.add(name)
            gpus += count
        at += max(1, len(chosen))
        smaller, numbers = part(problem, plan, chosen or {names[at % len(names)][0]})
        places, _ = ask(smaller, None, min(GRACE, end - time.monotonic()))
        if places:
            moved = [(w, numbers[w, n], host, gpus_) for w, n, host, gpus_ in places]
            kept = [
                (p.workload, p.replica, p.host, p.gpus)
                for p in plan.placements
                if p.host not in {h.name for h in smaller.hosts}
            ]
            plan = _better(problem, plan, kept + moved)
        if at >= 2 * len(names):
            break
    return plan


def ask(problem: Problem, plan: Plan | None, seconds: float, memory: int = MEMORY) -> tuple[list[Place], bool]:
    """What the child finds, and whether it is proven to be the best; nothing when it fails or is killed."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    hint = [(p.workload, p.replica, p.host, p.gpus) for p in plan.placements] if plan else []
    try:
        child = subprocess.run(
            [sys.executable, "-m", "cotenant.solver"],
            input=pickle.dumps((problem, hint, time.time() + seconds)),
            capture_output=True,
            timeout=1.25 * seconds + GRACE,
            preexec_fn=limit,
            check=True,
        )
        said = json.loads(child.stdout)
    except (subprocess.SubprocessError, OSError, ValueError):
        return [], False
    return [(w, r, h, tuple(g)) for w, r, h, g in said["places"]], bool(said["proven"])


def _better(problem: Problem, plan: Plan, places: list[Place]) -> Plan:
    found = adopt(problem, places) if places else None
    if found is None or order(found.key) >= order(plan.key):
        return plan
    return replace(found, bound=plan.bound, bound_method=plan.bound_method, effort=plan.effort)


def _by_waste(problem: Problem, plan: Plan) -> list[tuple[str, int]]:
    """Hosts with something on them or free, those with most room left on opened GPUs first; and their GPUs."""
    share = {(w.key, kind): d.share for w in problem.workloads for kind, d in enumerate(w.demands) if d}
    kinds = {h.name: h.kind for h in problem.hosts}
    used: dict[tuple[str, str], int] = {}
    for p in plan.placements:
        for g in p.gpus:
            used[p.host, g] = used.get((p.host, g), 0) + share.get((p.workload, kinds[p.host]), 0)
    waste = []
    for host in problem.hosts:
        left = sum(b.memory - used[host.name, b.uuid] for b in host.bins if (host.name, b.uuid) in used)
        if host.ready and host.bins:
            waste.append((-left, host.name, len(host.bins)))
    return [(name, count) for _, name, count in sorted(waste)]


def main() -> int:
    """The child: a problem on standard input, what was found on standard output."""
    from cotenant.solver_model import Model  # only here: needs OR-tools

    problem, hint, end = cast(tuple[Problem, list[Place], float], pickle.load(sys.stdin.buffer))
    model = Model(problem, hint)
    places, proven = model.solve(max(0.2, end - time.time()))
    json.dump({"places": places, "proven": proven}, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
