"""What schedulers do, on the packer's own board, so that the rules are the same: one replica at a time, no way back."""

from __future__ import annotations

from collections.abc import Callable

from cotenant.core.packing.board import Board, Spot
from cotenant.core.packing.pins import pin
from cotenant.core.packing.problem import Key, Problem

Policy = Callable[[Board, int], Spot]


def run(problem: Problem, policy: Policy, largest_first: bool = False) -> Key:
    """The key of what the policy makes of the problem: highest priority first, then as listed (or largest first)."""
    board = Board(problem)
    pin(board)
    listed = {w.key: n for n, w in enumerate(problem.workloads)}
    largest = [max((d[0] for d in ds if d), default=0) * s for ds, s in zip(board.demand, board.size, strict=True)]

    def rank(r: int) -> tuple[int, int, int, int]:
        w = board.owner[r]
        return (-board.priority[w], -largest[w] if largest_first else 0, listed[board.workloads[w].key], r)

    for r in sorted(board.unplaced(), key=rank):
        spot = policy(board, board.owner[r])
        if spot:
            board.place(r, spot)
    return board.key()


def kai_binpack(board: Board, w: int) -> Spot:
    """KAI's binpack: the node with the least GPU left, on it the GPUs in use with the least left."""
    return _best(board, w, lambda h: sum(board.promise[g] for g in board.host_gpus[h]))


def most_allocated(board: Board, w: int) -> Spot:
    """kube-scheduler's MostAllocated: the node with the highest mean of GPU, CPU and memory in use."""

    def score(h: int) -> float:
        host, gpus = board.hosts[h], board.host_gpus[h]
        gpu = sum(board.promise[g] for g in gpus) / max(1, sum(board.memory[g] for g in gpus))
        return gpu + board.cpu[h] / max(1, host.cpu) + board.host_memory[h] / max(1, host.memory)

    return _best(board, w, score)


def best_fit(board: Board, w: int) -> Spot:
    """The GPUs that are left with the least, wherever; what is open before what is clean."""
    return _best(board, w, lambda _: 0.0)


def _best(board: Board, w: int, score: Callable[[int], float]) -> Spot:
    best: tuple[float, int, int, Spot] | None = None
    for h in range(len(board.hosts)):
        if board.need(w, h) is None or not board.host_fits(w, h):
            continue
        fitting = sorted(
            (not board.tenants[g] and board.price[g] > 0, board.promise[g], g)
            for g in board.host_gpus[h]
            if board.fits(w, g)
        )[: board.size[w]]
        if len(fitting) < board.size[w]:
            continue
        spot = tuple(sorted(f[2] for f in fitting))
        if board.workloads[w].same_island and board.splits_on(spot):
            continue
        clean = sum(f[0] for f in fitting) if score(h) == 0 else 0
        found = (score(h), clean, sum(f[1] for f in fitting), spot)
        best = found if best is None else min(best, found)
    return best[3] if best else ()
