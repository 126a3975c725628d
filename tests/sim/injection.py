"""Which GPUs a container sees: NVIDIA's runtime, as a node is set up, applied to a real pod."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

DEVICE_PLUGIN = "k8s.device-plugin.nvidia.com/gpu="
JIT = "runtime.nvidia.com/gpu="
MANAGEMENT = "management.nvidia.com/gpu="
STYLES = ("cdi", "jit-cdi", "legacy", "nri")
"""cdi: GPU Operator from 25.10; jit-cdi: a toolkit of one's own; legacy: no CDI; nri: the NRI plugin, no RuntimeClass."""


class StartError(Exception):
    """The runtime could not make the container; the text is its own."""


def visible(pod: Mapping[str, Any], style: str, uuids: tuple[str, ...]) -> tuple[str, ...]:
    """UUIDs the first container gets on a node with these GPUs; StartError as the runtime says it."""
    spec = pod["spec"]
    container = spec["containers"][0]
    if style == "nri":
        name = f"nvidia.cdi.k8s.io/container.{container['name']}"
        wanted = (pod["metadata"].get("annotations") or {}).get(name, "")
        return _resolve(wanted, DEVICE_PLUGIN, uuids)
    if spec.get("runtimeClassName") != "nvidia":
        return ()
    env = {entry["name"]: entry.get("value", "") for entry in container.get("env") or ()}
    wanted = env.get("NVIDIA_VISIBLE_DEVICES", "void")
    if wanted in ("", "void", "none"):
        return ()
    if style == "legacy":
        if unknown := [name for name in wanted.split(",") if name not in uuids and name != "all"]:
            raise StartError(
                "failed to create containerd task: failed to create shim task: OCI runtime create failed: runc create failed: "
                "unable to start container process: error during container init: error running prestart hook #0: exit status 1, "
                "stdout: , stderr: Auto-detected mode as 'legacy'\nnvidia-container-cli: device error: "
                f"{unknown[0]}: unknown device"
            )
        return uuids if wanted == "all" else tuple(wanted.split(","))
    if style == "cdi":
        if wanted == "all":
            return uuids
        return _resolve(wanted, DEVICE_PLUGIN, uuids)
    return _resolve(wanted, JIT, uuids)


def _resolve(wanted: str, kind: str, uuids: tuple[str, ...]) -> tuple[str, ...]:
    """CDI names to UUIDs. A bare name gets the mode's default kind, which knows no UUIDs in CDI mode (toolkit 1.20)."""
    found, missing = [], []
    for name in (part for part in wanted.split(",") if part):
        qualified = name if "=" in name else (name if kind == JIT else MANAGEMENT + name)
        bare = qualified.removeprefix(kind)
        if bare in uuids:
            found.append(bare)
        else:
            missing.append(qualified)
    if missing:
        raise StartError(
            "failed to create containerd task: failed to create shim task: OCI runtime create failed: could not apply required "
            "modification to OCI specification: error modifying OCI spec: failed to inject CDI devices: unresolvable CDI devices "
            + ", ".join(missing)
        )
    return tuple(found)
