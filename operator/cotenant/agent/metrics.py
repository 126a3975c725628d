"""The agent's Prometheus series, made anew from the last report on every scrape: what is gone is not shown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from cotenant.agent.pods import NO_PODS, Pods
from cotenant.agent.readings import DeviceReading
from cotenant.agent.report import Report
from cotenant.core.snapshot import Device

GPU = ["node", "uuid", "index", "product"]
MODEL = ["node", "uuid", "namespace", "pod", "placement", "model", "replica"]

PER_GPU: dict[str, tuple[str, Callable[[Device], int]]] = {
    "cotenant_gpu_memory_total_bytes": ("Memory of the GPU.", lambda d: d.total),
    "cotenant_gpu_memory_usable_bytes": (
        "What CUDA calls total: total less what the driver keeps.",
        lambda d: d.usable,
    ),
    "cotenant_gpu_memory_used_bytes": ("Memory in use by all processes.", lambda d: d.used),
    "cotenant_gpu_engines": ("Engines of ours seen on the GPU.", lambda d: len(d.tenants)),
    "cotenant_gpu_strangers": ("Processes on the GPU that are not ours.", lambda d: len(d.strangers)),
    "cotenant_gpu_stranger_bytes": ("Memory they use.", lambda d: sum(s.used for s in d.strangers)),
    "cotenant_gpu_healthy": ("1 = engines may be placed on it.", lambda d: int(d.health == "Healthy")),
    "cotenant_gpu_held": ("1 = a holder of ours keeps it from others.", lambda d: int(d.holder is not None)),
}


class AgentMetrics:
    """What is counted and what was last said."""

    def __init__(self, node: str) -> None:
        self._node = node
        self.report: Report | None = None
        self.readings: tuple[DeviceReading, ...] = ()
        self.pods: Pods = NO_PODS
        self.counts: Counter[str] = Counter()
        """Readings, failures and writes by name."""
        self.xids: Counter[tuple[str, int]] = Counter()
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def text(self) -> bytes:
        """The exposition."""
        return generate_latest(self._registry)

    def describe(self) -> list[Metric]:
        """Nothing ahead of time: series depend on the node."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Every series now."""
        counted = CounterMetricFamily("cotenant_agent_events", "What the agent did, by kind.", labels=["node", "kind"])
        for kind, count in sorted(self.counts.items()):
            counted.add_metric([self._node, kind], count)
        xids = CounterMetricFamily("cotenant_gpu_xids", "Errors the driver reported.", labels=["node", "uuid", "xid"])
        for (uuid, number), count in sorted(self.xids.items()):
            xids.add_metric([self._node, uuid, str(number)], count)
        yield counted
        yield xids
        if self.report is None:
            return
        yield from self._conditions(self.report)
        yield from self._gpus(self.report.devices)
        yield from self._models(self.report.devices)
        yield from self._ailments()

    def _conditions(self, report: Report) -> Iterator[Metric]:
        family = GaugeMetricFamily("cotenant_node_condition", "1 = it holds.", labels=["node", "type", "reason"])
        for kind, verdict in (("Ready", report.ready), ("Supported", report.supported)):
            family.add_metric([self._node, kind, verdict.reason], int(verdict.holds))
        yield family

    def _gpus(self, devices: tuple[Device, ...]) -> Iterator[Metric]:
        for name, (text, figure) in PER_GPU.items():
            family = GaugeMetricFamily(name, text, labels=GPU)
            for device in devices:
                family.add_metric([self._node, device.uuid, str(device.index), device.product], figure(device))
            yield family

    def _models(self, devices: tuple[Device, ...]) -> Iterator[Metric]:
        used = GaugeMetricFamily("cotenant_model_used_bytes", "Memory an engine uses on a GPU.", labels=MODEL)
        share = GaugeMetricFamily("cotenant_model_share_bytes", "Memory it was promised there.", labels=MODEL)
        over = GaugeMetricFamily("cotenant_model_overrun_bytes", "Used less promised; below 0 = within.", labels=MODEL)
        for device in devices:
            for tenant in device.tenants:
                pod = self.pods.named(tenant.namespace, tenant.pod)
                if pod is None:
                    continue
                labels = [self._node, device.uuid, *pod.key, pod.placement, pod.model, pod.replica]
                used.add_metric(labels, tenant.used)
                if pod.share is not None:
                    share.add_metric(labels, pod.share.bytes)
                    over.add_metric(labels, tenant.used - pod.share.bytes)
        yield from (used, share, over)

    def _ailments(self) -> Iterator[Metric]:
        labels = ["node", "uuid"]
        ecc = GaugeMetricFamily("cotenant_gpu_ecc_uncorrected", "Since the driver was loaded.", labels=labels)
        pending = GaugeMetricFamily("cotenant_gpu_row_remap_pending", "1 = done at the next reset.", labels=labels)
        failed = GaugeMetricFamily("cotenant_gpu_row_remap_failed", "1 = the GPU should be swapped.", labels=labels)
        for reading in self.readings:
            where = [self._node, reading.uuid]
            if reading.ailments.uncorrected_ecc is not None:
                ecc.add_metric(where, reading.ailments.uncorrected_ecc)
            pending.add_metric(where, int(reading.ailments.remap_pending))
            failed.add_metric(where, int(reading.ailments.remap_failed))
        yield from (ecc, pending, failed)
