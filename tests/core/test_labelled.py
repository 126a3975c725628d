"""Nodes without an agent: what their labels are worth."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cotenant.core.labelled import by_labels
from cotenant.core.reconcile import reconcile
from cotenant.core.share import MIB
from cotenant.core.snapshot import Node
from tests.core.builders import Cluster, model, node, placement

H200 = {"nvidia.com/gpu.product": "NVIDIA-H200", "nvidia.com/gpu.count": "8", "nvidia.com/gpu.memory": "143771"}


def labelled(labels: dict[str, str]) -> Node:
    return Node("n1", labels=tuple(sorted(labels.items())))


def test_labels_tell_product_number_and_total_memory() -> None:
    found = by_labels(labelled(H200))

    assert found is not None
    assert len(found.devices) == 8
    assert {(device.product, device.total) for device in found.devices} == {("NVIDIA-H200", 143771 * MIB)}


@pytest.mark.parametrize(
    "labels",
    [
        {},
        {**H200, "nvidia.com/gpu.count": "0"},
        {**H200, "nvidia.com/gpu.count": "-1"},
        {**H200, "nvidia.com/gpu.count": "many"},
        {**H200, "nvidia.com/gpu.count": "100000"},
        {**H200, "nvidia.com/gpu.memory": ""},
        {**H200, "nvidia.com/gpu.memory": "140Gi"},
        {"nvidia.com/gpu.count": "8", "nvidia.com/gpu.memory": "143771"},
    ],
)
def test_labels_that_do_not_tell_it_all_tell_nothing(labels: dict[str, str]) -> None:
    assert by_labels(labelled(labels)) is None


@pytest.mark.parametrize(
    "labels",
    [
        {"nvidia.com/gpu.sharing-strategy": "time-slicing"},
        {"nvidia.com/gpu.sharing-strategy": "mps"},
        {"nvidia.com/gpu.replicas": "4"},
        {"nvidia.com/mig.strategy": "mixed", "nvidia.com/mig-1g.18gb.count": "7"},
        {"nvidia.com/mig.strategy": "single", "nvidia.com/gpu.product": "NVIDIA-H200-MIG-1g.18gb"},
    ],
)
def test_divided_gpus_are_not_planned_on(labels: dict[str, str]) -> None:
    found = by_labels(labelled(H200 | labels))

    assert found is not None
    assert (found.supported, found.devices) == (False, ())


def test_whole_gpus_of_a_plugin_that_could_divide_them_are() -> None:
    found = by_labels(labelled(H200 | {"nvidia.com/gpu.sharing-strategy": "none", "nvidia.com/mig.strategy": "single"}))

    assert found is not None
    assert found.supported


def test_without_the_agent_nothing_starts_and_the_reason_says_what_the_labels_say() -> None:
    cluster = Cluster([node("n1", gpus=2)]).apply(placement("p", model("m", "30%")))
    kube_node, report = cluster.nodes[0]
    labels = dict(kube_node.labels) | H200
    seen = cluster.snapshot()
    decision = reconcile(replace(seen, nodes=(replace(kube_node, labels=tuple(sorted(labels.items()))),), gpu_nodes=()))

    assert report.devices
    assert not decision.creates
    said = decision.statuses[0].status["conditions"][0]["message"]
    assert "no agent reports the GPUs of n1 (its labels speak of 8 x NVIDIA-H200, 140.4Gi each" in said
