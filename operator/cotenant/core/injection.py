"""How a pod is given exactly the chosen GPUs: the pod fields per injection style, and which style a cluster wants.

NVIDIA's container runtime decides what a container sees by, in this order: CDI annotations, mounts under
`/var/run/nvidia-container-devices/` (where the toolkit accepts those), the variable NVIDIA_VISIBLE_DEVICES
(NVIDIA/nvidia-container-toolkit, internal/config/image/cuda_image.go, v1.20.1). CUDA images carry
`NVIDIA_VISIBLE_DEVICES=all`, which beside the runtime class means every GPU of the node: so every style here sets the
variable itself, to `void` (no device) where the devices come another way.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

PLUGIN_KIND = "k8s.device-plugin.nvidia.com/gpu"
"""The CDI kind whose specification NVIDIA's device plugin writes, its devices named by UUID."""
RUNTIME_KIND = "runtime.nvidia.com/gpu"
"""The CDI kind NVIDIA's runtime resolves by itself, in memory (toolkit >= 1.15)."""
NRI_ANNOTATION_PREFIX = "nvidia.cdi.k8s.io/container."
DEVICES_FOLDER = "/var/run/nvidia-container-devices"
VOLUME = "nvidia-devices"
CAPABILITIES = "compute,utility"
VOID = "void"


class Style(StrEnum):
    """The ways a GPU gets into a container without asking for `nvidia.com/gpu`."""

    CDI_DEVICE_PLUGIN = "cdi-device-plugin"
    """GPU Operator >= 25.10 without NRI: names of the device plugin's CDI specification. Run on a real kubelet with
    toolkit 1.20.1 in CDI mode: exactly the named devices; a bare UUID ends as StartError."""
    CDI_JIT = "cdi-jit"
    """Toolkit >= 1.15 in any mode but legacy: names the runtime resolves itself, no device plugin needed."""
    ENV = "env"
    """A toolkit installed by hand in auto, legacy or jit-cdi mode: the bare UUID."""
    NRI = "nri"
    """GPU Operator with `cdi.nriPluginEnabled`: an annotation; the RuntimeClass `nvidia` does not exist there."""
    VOLUME_MOUNTS = "volume-mounts"
    """Bottlerocket and hardened installs: /dev/null mounted under a name per GPU. Needs hostPath, which Pod Security
    `baseline` and `restricted` refuse."""


@dataclass(frozen=True, slots=True)
class Injection:
    """The pod fields that make one container see its GPUs and nothing else."""

    env: tuple[tuple[str, str], ...]
    """(name, value), to set on the container whatever its image says."""
    annotations: tuple[tuple[str, str], ...] = ()
    runtime_class: str | None = None
    volumes: tuple[dict[str, Any], ...] = ()
    mounts: tuple[dict[str, Any], ...] = ()

    @property
    def env_list(self) -> list[dict[str, str]]:
        """The variables as a container's `env` has them."""
        return [{"name": name, "value": value} for name, value in self.env]


def inject(style: Style | str, uuids: Iterable[str], container: str, runtime_class: str = "nvidia") -> Injection:
    """The fields by which `container` of a pod sees the GPUs of these UUIDs, in this order, and no other.

    No UUID means no GPU. Raises ValueError for a style that does not exist.
    """
    style = Style(style)
    gpus = tuple(uuids)
    runtime = runtime_class or None
    match style:
        case Style.CDI_DEVICE_PLUGIN:
            return Injection(_env(f"{PLUGIN_KIND}={gpu}" for gpu in gpus), runtime_class=runtime)
        case Style.CDI_JIT:
            return Injection(_env(f"{RUNTIME_KIND}={gpu}" for gpu in gpus), runtime_class=runtime)
        case Style.ENV:
            return Injection(_env(gpus), runtime_class=runtime)
        case Style.NRI:
            names = ",".join(f"{PLUGIN_KIND}={gpu}" for gpu in gpus)
            annotations = ((NRI_ANNOTATION_PREFIX + container, names),) if gpus else ()
            return Injection(_env(()), annotations=annotations)
        case Style.VOLUME_MOUNTS:
            # one volume, mounted once per GPU: the runtime reads only the mounts' paths
            volumes = ({"name": VOLUME, "hostPath": {"path": "/dev/null", "type": "CharDevice"}},) if gpus else ()
            mounts = tuple({"name": VOLUME, "mountPath": f"{DEVICES_FOLDER}/{gpu}"} for gpu in gpus)
            return Injection(_env(()), runtime_class=runtime, volumes=volumes, mounts=mounts)


def _env(devices: Iterable[str]) -> tuple[tuple[str, str], ...]:
    return (
        ("NVIDIA_VISIBLE_DEVICES", ",".join(devices) or VOID),
        ("NVIDIA_DRIVER_CAPABILITIES", CAPABILITIES),
    )


# ------------------------------------------------------------------------------------------------- which style is it?
@dataclass(frozen=True, slots=True)
class Toolkit:
    """Settings of NVIDIA's container toolkit where a person tells them (config.toml; None = not told)."""

    mode: str | None = None
    """`auto`, `cdi`, `jit-cdi` or `legacy`."""
    default_kind: str | None = None
    accept_env: bool | None = None
    """accept-nvidia-visible-devices-envvar-when-unprivileged; the toolkit's default is true."""
    accept_mounts: bool | None = None
    """accept-nvidia-visible-devices-as-volume-mounts; the toolkit's default is false."""


@dataclass(frozen=True, slots=True)
class Detected:
    """The style a cluster wants, and by what sign; None = no way to give a container a GPU was found."""

    style: Style | None
    reason: str


CDI_DEFAULT_SINCE = (25, 10)
"""The GPU Operator release from which CDI with the device plugin's names is the default."""


def detect(
    runtime_classes: Iterable[str],
    cluster_policy: Mapping[str, Any] | None,
    toolkit: Toolkit = Toolkit(),
    runtime_class: str = "nvidia",
) -> Detected:
    """The style for this cluster from its RuntimeClasses, the GPU Operator's ClusterPolicy and the toolkit's settings.

    It is a guess from what objects say; the preflight pod is what proves it.
    """
    has_class = runtime_class in set(runtime_classes)
    cdi = _cdi(cluster_policy)
    if cluster_policy is not None and cdi.get("nriPluginEnabled") is True:
        return Detected(Style.NRI, "ClusterPolicy has spec.cdi.nriPluginEnabled: true")
    if not has_class:
        return Detected(
            None,
            f"no RuntimeClass {runtime_class!r} and no ClusterPolicy with the NRI plugin: install NVIDIA's GPU"
            " Operator, or name the RuntimeClass of NVIDIA's runtime in the operator's settings",
        )
    if toolkit.accept_env is False and toolkit.accept_mounts is True:
        return Detected(Style.VOLUME_MOUNTS, "the toolkit takes devices from volume mounts only")
    if cluster_policy is not None:
        return _operator_style(cluster_policy, cdi)
    if toolkit.mode == "legacy":
        return Detected(Style.ENV, "the toolkit's mode is legacy")
    if toolkit.default_kind == "management.nvidia.com/gpu":
        return Detected(Style.CDI_DEVICE_PLUGIN, "the toolkit is set up as GPU Operator >= 25.10 does")
    if toolkit.mode in ("cdi", "jit-cdi", "auto"):
        return Detected(Style.CDI_JIT, f"the toolkit's mode is {toolkit.mode} and there is no ClusterPolicy")
    return Detected(Style.CDI_JIT, f"RuntimeClass {runtime_class!r} alone: names that any toolkit >= 1.15 knows")


def _operator_style(policy: Mapping[str, Any], cdi: Mapping[str, Any]) -> Detected:
    version = operator_version(policy)
    enabled = cdi.get("enabled")
    if enabled is False:
        return Detected(Style.ENV, "ClusterPolicy has spec.cdi.enabled: false")
    if version is None:
        # before 25.10 the operator's CDI was opt-in and not the default even when enabled, unless cdi.default said so
        if enabled is True or cdi.get("default") is True:
            return Detected(Style.CDI_DEVICE_PLUGIN, "ClusterPolicy has spec.cdi.enabled: true and tells no version")
        return Detected(Style.CDI_JIT, "ClusterPolicy says nothing of CDI and tells no version")
    said = ".".join(str(part) for part in version)
    if version >= CDI_DEFAULT_SINCE:
        return Detected(Style.CDI_DEVICE_PLUGIN, f"GPU Operator {said} with CDI, without its NRI plugin")
    if enabled is True and cdi.get("default") is True:
        return Detected(Style.CDI_DEVICE_PLUGIN, f"GPU Operator {said} with spec.cdi.default: true")
    return Detected(Style.ENV, f"GPU Operator {said}: CDI is not its default before 25.10")


def _cdi(policy: Mapping[str, Any] | None) -> Mapping[str, Any]:
    spec = (policy or {}).get("spec")
    cdi = spec.get("cdi") if isinstance(spec, Mapping) else None
    return cdi if isinstance(cdi, Mapping) else {}


def operator_version(policy: Mapping[str, Any]) -> tuple[int, int] | None:
    """Year and month of a ClusterPolicy's GPU Operator (`v26.7.0` is (26, 7)); None where it is not told."""
    labels = (policy.get("metadata") or {}).get("labels") or {}
    for key in ("app.kubernetes.io/version", "helm.sh/chart"):
        found = re.search(r"(?:^|[-v])(\d{2})\.(\d{1,2})(?:\.|$)", str(labels.get(key, "")))
        if found:
            return int(found[1]), int(found[2])
    return None
