"""Replicas + what is free -> Plan: which replica goes on which GPUs, and why the rest goes nowhere."""

from __future__ import annotations

from collections.abc import Callable

from cotenant.core.packing.board import Board
from cotenant.core.packing.bound import Bound, Relaxation
from cotenant.core.packing.consent import one_move, other_product
from cotenant.core.packing.exact import MAX_FREE, MAX_GPUS, Fitting
from cotenant.core.packing.fragmentation import measure
from cotenant.core.packing.making_room import MakingRoom
from cotenant.core.packing.nodewise import place_nodewise
from cotenant.core.packing.pins import pin
from cotenant.core.packing.problem import (
    Bin,
    Change,
    Demand,
    Fragmentation,
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
from cotenant.core.packing.quota import by_quota
from cotenant.core.packing.search import Effort, Search
from cotenant.core.packing.whynot import Survey, why_not

__all__ = [
    "Bin", "Change", "Demand", "Fragmentation", "Host", "Key", "Limit", "Placed", "Plan", "Problem", "Reason", "Running", "Unplaced",
    "Workload", "pack",
]  # fmt: skip

SMALL_CLUSTER = 32
EXACT_NODES = 3000
"""Nodes of the proof that everything fits without a move, about a second at the most."""
REPAIR_STEPS = 1500
"""Placements tried to place more without a move where the proof is out of reach."""
LONG_REPAIR = 10_000
"""The same where a small cluster's proof ran out of nodes, so that nothing is known yet."""

LP_PART = 3
"""What part of the effort the bound may take."""

MAX_ADVISED = 20
"""Unplaced workloads for which a move is looked for; the others are told what binds."""


def pack(problem: Problem, keep_going: Callable[[], bool] | None = None) -> Plan:
    """The plan for this problem: what runs stays, the rest goes where it costs least, highest priority first.

    `problem.iterations` bounds the improvement; `keep_going` may end it earlier (the clock is the caller's), and the
    plan is valid whenever it does.
    """
    board = Board(problem)
    pin(board)
    effort = Effort(problem.iterations, keep_going)
    free = board.unplaced()
    search = Search(board, free, effort, problem.seed)
    search.construct()
    place_nodewise(search)
    relaxation = None
    place_without_moves(search)
    # what an over-committed GPU gave up was a choice: with another one the least cost may be another
    if problem.iterations and not any(board.runs[r] and board.home[r] for r in free):
        relaxation = relax(board, search, whole=not board.splits)
        if len(board.kinds) > 1:  # with one kind of GPU the room left on it says as much
            search.worth = relaxation.worth(len(board.workloads))
        by_quota(search, relaxation)
    room = MakingRoom(search)
    if search.unplaced and problem.moves:
        room.run()
    search.improve(relaxation.bound(board, sorted(search.unplaced)).cost if relaxation else 0)
    if search.unplaced and problem.moves:
        room.run()
    if room.disturbed:
        room.go_home()
    reunite(board, room.disturbed)
    count_from_zero(board)
    bound = relaxation.bound(board, sorted(search.unplaced)) if relaxation and not room.disturbed else None
    return publish(board, effort, room.disturbed, bound)


def relax(board: Board, search: Search, whole: bool) -> Relaxation:
    """The relaxation of the problem with what runs in place, solved within a third of the effort."""
    spots = search.spots()
    for r in search.free:
        search.take(r)
    relaxation = Relaxation(board, search.free, whole)
    search.restore(spots)
    budget = Effort(search.effort.limit // LP_PART, search.effort.keep_going)
    relaxation.solve(board, search.free, budget.spend)
    search.effort.spend(budget.spent)
    return relaxation


def reunite(board: Board, disturbed: dict[int, int]) -> None:
    """Replicas of a workload are alike: one that was taken from where another of them then went stays, and that one goes."""
    away = [r for r, home in enumerate(board.home) if home and board.spot[r] != home]
    if not away:
        return
    at = {
        (board.owner[x], spot): x
        for x, spot in enumerate(board.spot)
        if spot and not (board.runs[x] and spot == board.home[x])
    }
    for r in away:
        x = at.pop((board.owner[r], board.home[r]), r)
        if x != r:
            before = board.remove(r) if board.spot[r] else ()
            board.place(r, board.remove(x))
            if before:
                board.place(x, before)
                at[board.owner[x], before] = x
            disturbed.pop(r, None)


def count_from_zero(board: Board) -> None:
    """Replicas of a workload are alike: the places of new ones go to those that lost theirs, then to the lowest numbers, so that
    fewer of them later, the highest taken away, are those that run."""
    lacking: dict[int, list[int]] = {}
    for r in board.unplaced():
        lacking.setdefault(board.owner[r], []).append(r)
    for w, low in lacking.items():
        numbers = range(board.first[w], board.first[w] + board.workloads[w].replicas)
        high = [r for r in numbers if board.spot[r] and not board.runs[r]]
        for r in sorted(low, key=lambda r: (not board.runs[r], r)):
            if not high or not (board.runs[r] or r < high[-1]):
                break
            board.place(r, board.remove(high.pop()))


def place_without_moves(search: Search) -> None:
    """When something is unplaced: look for a place for everything before anything that runs is touched."""
    board = search.board
    if not search.unplaced:
        return
    spots, before, steps = search.spots(), search.mark(), REPAIR_STEPS
    for r in search.free:
        search.take(r)
    hopeless = {w for w in {board.owner[r] for r in search.free} if not board.index.spot(w)}
    hopeful = [r for r in search.free if board.owner[r] not in hopeless]
    if len(board.uuid) <= MAX_GPUS and len(hopeful) <= MAX_FREE:
        nodes = EXACT_NODES if len(board.uuid) <= SMALL_CLUSTER else EXACT_NODES // 4
        # first with all at home that may be: what has run somewhere and goes elsewhere is a move
        at_home = [r for r in hopeful if board.home[r] and board.can_stand(board.owner[r], board.home[r])]
        for r in at_home:
            if board.can_stand(board.owner[r], board.home[r]):
                search.put(r, board.home[r])
        rest = [r for r in hopeful if not board.spot[r]]
        if at_home and Fitting(board, rest, nodes).place():
            for r in rest:
                search.found(r)
            return
        for r in at_home:
            search.take(r)
        fitting = Fitting(board, hopeful, nodes)
        if fitting.place():
            for r in hopeful:
                search.found(r)
            return
        if fitting.gave_up and len(board.uuid) <= SMALL_CLUSTER:
            steps = LONG_REPAIR
    search.restore(spots)
    if hopeful and search.mark() == before:
        search.repair(steps)


def changes_for(board: Board, rules: MakingRoom, w: int) -> tuple[Change, ...]:
    """What besides a smaller share would place a replica of this workload."""
    return tuple(change for change in (one_move(board, rules, w), other_product(board, w)) if change)


def publish(board: Board, effort: Effort, disturbed: dict[int, int], bound: Bound | None) -> Plan:
    """What the board shows, as a plan."""
    placed = []
    for r, spot in enumerate(board.spot):
        if spot:
            workload = board.workloads[board.owner[r]].key
            host = board.hosts[board.host[spot[0]]].name
            moved = board.runs[r] and spot != board.home[r]
            gpus = board.as_run.get(r, ()) if not moved else ()
            moved_for = board.workloads[disturbed[r]].key if moved and r in disturbed else ""
            placed.append(
                Placed(workload, board.number[r], host, gpus or tuple(board.uuid[g] for g in spot), moved, moved_for)
            )
    return Plan(
        tuple(placed),
        tuple(explained(board, disturbed)),
        board.key(),
        bound=bound.cost if bound else None,
        bound_method=bound.method if bound else "",
        effort=effort.spent,
        fragmentation=measure(board),
    )


def explained(board: Board, disturbed: dict[int, int]) -> list[Unplaced]:
    """What has no place, and why."""
    waiting = board.unplaced()
    if not waiting:
        return []
    found = []
    reasons: dict[tuple[int, str], Reason] = {}
    rules, survey = MakingRoom(Search(board, [], Effort(0), 0)), Survey(board)
    for r in waiting:
        w = board.owner[r]
        displaced_by = board.workloads[disturbed[r]].key if r in disturbed else ""
        if (w, displaced_by) not in reasons:
            others = changes_for(board, rules, w) if len(reasons) < MAX_ADVISED else ()
            reasons[w, displaced_by] = why_not(survey, r, displaced_by, others)
        found.append(Unplaced(board.workloads[w].key, board.number[r], reasons[w, displaced_by]))
    return found
