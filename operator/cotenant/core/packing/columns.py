"""The configuration LP by column generation (Gilmore, Gomory 1961): a bound that float arithmetic cannot spoil.

A column is what one GPU of a class may hold. The simplex works in floats, but its prices only propose: the bound is
worked out from them in whole numbers, and any prices give a true bound.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cotenant.core.packing.simplex import EPSILON, BinClass, Column, Item, Simplex

PRICE_SCALE = 1 << 24
"""Prices are whole multiples of this part of a cost unit."""
MAX_NODES = 4_000
"""Nodes of one pricing search; beyond that its upper bound is used, which is true and weaker."""
NODES_A_STEP = 40
"""So many nodes take as long as one placement."""
TOLERANCE = PRICE_SCALE // 2000
"""Columns that would better a GPU's cost by less than this part of it are not worth looking for."""
PRECISION = 1000
"""What a configuration is worth is known to this part of it: to know it better takes many times the nodes."""
LAST_LOOK = 8
"""Times as many nodes and as precise when the best prices are judged at last."""
CLOSE = 0.0003
"""The bound is good enough when it is so near to the LP's own value."""
GAIN = 5000
"""A bound that is better by less than this part is not worth another round."""
SMOOTHING = 70
"""Percent of the best prices so far in those that are tried next."""


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

    def best(
        self, values: list[int], least: int, nodes: int, precision: int = PRECISION
    ) -> tuple[int, list[tuple[tuple[int, int], ...]], int]:
        """(no configuration is worth more than this, those found worth more than `least`, best last; nodes taken)."""
        weight = self.weight
        choices = [(values[o[0]], weight[o[0]], o[1], o[2], o[3], o[0]) for o in self.offers if values[o[0]] > 0]
        choices.sort(key=lambda c: (-c[0] / c[1], -c[1], c[5]))
        count = len(choices)
        found: list[tuple[tuple[int, int], ...]] = []
        holds: list[tuple[int, int]] = []
        best, left = least, nodes
        slack = least // precision

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
            while at < count and worth + limit(at, room) > best + slack:
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
        return (best + slack if left >= 0 else max(best, top)), found, nodes - max(0, left)


def solve(
    items: list[Item],
    classes: list[BinClass],
    start: list[Column],
    guess: list[int],
    spend: Callable[[int], bool],
) -> Solution:
    """Column generation from the columns of `start` until none helps or `spend` says stop.

    `spend` is told of work done, in placements' worth.

    Prices are a mean of the LP's and the best so far (Wentges 1997), `guess` being the first: raw ones swing too much.
    """
    lp = Simplex(items, classes)
    pricings = [
        Pricing(of, [(i, s[0], s[1], item.most) for i, item in enumerate(items) if (s := item.sizes[c]) is not None])
        for c, of in enumerate(classes)
    ]
    known = dict.fromkeys(start)
    pool = [lp.activity(column) for column in known]
    best, prices, best_supply, complete = -1, guess, [0] * len(classes), False
    calm = SMOOTHING
    room = max(1, sum(of.supply * of.promise for of in classes))
    nodes_for = [MAX_NODES // 10 + MAX_NODES * of.supply * of.promise // room for of in classes]
    while True:
        lp.pivot(pool, spend)
        raw = [max(0, int(lp.duals[item.row] * item.weight * PRICE_SCALE)) for item in items]
        values = [(v * (100 - calm) + p * calm) // 100 for v, p in zip(raw, prices, strict=True)]
        total = sum(v * item.count for v, item in zip(values, items, strict=True))
        added, work, supply = 0, 0, []
        for c, of in enumerate(classes):
            dual = max(0, int(-lp.duals[lp.first_class + c] * PRICE_SCALE))
            enough = of.cost * PRICE_SCALE + (dual * (100 - calm) + best_supply[c] * calm) // 100
            worth, found, nodes = pricings[c].best(values, enough + max(of.cost, 1) * TOLERANCE, nodes_for[c])
            work += 1 + nodes // NODES_A_STEP
            supply.append(max(0, worth - of.cost * PRICE_SCALE))
            total -= supply[-1] * of.supply
            for holds in found[-4:]:
                column = Column(c, tuple(sorted(holds)))
                if column not in known:
                    known[column] = None
                    pool.append(lp.activity(column))
                    added += lp.reduced(pool[-1]) < -EPSILON
        better = total > best + best // GAIN
        if total > best:
            best, prices, best_supply = total, values, supply
        if not added and not calm:
            complete = True
            break
        if lp.value() - best / PRICE_SCALE <= CLOSE * lp.value():
            complete = True
            break
        # when the mean finds nothing the LP lacks, its own prices must be asked
        calm = SMOOTHING if added else 0 if not better else calm
        if not spend(work):
            break
    if complete:
        # the best prices and the LP's own judged once more, without what saved time on the way
        raw = [max(0, int(lp.duals[item.row] * item.weight * PRICE_SCALE)) for item in items]
        for values in (prices, raw):
            total = sum(v * item.count for v, item in zip(values, items, strict=True))
            for c, of in enumerate(classes):
                least = of.cost * PRICE_SCALE or best_supply[c] * 98 // 100
                worth, _, nodes = pricings[c].best(values, least, LAST_LOOK * nodes_for[c], LAST_LOOK * PRECISION)
                total -= max(0, worth - of.cost * PRICE_SCALE) * of.supply
                spend(nodes // NODES_A_STEP)
            if total > best:
                best, prices = total, values
    return Solution(max(0, best), tuple(prices), tuple(lp.use()), complete)
