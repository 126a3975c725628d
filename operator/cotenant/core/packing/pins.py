"""What runs stays: every running replica is put where it is first, and only what can stay no longer is taken away."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from operator import attrgetter

from cotenant.core.packing.board import Board, Spot
from cotenant.core.packing.problem import Running

MAX_SUBSETS = 2000
"""Sets of tenants tried when a GPU is over-committed before they leave one by one."""


def pin(board: Board) -> None:
    """Place what runs where it runs; what cannot stay is left unplaced, the fewest and lowest in priority."""
    names = {w.key: n for n, w in enumerate(board.workloads)}
    hosts = {h.name: n for n, h in enumerate(board.hosts)}
    gpus = [{board.uuid[g]: g for g in span} for span in board.host_gpus]
    for running in sorted(board.problem.running, key=attrgetter("between", "workload", "replica", "host", "gpus")):
        r = board.replica(running, names)
        if r is None or board.runs[r]:
            continue
        host = hosts.get(running.host)
        spot = _spot(running, gpus[host]) if host is not None else ()
        if running.between and not (spot and board.can_stand(board.owner[r], spot)):
            continue
        board.runs[r] = True
        board.moves += 1
        if spot and (running.fixed or _may_stay(board, board.owner[r], spot)):
            board.home[r] = spot
            board.as_run[r] = running.gpus
            board.fixed[r] = running.fixed
            board.settle(r, spot)
    for host in range(len(board.hosts)):
        for g in board.host_gpus[host]:
            if board.tenants[g] and _is_strained(board, g):
                _relieve_gpu(board, g)
        if board.cpu[host] < 0 or board.host_memory[host] < 0 or max(board.on_host[host].values(), default=0) > 1:
            _relieve_host(board, host)
    board.build_index()


def _spot(running: Running, known: dict[str, int]) -> Spot:
    if len(running.gpus) == 1:
        g = known.get(running.gpus[0])
        return () if g is None else (g,)
    if any(uuid not in known for uuid in running.gpus):
        return ()
    return tuple(sorted({known[uuid] for uuid in running.gpus}))


def _may_stay(board: Board, w: int, spot: Spot) -> bool:
    """Whether the host and the shape still allow it; whether there is room is judged when all are in."""
    host = board.host[spot[0]]
    if not board.ready[host] or board.need(w, host) is None or len(spot) != board.size[w]:
        return False
    if w in board.avoid and board.avoid[w] & set(spot):
        return False
    return len(spot) == 1 or not (board.workloads[w].same_island and board.splits_on(spot))


def _is_strained(board: Board, g: int) -> bool:
    models = board.models[g]
    if board.promise[g] < board.kept[g] or board.real[g] < 0 or len(models) > board.seats[g]:
        return True
    return _are_twins(board, models)


def _are_twins(board: Board, models: Sequence[int]) -> bool:
    """Whether two replicas of a model that keep apart are among these workloads."""
    families = [board.family[w] for w in models if board.apart[w]]
    return len(set(families)) < len(families)


def _relieve_gpu(board: Board, g: int) -> None:
    """Take away the fewest tenants that make the rest fit on this GPU."""

    def fits_without(gone: tuple[int, ...]) -> bool:
        promise, real, kept, models = board.promise[g], board.real[g], 0, []
        for r in board.tenants[g]:
            w = board.owner[r]
            if r in gone:
                share, overrun = board.need(w, board.host[g]) or (0, 0)
                promise, real = promise + share, real + share + overrun
            else:
                kept = max(kept, board.memory[g] * board.headroom[w] // 10_000)
                models.append(w)
        crowded = promise < kept or real < 0 or len(models) > board.seats[g]
        return not (crowded or _are_twins(board, models))

    _relieve(board, [r for r in board.tenants[g] if not board.fixed[r]], fits_without)


def _relieve_host(board: Board, host: int) -> None:
    """The same for the CPU and memory of the host, and for replicas that must be on hosts of their own."""
    tenants = sorted({r for g in board.host_gpus[host] for r in board.tenants[g]})
    if not tenants:
        return

    def fits_without(gone: tuple[int, ...]) -> bool:
        owners = [board.owner[r] for r in gone]
        stay = [board.family[board.owner[r]] for r in tenants if r not in gone and board.node_apart[board.owner[r]]]
        return (
            board.cpu[host] + sum(board.cpu_need[w] for w in owners) >= 0
            and board.host_memory[host] + sum(board.memory_need[w] for w in owners) >= 0
            and len(stay) == len(set(stay))
        )

    _relieve(board, [r for r in tenants if not board.fixed[r]], fits_without)


def _relieve(board: Board, candidates: list[int], fits_without: object) -> None:
    assert callable(fits_without)
    if fits_without(()):
        return

    def rank(gone: tuple[int, ...]) -> tuple[object, ...]:
        sizes = sum(max((d[0] for d in board.demand[board.owner[r]] if d), default=0) for r in gone)
        return (sorted((board.priority[board.owner[r]] for r in gone), reverse=True), sizes, [-r for r in gone])

    tried = 0
    for size in range(1, len(candidates) + 1):
        sets = sorted(combinations(candidates, size), key=rank) if tried < MAX_SUBSETS else []
        tried += len(sets)
        for gone in sets:
            if fits_without(gone):
                for r in gone:
                    board.remove(r)
                return
    for r in sorted(candidates, key=lambda r: (board.priority[board.owner[r]], -r)):
        board.remove(r)
        if fits_without(()):
            return
