"""The LP over columns (what one GPU may hold): a revised simplex in floats. What it says of prices is only proposed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from heapq import nsmallest

EPSILON = 1e-7
CANDIDATES = 40
"""Columns of the pool that are priced at every pivot."""
PIVOTED_A_STEP = 100
"""Entries of the inverse: sixteen pivots of so many take as long as one placement."""


@dataclass(frozen=True, slots=True)
class Item:
    """Ranks that are alike."""

    count: int
    most: int
    """How many of them one GPU may hold at once (replicas apart)."""
    sizes: tuple[tuple[int, int] | None, ...]
    """By class: share, and share + overrun; None where it may not go."""
    row: int
    """Items of one row of the LP have prices in proportion to their weights."""
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class BinClass:
    """GPUs that are alike."""

    supply: int
    cost: int
    promise: int
    real: int
    tenants: int


@dataclass(frozen=True, slots=True)
class Column:
    """What one GPU of a class may hold: (item, how many)."""

    of: int
    holds: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Activity:
    """A column as the LP sees it: its cost and its entries in the rows of items; the class has a row of its own."""

    column: Column
    cost: float
    entries: tuple[tuple[int, float], ...]


class Simplex:
    """Revised simplex with an explicit inverse: rows are the items (>= count) and the classes (<= supply)."""

    def __init__(self, items: list[Item], classes: list[BinClass]) -> None:
        self.items, self.classes = items, classes
        self.first_class = 1 + max((item.row for item in items), default=-1)
        self.rows = self.first_class + len(classes)
        dearest = max((c.cost for c in classes), default=1)
        # to leave a rank out is allowed at a price no plan would pay, so that there is always a solution
        self.penalty = 1000.0 * max(1, dearest)
        self.costs = [self.penalty] * self.first_class + [0.0] * len(classes)
        self.basis: list[Column | None] = [None] * self.rows
        self.inverse = [[1.0 if i == j else 0.0 for j in range(self.rows)] for i in range(self.rows)]
        self.duals = [0.0] * self.rows
        asked = [0.0] * self.first_class
        for item in items:
            asked[item.row] += item.count * item.weight
        self.values = asked + [float(c.supply) for c in classes]
        # a column that holds nothing is a GPU left closed
        self.closed = [self.activity(Column(c, ())) for c in range(len(classes))]

    def activity(self, column: Column) -> Activity:
        """The column in rows."""
        rows: dict[int, float] = {}
        for i, n in column.holds:
            rows[self.items[i].row] = rows.get(self.items[i].row, 0.0) + n * self.items[i].weight
        cost = float(self.classes[column.of].cost) if column.holds else 0.0
        return Activity(column, cost, (*rows.items(), (self.first_class + column.of, 1.0)))

    def pivot(self, pool: list[Activity], spend: Callable[[int], bool]) -> None:
        """Bring in columns of the pool until none helps."""
        self._refresh()
        count = 0
        while True:
            before, everything = count, [*self.closed, *pool]
            found = [(reduced, at) for at, a in enumerate(everything) if (reduced := self.reduced(a)) < -EPSILON]
            # the whole pool is looked at once in a while, in between only those that promised most
            near = [everything[at] for _, at in nsmallest(CANDIDATES, found)]
            while near and count < 4 * self.rows:
                worth = [self.reduced(a) for a in near]
                least = min(worth)
                if least >= -EPSILON or not self._enter(near[worth.index(least)], least):
                    break
                count += 1
                if count % 16 == 0 and not spend(self.rows * self.rows // PIVOTED_A_STEP):
                    return
            if count == before:
                return

    def value(self) -> float:
        """What the solution costs."""
        return sum([c * v for c, v in zip(self.costs, self.values, strict=True)])

    def reduced(self, activity: Activity) -> float:
        """What one more of it would change the cost by."""
        duals, total = self.duals, activity.cost
        for row, n in activity.entries:
            total -= duals[row] * n
        return total

    def _refresh(self) -> None:
        """The price of every row, from scratch: what pivots add up to drifts."""
        prices = [0.0] * self.rows
        for cost, row in zip(self.costs, self.inverse, strict=True):
            if cost:
                prices = [p + cost * x for p, x in zip(prices, row, strict=True)]
        self.duals = prices

    def _enter(self, activity: Activity, reduced: float) -> bool:
        """Bring a column into the basis; False when nothing leaves (it cannot happen in exact arithmetic)."""
        entries = activity.entries
        direction = [sum([row[i] * n for i, n in entries]) for row in self.inverse]
        leaving, ratio = -1, 0.0
        for i, d in enumerate(direction):
            if d > EPSILON:
                r = self.values[i] / d
                if leaving < 0 or r < ratio - 1e-12 or (r <= ratio + 1e-12 and d > direction[leaving]):
                    leaving, ratio = i, r
        if leaving < 0:
            return False
        pivot = direction[leaving]
        row = [x / pivot for x in self.inverse[leaving]]
        self.inverse[leaving] = row
        for i, d in enumerate(direction):
            if i != leaving and (d > EPSILON or d < -EPSILON):
                self.inverse[i] = [o - d * x for o, x in zip(self.inverse[i], row, strict=True)]
                self.values[i] = max(0.0, self.values[i] - d * ratio)
        self.values[leaving] = ratio
        self.basis[leaving] = activity.column
        self.costs[leaving] = activity.cost
        self.duals = [y + reduced * x for y, x in zip(self.duals, row, strict=True)]
        return True

    def use(self) -> list[tuple[Column, float]]:
        """The columns in use and how much of each."""
        return [(c, v) for c, v in zip(self.basis, self.values, strict=True) if c is not None and c.holds and v > 1e-7]
