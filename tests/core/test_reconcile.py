"""What the whole decision promises, one rule a test."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cotenant.controller import records
from cotenant.core.injection import Style
from cotenant.core.memo import Memo
from cotenant.core.preflight import Failed, Ground, Passed, Preflight
from cotenant.core.reconcile import reconcile
from cotenant.core.share import GIB
from cotenant.core.snapshot import (
    Node,
    OnOutOfMemory,
    Remedy,
    RolloutStrategy,
    ServicePort,
    ServiceRecord,
    Snapshot,
    Spread,
    Stranger,
)
from tests.core.builders import POLICY, Cluster, model, node, placement


def flags(cluster: Cluster) -> dict[str, str]:
    return {pod.name: pod.args[pod.args.index("--gpu-memory-utilization") + 1] for pod in cluster.pods.values()}


def test_the_founding_case_shares_one_gpu_with_the_promised_flags() -> None:
    cluster = Cluster([node("n1", memory=95 * GIB)])
    cluster.apply(placement("sparrow", model("a", "70%"), model("b", "20%"), headroom="10%")).settle()
    assert flags(cluster) == {"sparrow-a-0": "0.70", "sparrow-b-0": "0.20"}
    assert cluster.condition("sparrow", "Ready")["status"] == "True"


def test_one_engine_starts_at_a_time_on_a_gpu() -> None:
    cluster = Cluster([node("n1", gpus=2)]).apply(placement("p", model("m", "20%", replicas=6)))
    for _ in range(20):
        cluster.step()
        starting = [pod.allocation.gpus[0] for pod in cluster.pods.values() if not pod.ready and pod.allocation]
        assert len(starting) == len(set(starting))
        cluster.ready(*sorted(pod.name for pod in cluster.pods.values() if not pod.ready)[:1])
    assert cluster.phases("p") == ["Ready"] * 6


def test_sixteen_of_45_percent_fill_eight_gpus_and_of_50_percent_eight_run() -> None:
    full = Cluster([node("n1", gpus=8)]).apply(placement("p", model("m", "45%", replicas=16))).settle()
    assert full.phases("p") == ["Ready"] * 16
    half = Cluster([node("n1", gpus=8)]).apply(placement("p", model("m", "50%", replicas=16))).settle()
    assert sorted(half.phases("p")) == ["Ready"] * 8 + ["Unplaced"] * 8
    assert "would fit" in half.condition("p", "Stalled")["message"]


def test_a_dead_engine_is_taken_down_before_it_is_cleaned_up_and_starts_again_after_its_back_off() -> None:
    cluster = Cluster([node("n1")]).apply(placement("p", model("m"))).settle()
    cluster.die("p-m-0")
    decision = cluster.step()
    assert not decision.deletes
    assert decision.statuses
    cluster.step()
    assert cluster.log[-1] == "-p-m-0 EngineEnded"
    cluster.settle()
    assert "p-m-0" not in [pod.name for pod in cluster.pods.values()]
    cluster.now += 15
    assert cluster.settle().phases("p") == ["Ready"]


def test_a_pod_whose_evidence_is_not_read_yet_is_left_alone() -> None:
    cluster = Cluster([node("n1")]).apply(placement("p", model("m"))).settle()
    cluster.die("p-m-0")
    key = ("default", "p-m-0")
    ended = cluster.pods[key].ended
    assert ended is not None
    cluster.pods[key] = replace(cluster.pods[key], ended=replace(ended, log=None))
    assert not cluster.step().deletes
    assert not cluster.step().deletes


def test_a_changed_share_replaces_break_before_make_within_the_budget() -> None:
    cluster = Cluster([node("n1", gpus=3)]).apply(placement("p", model("m", "50%", replicas=3))).settle()
    cluster.apply(placement("p", model("m", "60%", replicas=3)))
    for _ in range(20):
        cluster.step()
        assert sum(pod.ready for pod in cluster.pods.values()) >= 2
        cluster.ready()
    assert set(flags(cluster).values()) == {"0.60"}


def test_with_surge_the_old_engine_serves_until_the_new_one_does() -> None:
    cluster = Cluster([node("n1", gpus=2)])
    wish = placement("p", model("m", "50%"), strategy=RolloutStrategy.SURGE_IF_ROOM)
    cluster.apply(wish).settle()
    cluster.apply(replace(wish, models=(model("m", "60%"),)))
    for _ in range(10):
        cluster.step()
        assert any(pod.ready for pod in cluster.pods.values())
        cluster.ready()
    assert flags(cluster) == {"p-m-0-b": "0.60"}
    cluster.apply(replace(wish, models=(model("m", "30%"),))).settle()
    assert flags(cluster) == {"p-m-0": "0.30"}


def test_with_surge_and_no_room_it_breaks_before_it_makes() -> None:
    cluster = Cluster([node("n1")])
    wish = placement("p", model("m", "60%"), strategy=RolloutStrategy.SURGE_IF_ROOM)
    cluster.apply(wish).settle()
    cluster.apply(replace(wish, models=(model("m", "70%"),))).settle()
    assert flags(cluster) == {"p-m-0": "0.70"}


def test_a_new_spec_that_fits_nowhere_leaves_the_old_engine_running_and_says_so() -> None:
    cluster = Cluster([node("n1")]).apply(placement("p", model("m", "60%"))).settle()
    cluster.apply(placement("p", model("m", "99%"))).settle()
    assert flags(cluster) == {"p-m-0": "0.60"}
    assert cluster.condition("p", "Ready")["status"] == "False"
    assert "needs 79.2Gi" in cluster.condition("p", "Stalled")["message"]
    cluster.apply(placement("p", model("m", "60%"))).settle()
    assert cluster.condition("p", "Ready")["status"] == "True"


def test_a_spec_that_cannot_be_read_touches_nothing() -> None:
    from cotenant.core.snapshot import Invalid

    cluster = Cluster([node("n1")]).apply(placement("p", model("m"))).settle()
    cluster.apply(placement("p", invalid=Invalid("spec.models[0].uri", "no such scheme"))).settle()
    assert [pod.name for pod in cluster.pods.values()] == ["p-m-0"]
    assert cluster.condition("p", "Stalled")["message"].startswith("spec.models[0].uri: ")


def test_higher_priority_takes_the_place_of_lower_and_says_who() -> None:
    cluster = Cluster([node("n1")]).apply(placement("low", model("m", "60%"))).settle()
    cluster.apply(placement("high", model("m", "60%", priority=5), created=2.0)).settle()
    assert [pod.placement for pod in cluster.pods.values()] == ["high"]
    assert "-low-m-0 Displaced" in cluster.log
    assert cluster.phases("low") == ["Unplaced"]


def test_nothing_is_deleted_beside_a_start() -> None:
    cluster = Cluster([node("n1")]).apply(placement("a", model("m", "30%"))).settle()
    cluster.apply(placement("b", model("m", "30%"), created=2.0)).step()
    cluster.apply(placement("a", replace(model("m", "30%"), replicas=0)))
    assert not cluster.step().deletes
    cluster.ready()
    cluster.step()
    assert cluster.log[-1] == "-a-m-0 ScaledDown"


def test_a_lost_node_gives_its_replicas_to_others_and_is_not_doubled_when_it_comes_back() -> None:
    cluster = Cluster([node("n1"), node("n2")]).apply(placement("p", model("m"))).settle()
    home = next(iter(cluster.pods.values())).allocation
    assert home is not None
    for position, (kube_node, report) in enumerate(cluster.nodes):
        if kube_node.name == home.node:
            cluster.nodes[position] = (replace(kube_node, ready=False, not_ready_since=cluster.now), report)
    assert not cluster.step().deletes
    cluster.now += 61
    cluster.settle()
    cluster.nodes = [
        (replace(kube_node, ready=True, not_ready_since=None), report) for kube_node, report in cluster.nodes
    ]
    cluster.settle()
    assert [pod.allocation.node for pod in cluster.pods.values() if pod.allocation] == [
        {"n1": "n2", "n2": "n1"}[home.node]
    ]


def test_a_stranger_on_the_gpu_is_named_and_blocks_what_no_longer_fits() -> None:
    cluster = Cluster([node("n1")]).apply(placement("p", model("m", "40%"))).settle()
    kube_node, report = cluster.nodes[0]
    stranger = Stranger(4711, "python", 30 * GIB, "other/notebook")
    cluster.nodes[0] = (kube_node, replace(report, devices=(replace(report.devices[0], strangers=(stranger,)),)))
    cluster.apply(placement("q", model("m", "30%"), created=2.0)).settle()
    said = cluster.condition("p", "GPUConflict")["message"]
    assert "4711" in said
    assert "other/notebook" in said
    assert cluster.phases("q") == ["Unplaced"]


def test_tensor_parallel_takes_distinct_gpus_of_one_node() -> None:
    cluster = Cluster([node("n1", gpus=2), node("n2", gpus=2)])
    cluster.apply(placement("p", model("a", "40%", tensor_parallel=2), model("b", "40%", tensor_parallel=2))).settle()
    for pod in cluster.pods.values():
        assert pod.allocation is not None
        assert len({uuid.split("-")[0] for uuid in pod.allocation.gpus}) == 1
        assert len(set(pod.allocation.gpus)) == 2


def test_a_memo_changes_no_decision() -> None:
    cluster = Cluster([node("n1", gpus=4)]).apply(placement("p", model("m", "30%", replicas=8)))
    memo = Memo()
    for _ in range(12):
        snapshot = cluster.snapshot()
        assert reconcile(snapshot, memo) == reconcile(snapshot)
        cluster.step()
        cluster.ready()


def test_where_the_agent_is_silent_nothing_new_lands_and_what_runs_stays() -> None:
    cluster = Cluster([node("n1")]).apply(placement("p", model("m", "30%"))).settle()
    cluster.apply(placement("q", model("m", "30%"), created=2.0))
    decision = reconcile(replace(cluster.snapshot(), silent=frozenset({"n1"})))
    assert not decision.creates
    assert not decision.deletes
    told = next(status.status for status in decision.statuses if status.name == "q")
    assert "has fallen silent" in told["conditions"][0]["message"]
    assert cluster.settle().phases("q") == ["Ready"]


def test_after_a_death_that_may_move_it_the_gpu_it_failed_on_is_avoided() -> None:
    allowed = OnOutOfMemory(allow=(Remedy.MOVE,), max_attempts=10)
    cluster = Cluster([node("n1", gpus=2)]).apply(placement("p", model("m", "40%", on_out_of_memory=allowed))).settle()
    first = cluster.pods["default", "p-m-0"].allocation
    assert first is not None
    seen = set()
    for _ in range(3):
        cluster.die(
            "p-m-0",
            log="(EngineCore pid=1) ERROR EngineCore encountered an issue. See stack trace (above) for the root cause.",
        )
        cluster.settle()
        cluster.now += 400
        cluster.settle()
        allocation = cluster.pods["default", "p-m-0"].allocation
        assert allocation is not None
        seen.add(allocation.gpus)
    assert len(seen) == 2


def test_a_node_that_is_not_proven_to_keep_gpus_apart_is_left_for_one_that_is() -> None:
    cluster = Cluster([node("n1"), node("n2")], policy=replace(POLICY, preflight=True))
    cluster.apply(placement("p", model("m", "30%")))
    first = cluster.snapshot()
    grounds = {kube_node.name: ground(kube_node, first) for kube_node, _ in cluster.nodes}
    proofs = {
        "n1": Preflight(grounds["n1"].name, "u1", "n1", grounds["n1"].key, Failed("it also saw GPU-other")),
        "n2": Preflight(grounds["n2"].name, "u2", "n2", grounds["n2"].key, Passed("n2-g0")),
    }
    decision = reconcile(replace(first, preflights=tuple(proofs.values())))
    assert [create.manifest["metadata"]["name"] for create in decision.creates] == ["p-m-0"]
    assert decision.creates[0].manifest["spec"]["affinity"] != {}
    assert "n2" in str(decision.creates[0].manifest["spec"]["affinity"])
    alone = reconcile(replace(first, nodes=first.nodes[:1], preflights=(proofs["n1"],)))
    assert not [create for create in alone.creates if create.reason == "Starting"]
    assert "InjectionUnverified" in str(alone.statuses[0].status)
    assert "also saw" in str(alone.statuses[0].status)


def ground(kube_node: Node, snapshot: Snapshot) -> Ground:
    style = Style(snapshot.policy.injection)
    return Ground(kube_node.name, kube_node.uid, style, snapshot.policy.runtime_class, snapshot.injection_version)


def test_a_stranger_moves_a_tenant_only_where_they_do_not_really_fit_beside_each_other() -> None:
    def beside(stranger: int) -> Cluster:
        cluster = Cluster([node("n1", memory=95 * GIB)])
        cluster.apply(placement("sparrow", model("a", "70%"), model("b", "20%"), headroom="10%")).settle()
        kube_node, report = cluster.nodes[0]
        strangers = (Stranger(1, "python", stranger),)
        cluster.nodes[0] = (kube_node, replace(report, devices=(replace(report.devices[0], strangers=strangers),)))
        cluster.nodes.append(node("n2", memory=95 * GIB))
        return cluster.settle()

    def homes(cluster: Cluster) -> list[str]:
        return sorted(pod.allocation.node for pod in cluster.pods.values() if pod.allocation)

    assert homes(beside(2 * GIB)) == ["n1", "n1"]
    assert homes(beside(12 * GIB)) == ["n1", "n2"]


def test_an_engine_that_served_and_is_not_ready_now_is_no_start_that_others_wait_for() -> None:
    cluster = Cluster([node("n1")]).apply(placement("a", model("m", "40%"))).settle()
    key = ("default", "a-m-0")
    cluster.pods[key] = replace(cluster.pods[key], ready=False, ready_since=None)

    cluster.apply(placement("b", model("m", "30%"), created=2.0)).step()

    assert cluster.log == ["+a-m-0", "+b-m-0"]
    assert cluster.phases("a") == ["Waiting"]
    assert "is not ready now" in cluster.condition("a", "Ready")["message"]


def test_a_gpu_promised_twice_is_put_right() -> None:
    """Two controllers at once, each on news without the other's pod."""
    one = Cluster([node("n1")]).apply(placement("a", model("m", "60%"))).settle()
    two = Cluster([node("n1")]).apply(placement("b", model("m", "60%"), created=2.0)).settle()
    both = Cluster([node("n1")], one.placements | two.placements, one.pods | two.pods)
    key = ("default", "b-m-0")
    both.pods[key] = replace(both.pods[key], uid="pod-2")

    (leaving,) = both.step().deletes

    assert (leaving.name, leaving.reason) == ("b-m-0", "Displaced")
    assert "GPU 0 of n1 has 96Gi promised and holds 80Gi; no other place: needs 48Gi" in leaving.message
    assert [pod.name for pod in both.settle().pods.values()] == ["a-m-0"]


def test_fewer_replicas_leave_those_that_run_alone() -> None:
    cluster = Cluster([node("n1", gpus=2)]).apply(placement("p", model("m", "30%", replicas=20))).settle()
    running = {pod.name: pod.uid for pod in cluster.pods.values()}

    cluster.apply(placement("p", model("m", "30%", replicas=4))).settle()

    assert {pod.name: pod.uid for pod in cluster.pods.values()} == running
    assert cluster.phases("p") == ["Ready"] * 4


def test_spread_holds_for_a_replica_that_moved() -> None:
    allowed = OnOutOfMemory(allow=(Remedy.MOVE,))
    apart = model("m", "20%", replicas=2, spread=Spread.GPU, on_out_of_memory=allowed)
    cluster = Cluster([node("n1", gpus=2)]).apply(placement("p", apart)).settle()

    for _ in range(2):
        cluster.now += 30
        cluster.die("p-m-0", 0, "EngineCore encountered a fatal error")
        for _ in range(6):
            cluster.step()
            cluster.ready()
            cluster.now += 60

    assert len({pod.allocation.gpus for pod in cluster.pods.values() if pod.allocation}) == 2


def test_a_service_whose_name_is_taken_is_told_while_the_engine_serves() -> None:
    cluster = Cluster([node("n1")]).apply(placement("chat", model("llama"))).settle()
    taken = (("default", "chat-llama", "there is a Service default/chat-llama that is not Cotenant's"),)

    decision = reconcile(replace(cluster.snapshot(), refused_services=taken))

    (written,) = decision.statuses
    conditions = {c["type"]: c for c in written.status["conditions"]}
    assert {kind: conditions[kind]["status"] for kind in ("Ready", "Stalled", "ServiceRefused")} == {
        "Ready": "False",
        "Stalled": "True",
        "ServiceRefused": "True",
    }
    assert "Reconciling" not in conditions
    assert "llama: there is a Service" in conditions["ServiceRefused"]["message"]
    (told,) = written.status["models"]
    assert (told["ready"], "url" in told) == (1, False), "somebody else answers there"
    assert [event.reason for event in decision.events] == ["ServiceRefused"]
    assert not decision.deletes
    cluster._write("chat", written.status)
    assert not reconcile(replace(cluster.snapshot(), refused_services=taken)).events
    cluster.step()
    assert cluster.condition("chat", "Ready")["status"] == "True"
    assert not cluster.condition("chat", "ServiceRefused")


def made(cluster: Cluster) -> tuple[ServiceRecord, ...]:
    """The Services of a cluster as they are wanted, in being."""
    manifests = [apply.manifest for apply in cluster.step().applies]
    return tuple(records.service({**m, "metadata": m["metadata"] | {"uid": "s1"}}) for m in manifests)


def test_a_service_is_written_again_when_somebody_changed_what_it_says() -> None:
    cluster = Cluster([node("n1")]).apply(placement("chat", model("llama")))
    (there,) = made(cluster)

    def applied(**fields: Any) -> bool:
        return bool(reconcile(replace(cluster.snapshot(), services=(replace(there, **fields),))).applies)

    assert not applied()
    assert not applied(ports=(ServicePort("metrics", 9090, "9090"), *there.ports)), "others may add to it"
    assert applied(selector=(("app", "web"),))
    assert applied(ports=(ServicePort("http", 80, "9000"),))
    assert applied(model="canary")
    assert applied(hash="v0-1")


def test_only_services_of_ours_are_deleted_with_their_model_and_only_that_very_one() -> None:
    cluster = Cluster([node("n1")]).apply(placement("chat", model("llama"), model("qwen", "20%")))
    llama, qwen = made(cluster)
    cluster.apply(placement("chat", model("qwen", "20%")))
    theirs = replace(llama, name="canary", uid="s2", owner_uid="")

    decision = reconcile(replace(cluster.snapshot(), services=(theirs, llama, qwen)))

    services = [(delete.name, delete.uid) for delete in decision.deletes if delete.kind == "Service"]
    assert services == [("chat-llama", "s1")]


def test_memory_that_no_process_accounts_for_yet_costs_nobody_its_place() -> None:
    cluster = Cluster([node("n1", memory=100 * GIB)]).apply(
        placement("other", model("y", "1%")),
        placement("p", model("m", "45%"), created=5.0),
        placement("q", model("m", "45%"), created=6.0),
    )
    cluster.settle()
    cluster.apply(placement("other", model("y", "1%"), model("m", "45%")))
    for _ in range(4):
        cluster.step()
        cluster.now += 20
    cluster.die("p-m-0")

    cluster.hidden = 46 * GIB  # its process is off the list, its memory not yet back
    for _ in range(3):
        cluster.step()
        cluster.now += 1
        assert cluster.phases("p") == ["Waiting"]
    cluster.hidden = 0
    for _ in range(6):
        cluster.step()
        cluster.ready()
        cluster.now += 5

    assert cluster.phases("p") == ["Ready"]


def test_what_a_start_waits_for_in_another_namespace_is_not_named() -> None:
    cluster = Cluster([node("n1")]).apply(
        placement("secret", model("m", "20%"), namespace="other"),
        placement("p", model("m", "20%"), created=2.0),
        placement("q", model("m", "20%"), created=3.0, namespace="other"),
    )

    cluster.step()

    assert "a replica of another namespace is starting" in cluster.replica("p")["message"]
    assert "secret-m-0 is starting" in cluster.replica("q")["message"]


def test_who_uses_more_than_its_share_is_named_in_its_own_namespace_only() -> None:
    cluster = Cluster([node("n1")]).apply(
        placement("secret", model("m", "30%"), namespace="other"), placement("p", model("m", "30%"), created=2.0)
    )
    cluster.settle()
    cluster.excess = {"secret-m-0": 20 * GIB}

    cluster.step()

    assert "secret-m-0 uses" in cluster.condition("secret", "MemoryPressure")["message"]
    told = cluster.condition("p", "MemoryPressure")["message"]
    assert "a replica of another namespace uses" in told
    assert "secret" not in told


def test_who_keeps_the_memory_a_start_needs_is_named_in_its_own_namespace_only() -> None:
    cluster = Cluster([node("n1")]).apply(
        placement("secret", model("m", "40%"), namespace="other"), placement("p", model("m", "40%"), created=2.0)
    )
    cluster.step()
    cluster.ready()
    cluster.excess = {"secret-m-0": 8 * GIB}
    cluster.lingering = 7 * GIB

    cluster.step()

    message = cluster.replica("p")["message"]
    assert "not given back yet by gone 7Gi; over their share: a replica of another namespace by" in message
