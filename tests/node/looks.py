"""What tests of a node look at: which pod is which, what it was given, who is on which GPU."""

from __future__ import annotations

import json
from pathlib import Path

from cotenant.core.names import ALLOCATION_ANNOTATION
from tests.cluster.api import Object
from tests.node.engine import OVERRUN
from tests.node.world import World

SPARROW = Path(__file__).parents[2] / "examples" / "sparrow.yaml"
CHAT, OCR = "sparrow-mistral-small-0", "sparrow-dots-ocr-0"


def uids(pods: dict[str, Object]) -> dict[str, str]:
    """What tells a pod from its successor of the same name."""
    return {name: pod["metadata"]["uid"] for name, pod in pods.items()}


def allocation(pod: Object) -> Object:
    """What a pod was given."""
    given: Object = json.loads(pod["metadata"]["annotations"][ALLOCATION_ANNOTATION])
    return given


def gpu_of(world: World, pod: str = CHAT) -> str:
    """The GPU an engine was given."""
    uuid: str = allocation(world.engines()[pod])["gpus"][0]
    return uuid


def assert_in_turn(world: World, sparrow: str) -> None:
    """The second pod was made when the first was Ready."""
    first, second = sorted(world.engines(sparrow).values(), key=lambda pod: pod["metadata"]["creationTimestamp"])

    ready = next(each for each in first["status"]["conditions"] if each["type"] == "Ready")
    assert ready["lastTransitionTime"] <= second["metadata"]["creationTimestamp"]


def assert_told_apart(world: World) -> None:
    """Both engines are in the agent's report, each with its bytes, and nobody else."""
    usable = world.lab.gpus[0].usable
    wanted = {CHAT: int(usable * 0.7) + OVERRUN, OCR: int(usable * 0.2) + OVERRUN}

    def told() -> bool:
        gpu = world.gpus()[gpu_of(world)]
        return {tenant["pod"]: tenant["used"] for tenant in gpu["tenants"]} == wanted and not gpu["strangers"]

    world.until("both tenants with their bytes", told)
