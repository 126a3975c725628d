"""Pinned: nothing starts on a GPU that is not held, nor on a node that is not proven; what ended is replaced."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cotenant.core import preflight
from cotenant.core.decision import Decision
from cotenant.core.injection import Style
from cotenant.core.names import ROLE_LABEL
from cotenant.core.reconcile import reconcile
from cotenant.core.snapshot import GPUNode, Holder, Node, Snapshot
from tests.core.builders import POLICY, model, node, placement

NOW = 1000.0
PINNED = replace(POLICY, reserve=True, preflight=True, holder_idle=300.0)
HOLDER = Holder("n1-hold-0", "n1", 0, running=True, uid="h0", created=100.0)


def ground() -> preflight.Ground:
    return preflight.Ground("n1", "uid-n1", Style.CDI_DEVICE_PLUGIN)


def proof(verdict: preflight.Verdict, at: float = 900.0) -> preflight.Preflight:
    return preflight.Preflight(ground().name, "p0", "n1", ground().key, verdict, at=at)


PASSED = proof(preflight.Passed("n1-g0"))


def held(machine: tuple[Node, GPUNode], **fields: Any) -> tuple[Node, GPUNode]:
    """The first GPU of a node as its agent reports it when our holder has it."""
    made, report = machine
    first, *others = report.devices
    return made, replace(report, devices=(replace(first, **({"holder": HOLDER.name} | fields)), *others))


def decide(machine: tuple[Node, GPUNode], *models: Any, **fields: Any) -> Decision:
    wishes = (placement("p", *models),) if models else ()
    snapshot = Snapshot(
        now=NOW, policy=PINNED, placements=wishes, nodes=(machine[0],), gpu_nodes=(machine[1],), **fields
    )
    return reconcile(snapshot)


def made(decision: Decision) -> list[str]:
    return [create.manifest["metadata"]["labels"][ROLE_LABEL] for create in decision.creates]


def test_a_gpu_is_held_first() -> None:
    decision = decide(node("n1"), model("m"))

    assert made(decision) == ["holder"]
    (create,) = decision.creates
    assert create.manifest["spec"]["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": 1}
    assert create.manifest["metadata"]["name"] == "n1-hold-0"


def test_holders_and_preflights_run_as_the_account_that_was_set() -> None:
    snapshot = Snapshot(
        now=NOW,
        policy=replace(PINNED, service_account="cotenant-holder"),
        placements=(placement("p", model("m")),),
        nodes=(node("n1")[0],),
        gpu_nodes=(node("n1")[1],),
    )
    proven = replace(snapshot, gpu_nodes=(held(node("n1"))[1],), holders=(HOLDER,))

    for world in (snapshot, proven):
        (create,) = reconcile(world).creates
        assert create.manifest["spec"]["serviceAccountName"] == "cotenant-holder"


def test_a_holder_under_way_is_waited_for() -> None:
    waiting = replace(HOLDER, running=False)

    assert made(decide(node("n1"), model("m"), holders=(waiting,))) == []


def test_a_node_is_proven_before_an_engine_starts() -> None:
    assert made(decide(held(node("n1")), model("m"), holders=(HOLDER,))) == ["preflight"]
    assert made(decide(held(node("n1")), model("m"), holders=(HOLDER,), preflights=(PASSED,))) == ["engine"]


def test_unproven_means_unplaced_with_the_reason() -> None:
    failed = proof(preflight.Failed("it saw n1-g1 too"))

    decision = decide(held(node("n1")), model("m"), holders=(HOLDER,), preflights=(failed,))

    assert "engine" not in made(decision)
    assert "InjectionUnverified" in str(decision.statuses[0].status)
    assert "it saw n1-g1 too" in str(decision.statuses[0].status)


def test_a_failed_proof_is_repeated_after_a_while() -> None:
    def deleted(at: float) -> list[str]:
        failed = proof(preflight.Failed("no"), at=at)
        decision = decide(held(node("n1")), model("m"), holders=(HOLDER,), preflights=(failed,))
        return [delete.reason for delete in decision.deletes]

    assert deleted(NOW - preflight.RETRY_SECONDS) == ["PreflightRetried"]
    assert deleted(NOW - preflight.RETRY_SECONDS + 1) == []


def test_a_holder_that_was_rejected_holds_nothing_and_is_replaced() -> None:
    ended = replace(HOLDER, running=False, ended=True, blocked="Failed: no healthy devices")

    decision = decide(held(node("n1")), model("m"), holders=(ended,), preflights=(PASSED,))

    assert [(delete.name, delete.uid, delete.reason) for delete in decision.deletes] == [
        ("n1-hold-0", "h0", "HolderEnded")
    ]
    assert "engine" not in made(decision)


def test_one_that_was_rejected_at_once_is_given_a_pause() -> None:
    ended = replace(HOLDER, running=False, ended=True, created=NOW - 1)

    decision = decide(held(node("n1")), model("m"), holders=(ended,), preflights=(PASSED,))

    assert decision.deletes == ()
    assert decision.wake_at is not None
    assert NOW < decision.wake_at <= NOW + 5


def test_a_gpu_that_somebody_else_was_given_is_not_used() -> None:
    decision = decide(held(node("n1"), holder=None, owner="other/training"), model("m"))

    assert made(decision) == []
    assert "other/training" in str(decision.statuses[0].status)


def test_an_empty_gpu_is_given_back_after_a_while_and_not_before() -> None:
    def deleted(since: float) -> list[str]:
        decision = decide(held(node("n1")), holders=(HOLDER,), preflights=(PASSED,), idle=(("n1-g0", since),))
        return [delete.reason for delete in decision.deletes]

    assert deleted(NOW - PINNED.holder_idle) == ["GiveBackGPU"]
    assert deleted(NOW - PINNED.holder_idle + 1) == []
