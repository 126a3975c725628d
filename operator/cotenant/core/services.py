"""One Service per model: which lack or differ, and which nobody wants any more."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from cotenant.core.decision import Apply, Delete
from cotenant.core.demand import Demands, Wanted
from cotenant.core.memo import Memo
from cotenant.core.pod import service, service_hash
from cotenant.core.snapshot import ServiceRecord, Snapshot

Needs = dict[tuple[tuple[str, str], str], Wanted]
"""The models of a placement by the names and hashes of their Services."""


def services(snapshot: Snapshot, demands: Demands, memo: Memo) -> tuple[Apply, ...]:
    """Those that are not there as they should be."""
    needs = [memo.of("service needs", row, (), partial(_needs, row)) for row in demands.rows]
    lacking = memo.of("services", (*snapshot.services, *needs), (), partial(_lacking, snapshot.services, needs))
    return tuple(Apply(service(wanted), "Service") for wanted in lacking if wanted.key not in demands.blocked)


def _needs(row: tuple[Wanted, ...]) -> Needs:
    return {(wanted.service, service_hash(wanted)): wanted for wanted in row}


def _lacking(there: Iterable[ServiceRecord], needs: Iterable[Needs]) -> list[Wanted]:
    known = {((service.namespace, service.name), service.hash) for service in there}
    return [wanted for row in needs if not row.keys() <= known for asked, wanted in row.items() if asked not in known]


def stale_services(snapshot: Snapshot, demands: Demands, memo: Memo) -> tuple[Delete, ...]:
    """Services of models that a placement no longer has; those of a placement that is gone are Kubernetes' to collect."""
    known = (*snapshot.services, *snapshot.placements, *demands.rows)
    return memo.of("stale services", known, (), partial(_stale, snapshot, demands))


def _stale(snapshot: Snapshot, demands: Demands) -> tuple[Delete, ...]:
    wanted = {(w.placement.namespace, w.placement.name, w.model.name) for w in demands.wanted}
    readable = {p.key for p in snapshot.placements if not (p.invalid or p.deleting)}
    return tuple(
        Delete(known.namespace, known.name, "", "ModelRemoved", kind="Service")
        for known in snapshot.services
        if (known.namespace, known.placement, known.model) not in wanted
        and (known.namespace, known.placement) in readable
    )
