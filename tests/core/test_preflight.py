"""A node is proven by a pod that saw exactly its GPU; everything else says why not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cotenant.core.injection import Style
from cotenant.core.preflight import RETRY_SECONDS, Failed, Ground, Passed, Running, manifest, read, verdict

A, B = "GPU-aaaa", "GPU-bbbb"
GROUND = Ground("gpu-1.example.com", "uid-1", Style.CDI_DEVICE_PLUGIN, "nvidia", "rc-1", "cp-1/3", "0.1.0")


def pod(phase: str, state: dict[str, Any] | None = None, **status: Any) -> dict[str, Any]:
    """A preflight pod for A as the API server has it."""
    made = manifest(GROUND, A, image="cotenant:test", namespace="cotenant-system")
    made["metadata"]["uid"] = "pod-uid"
    statuses = [] if state is None else [{"name": "preflight", "state": state}]
    return {**made, "status": {"phase": phase, "containerStatuses": statuses, **status}}


def ended(message: str, code: int = 0, reason: str = "Completed") -> dict[str, Any]:
    """A container's end."""
    return {
        "terminated": {"exitCode": code, "reason": reason, "message": message, "finishedAt": "2026-11-21T07:00:00Z"}
    }


def test_exactly_the_asked_gpu_passes() -> None:
    assert verdict(pod("Succeeded", ended(f"{A}\n")), A) == Passed(A)


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ("", "saw no GPU"),
        (f"{A}\n{B}\n", f"also saw {B}"),
        (f"{B}\n", f"saw {B} instead"),
        ("garbage", "garbage instead"),
    ],
)
def test_anything_else_fails_and_says_what_was_seen(message: str, says: str) -> None:
    result = verdict(pod("Succeeded", ended(message)), A)

    assert isinstance(result, Failed)
    assert says in result.reason


def test_a_container_that_the_runtime_refused_tells_its_words() -> None:
    text = (
        "failed to create containerd task: OCI runtime create failed:\n"
        "failed to inject CDI devices: unresolvable CDI devices management.nvidia.com/gpu=GPU-aaaa"
    )

    result = verdict(pod("Failed", ended(text, 128, "StartError")), A)

    assert isinstance(result, Failed)
    assert "StartError" in result.reason
    assert "unresolvable CDI devices" in result.reason


@pytest.mark.parametrize("reason", ["CreateContainerError", "ImagePullBackOff", "RunContainerError"])
def test_a_container_that_cannot_be_made_is_a_failure_not_a_wait(reason: str) -> None:
    result = verdict(pod("Pending", {"waiting": {"reason": reason, "message": "why"}}), A)

    assert isinstance(result, Failed)
    assert reason in result.reason


def test_a_pod_still_on_its_way_is_running() -> None:
    assert isinstance(verdict(pod("Pending", {"waiting": {"reason": "ContainerCreating"}}), A), Running)
    unscheduled = [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes"}]
    assert verdict(pod("Pending", conditions=unscheduled), A) == Running("not scheduled: 0/1 nodes")


def test_a_pod_ended_by_its_deadline_fails() -> None:
    result = verdict(pod("Failed", reason="DeadlineExceeded", message="Pod was active too long"), A)

    assert isinstance(result, Failed)
    assert "DeadlineExceeded" in result.reason


def test_reading_a_pod_gives_back_its_ground() -> None:
    seen = read(pod("Succeeded", ended(A)))

    assert (seen.node, seen.key, seen.verdict, seen.uid) == (GROUND.node, GROUND.key, Passed(A), "pod-uid")
    assert seen.ended_at == "2026-11-21T07:00:00Z"


def test_a_failed_proof_is_worth_another_try_after_a_while_and_a_good_one_is_kept() -> None:
    failed, passed = read(pod("Succeeded", ended(B))), read(pod("Succeeded", ended(A)))

    assert failed.retry_at == 1795244400.0 + RETRY_SECONDS
    assert passed.retry_at is None


@pytest.mark.parametrize(
    "change",
    [
        {"node_uid": "uid-2"},
        {"style": Style.ENV},
        {"runtime_class": "other"},
        {"runtime_class_version": "rc-2"},
        {"cluster_policy_version": "cp-1/4"},
        {"agent_version": "0.2.0"},
    ],
)
def test_the_key_changes_with_all_the_proof_depends_on(change: dict[str, Any]) -> None:
    assert replace(GROUND, **change).key != GROUND.key
    assert replace(GROUND, **change).name != GROUND.name


def test_one_node_proves_itself_whichever_gpu_was_asked() -> None:
    a = manifest(GROUND, A, image="i", namespace="n")
    b = manifest(GROUND, B, image="i", namespace="n")

    assert a["metadata"]["name"] == b["metadata"]["name"]


@pytest.mark.parametrize("node", ["n", "gpu-1.example.com", "x" * 253, "a." * 60 + "b"])
def test_names_and_labels_are_valid_for_any_node_name(node: str) -> None:
    made = manifest(replace(GROUND, node=node), A, image="i", namespace="n")

    assert len(made["metadata"]["name"]) <= 63
    assert all(len(value) <= 63 for value in made["metadata"]["labels"].values())
    assert "." not in made["metadata"]["name"]


def test_the_pod_is_restricted_and_asks_for_no_gpu_of_its_own() -> None:
    made = manifest(GROUND, A, image="i", namespace="n")
    container = made["spec"]["containers"][0]

    assert made["spec"]["restartPolicy"] == "Never"
    assert made["spec"]["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert "nvidia.com/gpu" not in str(container["resources"])
