"""The configuration LP by column generation (Gilmore, Gomory 1961): a bound that float arithmetic cannot spoil.

A column is what one GPU of a class may hold. The simplex works in floats, but its prices only propose: the bound is
worked out from them in whole numbers, and any prices give a true bound.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

PRICE_SCALE = 1 << 24
"""Prices are whole multiples of this part of a cost unit."""
MAX_NODES = 4_000
"""Nodes of one pricing search; beyond that its upper bound is used, which is true and weaker."""
TOLERANCE = PRICE_SCALE // 2000
"""Columns that would better a GPU's cost by less than this part of it are not worth looking for."""
SMOOTHING = 70
"""Percent of the best prices so far in those that are tried next."""
EPSILON = 1e-7


@dataclass(frozen=True, slots=True)
class Item:
    """Ranks that are alike."""

    count: int
    most: int
    """How many of them one GPU may hold at once (replicas apart)."""
    sizes: tuple[tuple[int, int] | None, ...]
    """By class: share, and share + overrun; None where it may not go."""


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
class Solution:
    """The best bound, the prices behind it and the fractional use of columns."""

    bound: int
    """In cost units / PRICE_SCALE."""
    prices: tuple[int, ...]
    """What one rank of every item is worth, by which the bound is proven."""
    use: tuple[tuple[Column, float], ...]
    complete: bool


Offer = tuple[int, int, int, int]
"""What may go on a class: item, share, share + overrun, how many at most."""


class Pricing:
    """The configuration of one class that is worth most at given prices: depth first, bounded by what room is worth."""

    def __init__(self, of: BinClass, offers: list[Offer]) -> None:
        self.of = of
        self.offers = [o for o in offers if o[1] <= of.promise and o[2] <= of.real]
        by_real = sum(o[2] for o in self.offers) * of.promise > sum(o[1] for o in self.offers) * of.real
        self.capacity = of.real if by_real else of.promise
        self.weight = {o[0]: max(1, o[2] if by_real else o[1]) for o in self.offers}

    def best(self, values: list[int], least: int, nodes: int) -> tuple[int, list[tuple[tuple[int, int], ...]]]:
        """(no configuration is worth more than this, those found that are worth more than `least`, best last)."""
        weight = self.weight
        choices = [(values[o[0]], weight[o[0]], o[1], o[2], o[3], o[0]) for o in self.offers if values[o[0]] > 0]
        choices.sort(key=lambda c: (-c[0] / c[1], -c[1], c[5]))
        count = len(choices)
        found: list[tuple[tuple[int, int], ...]] = []
        holds: list[tuple[int, int]] = []
        best, left = least, nodes

        def limit(at: int, room: int) -> int:
            total = 0
            while at < count:
                value, heavy, _, _, most, _ = choices[at]
                if heavy * most > room:
                    return total + value * room // heavy + 1
                total += value * most
                room -= heavy * most
                at += 1
            return total

        def descend(at: int, worth: int, room: int, promise: int, real: int, seats: int) -> None:
            nonlocal best, left
            left -= 1
            if worth > best:
                best = worth
                found.append(tuple(holds))
            if left < 0 or not seats:
                return
            while at < count and worth + limit(at, room) > best:
                value, heavy, share, more, most, item = choices[at]
                at += 1
                top = min(most, seats, promise // share if share else most, real // more if more else most)
                for number in range(top, 0, -1):
                    holds.append((item, number))
                    descend(at, worth + number * value, room - number * heavy, promise - number * share,
                            real - number * more, seats - number)  # fmt: skip
                    holds.pop()
                    if left < 0:
                        return

        top = limit(0, self.capacity)
        descend(0, 0, self.capacity, self.of.promise, self.of.real, self.of.tenants)
        return (best if left >= 0 else max(best, top)), found


def solve(
    items: list[Item],
    classes: list[BinClass],
    pool: list[Column],
    guess: list[int],
    steps: int,
    keep_going: Callable[[], bool],
) -> Solution:
    """Column generation from the columns of `pool` until none helps, the steps are spent or the caller says stop.

    Prices are a mean of the LP's and the best so far (Wentges 1997), `guess` being the first: raw ones swing too much.
    """
    lp = _Simplex(items, classes)
    pricings = [
        Pricing(of, [(i, s[0], s[1], item.most) for i, item in enumerate(items) if (s := item.sizes[c]) is not None])
        for c, of in enumerate(classes)
    ]
    pool = list(dict.fromkeys(pool))
    known = set(pool)
    best, prices, best_supply, complete = -1, guess, [0] * len(classes), False
    calm = SMOOTHING
    for _ in range(steps):
        lp.pivot(pool, keep_going)
        raw = [max(0, int(y * PRICE_SCALE)) for y in lp.duals[: len(items)]]
        values = [(v * (100 - calm) + p * calm) // 100 for v, p in zip(raw, prices, strict=True)]
        total = sum(v * item.count for v, item in zip(values, items, strict=True))
        added, supply = 0, []
        for c, of in enumerate(classes):
            dual = max(0, int(-lp.duals[len(items) + c] * PRICE_SCALE))
            enough = of.cost * PRICE_SCALE + (dual * (100 - calm) + best_supply[c] * calm) // 100
            worth, found = pricings[c].best(values, enough + max(of.cost, 1) * TOLERANCE, MAX_NODES)
            supply.append(max(0, worth - of.cost * PRICE_SCALE))
            total -= supply[-1] * of.supply
            for holds in found[-4:]:
                column = Column(c, tuple(sorted(holds)))
                if column not in known:
                    known.add(column)
                    pool.append(column)
                    added += lp.reduced(column) < -EPSILON
        better = total > best
        if better:
            best, prices, best_supply = total, values, supply
        if not added and not calm:
            complete = True
            break
        # when the mean finds nothing the LP lacks, its own prices must be asked
        calm = SMOOTHING if added else 0 if not better else calm
        if not keep_going():
            break
    return Solution(max(0, best), tuple(prices), tuple(lp.use()), complete)


class _Simplex:
    """Revised simplex with an explicit inverse: rows are the items (>= count) and the classes (<= supply)."""

    def __init__(self, items: list[Item], classes: list[BinClass]) -> None:
        self.items, self.classes = items, classes
        self.rows = len(items) + len(classes)
        dearest = max((c.cost for c in classes), default=1)
        # to leave a rank out is allowed at a price no plan would pay, so that there is always a solution
        self.penalty = 1000.0 * max(1, dearest)
        self.costs = [self.penalty] * len(items) + [0.0] * len(classes)
        self.basis: list[Column | None] = [None] * self.rows
        self.inverse = [[1.0 if i == j else 0.0 for j in range(self.rows)] for i in range(self.rows)]
        self.duals = [0.0] * self.rows
        self.values = [float(i.count) for i in items] + [float(c.supply) for c in classes]

    def pivot(self, pool: list[Column], keep_going: Callable[[], bool]) -> None:
        """Bring in columns of the pool until none helps."""
        self._refresh()
        for count in range(4 * self.rows):
            entering, least = None, -EPSILON
            for column in pool:
                reduced = self.reduced(column)
                if reduced < least:
                    entering, least = column, reduced
            for c in range(len(self.classes)):
                if -self.duals[len(self.items) + c] < least:
                    entering, least = Column(c, ()), -self.duals[len(self.items) + c]
            if entering is None or not self._enter(entering, least):
                return
            if count % 16 == 15 and not keep_going():
                return

    def reduced(self, column: Column) -> float:
        """What one more of it would change the cost by."""
        duals = self.duals
        total = float(self.classes[column.of].cost) - duals[len(self.items) + column.of]
        for i, n in column.holds:
            total -= duals[i] * n
        return total

    def _refresh(self) -> None:
        """The price of every row, from scratch: what pivots add up to drifts."""
        prices = [0.0] * self.rows
        for cost, row in zip(self.costs, self.inverse, strict=True):
            if cost:
                prices = [p + cost * x for p, x in zip(prices, row, strict=True)]
        self.duals = prices

    def _enter(self, column: Column, reduced: float) -> bool:
        """Bring a column into the basis; False when nothing leaves (it cannot happen in exact arithmetic)."""
        entries = [*column.holds, (len(self.items) + column.of, 1)]
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
        self.basis[leaving] = column
        # a column that holds nothing is a GPU left closed
        self.costs[leaving] = float(self.classes[column.of].cost) if column.holds else 0.0
        self.duals = [y + reduced * x for y, x in zip(self.duals, row, strict=True)]
        return True

    def use(self) -> list[tuple[Column, float]]:
        """The columns in use and how much of each."""
        return [(c, v) for c, v in zip(self.basis, self.values, strict=True) if c is not None and c.holds and v > 1e-7]
