"""One change among 10,000 replicas: how long the next decision takes.

`python -m tests.bench.one_change`: no cluster. The real cache and the real core, fed with the objects an API server would
give: 1,250 nodes of 8 GPUs, one engine on each GPU, all of it at rest. Then one engine dies, one share is edited, one
node falls silent; printed is the CPU time to observe and to decide, and the memory all of it takes.
"""

from __future__ import annotations

import argparse
import copy
import resource
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from cotenant.controller.cache import Cache
from cotenant.controller.sources import GPU_NODES, NODES, PLACEMENTS, PODS, SERVICES, sources
from cotenant.core.decision import Decision
from cotenant.core.memo import Memo
from cotenant.core.reconcile import reconcile
from cotenant.settings import Settings
from tests.bench.controller import GPUS, PER_PLACEMENT, PRODUCT, TOTAL, gpu_node, placements
from tests.cluster import kwok

Body = dict[str, Any]


def now() -> str:
    """This moment, as Kubernetes writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass
class World:
    """An API server's objects, as far as a cache is told of them."""

    cache: Cache
    memo: Memo = field(default_factory=Memo)
    bodies: dict[tuple[str, str], Body] = field(default_factory=dict)
    version: int = 0

    def put(self, source: str, body: Body) -> None:
        """An object was made or changed."""
        self.version += 1
        metadata = body["metadata"]
        metadata["resourceVersion"] = str(self.version)
        metadata.setdefault("uid", f"{source}-{metadata['name']}")
        metadata.setdefault("creationTimestamp", now())
        self.bodies[source, metadata["name"]] = body
        self.cache.put(source, copy.deepcopy(body))

    def decide(self) -> tuple[Decision, float, float]:
        """A decision, and the CPU seconds to observe and to decide: other programs on the machine do not count."""
        begun = time.process_time()
        snapshot = self.cache.snapshot(time.time())
        observed = time.process_time()
        decision = reconcile(snapshot, memo=self.memo)
        return decision, observed - begun, time.process_time() - observed

    def carry_out(self, decision: Decision) -> None:
        """What the API server and the kubelets would make of it: every engine serves at once."""
        ready = [{"type": "Ready", "status": "True", "lastTransitionTime": now()}]
        for create in decision.creates:
            body = copy.deepcopy(create.manifest)
            body["status"] = {"phase": "Running", "conditions": ready}
            self.put(PODS, body)
            self.cache.keep_start_log(
                body["metadata"]["uid"], (body["metadata"]["namespace"], body["metadata"]["name"]), ""
            )
        for delete in decision.deletes:
            self.cache.forget(PODS, (delete.namespace, delete.name), delete.uid)
        for apply in decision.applies:
            self.put(SERVICES, copy.deepcopy(apply.manifest))
        for write in decision.statuses:
            body = self.bodies[PLACEMENTS, write.name]
            self.put(PLACEMENTS, {**body, "metadata": dict(body["metadata"]), "status": write.status})


def rest(world: World, what: str) -> None:
    """Decide and carry out until nothing is left to do; the first decision is the one that counts."""
    for step in range(20):
        decision, observing, deciding = world.decide()
        if step == 0:
            done = (
                f"{len(decision.creates)} creates, {len(decision.deletes)} deletes, {len(decision.statuses)} statuses"
            )
            print(
                f"  {what:<36}{observing * 1000:7.1f} ms observe {deciding * 1000:8.1f} ms decide   {done}", flush=True
            )
        if not (decision.creates or decision.deletes or decision.applies or decision.statuses):
            return
        world.carry_out(decision)
    raise SystemExit("it never comes to rest")


def main(replicas: int, each: int) -> None:
    """Build it, let it rest, change one thing at a time."""
    policy = Settings(reserve=False, preflight=False).policy
    world = World(Cache(sources(policy), policy))
    for index in range(-(-replicas // GPUS)):
        node = kwok.gpu_node(f"node-{index:04d}", PRODUCT, GPUS, TOTAL >> 20, {"cotenant.dev/managed": "true"})
        node["status"]["conditions"] = [{"type": "Ready", "status": "True", "lastTransitionTime": now()}]
        world.put(NODES, node)
        world.put(GPU_NODES, gpu_node(index))
    for wish in placements(replicas, each):
        wish["metadata"]["generation"] = 1
        world.put(PLACEMENTS, wish)
    print(f"{replicas} replicas of {-(-replicas // each)} placements on {-(-replicas // GPUS)} nodes of {GPUS} GPUs")
    rest(world, "all of it, from nothing")
    rest(world, "nothing changed")

    pod = copy.deepcopy(world.bodies[PODS, "p0000-m0-0"])
    terminated = {"exitCode": 1, "reason": "Error", "finishedAt": now(), "startedAt": now()}
    pod["status"] |= {
        "phase": "Failed",
        "containerStatuses": [{"name": "engine", "state": {"terminated": terminated}}],
        "conditions": [{"type": "Ready", "status": "False", "lastTransitionTime": now()}],
    }
    world.put(PODS, pod)
    world.cache.keep_log(pod["metadata"]["uid"], ("default", "p0000-m0-0"), "CUDA error: an illegal memory access")
    _, observing, deciding = world.decide()
    print(f"  {'one engine died':<36}{observing * 1000:7.1f} ms observe {deciding * 1000:8.1f} ms decide")

    wish = copy.deepcopy(world.bodies[PLACEMENTS, "p0001"])
    wish["spec"]["models"][0]["share"] = "60%"
    wish["metadata"]["generation"] = 2
    world.put(PLACEMENTS, wish)
    _, observing, deciding = world.decide()
    print(f"  {'one share was edited':<36}{observing * 1000:7.1f} ms observe {deciding * 1000:8.1f} ms decide")

    node = copy.deepcopy(world.bodies[NODES, "node-0003"])
    node["status"]["conditions"] = [{"type": "Ready", "status": "Unknown", "lastTransitionTime": now()}]
    world.put(NODES, node)
    _, observing, deciding = world.decide()
    print(f"  {'one node fell silent':<36}{observing * 1000:7.1f} ms observe {deciding * 1000:8.1f} ms decide")
    print(
        f"  peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB, the objects it was fed with included"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replicas", type=int, default=10_000)
    parser.add_argument("--each", type=int, default=PER_PLACEMENT, help="models per placement")
    options = parser.parse_args()
    main(options.replicas, options.each)
