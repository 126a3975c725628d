"""The configuration files of the lab's node, as GPU Operator 26.7 and a plain kubelet would have them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.node.needs import cni_folder

POD_SUBNET = "10.231.0.0/24"
NODE_ADDRESS = "10.230.0.1"
SERVICE_SUBNET = "10.96.0.0/16"
API_ADDRESS = "10.96.0.1"
"""The address of the Service `kubernetes`: bound by the API server itself, so nothing needs to route Services."""
PAUSE_IMAGE = "localhost/lab/pause:1"
CARD_FOLDER = "/run/nvidia-stand-in"
"""Where containers with a GPU find the stand-in driver."""
LIBRARY = "/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1"


@dataclass(frozen=True, slots=True)
class Gpu:
    """One stand-in card. Bytes."""

    uuid: str
    name: str
    total: int
    reserved: int

    @property
    def usable(self) -> int:
        return self.total - self.reserved


def containerd(folder: Path, programs: Path) -> str:
    """containerd with CDI, runc and NVIDIA's runtime."""
    # restrict_oom_score_adj: where root lacks CAP_SYS_RESOURCE it may not lower a score
    return f"""
version = 3
root = "{folder}/containerd"
state = "{folder}/containerd-state"
[grpc]
  address = "{folder}/containerd.sock"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = "{PAUSE_IMAGE}"
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
  enable_cdi = true
  cdi_spec_dirs = ["/var/run/cdi"]
[plugins.'io.containerd.cri.v1.runtime'.cni]
  bin_dirs = ["{cni_folder()}"]
  conf_dir = "{folder}/cni"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.nvidia]
  runtime_type = "io.containerd.runc.v2"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.nvidia.options]
  BinaryName = "{programs}/nvidia-container-runtime"
"""


def nvidia_runtime(folder: Path) -> str:
    """NVIDIA's runtime as GPU Operator 26.7 sets it: CDI mode, so a bare UUID is refused."""
    return f"""
[nvidia-container-runtime]
debug = "{folder}/logs/nvidia-container-runtime.log"
mode = "cdi"
runtimes = ["runc"]
[nvidia-container-runtime.modes.cdi]
annotation-prefixes = ["cdi.k8s.io/"]
default-kind = "management.nvidia.com/gpu"
spec-dirs = ["/var/run/cdi"]
"""


def network(folder: Path) -> str:
    """One veth pair per pod."""
    ipam = {
        "type": "host-local",
        "dataDir": f"{folder}/ipam",
        "ranges": [[{"subnet": POD_SUBNET}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    return json.dumps(
        {"cniVersion": "0.4.0", "name": "lab", "plugins": [{"type": "ptp", "ipMasq": False, "ipam": ipam}]}
    )


def kubelet(folder: Path, cgroup: str, authority: Path) -> str:
    """The kubelet's file; block YAML, because a file that begins with a brace is taken for JSON."""
    return f"""
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false
cgroupDriver: cgroupfs
cgroupRoot: /{cgroup}
containerRuntimeEndpoint: unix://{folder}/containerd.sock
featureGates: {{KubeletInUserNamespace: true}}
authentication: {{anonymous: {{enabled: false}}, webhook: {{enabled: false}}, x509: {{clientCAFile: {authority}}}}}
authorization: {{mode: AlwaysAllow}}
failSwapOn: false
enforceNodeAllocatable: []
evictionHard: {{memory.available: "0%", nodefs.available: "0%", imagefs.available: "0%"}}
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
resolvConf: /dev/null
localStorageCapacityIsolation: false
nodeStatusUpdateFrequency: 4s
podLogsDir: {folder}/logs/pods
"""


def device_plugin_cdi(folder: Path, gpus: tuple[Gpu, ...]) -> str:
    """What NVIDIA's device plugin writes: one device per UUID."""
    devices = [{"name": gpu.uuid, "containerEdits": _node(index)} for index, gpu in enumerate(gpus)]
    return _cdi("k8s.device-plugin.nvidia.com/gpu", devices, folder)


def management_cdi(folder: Path, gpus: tuple[Gpu, ...]) -> str:
    """What the toolkit writes for management containers: the single device `all`."""
    nodes = [node for index in range(len(gpus)) for node in _node(index)["deviceNodes"]]
    return _cdi("management.nvidia.com/gpu", [{"name": "all", "containerEdits": {"deviceNodes": nodes}}], folder)


def _node(index: int) -> dict[str, Any]:
    # a node that any machine has stands in for the card's: what counts is which of them a container gets
    return {"deviceNodes": [{"path": f"/dev/nvidia{index}", "hostPath": "/dev/null", "permissions": "rw"}]}


def _cdi(kind: str, devices: list[dict[str, Any]], folder: Path) -> str:
    mounts = [
        {"hostPath": f"{folder}/libnvidia-ml.so.1", "containerPath": LIBRARY, "options": ["ro", "bind"]},
        {"hostPath": f"{folder}/card", "containerPath": CARD_FOLDER, "options": ["ro", "bind"]},
    ]
    env = [f"COTENANT_NVML_FILE={CARD_FOLDER}/card.txt", "COTENANT_NVML_NODES=/dev/nvidia"]
    spec = {"cdiVersion": "0.6.0", "kind": kind, "devices": devices, "containerEdits": {"mounts": mounts, "env": env}}
    return json.dumps(spec, indent=1)
