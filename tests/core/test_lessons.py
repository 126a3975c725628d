"""What readings of serving engines teach about what they use beyond their share; the plan that follows."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

from cotenant import catalogue
from cotenant.core.decision import Decision
from cotenant.core.estimate.advice import CONTEXT, at_share
from cotenant.core.learn import SETTLED
from cotenant.core.lessons import LATER
from cotenant.core.reconcile import reconcile
from cotenant.core.share import GIB
from cotenant.core.snapshot import GPUNode, OnOutOfMemory, Remedy
from cotenant.core.vllm import Engine
from tests.core.builders import Cluster, model, node, placement
from tests.core.corpus import log

CONFIG = catalogue.find("meta-llama/Llama-3.1-8B-Instruct")


def serving(seconds: float, *, known: bool) -> tuple[Cluster, Decision]:
    """An engine that uses 1 GiB beyond its share for so long, and the pass after."""
    cluster = Cluster([node("n")]).apply(placement("p", model("m", "60%"))).settle()
    cluster.now += seconds
    seen = cluster.snapshot()
    return cluster, reconcile(replace(seen, configs=(("hf://org/m", CONFIG),)) if known and CONFIG else seen)


def learned(decision: Decision) -> list[str | None]:
    """Overruns in the statuses that the pass writes."""
    models = [entry for status in decision.statuses for entry in status.status["models"]]
    return [known.get("overrun") for entry in models for known in entry.get("learned", [])]


def test_a_quiet_hour_of_an_engine_nobody_knows_teaches_nothing() -> None:
    _, decision = serving(10 * SETTLED, known=False)

    assert not any(learned(decision))


def test_a_quiet_hour_counts_for_no_less_than_the_estimate() -> None:
    cluster, decision = serving(SETTLED, known=True)
    pod = cluster.pods["default", "p-m-0"]
    assert CONFIG is not None
    assert pod.allocation is not None
    expected = at_share(CONFIG, model("m").engine, 1, pod.allocation.bytes).overrun.value

    assert learned(serving(SETTLED - 1, known=True)[1]) in ([], [None])
    assert learned(decision) == [str(max(expected, GIB))]


def test_a_known_model_is_planned_with_its_own_overrun() -> None:
    cluster = Cluster([node("n")]).apply(placement("p", model("m", "60%")))
    seen = cluster.snapshot()
    assert CONFIG is not None
    unknown, known = (
        reconcile(replace(seen, configs=configs))
        .creates[-1]
        .manifest["metadata"]["annotations"]["cotenant.dev/allocation"]
        for configs in ((), (("hf://org/m", CONFIG),))
    )

    assert f'"overrun":{cluster.policy.overrun}' in unknown.replace(" ", "")
    assert f'"overrun":{cluster.policy.overrun}' not in known.replace(" ", "")


def test_an_empty_gpu_that_its_share_is_too_small_on_is_named() -> None:
    small = node("small", memory=24 * GIB, product="NVIDIA-L4")
    cluster = Cluster([node("big"), small]).apply(placement("q", model("n", "70Gi"))).settle()
    cluster.apply(placement("p", model("m", "45%")))
    assert CONFIG is not None

    (status,) = reconcile(replace(cluster.snapshot(), configs=(("hf://org/m", CONFIG),))).statuses
    said = status.status["models"][0]["replicas"][0]["message"]

    assert said.startswith("needs 36Gi on a GPU; big has the most")
    assert "on NVIDIA-L4 10.8Gi cannot hold the weights (15Gi)" in said
    assert "would fit" not in said, "5.3 GiB are free, in which it could not start"


def test_what_is_seen_too_early_is_learned_as_soon_as_it_counts_though_nothing_changes_by_then() -> None:
    cluster = Cluster([node("n1")]).apply(placement("p", model("m", "40%"))).settle()
    cluster.excess = {"p-m-0": 4 * GIB}

    early = cluster.step()
    assert learned(early) in ([], [None])
    assert early.wake_at is not None
    cluster.now = early.wake_at
    cluster.step()

    assert [known["overrun"] for known in lessons(cluster)] == [str(5 * GIB)]


# ------------------------------------------------------------------------------------------------- whose lesson it is
STARTED = "Available KV cache memory: 4.00 GiB\nGPU KV cache size: 40,000 tokens\n"
REDUCES = OnOutOfMemory(allow=(Remedy.REDUCE_BATCH,))


def lessons(cluster: Cluster) -> list[dict[str, Any]]:
    """What the status holds."""
    found: list[dict[str, Any]] = json.loads(cluster.placements["p"].status.raw)["models"][0].get("learned", [])
    return found


def pinned(cluster: Cluster) -> list[str]:
    return [word for word in cluster.pods["default", "p-m-0"].args if word.startswith("--kv-cache-memory-bytes")]


def restart(cluster: Cluster) -> None:
    cluster.die("p-m-0", 0, log("engine-bug"))
    for _ in range(6):
        cluster.step()
        cluster.ready()
        cluster.now += 20


def reduced() -> Cluster:
    """An engine that came up with half the batch of its spec, and the log of that start."""
    cluster = Cluster([node("n1")]).apply(placement("p", model("m", "40%", on_out_of_memory=REDUCES)))
    cluster.step()
    cluster.die("p-m-0", 1, log("no-kv-memory"))
    for _ in range(5):
        cluster.step()
        cluster.ready()
        cluster.now += 20
    key = ("default", "p-m-0")
    assert "--max-num-seqs=64" in cluster.pods[key].args
    cluster.pods[key] = replace(cluster.pods[key], start_log=STARTED)
    cluster.step()
    return cluster


def test_what_a_reduced_engine_learned_is_pinned_on_it() -> None:
    cluster = reduced()

    restart(cluster)

    assert "--max-num-seqs=64" in cluster.pods["default", "p-m-0"].args
    assert pinned(cluster) == [f"--kv-cache-memory-bytes={int(3.995 * GIB)}"]


def test_what_a_reduced_engine_learned_is_not_pinned_on_the_full_one() -> None:
    cluster = reduced()
    cluster.apply(placement("p", model("m", "40%", on_out_of_memory=REDUCES), headroom="4%"))  # the ladder is afresh
    cluster.step()

    restart(cluster)

    assert "--max-num-seqs=128" in cluster.pods["default", "p-m-0"].args
    assert pinned(cluster) == []


def test_an_engine_by_an_older_spec_teaches_nothing_of_the_new_one() -> None:
    cluster = Cluster([node("n1")]).apply(placement("p", model("m", "40%"))).settle()
    key = ("default", "p-m-0")
    cluster.pods[key] = replace(cluster.pods[key], start_log=STARTED)
    cluster.apply(placement("p", model("m", "40%", engine=Engine(max_num_seqs=7)))).step()

    assert lessons(cluster) == []


def test_a_remedy_does_not_forget_what_the_full_engine_used_beyond_its_share() -> None:
    cluster = Cluster([node("n1")]).apply(placement("p", model("m", "40%", on_out_of_memory=REDUCES))).settle()
    key = ("default", "p-m-0")
    given = cluster.pods[key].allocation
    assert given is not None
    cluster.pods[key] = replace(cluster.pods[key], allocation=replace(given, overrun=GIB // 2))  # it uses 1 GiB
    cluster.now += LATER
    cluster.settle()
    assert [known["overrun"] for known in lessons(cluster)] == [str(GIB)]

    cluster.die("p-m-0", 1, log("no-kv-memory"))
    for _ in range(6):
        cluster.step()
        cluster.ready()
        cluster.now += 20

    again = cluster.pods[key].allocation
    assert "--max-num-seqs=64" in cluster.pods[key].args
    assert again is not None
    assert again.overrun == GIB


@dataclass
class Mute(Cluster):
    """Its agents say what they last said."""

    frozen: GPUNode | None = None

    def _report(self, report: GPUNode) -> GPUNode:
        return self.frozen or super()._report(report)

    def mute(self) -> None:
        self.frozen = super()._report(self.nodes[0][1])


def test_a_reading_of_the_pod_before_it_teaches_nothing() -> None:
    cluster = Mute([node("n1")])
    cluster.apply(placement("p", model("m", "60%"))).settle()
    cluster.mute()
    cluster.apply(placement("p", model("m", "25%"))).step()
    cluster.now += 10
    cluster.step()
    cluster.ready()
    for _ in range(8):  # its Lease has not run out yet
        cluster.now += 10
        cluster.step()
    assert lessons(cluster) == []

    cluster.now += 600
    decision = reconcile(replace(cluster.snapshot(), silent=frozenset({"n1"})))

    assert learned(decision) == []
    cluster.frozen = None
    cluster.settle()
    cluster.now += 600
    cluster.settle()
    assert lessons(cluster) == []


def test_a_model_longer_than_its_automatic_share_starts_with_the_length_that_was_sized_for() -> None:
    cluster = Cluster([node("n")]).apply(placement("p", model("m", "auto")))
    assert CONFIG is not None
    configs = (("hf://org/m", CONFIG),)

    create = next(
        c for c in reconcile(replace(cluster.snapshot(), configs=configs)).creates if "containers" in c.manifest["spec"]
    )
    args = create.manifest["spec"]["containers"][0]["args"]

    assert CONFIG.max_position > CONTEXT
    assert f"--max-model-len={CONTEXT}" in args or str(CONTEXT) == args[args.index("--max-model-len") + 1]


def test_an_automatic_share_is_still_refused_for_a_length_that_the_user_names_beyond_the_model() -> None:
    engine = Engine(max_model_len=1 << 20, target_concurrency=1)
    cluster = Cluster([node("n")]).apply(placement("p", model("m", "auto", engine=engine)))
    assert CONFIG is not None

    decision = reconcile(replace(cluster.snapshot(), configs=(("hf://org/m", CONFIG),)))

    assert not decision.creates
    assert "ContextBeyondModel" in json.dumps([status.status for status in decision.statuses])


def test_of_several_products_that_refuse_a_share_the_one_that_comes_nearest_is_told() -> None:
    small, large = node("a", memory=40 * GIB, product="NVIDIA-S"), node("b", memory=90 * GIB, product="NVIDIA-L")
    cluster = Cluster([small, large]).apply(placement("p", model("m", "10%")))
    assert CONFIG is not None

    (status,) = reconcile(replace(cluster.snapshot(), configs=(("hf://org/m", CONFIG),))).statuses

    message = status.status["models"][0]["replicas"][0]["message"]
    assert message.endswith("% of NVIDIA-L would do")
