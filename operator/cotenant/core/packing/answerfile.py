"""A plan as plain data, in the form `cotenant pack` prints."""

from __future__ import annotations

from cotenant.core.packing.problem import Plan, Reason
from cotenant.core.packing.problemfile import ProblemFile


def answer(plan: Plan, file: ProblemFile) -> dict[str, object]:
    """The plan as the file's answer, without the seconds it took."""
    return {
        "placements": [
            {"model": p.workload, "replica": p.replica, "node": p.host, "gpus": [int(g) for g in p.gpus],
             "moved": p.moved}
            for p in plan.placements
        ],
        "unplaced": [
            {"model": u.workload, "replica": u.replica, "reason": reason_data(u.reason), "message": u.reason.text}
            for u in plan.unplaced
        ],
        "key": {
            "unplaced": {str(priority): count for priority, count in plan.key.unplaced},
            "moves": plan.key.moves,
            "splits": plan.key.splits,
            "cost": _unscaled(plan.key.cost, file.cost_scale),
            "islands": plan.key.islands,
        },
        "bound": None
        if plan.bound is None
        else {"cost": _unscaled(plan.bound, file.cost_scale), "method": plan.bound_method},
        "fragmentation": None
        if plan.fragmentation is None
        else {
            "free": plan.fragmentation.free,
            "stranded": plan.fragmentation.stranded,
            "groups": {str(size): count for size, count in plan.fragmentation.groups},
        },
    }  # fmt: skip


def reason_data(reason: Reason) -> dict[str, object]:
    """A reason as plain data."""
    data: dict[str, object] = {"code": reason.code, "needs": reason.needs, "has": reason.has}
    if reason.nearest:
        data["nearest"] = reason.nearest
    if reason.displaced_by:
        data["displacedBy"] = reason.displaced_by
    data["limits"] = [
        {"code": m.code, "nodes": m.hosts, "product": m.product, "nearest": m.nearest, "needs": m.needs, "has": m.has}
        for m in reason.limits
    ]
    data["changes"] = [
        {name: value for name, value in (
            ("code", c.code), ("share", c.share), ("percent", c.percent / 100), ("node", c.host),
            ("model", c.workload), ("replica", c.replica if c.workload else 0), ("consent", c.consent),
        ) if value not in ("", 0) or (name == "replica" and c.workload)}
        for c in reason.changes
    ]  # fmt: skip
    return data


def _unscaled(cost: int, scale: int) -> int | float:
    whole, rest = divmod(cost, scale)
    return cost / scale if rest else whole
