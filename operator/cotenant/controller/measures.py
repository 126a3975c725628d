"""What a pass decided -> the series of metrics.py. What is decided again because a write failed is counted once."""

from __future__ import annotations

from cotenant import metrics
from cotenant.core.decision import Decision, GPUFigures
from cotenant.core.drift import DRIFTS

REMEMBERED = 10_000
"""Deaths and differences that are told from new ones."""


class Measures:
    """Counts decisions."""

    def __init__(self) -> None:
        self._figures: tuple[GPUFigures, ...] = ()
        self._counted: dict[tuple[str, str], None] = {}
        """(what, uid), oldest first."""

    def take(self, decision: Decision) -> None:
        """Bring the series up to date."""
        metrics.WAITING.set(decision.waiting)
        for judged in decision.judged:
            if self._is_new("death", judged.uid):
                metrics.FAULTS.labels(judged.verdict).inc()
                for rung in judged.rungs:
                    metrics.REMEDIES.labels(rung).inc()
        for back in decision.recovered:
            if self._is_new("recovery", back.uid):
                metrics.RECOVERY_SECONDS.labels(back.verdict).observe(back.seconds)
        for delete in decision.deletes:
            if delete.reason in DRIFTS and self._is_new("drift", delete.uid):
                metrics.DRIFT.labels(delete.reason).inc()
        metrics.REPLICAS.clear()
        for phase, count in decision.replicas:
            metrics.REPLICAS.labels(phase).set(count)
        if left := decision.left:
            metrics.FREE_BYTES.set(left.free)
            metrics.STRANDED_BYTES.set(left.stranded)
            for size, groups in left.groups:
                metrics.ROOM_FOR_GROUPS.labels(str(size)).set(groups)
        if decision.gpus != self._figures:
            self._show(decision.gpus)

    def _show(self, gpus: tuple[GPUFigures, ...]) -> None:
        self._figures = gpus
        metrics.GPU_BYTES.clear()
        metrics.GPU_TENANTS.clear()
        for gpu in gpus:
            for of in ("usable", "promised", "expected", "used", "strangers"):
                metrics.GPU_BYTES.labels(gpu.node, gpu.uuid, of).set(getattr(gpu, of))
            metrics.GPU_TENANTS.labels(gpu.node, gpu.uuid).set(gpu.tenants)

    def _is_new(self, what: str, uid: str) -> bool:
        if (what, uid) in self._counted:
            return False
        self._counted[what, uid] = None
        if len(self._counted) > REMEMBERED:
            del self._counted[next(iter(self._counted))]
        return True
