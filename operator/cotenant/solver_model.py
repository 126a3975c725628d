"""The packing problem as a CP-SAT model: what a replica is does not matter, only how many of which lie where."""

from __future__ import annotations

import time
from typing import Any

from ortools.sat.python import cp_model

from cotenant.core.packing.adopt import Place
from cotenant.core.packing.board import Board
from cotenant.core.packing.making_room import MakingRoom
from cotenant.core.packing.pins import pin
from cotenant.core.packing.problem import Problem
from cotenant.core.packing.search import Effort, Search
from cotenant.core.share import SCALE

Var = Any
"""OR-tools' expressions carry no useful types."""


class Model:
    """Two steps: first who is placed and how few are moved, then splits, cost and islands."""

    def __init__(self, problem: Problem, hint: list[Place]) -> None:
        self.board = board = Board(problem)
        pin(board)
        self.problem = problem
        self.model = cp_model.CpModel()
        self.free: list[list[int]] = [[] for _ in board.workloads]
        for r in board.unplaced():
            self.free[board.owner[r]].append(r)
        self.stay: dict[int, Var] = {}
        """Running replicas that may be disturbed: 1 = left alone."""
        self._who_may_move()
        self.total = [
            len(self.free[w]) + sum(1 for r in self.stay if board.owner[r] == w) for w in range(len(board.workloads))
        ]
        self.group: dict[tuple[int, str, int], Var] = {}
        """(workload, `island` or `host`, number): how many replicas lie there (a group on `host` spans islands)."""
        self.rank: dict[tuple[int, str, int], Var] = {}
        """(workload, `island` or `host`, GPU): how many ranks of those lie on this GPU."""
        self.back: dict[int, Var] = {}
        """Replicas taken off an over-committed GPU that go back to it."""
        self._places()
        self._gpus()
        self._hosts()
        self._movement()
        self._hint(hint)

    # ---------------------------------------------------------------------------------------------------- variables
    def _who_may_move(self) -> None:
        board, problem = self.board, self.problem
        if not problem.moves:
            return
        rules = MakingRoom(Search(board, [], Effort(0), 0))
        wanting = sorted({board.owner[r] for r in board.unplaced()})
        for r, runs in enumerate(board.runs):
            if runs and board.spot[r] and board.owner[r] not in rules.models:
                for_whom = [w for w in wanting if rules.may_disturb(w, r)]
                if for_whom:
                    self.stay[r] = self.model.new_bool_var(f"stay{r}")

    def _places(self) -> None:
        board = self.board
        for r, home in enumerate(board.home):
            if home and not board.spot[r] and board.runs[r]:
                self.back[r] = self.model.new_bool_var(f"back{r}")
        for w, total in enumerate(self.total):
            if not total:
                continue
            size, apart = board.size[w], board.apart[w]
            for host in range(len(board.hosts)):
                if board.need(w, host) is None or not board.ready[host]:
                    continue
                islands: dict[int, list[int]] = {}
                for g in board.host_gpus[host]:
                    islands.setdefault(board.island[g], []).append(g)
                for island, gpus in islands.items():
                    if len(gpus) >= size:
                        self._place(w, "island", island, gpus, total)
                across = len(islands) > 1 and not board.workloads[w].same_island
                if size > 1 and across and len(board.host_gpus[host]) >= size:
                    self._place(w, "host", host, list(board.host_gpus[host]), total)
            if apart:
                self._keep_apart(w)

    def _keep_apart(self, w: int) -> None:
        """At most one replica of `w` on each GPU."""
        board = self.board
        backs: dict[int, list[Var]] = {}
        for r, back in self.back.items():
            if board.owner[r] == w:
                for g in board.home[r]:
                    backs.setdefault(g, []).append(back)
        for g in range(len(board.uuid)):
            ranks = [v for how in ("island", "host") if (v := self.rank.get((w, how, g))) is not None]
            coming = ranks + backs.get(g, [])
            pinned = [self.stay.get(r, 1) for r in board.tenants[g] if board.owner[r] == w]
            if coming:
                self.model.add(sum(coming) + sum(pinned) <= 1)

    def _place(self, w: int, how: str, number: int, gpus: list[int], total: int) -> None:
        most = min(total, self.problem.max_tenants * len(gpus) // self.board.size[w])
        group = self.model.new_int_var(0, most, f"group{w}{how}{number}")
        self.group[w, how, number] = group
        if self.board.size[w] == 1 and len(gpus) == 1:
            self.rank[w, how, gpus[0]] = group
            return
        ranks = []
        for g in gpus:
            rank = self.model.new_int_var(0, min(total, self.problem.max_tenants), f"rank{w}{how}{g}")
            self.rank[w, how, g] = rank
            ranks.append(rank)
            if self.board.size[w] > 1:
                self.model.add(rank <= group)
        self.model.add(sum(ranks) == self.board.size[w] * group)

    # -------------------------------------------------------------------------------------------------- constraints
    def _gpus(self) -> None:
        board, model = self.board, self.model
        by_gpu: dict[int, list[tuple[int, Var]]] = {}
        for (w, _, g), rank in self.rank.items():
            by_gpu.setdefault(g, []).append((w, rank))
        for r, back in self.back.items():
            for g in board.home[r]:
                by_gpu.setdefault(g, []).append((board.owner[r], back))
        self.occupied: dict[int, Var] = {}
        for g, ranks in sorted(by_gpu.items()):
            host = board.host[g]
            needs = [board.need(w, host) or (0, 0) for w, _ in ranks]
            gone = [
                (1 - self.stay[r], board.need(board.owner[r], host) or (0, 0))
                for r in board.tenants[g]
                if r in self.stay
            ]
            freed = sum(n[0] * v for v, n in gone)
            freed_real = sum((n[0] + n[1]) * v for v, n in gone)
            shares = sum(n[0] * v for n, (_, v) in zip(needs, ranks, strict=True))
            reals = sum((n[0] + n[1]) * v for n, (_, v) in zip(needs, ranks, strict=True))
            model.add(reals <= board.real[g] + freed_real)
            model.add(sum(v for _, v in ranks) + len(board.tenants[g]) <= board.seats[g] + sum(v for v, _ in gone))
            used = model.new_bool_var(f"used{g}")
            self.occupied[g] = used
            for _, v in ranks:
                model.add(v <= board.max_tenants * used)
            for r in board.tenants[g]:
                model.add(used == 1) if r not in self.stay else model.add(used >= self.stay[r])
            levels = sorted({board.headroom[w] for w, _ in ranks} | {board.headroom[w] for w in board.models[g]})
            for level in levels:
                kept = board.memory[g] * level // SCALE
                if not kept:
                    model.add(shares <= board.promise[g] + freed)
                    continue
                there = model.new_bool_var(f"kept{g}at{level}") if len(levels) > 1 else used
                for w, v in ranks:
                    if board.headroom[w] == level:
                        model.add(v <= board.max_tenants * there)
                for r in board.tenants[g]:
                    if board.headroom[board.owner[r]] == level:
                        model.add(there >= self.stay.get(r, 1))
                model.add(shares <= board.promise[g] + freed - kept * there)

    def _hosts(self) -> None:
        board, model = self.board, self.model
        groups: dict[int, list[tuple[int, Var]]] = {}
        island_host = {board.island[g]: board.host[g] for g in range(len(board.uuid))}
        for (w, how, number), group in self.group.items():
            groups.setdefault(number if how == "host" else island_host[number], []).append((w, group))
        for r, back in self.back.items():
            groups.setdefault(board.host[board.home[r][0]], []).append((board.owner[r], back))
        for host, found in groups.items():
            gone = [(board.owner[r], 1 - stay) for r, stay in self.stay.items() if board.host[board.spot[r][0]] == host]
            cpu = sum(board.cpu_need[w] * v for w, v in found) - sum(board.cpu_need[w] * v for w, v in gone)
            memory = sum(board.memory_need[w] * v for w, v in found) - sum(board.memory_need[w] * v for w, v in gone)
            model.add(cpu <= board.cpu[host])
            model.add(memory <= board.host_memory[host])
            for w in {w for w, _ in found if board.node_apart[w]}:
                here = sum(v for x, v in found if x == w) - sum(v for x, v in gone if x == w)
                model.add(here + board.on_host[host].get(board.family[w], 0) <= 1)

    def _movement(self) -> None:
        board, model, problem = self.board, self.model, self.problem
        self.placed: list[Var] = []
        for w, total in enumerate(self.total):
            groups = [v for (x, _, _), v in self.group.items() if x == w]
            backs = [v for r, v in self.back.items() if board.owner[r] == w]
            leaving = [1 - self.stay[r] for r in self.stay if board.owner[r] == w]
            placed = sum(groups) + sum(backs)
            if total:
                model.add(placed <= len(self.free[w]) + sum(leaving))
            self.placed.append(placed)
        if not self.stay:
            return
        model.add(sum(1 - s for s in self.stay.values()) <= problem.moves)
        for w in {board.owner[r] for r in self.stay}:
            model.add(sum(1 - s for r, s in self.stay.items() if board.owner[r] == w) <= 1)
        rules = MakingRoom(Search(board, [], Effort(0), 0))
        for r, stay in self.stay.items():
            # whoever it leaves for must be on that very node
            host = board.host[board.spot[r][0]]
            model.add(1 - stay <= sum(v for w, v in self._on(host) if rules.may_disturb(w, r) and self.free[w]))
        for level in {board.priority[board.owner[r]] for r in self.stay}:
            # those of this priority or above are disturbed for what is above them only (or equal, where allowed)
            gained = []
            for w, placed in enumerate(self.placed):
                above = board.priority[w] > level or (problem.move_equals and board.priority[w] == level)
                if above and self.free[w]:
                    new = model.new_int_var(0, len(self.free[w]), f"new{w}over{level}")
                    model.add(new <= placed)
                    gained.append(new)
            gone = sum(1 - s for r, s in self.stay.items() if board.priority[board.owner[r]] >= level)
            model.add(gone <= problem.moves_per_replica * sum(gained))

    def _on(self, host: int) -> list[tuple[int, Var]]:
        """(workload, how many) of what may be placed on this host."""
        islands = {self.board.island[g] for g in self.board.host_gpus[host]}
        return [
            (w, v) for (w, how, number), v in self.group.items()
            if (number == host if how == "host" else number in islands)
        ]  # fmt: skip

    # ------------------------------------------------------------------------------------------------------ solving
    def _hint(self, hint: list[Place]) -> None:
        board = self.board
        if not hint:
            return
        gpus = {(host.name, board.uuid[g]): g for h, host in enumerate(board.hosts) for g in board.host_gpus[h]}
        numbers = {(board.workloads[w].key, board.number[r]): r for r, w in enumerate(board.owner)}
        groups: dict[tuple[int, str, int], int] = dict.fromkeys(self.group, 0)
        ranks: dict[tuple[int, str, int], int] = dict.fromkeys(self.rank, 0)
        at_home = set()
        for workload, replica, host, uuids in hint:
            r = numbers[workload, replica]
            spot = tuple(sorted(gpus[host, u] for u in uuids))
            if board.runs[r] and spot == board.home[r]:
                at_home.add(r)
                continue
            how = "host" if board.splits_on(spot) else "island"
            number = board.host[spot[0]] if how == "host" else board.island[spot[0]]
            groups[board.owner[r], how, number] = groups.get((board.owner[r], how, number), 0) + 1
            for g in spot:
                ranks[board.owner[r], how, g] = ranks.get((board.owner[r], how, g), 0) + 1
        values = [(self.group[k], n) for k, n in groups.items() if k in self.group]
        values += [(self.rank[k], n) for k, n in ranks.items() if k in self.rank]
        values += [(v, int(r in at_home)) for r, v in (self.stay | self.back).items()]
        self._start_from(values)

    def _start_from(self, values: list[tuple[Var, int]]) -> None:
        """Hints, one for each variable: some are known under two names."""
        self.model.clear_hints()
        for variable, value in {v.index: (v, n) for v, n in values}.values():
            self.model.add_hint(variable, value)

    def place_all(self, seconds: float) -> tuple[list[Place], bool]:
        """(placements of everything with the fewest moves, or none where that cannot be; whether that is proven)."""
        for w, placed in enumerate(self.placed):
            self.model.add(
                placed == len(self.free[w]) + sum(1 - self.stay[r] for r in self.stay if self.board.owner[r] == w)
            )
        if self.back or self.stay:
            self.model.maximize(sum(self.back.values()) + sum(self.stay.values()))
        solver, status = self._run(seconds)
        found = status in (cp_model.OPTIMAL, cp_model.FEASIBLE)
        return self._read(solver) if found else [], status in (cp_model.OPTIMAL, cp_model.INFEASIBLE)

    def solve(self, seconds: float) -> tuple[list[Place], bool]:
        """(placements, whether both steps are proven)."""
        board, model = self.board, self.model
        end = time.monotonic() + seconds
        levels = sorted({board.priority[w] for w in range(len(board.workloads))})
        weight, weights = 1 + len(board.owner), {}
        for level in levels:
            weights[level] = weight
            weight *= 1 + sum(1 for w in board.owner if board.priority[w] == level)
        missing = sum(
            weights[board.priority[w]] * (len(self.free[w]) - placed) for w, placed in enumerate(self.placed)
        ) + sum(weights[board.priority[board.owner[r]]] * (1 - s) for r, s in self.stay.items())
        moves = sum(1 - s for s in self.stay.values()) - sum(self.back.values())
        first = missing + moves
        model.minimize(first)
        solver, status = self._run(0.6 * seconds)
        if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            return [], False
        proven = status == cp_model.OPTIMAL
        model.add(first <= int(solver.objective_value))
        places = self._read(solver)
        self._from(solver)
        model.minimize(self._second())
        solver, status = self._run(max(0.2, end - time.monotonic()))
        if status in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            places = self._read(solver)
        return places, proven and status == cp_model.OPTIMAL

    def _second(self) -> Var:
        board, model = self.board, self.model
        touched = []
        by_island: dict[int, list[Var]] = {}
        for g, used in self.occupied.items():
            by_island.setdefault(board.island[g], []).append(used)
        for island, used_there in by_island.items():
            touch = model.new_bool_var(f"touch{island}")
            for used in used_there:
                model.add(touch >= used)
            touched.append(touch)
        cost = sum(board.price[g] * used for g, used in self.occupied.items())
        splits = sum(v for (_, how, _), v in self.group.items() if how == "host")
        most_islands = 1 + len(touched)
        most_cost = 1 + sum(board.price[g] for g in self.occupied)
        return splits * most_islands * most_cost + cost * most_islands + sum(touched)

    def _run(self, seconds: float) -> tuple[Var, Var]:
        solver = cp_model.CpSolver()
        solver.parameters.max_time_in_seconds = max(0.1, seconds)
        solver.parameters.num_workers = 1
        solver.parameters.random_seed = self.problem.seed & 0x7FFFFFFF
        return solver, solver.solve(self.model)

    def _from(self, solver: Var) -> None:
        """Start the second step where the first ended."""
        variables = (*self.group.values(), *self.rank.values(), *self.stay.values(), *self.back.values())
        self._start_from([(v, solver.value(v)) for v in variables])

    def _read(self, solver: Var) -> list[Place]:
        """Who lies where: the ranks of a domain dealt out group by group, the fullest GPUs first."""
        board = self.board
        places: list[Place] = []
        stays = {r for r, s in self.stay.items() if solver.value(s)}
        for r, spot in enumerate(board.spot):
            if spot and (r not in self.stay or r in stays):
                places.append(self._at(r, list(spot)))
        for r, back in self.back.items():
            if solver.value(back):
                places.append(self._at(r, list(board.home[r])))
        done = {(p[0], p[1]) for p in places}
        for w in range(len(board.workloads)):
            left = [r for r in self.free[w] if (board.workloads[w].key, board.number[r]) not in done]
            left += [r for r in self.stay if board.owner[r] == w and r not in stays]
            for (x, how, number), group in self.group.items():
                if x != w or not solver.value(group):
                    continue
                gpus = [
                    g for g in range(len(board.uuid))
                    if (w, how, g) in self.rank and number == (board.island[g] if how == "island" else board.host[g])
                ]  # fmt: skip
                ranks = {g: solver.value(self.rank[w, how, g]) for g in gpus}
                for _ in range(solver.value(group)):
                    taken = sorted(gpus, key=lambda g: (-ranks[g], g))[: board.size[w]]
                    for g in taken:
                        ranks[g] -= 1
                    places.append(self._at(left.pop(0), taken))
        return places

    def _at(self, r: int, spot: list[int]) -> Place:
        board = self.board
        host = board.hosts[board.host[spot[0]]].name
        return (board.workloads[board.owner[r]].key, board.number[r], host, tuple(board.uuid[g] for g in sorted(spot)))
