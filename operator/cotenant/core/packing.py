"""Replicas + what is free -> Plan: which replica goes on which GPUs, and why the rest goes nowhere."""

from __future__ import annotations

from collections.abc import Callable

from cotenant.core.board import Board
from cotenant.core.pins import pin
from cotenant.core.problem import (
    Bin,
    Change,
    Demand,
    Host,
    Key,
    Limit,
    Placed,
    Plan,
    Problem,
    Reason,
    Running,
    Unplaced,
    Workload,
)
from cotenant.core.search import Effort, Search
from cotenant.core.whynot import why_not

__all__ = [
    "Bin", "Change", "Demand", "Host", "Key", "Limit", "Placed", "Plan", "Problem", "Reason", "Running", "Unplaced",
    "Workload", "pack",
]  # fmt: skip


def pack(problem: Problem, keep_going: Callable[[], bool] | None = None) -> Plan:
    """The plan for this problem: what runs stays, the rest goes where it costs least, highest priority first.

    `problem.iterations` bounds the improvement; `keep_going` may end it earlier (the clock is the caller's), and the
    plan is valid whenever it does.
    """
    board = Board(problem)
    pin(board)
    effort = Effort(problem.iterations, keep_going)
    search = Search(board, board.unplaced(), effort, problem.seed)
    search.construct()
    search.improve(0)
    return publish(board, effort)


def publish(board: Board, effort: Effort) -> Plan:
    """What the board shows, as a plan."""
    placed = []
    for r, spot in enumerate(board.spot):
        if spot:
            workload = board.workloads[board.owner[r]].key
            host = board.hosts[board.host[spot[0]]].name
            moved = board.runs[r] and spot != board.home[r]
            gpus = board.as_run.get(r, ()) if not moved else ()
            placed.append(Placed(workload, board.number[r], host, gpus or tuple(board.uuid[g] for g in spot), moved))
    unplaced = []
    reasons: dict[tuple[int, bool], Reason] = {}
    for r in board.unplaced():
        w = board.owner[r]
        if (w, board.runs[r]) not in reasons:
            reasons[w, board.runs[r]] = why_not(board, r)
        unplaced.append(Unplaced(board.workloads[w].key, board.number[r], reasons[w, board.runs[r]]))
    return Plan(tuple(placed), tuple(unplaced), board.key(), effort=effort.spent)
