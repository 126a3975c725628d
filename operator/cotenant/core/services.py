"""One Service per model: which lack or differ, and which nobody wants any more."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

from cotenant.core.decision import Apply, Delete
from cotenant.core.demand import Demands, Wanted
from cotenant.core.memo import Memo
from cotenant.core.pod import PORT, selector, service, service_hash
from cotenant.core.snapshot import Labels, ServiceRecord, Snapshot


@dataclass(frozen=True, slots=True)
class Need:
    """One model and what its Service must be like."""

    wanted: Wanted
    hash: str
    selector: Labels

    def is_met_by(self, there: ServiceRecord | None) -> bool:
        """Whether that Service says all we would write, whoever else added to it."""
        return (
            there is not None
            and there.hash == self.hash
            and there.selector == self.selector
            and PORT in there.ports
            and (there.placement, there.model) == (self.wanted.placement.name, self.wanted.model.name)
        )


def services(snapshot: Snapshot, demands: Demands, memo: Memo) -> tuple[Apply, ...]:
    """Those that are not there as they should be."""
    needs = [memo.of("service needs", row, (), partial(_needs, row)) for row in demands.rows]
    lacking = memo.of("services", (*snapshot.services, *needs), (), partial(_lacking, snapshot.services, needs))
    return tuple(Apply(service(wanted), "Service") for wanted in lacking if wanted.key not in demands.blocked)


def _needs(row: tuple[Wanted, ...]) -> tuple[Need, ...]:
    return tuple(Need(wanted, service_hash(wanted), tuple(sorted(selector(wanted).items()))) for wanted in row)


def _lacking(there: Iterable[ServiceRecord], needs: Iterable[tuple[Need, ...]]) -> list[Wanted]:
    known = {(service.namespace, service.name): service for service in there}
    return [need.wanted for row in needs for need in row if not need.is_met_by(known.get(need.wanted.service))]


def stale_services(snapshot: Snapshot, demands: Demands, memo: Memo) -> tuple[Delete, ...]:
    """Services of models that a placement no longer has; those of a placement that is gone are Kubernetes' to collect."""
    known = (*snapshot.services, *snapshot.placements, *demands.rows)
    return memo.of("stale services", known, (), partial(_stale, snapshot, demands))


def _stale(snapshot: Snapshot, demands: Demands) -> tuple[Delete, ...]:
    wanted = {(*w.service, w.placement.uid) for w in demands.wanted}
    owners = {(p.namespace, p.uid) for p in snapshot.placements if not (p.invalid or p.deleting)}
    return tuple(
        Delete(known.namespace, known.name, known.uid, "ModelRemoved", kind="Service")
        for known in snapshot.services
        if (known.namespace, known.owner_uid) in owners and (known.namespace, known.name, known.owner_uid) not in wanted
    )
