"""The cluster while a plan is made: what every GPU and host has left. Mutable, ints only, built for speed.

Everything is numbered (hosts, GPUs, islands, workloads, replicas) in the order of its name, so that the order of the
problem's lists changes nothing. Placing and removing one replica costs microseconds and can be undone.
"""

from __future__ import annotations

from collections.abc import Iterable

from cotenant.core.packing.index import Index
from cotenant.core.packing.problem import Key, Problem, Running
from cotenant.core.share import SCALE
from cotenant.core.snapshot import Spread

Spot = tuple[int, ...]
"""The GPUs of one replica, ascending; empty = unplaced."""


class Board:
    """Where every replica is and what is left; `place` and `remove` keep the sums, the key and the index true."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.max_tenants = problem.max_tenants
        self.hosts = sorted(problem.hosts, key=lambda h: h.name)
        self.kinds = list(dict.fromkeys(h.kind for h in self.hosts))
        """The problem's kinds in the order of the first host that has each: what numbers they have changes nothing."""
        self._number_workloads()
        self._number_gpus()
        self._number_replicas()
        number = {uuid: g for g, uuid in enumerate(self.uuid)}
        self.avoid = {
            w: frozenset(number[uuid] for uuid in entry.avoid if uuid in number)
            for w, entry in enumerate(self.workloads)
            if entry.avoid
        }
        self.cost = self.islands = self.splits = self.moves = 0
        self.lumps = 0
        """Sum of squares of what is left on the GPUs: higher when the room left lies together."""
        self.index = Index(self, built=False)

    def build_index(self) -> None:
        """Make the index true; until then it is not kept, which is faster while all that runs is put in its place."""
        self.index = Index(self)

    def _number_workloads(self) -> None:
        self.workloads = sorted(self.problem.workloads, key=lambda w: w.key)
        self.size = [w.gpus for w in self.workloads]
        self.cpu_need = [w.cpu for w in self.workloads]
        self.memory_need = [w.memory for w in self.workloads]
        self.headroom = [w.headroom for w in self.workloads]
        self.priority = [w.priority for w in self.workloads]
        self.apart = [w.spread is not Spread.NONE for w in self.workloads]
        self.node_apart = [w.spread is Spread.NODE for w in self.workloads]
        families: dict[str, int] = {}
        self.family = [families.setdefault(w.family or w.key, number) for number, w in enumerate(self.workloads)]
        """The first workload of the same model."""
        kin: dict[int, set[int]] = {}
        for w, family in enumerate(self.family):
            kin.setdefault(family, set()).add(w)
        self.kin = [frozenset(kin[family]) for family in self.family]
        self.demand = [
            tuple((d.share, d.overrun) if (d := w.demands[k]) else None for k in self.kinds) for w in self.workloads
        ]
        """By number of the kind here; None where it may not go."""
        overruns = [d[1] for ds in self.demand for d in ds if d]
        self.least_overrun = min(overruns, default=0)

    def _number_gpus(self) -> None:
        self.cpu = [h.cpu for h in self.hosts]
        self.host_memory = [h.memory for h in self.hosts]
        numbers = {kind: number for number, kind in enumerate(self.kinds)}
        self.host_kind = [numbers[h.kind] for h in self.hosts]
        self.host_gpus: list[range] = []
        self.on_host: list[dict[int, int]] = [{} for _ in self.hosts]
        """Per host, replicas of each family that spreads over nodes."""
        self.uuid: list[str] = []
        self.outside: list[tuple[str, ...]] = []
        """Engines on each GPU that this plan does not place."""
        self.seats: list[int] = []
        """How many tenants each GPU may have beside those."""
        self.host: list[int] = []
        self.memory: list[int] = []
        self.price: list[int] = []
        self.island: list[int] = []
        self.promise: list[int] = []
        """Bytes not promised yet, headroom included."""
        self.real: list[int] = []
        """Bytes that will really be free once everything promised is used, overruns included."""
        islands = 0
        for number, host in enumerate(self.hosts):
            first, known = len(self.uuid), dict[int, int]()
            for gpu in sorted(host.bins, key=lambda b: b.uuid):
                key = gpu.island if gpu.island is not None else -1 - len(self.uuid)
                if key not in known:
                    known[key], islands = islands, islands + 1
                self.island.append(known[key])
                self.uuid.append(gpu.uuid)
                self.outside.append(gpu.outside)
                self.seats.append(self.max_tenants - len(gpu.outside))
                self.host.append(number)
                self.memory.append(gpu.memory)
                self.price.append(0 if gpu.used > 0 else host.cost if gpu.cost is None else gpu.cost)
                self.promise.append(gpu.memory - gpu.used)
                self.real.append(gpu.memory - gpu.used)
            self.host_gpus.append(range(first, len(self.uuid)))
        count = len(self.uuid)
        # tuples, not lists: Python's collector leaves them alone, which is a quarter of a re-plan of 8,000 GPUs
        self.tenants: list[tuple[int, ...]] = [()] * count
        self.models: list[tuple[int, ...]] = [()] * count
        """The workload of each tenant, beside `tenants`."""
        self.kept = [0] * count
        """Bytes of headroom the tenants want."""
        self.island_use = [0] * islands
        self.ready = [h.ready for h in self.hosts]

    def _number_replicas(self) -> None:
        self.owner: list[int] = []
        self.number: list[int] = []
        self.first: list[int] = []
        for w, workload in enumerate(self.workloads):
            self.first.append(len(self.owner))
            self.owner += [w] * workload.replicas
            self.number += range(workload.replicas)
        count = len(self.owner)
        self.spot: list[Spot] = [()] * count
        self.home: list[Spot] = [()] * count
        """Where it runs now and may stay; empty when it runs nowhere or cannot stay."""
        self.as_run: dict[int, tuple[str, ...]] = {}
        """The GPUs of a running replica in the order its ranks have them."""
        self.runs = [False] * count
        self.fixed = [False] * count

    def replica(self, running: Running, known: dict[str, int]) -> int | None:
        """The number of a running replica that is still wanted."""
        w = known.get(running.workload)
        if w is None or not 0 <= running.replica < self.workloads[w].replicas:
            return None
        return self.first[w] + running.replica

    # ------------------------------------------------------------------------------------------------------- asking
    def need(self, w: int, host: int) -> tuple[int, int] | None:
        """Share and overrun of a workload on a host; None where it may not go."""
        return self.demand[w][self.host_kind[host]]

    def fits(self, w: int, g: int) -> bool:
        """Whether one rank fits on this GPU: both rooms, tenants, spread. The host is asked by `host_fits`."""
        need = self.demand[w][self.host_kind[self.host[g]]]
        if need is None or len(self.tenants[g]) >= self.seats[g]:
            return False
        kept = self.memory[g] * self.headroom[w] // SCALE
        if kept < self.kept[g]:
            kept = self.kept[g]
        share, overrun = need
        if share > self.promise[g] - kept or share + overrun > self.real[g]:
            return False
        if self.avoid and g in self.avoid.get(w, ()):
            return False
        return not self.beside_kin(w, g)

    def beside_kin(self, w: int, g: int) -> bool:
        """Whether another replica of its model, from which it keeps apart, is on this GPU."""
        if not self.apart[w]:
            return False
        return not self.kin[w].isdisjoint(self.models[g]) or self._has_kin(w, self.outside[g])

    def _has_kin(self, w: int, outside: tuple[str, ...]) -> bool:
        """Whether another replica of its model is among these engines; what it is to succeed is none."""
        workload = self.workloads[w]
        family, itself = workload.family or workload.key, workload.key.removesuffix("+")
        return any(engine.rpartition("/")[0] == family and engine != itself for engine in outside)

    def host_fits(self, w: int, host: int) -> bool:
        """Whether the host is ready and has the CPU, memory and, for spread Node, no replica of this workload."""
        if not self.ready[host] or self.cpu_need[w] > self.cpu[host] or self.memory_need[w] > self.host_memory[host]:
            return False
        if not self.node_apart[w]:
            return True
        there = self.host_gpus[host]
        return not (self.on_host[host].get(self.family[w]) or any(self._has_kin(w, self.outside[g]) for g in there))

    def can_stand(self, w: int, spot: Spot) -> bool:
        """Whether a replica of `w` could be placed on exactly these GPUs now."""
        if len(spot) != self.size[w] or len(set(spot)) != len(spot):
            return False
        host = self.host[spot[0]]
        if any(self.host[g] != host for g in spot) or not self.host_fits(w, host):
            return False
        if self.workloads[w].same_island and self.splits_on(spot):
            return False
        return all(self.fits(w, g) for g in spot)

    def splits_on(self, spot: Spot) -> bool:
        """Whether these GPUs span islands."""
        return any(self.island[g] != self.island[spot[0]] for g in spot)

    # ------------------------------------------------------------------------------------------------------- acting
    def place(self, r: int, spot: Spot) -> None:
        """Put an unplaced replica on these GPUs; asks nothing."""
        for g in spot:
            self.index.forget(g)
        self.settle(r, spot)
        self.index.host_changed(self.host[spot[0]])
        for g in spot:
            self.index.learn(g)

    def settle(self, r: int, spot: Spot) -> None:
        """The same while the index is not built."""
        w = self.owner[r]
        host = self.host[spot[0]]
        share, overrun = self.demand[w][self.host_kind[host]] or (0, 0)
        headroom = self.headroom[w]
        for g in spot:
            tenants = self.tenants[g]
            if not tenants:
                self._open(g)
            left = self.promise[g]
            self.lumps += ((left - share) >> 20) ** 2 - (left >> 20) ** 2
            self.promise[g] = left - share
            self.real[g] -= share + overrun
            self.tenants[g] = (*tenants, r)
            self.models[g] = (*self.models[g], w)
            if headroom:
                kept = self.memory[g] * headroom // SCALE
                if kept > self.kept[g]:
                    self.kept[g] = kept
        self.spot[r] = spot
        self._account(r, w, host, spot, 1)

    def remove(self, r: int) -> Spot:
        """Take a placed replica away; returns where it was."""
        w, spot = self.owner[r], self.spot[r]
        host = self.host[spot[0]]
        share, overrun = self.demand[w][self.host_kind[host]] or (0, 0)
        for g in spot:
            self.index.forget(g)
            left = self.promise[g]
            self.lumps += ((left + share) >> 20) ** 2 - (left >> 20) ** 2
            self.promise[g] = left + share
            self.real[g] += share + overrun
            tenants, models = self.tenants[g], self.models[g]
            at = tenants.index(r)
            self.tenants[g] = tenants[:at] + tenants[at + 1 :]
            self.models[g] = models[:at] + models[at + 1 :]
            if self.kept[g]:
                most = max((self.headroom[m] for m in self.models[g]), default=0)
                self.kept[g] = self.memory[g] * most // SCALE
            if not self.tenants[g]:
                self._close(g)
        self._account(r, w, host, spot, -1)
        self.index.host_changed(host)
        self.spot[r] = ()
        for g in spot:
            self.index.learn(g)
        return spot

    def _open(self, g: int) -> None:
        self.cost += self.price[g]
        i = self.island[g]
        self.island_use[i] += 1
        if self.island_use[i] == 1:
            self.islands += 1

    def _close(self, g: int) -> None:
        self.cost -= self.price[g]
        i = self.island[g]
        self.island_use[i] -= 1
        if not self.island_use[i]:
            self.islands -= 1

    def _account(self, r: int, w: int, host: int, spot: Spot, sign: int) -> None:
        self.cpu[host] -= sign * self.cpu_need[w]
        self.host_memory[host] -= sign * self.memory_need[w]
        if self.node_apart[w]:
            there, family = self.on_host[host], self.family[w]
            there[family] = there.get(family, 0) + sign
        if len(spot) > 1 and self.splits_on(spot):
            self.splits += sign
        if self.runs[r] and spot == self.home[r]:
            self.moves -= sign

    # ------------------------------------------------------------------------------------------------------ judging
    def unplaced(self) -> list[int]:
        """Replicas without a place, ascending."""
        return [r for r, spot in enumerate(self.spot) if not spot]

    def missing(self) -> tuple[tuple[int, int], ...]:
        """(priority, unplaced replicas), highest priority first."""
        return count_missing(self.priority[self.owner[r]] for r in self.unplaced())

    def key(self) -> Key:
        """The objective as it stands."""
        return Key(self.missing(), self.moves, self.splits, self.cost, self.islands, self._balance())

    def _balance(self) -> int:
        total = 0
        for g, tenants in enumerate(self.tenants):
            if tenants:
                total += (1000 * self.promise[g] // max(1, self.memory[g])) ** 2
        return total


def count_missing(priorities: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """(priority, how often), highest priority first."""
    counts: dict[int, int] = {}
    for priority in priorities:
        counts[priority] = counts.get(priority, 0) + 1
    return tuple(sorted(counts.items(), reverse=True))


def order(key: Key) -> tuple[object, ...]:
    """What keys are compared by: fewer unplaced of the highest priority first, then of the next, and so on."""
    weights = tuple(x for priority, count in key.unplaced for x in (priority, count))
    return (weights, key.moves, key.splits, key.cost, key.islands, key.balance)
