"""The least any plan can cost that leaves what runs where it is: proven, by volume, Martello-Toth's L2 or the LP.

Everything left out (CPU, nodes, islands, replicas apart over nodes) can only make plans dearer, so the bound stays true.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from math import gcd

from cotenant.core.packing.board import Board
from cotenant.core.packing.columns import PRICE_SCALE, Solution, solve
from cotenant.core.packing.simplex import BinClass, Column, Item
from cotenant.core.share import SCALE

MAX_ROWS = 48
"""Rows of the LP: items of near sizes share one, their prices in proportion to their sizes."""
MAX_ITEMS = 400
"""Kinds of items the LP takes; beyond that near sizes are rounded down, which keeps the bound true and weakens it."""
Sizes = tuple[tuple[int, int] | None, ...]
"""By class: a rank's share, and its share + overrun; None where it may not go."""

MAX_CLASSES = 12
"""Kinds of GPUs the LP takes; beyond that the partly used ones are taken for larger than they are."""


@dataclass(frozen=True, slots=True)
class Bound:
    """A proven minimum."""

    cost: int
    method: str
    complete: bool = True


class Relaxation:
    """The free replicas and the GPUs without what only makes plans dearer; taken from a board before they are placed."""

    def __init__(self, board: Board, free: list[int], whole: bool) -> None:
        """`whole`: groups stay on islands; true of plans without splits only."""
        self.base = board.cost
        self.items: list[Item] = []
        self.workloads: list[list[int]] = []
        """The workloads behind each item."""
        counts: dict[int, int] = {}
        for r in free:
            counts[board.owner[r]] = counts.get(board.owner[r], 0) + 1
        least = min((board.headroom[w] for w in counts), default=0)
        self.whole = whole
        self.classes, self.class_kind, self.class_island, self.gpu_class = _classes(board, least, whole)
        asked = self._asked(board, counts)
        self.classes = [_reachable(of, [n for s in asked if (n := s[c])]) for c, of in enumerate(self.classes)]
        self._collect(board, counts, asked)
        self.rounded = len(self.items) < len(asked)
        self.item_of = {w: i for i, workloads in enumerate(self.workloads) for w in workloads}
        self.solution: Solution | None = None
        self.costs = sorted({c.cost for c in self.classes if c.cost})

    def _asked(self, board: Board, counts: dict[int, int]) -> dict[Sizes, list[int]]:
        """Workloads by what a rank of theirs takes of each class."""
        asked: dict[Sizes, list[int]] = {}
        for w in counts:
            size = board.size[w]
            sizes = tuple(
                (need[0], need[0] + need[1])
                if (need := board.demand[w][kind]) and (size <= island or not self.whole) else None
                for kind, island in zip(self.class_kind, self.class_island, strict=True)
            )  # fmt: skip
            asked.setdefault(sizes, []).append(w)
        return asked

    def _collect(self, board: Board, counts: dict[int, int], asked: dict[Sizes, list[int]]) -> None:
        ranks = {sizes: sum(counts[w] * board.size[w] for w in workloads) for sizes, workloads in asked.items()}
        found: dict[Sizes, Item] = {}
        for sizes, alike in _rounded_down(ranks, MAX_ITEMS):
            workloads = sorted(w for a in alike for w in asked[a])
            most = sum(1 if board.apart[w] else counts[w] for w in workloads)
            found[sizes] = Item(sum(ranks[a] for a in alike), most, sizes, 0)
            self.workloads.append(workloads)
        for row, (floor, alike) in enumerate(_rounded_down({s: i.count for s, i in found.items()}, MAX_ROWS)):
            least = max(1, sum(need[1] for need in floor if need))
            for sizes in alike:
                weight = sum(need[1] for need in sizes if need) / least
                found[sizes] = replace(found[sizes], row=row, weight=weight)
        self.items += found.values()

    def solve(self, board: Board, free: list[int], spend: Callable[[int], bool]) -> None:
        """Find the best prices the LP can, from what the GPUs hold now; without it the bound is by volume."""
        self.solution = solve(self.items, self.classes, self._held(board, free), self._volume_prices(), spend)

    def _held(self, board: Board, free: list[int]) -> list[Column]:
        holds: dict[int, dict[int, int]] = {}
        for r in free:
            for g in board.spot[r]:
                there = holds.setdefault(g, {})
                item = self.item_of[board.owner[r]]
                there[item] = there.get(item, 0) + 1
        return [
            Column(self.gpu_class[g], tuple(sorted(there.items())))
            for g, there in sorted(holds.items())
            if self.gpu_class[g] >= 0
        ]

    def bound(self, board: Board, unplaced: list[int]) -> Bound:
        """The least a plan can cost that leaves as many of every priority unplaced as these."""
        found = [self._priced(self._volume_prices(), board, unplaced, "volume")]
        if self.solution is not None:
            name = "configuration LP" + (", sizes rounded" if self.rounded else "")
            found.append(self._priced(list(self.solution.prices), board, unplaced, name, self.solution.bound))
        if not unplaced and len([c for c in self.classes if c.supply]) == 1 and self.classes[0].cost:
            found.append(Bound(self.base + self._l2() * self.classes[0].cost, "L2"))
        return max(found, key=lambda b: b.cost)

    def worth(self, workloads: int) -> list[int]:
        """By workload: what a rank of it is worth, in cost units / PRICE_SCALE; 0 for what is not free."""
        prices = self.solution.prices if self.solution else self._volume_prices()
        return [prices[self.item_of[w]] if w in self.item_of else 0 for w in range(workloads)]

    def _volume_prices(self) -> list[int]:
        prices = []
        for item in self.items:
            ratios = [
                of.cost * PRICE_SCALE * size[0] // of.promise
                for size, of in zip(item.sizes, self.classes, strict=True)
                if size and of.cost and of.promise >= size[0] and of.real >= size[1]
            ]
            prices.append(min(ratios, default=0))
        return prices

    def _priced(
        self, prices: list[int], board: Board, unplaced: list[int], method: str, total: int | None = None
    ) -> Bound:
        if total is None:
            total = sum(p * item.count for p, item in zip(prices, self.items, strict=True))
            for c, of in enumerate(self.classes):
                if of.supply and not of.cost:
                    densest = max(
                        (-(-p * of.promise // max(1, s[0])) for p, i in zip(prices, self.items, strict=True)
                         if (s := i.sizes[c]) is not None and s[0] <= of.promise),
                        default=0,
                    )  # fmt: skip
                    total -= densest * of.supply
        if unplaced:
            total -= self._worth(prices, board, unplaced)
        cost = max(0, -(-total // PRICE_SCALE))
        unit = gcd(*self.costs) if self.costs else 1
        return Bound(self.base + -(-cost // unit) * unit, method)

    def _worth(self, prices: list[int], board: Board, unplaced: list[int]) -> int:
        """What the dearest replicas are worth, as many of every priority as are unplaced."""
        price_of = {w: p for p, workloads in zip(prices, self.workloads, strict=True) for w in workloads}
        worth: dict[int, list[int]] = {}
        counts: dict[int, int] = {}
        for w, price in price_of.items():
            worth.setdefault(board.priority[w], []).append(price * board.size[w])
        for r in unplaced:
            priority = board.priority[board.owner[r]]
            counts[priority] = counts.get(priority, 0) + 1
        return sum(max(worth.get(priority, [0])) * count for priority, count in counts.items())

    def _l2(self) -> int:
        of = self.classes[0]
        promised = sum((i.sizes[0] or (0, 0))[0] * i.count for i in self.items) * of.real
        at = 0 if promised >= sum((i.sizes[0] or (0, 0))[1] * i.count for i in self.items) * of.promise else 1
        capacity = of.promise if at == 0 else of.real
        sizes = sorted((s[at], item.count) for item in self.items if (s := item.sizes[0]))
        return max((_l2_at(sizes, capacity, a) for a in {0, *(s for s, _ in sizes if 2 * s <= capacity)}), default=0)

    def quotas(self) -> list[dict[int, float]]:
        """Per row of the LP: how much of it (ranks by their weights) lies on each kind of host."""
        found: list[dict[int, float]] = [{} for _ in self.items]
        for column, times in self.solution.use if self.solution else ():
            kind = self.class_kind[column.of]
            for number, count in column.holds:
                item = self.items[number]
                found[item.row][kind] = found[item.row].get(kind, 0.0) + count * item.weight * times
        return found


def _reachable(of: BinClass, needs: list[tuple[int, int]]) -> BinClass:
    """The class with no more room than multiples of what all needs are multiples of can fill."""
    share, both = gcd(*(n[0] for n in needs)) or 1, gcd(*(n[1] for n in needs)) or 1
    return replace(of, promise=of.promise // share * share, real=of.real // both * both)


def _l2_at(sizes: list[tuple[int, int]], capacity: int, least: int) -> int:
    large = medium = room = small = 0
    for size, count in sizes:
        if size > capacity - least:
            large += count
        elif 2 * size > capacity:
            medium += count
            room += (capacity - size) * count
        elif size >= least:
            small += size * count
    return large + medium + max(0, -(-(small - room) // capacity))


def _rounded_down(ranks: dict[Sizes, int], most: int) -> list[tuple[Sizes, list[Sizes]]]:
    """At most about this many sizes, those that were near each taken for the smallest of them; and which were."""
    order = sorted(ranks, key=lambda s: ([n is None for n in s], sum(n[1] for n in s if n), repr(s)))

    def grouped(bearable: int) -> list[tuple[Sizes, list[Sizes]]]:
        groups: list[tuple[Sizes, list[Sizes]]] = []
        lost = 0
        for sizes in order:
            if groups and [n is None for n in sizes] == [n is None for n in groups[-1][0]]:
                floor, alike = groups[-1]
                lower = tuple(
                    (min(a[0], b[0]), min(a[1], b[1])) if a and b else None for a, b in zip(floor, sizes, strict=True)
                )
                lost += _excess(sizes, lower) * ranks[sizes] + _excess(floor, lower) * sum(ranks[a] for a in alike)
                if lost <= bearable:
                    groups[-1] = (lower, [*alike, sizes])
                    continue
            groups.append((sizes, [sizes]))
            lost = 0
        return groups

    low, high = 0, max(1, sum(_excess(s, tuple(None for _ in s)) * n for s, n in ranks.items()))
    if len(order) <= most:
        high = 0
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if len(grouped(middle)) <= most else (middle + 1, high)
    return grouped(high)


def _excess(sizes: Sizes, floor: Sizes) -> int:
    """Bytes more than that, over all classes."""
    return sum(a[0] - (b[0] if b else 0) + a[1] - (b[1] if b else 0) for a, b in zip(sizes, floor, strict=True) if a)


def _classes(board: Board, least: int, whole: bool) -> tuple[list[BinClass], list[int], list[int], list[int]]:
    """GPUs that are alike: (classes, the kind of each, its island size, the class of every GPU or -1: takes nothing)."""
    sizes: dict[int, int] = {}
    for island in board.island:
        sizes[island] = sizes.get(island, 0) + 1
    groups: dict[tuple[int, int, int, int, int, int], list[int]] = {}
    for g in range(len(board.uuid)):
        kind, seats = board.host_kind[board.host[g]], board.seats[g] - len(board.tenants[g])
        promise = board.promise[g] - max(board.kept[g], board.memory[g] * least // SCALE)
        if seats > 0 and promise > 0 and board.real[g] > 0 and board.ready[board.host[g]]:
            price = 0 if board.tenants[g] else board.price[g]
            island = sizes[board.island[g]] if whole else 0
            groups.setdefault((kind, price, island, promise, board.real[g], seats), []).append(g)
    keys = sorted(groups)
    while len(keys) > MAX_CLASSES:
        pairs = [
            (a[:3] != b[:3], (b[3] - a[3]) * len(groups[a]), at)
            for at, (a, b) in enumerate(pairwise(keys))
            if a[:2] == b[:2]
        ]
        if not pairs:
            break
        at = min(pairs)[2]
        a, b = keys[at], keys[at + 1]
        merged = (a[0], a[1], max(a[2], b[2]), max(a[3], b[3]), max(a[4], b[4]), max(a[5], b[5]))
        members = groups.pop(a) + groups.pop(b)
        groups[merged] = groups.get(merged, []) + members
        keys = sorted(groups)
    of = [-1] * len(board.uuid)
    for number, key in enumerate(keys):
        for g in groups[key]:
            of[g] = number
    classes = [BinClass(len(groups[k]), k[1], k[3], k[4], k[5]) for k in keys]
    return classes, [k[0] for k in keys], [k[2] for k in keys], of
