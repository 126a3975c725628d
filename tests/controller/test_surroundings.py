"""What the cluster says of how containers get their GPUs is read, and a change of it is noticed."""

from __future__ import annotations

from cotenant.controller.surroundings import FALLBACK, survey
from cotenant.core.snapshot import Policy
from cotenant.kube import Kube

NAME = "surroundings-test"


async def test_the_style_left_to_us_follows_the_runtime_class_and_its_change_is_seen(kube: Kube) -> None:
    auto = Policy(injection="auto", runtime_class=NAME)

    nothing = await survey(kube, auto)
    await kube.create(
        {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": NAME}, "handler": "x"}
    )
    try:
        there = await survey(kube, auto)
        fixed = await survey(kube, Policy(injection="env", runtime_class=NAME))
    finally:
        await kube.delete("node.k8s.io/v1", "RuntimeClass", NAME)

    assert nothing.policy.injection == FALLBACK
    assert there.policy.injection == "cdi-jit"
    assert there.version != nothing.version
    assert fixed.policy.injection == "env", "a setting is not overruled"
