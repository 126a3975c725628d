"""What a simulation is told."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.sim.models import ModelSpec

ANNOTATION = "sim.cotenant.dev/"
"""On a pod: fault, uses. On a node: stranger, health, islands, gpu-lost, node, injection, unsupported."""
_REFERENCE = re.compile(r"^[a-z0-9]+([._:/-]+[a-z0-9]+)*([:@][A-Za-z0-9_.:-]+)?$")


@dataclass(slots=True)
class Rule:
    """A fault for starts to come: `fault` hits the next `times` starts of pods whose `namespace/name` matches."""

    pattern: str
    fault: str
    times: int = 1
    after: float = 0.0
    """Simulated seconds after the container's start."""


@dataclass(slots=True)
class Settings:
    """Of one simulation. Seconds are simulated ones: real seconds x speed."""

    seed: int = 0
    speed: float = 1.0
    """Simulated seconds per real second: 90 makes a 90 s start take one."""
    load_seconds: tuple[float, float] = (60.0, 100.0)
    """From container start to Ready; 59 to 91 s measured for 2B to 24B."""
    creep_seconds: float = 120.0
    create_seconds: float = 1.5
    """From the binding to a node to the container's start."""
    models: dict[str, ModelSpec] = field(default_factory=dict)
    """Pattern of the model's name -> what it costs."""
    overrun: tuple[int, int] | None = None
    """Bytes beyond the share of every engine (after start, under load); None = drawn from the seed."""
    version: str = "0.33.0"
    """vLLM's, where the image's tag names none."""
    style: str = "cdi"
    shuffle: bool = False
    """Device plugins hand out GPUs in random order."""
    need_holders: bool = True
    """A start on a GPU without a running holder of ours breaks a rule."""
    bad_images: tuple[str, ...] = ("*does-not-exist*", "*no-such*", "*nonexistent*", "*.invalid/*")
    rules: list[Rule] = field(default_factory=list)
    fast: bool = False
    """Fewest writes: no ContainerCreating, no last status before a deletion, starts take `load_seconds` all the same."""


def image_problem(image: str, bad: tuple[str, ...]) -> tuple[str, str] | None:
    """(reason, message) of a container that waits for its image; None when it can be pulled."""
    if not _REFERENCE.match(image):
        return (
            "InvalidImageName",
            f'Failed to apply default image tag "{image}": couldn\'t parse image name "{image}": invalid reference format',
        )
    if any(fnmatch.fnmatchcase(image, pattern) for pattern in bad):
        return (
            "ImagePullBackOff",
            f'Back-off pulling image "{image}": ErrImagePull: rpc error: code = NotFound desc = failed to pull and unpack image '
            f'"{image}": failed to resolve reference "{image}": {image}: not found',
        )
    return None


def secret_names(pod: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """(secret, key) that a pod's containers cannot start without; key is empty for a whole secret."""
    names: list[tuple[str, str]] = []
    for container in pod["spec"]["containers"]:
        for entry in container.get("env") or ():
            reference = (entry.get("valueFrom") or {}).get("secretKeyRef")
            if reference and not reference.get("optional"):
                names.append((reference["name"], reference.get("key", "")))
        for entry in container.get("envFrom") or ():
            reference = entry.get("secretRef")
            if reference and not reference.get("optional"):
                names.append((reference["name"], ""))
    return tuple(dict.fromkeys(names))
