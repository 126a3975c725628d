"""Pods, nodes and holders as the API server gives them -> what the core knows of them."""

from __future__ import annotations

import pytest

from cotenant.controller import records
from tests.controller.builders import ended, engine_pod, node, stamp


def test_an_engine_pod_says_whose_it_is_and_what_it_was_given() -> None:
    pod = records.pod(engine_pod(phase="Running", ready=True))

    assert (pod.placement, pod.model, pod.replica, pod.owner_uid) == ("sparrow", "mistral", 0, "owner")
    assert pod.allocation is not None
    assert (pod.allocation.gpus, pod.allocation.utilization, pod.allocation.headroom) == (("GPU-a",), "0.70", 1000)
    assert pod.args == ("vllm", "serve", "m")
    assert pod.ready
    assert pod.ready_since == records.unix(stamp(100))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"node": "n"}', '{"node":"n","gpus":3,"bytes":1,"utilization":"1"}'])
def test_an_allocation_nobody_can_read_is_none(text: str) -> None:
    body = engine_pod()
    body["metadata"]["annotations"]["cotenant.dev/allocation"] = text

    assert records.pod(body).allocation is None


def test_an_exit_with_status_zero_is_an_end_too() -> None:
    pod = records.pod(engine_pod(phase="Succeeded", **ended(0, "Completed")))

    assert pod.ended is not None
    assert (pod.ended.exit_code, pod.ended.reason) == (0, "Completed")
    assert not pod.is_alive


def test_an_evicted_pod_ends_in_the_kubelets_words() -> None:
    pod = records.pod(engine_pod(phase="Failed", reason="Evicted", message="The node was low on resource: memory."))

    assert pod.ended is not None
    assert (pod.ended.exit_code, pod.ended.reason) == (records.UNKNOWN_EXIT, "Evicted")
    assert "low on resource" in pod.ended.message


def test_a_failed_init_container_says_why_the_engine_never_ran() -> None:
    failed = {"terminated": {"exitCode": 3, "reason": "Error", "message": "no space left", "finishedAt": stamp(9)}}
    pod = records.pod(engine_pod(phase="Failed", initContainerStatuses=[{"name": "fetch", "state": failed}]))

    assert pod.ended is not None
    assert (pod.ended.exit_code, pod.ended.message) == (3, "no space left")


def test_a_pod_that_was_never_ready_and_one_that_was_are_told_apart_after_a_restart_of_the_controller() -> None:
    never = engine_pod(phase="Failed", **ended(1, started=10))
    once = engine_pod(phase="Failed", **ended(1, started=10))
    once["status"]["conditions"][1]["lastTransitionTime"] = stamp(500)

    assert not records.pod(never).was_ready
    assert records.pod(once).was_ready


def test_what_keeps_a_pod_from_starting_is_told_in_the_schedulers_and_the_kubelets_words() -> None:
    unscheduled = engine_pod()
    unscheduled["status"]["conditions"][0] = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": "0/1 nodes are available: 1 Insufficient memory.",
    }
    waiting = {"waiting": {"reason": "ImagePullBackOff", "message": "not found"}}
    pulling = engine_pod(containerStatuses=[{"name": "engine", "state": waiting}])
    creating = engine_pod(containerStatuses=[{"name": "engine", "state": {"waiting": {"reason": "ContainerCreating"}}}])

    assert records.pod(unscheduled).blocked_reason == "Unschedulable"
    assert "Insufficient memory" in records.pod(unscheduled).blocked
    assert records.pod(pulling).blocked_reason == "ImagePullBackOff"
    assert records.pod(creating).blocked == ""


def test_a_node_tells_its_size_and_since_when_it_is_not_ready() -> None:
    lost = records.node(node(ready=False, unschedulable=True))

    assert (lost.cpu, lost.memory) == (4000, 8 << 30)
    assert not lost.ready
    assert lost.cordoned
    assert lost.not_ready_since == records.unix(stamp(60))
    assert lost.label("cotenant.dev/managed") == "true"


def test_a_holder_is_for_the_node_its_affinity_names() -> None:
    term = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["a-very-long.node.name"]}]}
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}
    body = {
        "metadata": {"name": "hold-x-3", "namespace": "s", "uid": "h", "labels": {"cotenant.dev/node": "a-very-long"}},
        "spec": {"affinity": {"nodeAffinity": required}},
        "status": {"phase": "Running"},
    }

    holder = records.holder(body)

    assert (holder.node, holder.index, holder.running, holder.uid) == ("a-very-long.node.name", 3, True, "h")
