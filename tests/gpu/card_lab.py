"""The node lab of tests/node with the real cards of this machine and the vLLM that this machine can run.

There is no registry here, so the engine's image is a shell around the machine's own Python and PyTorch: the CDI
specification that injects a GPU also mounts /usr (as /host/usr), the Python environment and the folder with vLLM,
read-only. The controller's and the agent's image holds everything it needs, as a release's does.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from tests.node.config import Gpu
from tests.node.image import Content, Image, Link, write_archive, write_layer
from tests.node.lab import Lab

ROOT = Path(__file__).parents[2]
COTENANT = "localhost/lab/cotenant:1"
ENGINE = "localhost/lab/vllm:0.26.0"
DRIVER = "/opt/driver"
"""Where containers with a GPU find libnvidia-ml.so.1; the image's own C library loads it from there."""
SITE = "/opt/site"
NO_MULTICAST = {"NCCL_NVLS_ENABLE": "0", "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1", "NVSHMEM_DISABLE_NVLS": "1"}
"""On a borrowed host NVLink multicast can put GPUs of others out of service."""


@dataclass(frozen=True)
class CardLab(Lab):
    """The same node with real cards."""

    own_pids: ClassVar[bool] = False
    site: ClassVar[Path] = Path("/nowhere")
    """The folder with vLLM; set before the start."""

    def stop(self) -> None:
        """End everything, the containers too: no PID namespace ends with us here."""
        self.power_off()
        super().stop()

    def _write_cards(self) -> None:
        generated = json.loads(self._nvidia_ctk())
        shared: list[dict[str, Any]] = generated["containerEdits"].get("deviceNodes", [])
        by_name = {each["name"]: each["containerEdits"].get("deviceNodes", []) for each in generated["devices"]}
        edits = {"deviceNodes": shared, "mounts": self._mounts()}
        devices = [_device(gpu.uuid, by_name[gpu.uuid]) for gpu in self.gpus]
        kinds = {
            "k8s.device-plugin.nvidia.com/gpu": devices,
            "management.nvidia.com/gpu": [_device("all", by_name["all"])],
        }
        for kind, found in kinds.items():
            spec = {"cdiVersion": "0.6.0", "kind": kind, "devices": found, "containerEdits": edits}
            (self.directory / "cdi" / f"{kind.split('.')[0]}.json").write_text(json.dumps(spec, indent=1))

    def _nvidia_ctk(self) -> str:
        command: list[str | Path] = [
            self.programs / "nvidia-ctk",
            "--quiet",
            "cdi",
            "generate",
            "--vendor=k8s.device-plugin.nvidia.com",
        ]
        command += ["--class=gpu", "--device-name-strategy=uuid", "--format=json"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def _mounts(self) -> list[dict[str, Any]]:
        library = driver_library()
        wanted = {library: f"{DRIVER}/libnvidia-ml.so.1", Path("/usr"): "/host/usr", self.site: SITE}
        wanted[python_home()] = str(python_home())
        options = ["ro", "nosuid", "rbind"]
        return [{"hostPath": str(a), "containerPath": b, "options": options} for a, b in wanted.items()]

    def _start_cards(self) -> None:
        pass  # the driver is there


def _device(name: str, nodes: list[dict[str, Any]]) -> dict[str, Any]:
    return {"name": name, "containerEdits": {"deviceNodes": nodes}}


def cards() -> list[Gpu]:
    """What nvidia-smi lists. The lab does not need the sizes: they are the agent's to say."""
    said = subprocess.run(
        ["nvidia-smi", "--query-gpu=uuid,name", "--format=csv,noheader"], check=True, capture_output=True, text=True
    ).stdout
    listed = [line.split(", ") for line in said.strip().splitlines()]
    return [Gpu(uuid, name, 0, 0) for uuid, name in listed]


def driver_library() -> Path:
    """This machine's NVML."""
    said = subprocess.run(["ldconfig", "-p"], check=True, capture_output=True, text=True).stdout
    found = re.search(r"libnvidia-ml\.so\.1 .*=> (\S+)", said)
    if not found:
        raise RuntimeError("no libnvidia-ml.so.1 here (ldconfig -p): is the driver installed?")
    return Path(found[1]).resolve()


def python_home() -> Path:
    """The folder of the environment that holds PyTorch: two above its `bin`."""
    return Path(sys.prefix).parent if Path(sys.prefix).name == ".venv" else Path(sys.prefix)


def archive(folder: Path, python: Path) -> Path:
    """Both images in one archive; `python` is the layer that tests/node made on the machine that packed."""
    folder.mkdir(parents=True, exist_ok=True)
    env = {"LD_LIBRARY_PATH": f"/usr/local/lib:{DRIVER}", "PYTHONUNBUFFERED": "1", "NVIDIA_VISIBLE_DEVICES": "void"}
    program = write_layer(folder / "cotenant.layer", _cotenant(_site_packages(python)))
    engine = write_layer(folder / "engine.layer", _engine())
    path = f"/opt/bin:{sys.prefix}/bin:/usr/local/cuda/bin:/usr/local/bin:/usr/bin:/bin"
    ours = {"PATH": path, "PYTHONPATH": SITE, "VLLM_USE_FLASHINFER_SAMPLER": "0", **NO_MULTICAST}
    return write_archive(
        folder / "images.tar",
        [
            Image(COTENANT, (python, program), ("cotenant",), env, "65534"),
            # as CUDA images bake it in: only the injection keeps other GPUs away
            Image(ENGINE, (engine,), (), {**ours, "NVIDIA_VISIBLE_DEVICES": "all"}, "65534"),
        ],
    )


def _site_packages(layer: Path) -> str:
    listing = subprocess.run(["tar", "tf", layer], check=True, capture_output=True, text=True).stdout
    found = re.search(r"^(usr/local/lib/python3\.\d+/site-packages)/", listing, re.MULTILINE)
    if not found:
        raise RuntimeError(f"{layer} holds no Python")
    return found[1]


def _cotenant(site: str) -> dict[str, Content]:
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    number = version[1] if version else "0"
    return {
        f"{site}/cotenant": ROOT / "operator" / "cotenant",
        f"{site}/cotenant-{number}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: cotenant\nVersion: {number}\n".encode(),
        "usr/local/bin/cotenant": b"#!/usr/local/bin/python3\nfrom cotenant.__main__ import main\nmain()\n",
    }


def _engine() -> dict[str, Content]:
    home = python_home()
    entries: dict[str, Content] = {
        **{name: Link(f"usr/{name}") for name in ("bin", "sbin", "lib", "lib64")},
        "usr": Link("host/usr"),
        "host/usr": None,
        SITE.lstrip("/"): None,
        "models": None,
        str(home).lstrip("/"): None,
        "opt/bin/vllm": b'#!/bin/sh\nexec python3 -m vllm.entrypoints.cli.main "$@"\n',
        "etc/passwd": Path("/etc/passwd"),
        "etc/ld.so.cache": Path("/etc/ld.so.cache"),
    }
    for child in Path("/etc/alternatives").iterdir() if Path("/etc/alternatives").is_dir() else ():
        if child.is_symlink():
            entries[f"etc/alternatives/{child.name}"] = Link(os.readlink(child))
    return entries
