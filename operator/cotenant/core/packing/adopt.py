"""Placements from elsewhere (a solver) -> a Plan, if and only if they break no rule; and parts of a problem for it."""

from __future__ import annotations

from dataclasses import replace

from cotenant.core.packing.board import Board
from cotenant.core.packing.making_room import MakingRoom
from cotenant.core.packing.packer import publish
from cotenant.core.packing.pins import pin
from cotenant.core.packing.problem import Placed, Plan, Problem, Running
from cotenant.core.packing.search import Effort, Search

Place = tuple[str, int, str, tuple[str, ...]]
"""(workload, replica, host, GPUs)."""


def adopt(problem: Problem, places: list[Place]) -> Plan | None:
    """The plan with exactly these placements; None where it over-packs, or moves what it may not."""
    board = Board(problem)
    pin(board)
    forced = {r for r, runs in enumerate(board.runs) if runs and not board.spot[r]}
    numbers = {(board.workloads[w].key, board.number[r]): r for r, w in enumerate(board.owner)}
    gpus = {(host.name, board.uuid[g]): g for h, host in enumerate(board.hosts) for g in board.host_gpus[h]}
    wanted = {}
    for workload, replica, host, uuids in places:
        r = numbers.get((workload, replica))
        if r is None or r in wanted or any((host, u) not in gpus for u in uuids):
            return None
        wanted[r] = tuple(sorted(gpus[host, u] for u in uuids))
    for r, spot in enumerate(board.spot):
        if spot and wanted.get(r) != spot:
            if board.fixed[r]:
                return None
            board.remove(r)
    for r, spot in sorted(wanted.items()):
        if board.spot[r] != spot:
            if not board.can_stand(board.owner[r], spot):
                return None
            board.place(r, spot)
    for_whom = _disturbed(board, forced)
    return None if for_whom is None else publish(board, Effort(0), for_whom, None)


def _disturbed(board: Board, forced: set[int]) -> dict[int, int] | None:
    """Who was disturbed without need and for which workload; None where a rule of moving is broken."""
    problem = board.problem
    moved = [r for r, runs in enumerate(board.runs) if runs and board.spot[r] != board.home[r]]
    disturbed = [r for r in moved if r not in forced]
    if not disturbed:
        return {}
    owners = [board.owner[r] for r in moved]
    if len(disturbed) > problem.moves or any(owners.count(board.owner[r]) > 1 for r in disturbed):
        return None
    gained = [r for r, spot in enumerate(board.spot) if spot and (not board.runs[r] or r in forced)]
    if len(disturbed) > problem.moves_per_replica * len(gained):
        return None
    rules = MakingRoom(Search(board, [], Effort(0), 0))
    for_whom = {}
    for r in disturbed:
        allowed = [x for x in gained if rules.may_disturb(board.owner[x], r)]
        if not board.spot[r]:
            allowed = [x for x in allowed if board.priority[board.owner[x]] > board.priority[board.owner[r]]]
        if not allowed:
            return None
        # whoever it left for must be on that very node, or it left for nothing
        host = board.host[board.home[r][0]]
        took = [x for x in allowed if board.host[board.spot[x][0]] == host]
        if not took:
            return None
        for_whom[r] = board.owner[max(took, key=lambda x: (board.priority[board.owner[x]], -x))]
    return for_whom


def part(problem: Problem, plan: Plan, hosts: set[str]) -> tuple[Problem, dict[tuple[str, int], int]]:
    """The problem of placing again, on these hosts only, what the plan has there and what it has nowhere.

    What runs stays. Also how its replicas are numbered there: (workload, number in the part) -> replica.
    """
    members: dict[str, list[tuple[int, Placed | None]]] = {}
    for placed in plan.placements:
        if placed.host in hosts:
            members.setdefault(placed.workload, []).append((placed.replica, placed))
    for unplaced in plan.unplaced:
        members.setdefault(unplaced.workload, []).append((unplaced.replica, None))
    staying = {(r.workload, r.replica) for r in problem.running}
    numbers, running = {}, []
    for workload, found in sorted(members.items()):
        for number, (replica, now) in enumerate(sorted(found, key=lambda f: f[0])):
            numbers[workload, number] = replica
            if now is not None and (workload, replica) in staying and not now.moved:
                running.append(Running(workload, number, now.host, now.gpus, fixed=True))
    return replace(
        problem,
        hosts=tuple(h for h in problem.hosts if h.name in hosts),
        workloads=tuple(replace(w, replicas=len(members[w.key])) for w in problem.workloads if w.key in members),
        running=tuple(running),
        moves=0,
    ), numbers
