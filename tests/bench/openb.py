"""The public openb trace (FGD, USENIX ATC'23; data/openb/README.md): pods in random order, or all known in advance."""

from __future__ import annotations

import csv
import random
from dataclasses import dataclass
from pathlib import Path

from cotenant.core.packing.board import Board
from cotenant.core.packing.fragmentation import Mix
from cotenant.core.packing.pins import pin
from cotenant.core.packing.problem import Bin, Demand, Host, Problem, Workload
from tests.bench.online import Online

DATA = Path(__file__).parent / "data" / "openb"
TRACES = ("default", "gpuspec33", "multigpu50", "gpushare100")
FULL = 1000
"""One GPU in the trace's thousandths."""
DEMAND = 1.3
"""GPU demand that arrives, as a part of the capacity."""


@dataclass(frozen=True, slots=True)
class Pod:
    """What a pod of the trace asks for."""

    cpu: int
    memory: int
    gpus: int
    milli: int
    models: tuple[str, ...]

    @property
    def demand(self) -> int:
        """Thousandths of GPUs."""
        return self.gpus * self.milli


def pods(trace: str) -> list[Pod]:
    """The pods of one trace."""
    with (DATA / f"openb_pod_list_{trace}.csv").open() as file:
        return [
            Pod(int(row["cpu_milli"]), int(row["memory_mib"]), int(row["num_gpu"]), int(row["gpu_milli"]),
                tuple(sorted(m for m in (row.get("gpu_spec") or "").split("|") if m)))
            for row in csv.DictReader(file)
        ]  # fmt: skip


def nodes() -> list[dict[str, str]]:
    """The GPU nodes."""
    with (DATA / "openb_node_list_gpu_node.csv").open() as file:
        return list(csv.DictReader(file))


def arrivals(trace: str, seed: int) -> list[Pod]:
    """Pods drawn with replacement until their GPU demand is 130 % of the capacity."""
    chance, known = random.Random(f"{trace}{seed}"), pods(trace)
    left = DEMAND * capacity()
    drawn = []
    while left > 0:
        drawn.append(chance.choice(known))
        left -= drawn[-1].demand
    return drawn


def capacity() -> int:
    """Thousandths of GPUs in the cluster."""
    return FULL * sum(int(n["gpu"]) for n in nodes())


def problem(wanted: list[Pod]) -> tuple[Problem, dict[Pod, int]]:
    """The cluster, and each kind of pod as one workload; pods without GPUs are the caller's (they take host room)."""
    models = sorted({n["model"] for n in nodes()})
    hosts = tuple(
        Host(n["sn"], models.index(n["model"]),
             tuple(Bin(f"{n['sn']}/{g}", FULL, island=0) for g in range(int(n["gpu"]))),
             int(n["cpu_milli"]), int(n["memory_mib"]), n["model"], 1)
        for n in nodes()
    )  # fmt: skip
    kinds = sorted({p for p in wanted if p.gpus}, key=lambda p: (p.cpu, p.memory, p.gpus, p.milli, p.models))
    workloads = tuple(
        Workload(f"{number:05d}", sum(1 for p in wanted if p == kind), kind.gpus,
                 tuple(Demand(kind.milli) if not kind.models or m in kind.models else None for m in models),
                 cpu=kind.cpu, memory=kind.memory)
        for number, kind in enumerate(kinds)
    )  # fmt: skip
    return Problem(hosts, workloads, max_tenants=1000), {kind: number for number, kind in enumerate(kinds)}


def allocated(board: Board) -> float:
    """GPU given out, in percent of the capacity."""
    given = sum(board.memory[g] - board.promise[g] for g in range(len(board.uuid)))
    return 100 * given / capacity()


def online(trace: str, seed: int) -> float:
    """GPU allocated, in percent, when every pod is placed on arrival or never."""
    arriving = arrivals(trace, seed)
    asked, number = problem(arriving)
    board = Board(asked)
    pin(board)
    known = pods(trace)
    weights: dict[int, int] = {}
    for pod in known:
        if pod in number:
            weights[number[pod]] = weights.get(number[pod], 0) + 1
    placing = Online(board, Mix(board, weights))
    following = list(board.first)
    for pod in arriving:
        if not pod.gpus:
            _without_gpu(board, placing, pod)
            continue
        w = number[pod]
        spot = placing.spot(w)
        if spot:
            board.place(following[w], spot)
            following[w] += 1
            placing.touch(board.host[spot[0]])
    return allocated(board)


def _without_gpu(board: Board, placing: Online, pod: Pod) -> None:
    """Pods without GPUs go where least GPU is left, then where least CPU is."""
    fitting = [
        (sum(board.promise[g] for g in board.host_gpus[host]), board.cpu[host], host)
        for host in range(len(board.hosts))
        if board.cpu[host] >= pod.cpu and board.host_memory[host] >= pod.memory
    ]
    if fitting:
        host = min(fitting)[2]
        board.cpu[host] -= pod.cpu
        board.host_memory[host] -= pod.memory
        board.index.host_changed(host)
        placing.touch(host)


def known_in_advance(trace: str, seed: int) -> float:
    """GPU allocated, in percent, when all pods are known: the largest first, each where it strands least of them."""
    arriving = arrivals(trace, seed)
    asked, number = problem(arriving)
    board = Board(asked)
    pin(board)
    weights: dict[int, int] = {}
    for pod in arriving:
        if pod.gpus:
            weights[number[pod]] = weights.get(number[pod], 0) + 1
    placing = Online(board, Mix(board, weights))
    following = list(board.first)
    hopeless: set[int] = set()
    for pod in sorted((p for p in arriving if p.gpus), key=lambda p: (-p.demand, -p.cpu, number[p])):
        w = number[pod]
        spot = placing.spot(w) if w not in hopeless else ()
        if not spot:
            hopeless.add(w)
            continue
        board.place(following[w], spot)
        following[w] += 1
        placing.touch(board.host[spot[0]])
    return allocated(board)


def published() -> dict[tuple[str, str], float]:
    """(trace, policy) -> GPU allocated, as published."""
    with (DATA / "published_allocation.csv").open() as file:
        return {
            (row["workload"], row["policy"]): float(row["gpu_allocation_percent_at_130"])
            for row in csv.DictReader(file)
        }
