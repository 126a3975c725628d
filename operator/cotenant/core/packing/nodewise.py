"""What schedulers do: one replica after the other, each on the fullest node that takes it. Where not everything fits, that
sometimes leaves fewer out than any order by size, so these are tried too.
"""

from __future__ import annotations

from collections.abc import Callable

from cotenant.core.packing.board import Board, Spot
from cotenant.core.packing.search import Search

MAX_WORK = 150_000
"""Replicas times GPUs up to which these are tried: they look at every GPU for every replica."""


def least_gpu_left(board: Board, host: int) -> float:
    """KAI's binpack."""
    return float(sum(board.promise[g] for g in board.host_gpus[host]))


def most_allocated(board: Board, host: int) -> float:
    """kube-scheduler's MostAllocated: the mean of GPU, CPU and memory."""
    gpus, of = board.host_gpus[host], board.hosts[host]
    gpu = sum(board.promise[g] for g in gpus) / max(1, sum(board.memory[g] for g in gpus))
    return gpu + board.cpu[host] / max(1, of.cpu) + board.host_memory[host] / max(1, of.memory)


def place_nodewise(search: Search) -> None:
    """Place everything anew so where something is unplaced, and keep what is better."""
    board = search.board
    if not search.unplaced or len(search.free) * len(board.uuid) > MAX_WORK:
        return
    order = sorted(search.free, key=lambda r: (-board.priority[board.owner[r]], r))
    for score in (least_gpu_left, most_allocated):
        before, spots = search.mark(), search.spots()
        for r in search.free:
            search.take(r)
        for r in order:
            spot = _spot(board, board.owner[r], score)
            if spot:
                search.put(r, spot)
        search.effort.spend(len(order))
        if search.mark() >= before:
            search.restore(spots)


def _spot(board: Board, w: int, score: Callable[[Board, int], float]) -> Spot:
    """On the fullest node, the GPUs in use that have least left."""
    best: tuple[float, int, Spot] | None = None
    for host in range(len(board.hosts)):
        if board.need(w, host) is None or not board.host_fits(w, host):
            continue
        fitting = sorted(
            (not board.tenants[g] and board.price[g] > 0, board.promise[g], g)
            for g in board.host_gpus[host]
            if board.fits(w, g)
        )[: board.size[w]]
        spot = tuple(sorted(f[2] for f in fitting))
        if len(fitting) < board.size[w] or (board.workloads[w].same_island and board.splits_on(spot)):
            continue
        found = (score(board, host), sum(f[1] for f in fitting), spot)
        best = found if best is None else min(best, found)
    return best[2] if best else ()
