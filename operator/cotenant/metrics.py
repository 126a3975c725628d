"""Every Prometheus series of Cotenant, declared once."""

from __future__ import annotations

from prometheus_client import REGISTRY, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

__all__ = ["CONTENT_TYPE_LATEST", "REGISTRY", "render"]

PASSES = Counter("cotenant_passes", "Passes over the whole cluster, by how they ended.", ["result"])
PASS_SECONDS = Histogram(
    "cotenant_pass_seconds",
    "Seconds of one pass, by step: observe, reconcile, act.",
    ["step"],
    buckets=(0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
LAST_PASS = Gauge("cotenant_last_pass_timestamp_seconds", "When the last pass ended well.")
OBJECTS = Gauge("cotenant_cache_objects", "Objects in the cache.", ["kind"])
NEWS = Counter(
    "cotenant_news", "Events heard from the API server, by kind and whether they changed a record.", ["kind", "changed"]
)
WRITES = Counter("cotenant_writes", "Writes to the cluster.", ["verb", "kind", "result"])
REASONS = Counter("cotenant_changes", "Pods created and deleted, by reason.", ["change", "reason"])
API_SECONDS = Histogram(
    "cotenant_api_request_seconds",
    "Seconds of one request to the API server, by verb and kind.",
    ["verb", "kind"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
API_ERRORS = Counter(
    "cotenant_api_errors", "Requests the API server did not serve; code 0 = no answer.", ["verb", "kind", "code"]
)
LEADER = Gauge("cotenant_leader", "1 while this process decides.")

REPLICAS = Gauge("cotenant_replicas", "Replicas, by phase.", ["phase"])
WAITING = Gauge("cotenant_starts_waiting", "Replicas that wait for their turn at a GPU.")
GPU_BYTES = Gauge(
    "cotenant_gpu_memory_bytes",
    "Memory of a GPU: usable, promised to tenants, expected with overruns, used in all, used by strangers.",
    ["node", "uuid", "of"],
)
GPU_TENANTS = Gauge("cotenant_gpu_tenants", "Engines on a GPU.", ["node", "uuid"])
FREE_BYTES = Gauge(
    "cotenant_free_bytes",
    "Memory that is promised to nobody on GPUs that may be planned on, once the plan is carried out.",
)
STRANDED_BYTES = Gauge(
    "cotenant_stranded_bytes",
    "Of that, what a replica like those that are wanted could not use, on average (FGD's measure).",
)
ROOM_FOR_GROUPS = Gauge(
    "cotenant_room_for_groups", "How many more groups of so many clean GPUs of one NVLink island there are.", ["gpus"]
)
FAULTS = Counter("cotenant_faults", "Engines that ended or could not start, by what was found.", ["verdict"])
REMEDIES = Counter("cotenant_remedies", "Remedies tried after a fault, by rung.", ["rung"])
RECOVERY_SECONDS = Histogram(
    "cotenant_recovery_seconds",
    "Seconds from an engine's last death until its replica was Ready again, by what it died of.",
    ["verdict"],
    buckets=(5, 10, 20, 30, 60, 90, 120, 180, 300, 600, 1200, 1800, 3600),
)
DRIFT = Counter("cotenant_drift", "Differences found between what should be and what is, by kind.", ["kind"])


def render() -> bytes:
    """All series, as Prometheus reads them."""
    return generate_latest(REGISTRY)
