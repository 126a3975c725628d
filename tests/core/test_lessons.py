"""What readings of serving engines teach about what they use beyond their share; the plan that follows."""

from __future__ import annotations

from dataclasses import replace

from cotenant import catalogue
from cotenant.core.decision import Decision
from cotenant.core.estimate.advice import at_share
from cotenant.core.learn import SETTLED
from cotenant.core.reconcile import reconcile
from cotenant.core.share import GIB
from tests.core.builders import Cluster, model, node, placement

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
