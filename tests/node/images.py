"""The images of the node tests: Cotenant as its own images have it, and the engine that stands in for vLLM."""

from __future__ import annotations

import shutil
import subprocess
from importlib import metadata
from pathlib import Path

from tests.cluster import build
from tests.node.config import PAUSE_IMAGE
from tests.node.image import Content, Image, Link, write_archive, write_layer
from tests.node.python_layer import ENV, SITE, python_layer

ROOT = Path(__file__).parents[2]
COTENANT = "localhost/lab/cotenant"
TAG = "1"
ENGINE = "localhost/lab/vllm:0.33.0"
SIMULATOR = ("argv", "texts", "products")
"""Modules of tests/sim that the engine speaks with."""


def archive(folder: Path) -> Path:
    """One archive with all of them, the program as it is in the tree now."""
    base = python_layer(build.cache() / "images")
    program = write_layer(folder / "cotenant.layer", _cotenant())
    engine = write_layer(folder / "engine.layer", _engine())
    images = [
        Image(f"{COTENANT}:{TAG}", (base, program), ("cotenant",), {**ENV, "NVIDIA_VISIBLE_DEVICES": "void"}, "65534"),
        # CUDA images bake this in: it would show every GPU of the node
        Image(
            ENGINE, (base, engine), (), {**ENV, "PYTHONPATH": "/opt/engine", "NVIDIA_VISIBLE_DEVICES": "all"}, "65534"
        ),
    ]
    return write_archive(folder / "images.tar", images)


def _cotenant() -> dict[str, Content]:
    distribution = metadata.distribution("cotenant")
    info = f"{SITE}/cotenant-{distribution.version}.dist-info"
    return {
        f"{SITE}/cotenant": ROOT / "operator" / "cotenant",
        # what importlib.metadata reads the version from
        f"{info}/METADATA": (distribution.read_text("METADATA") or "").encode(),
        "usr/local/bin/cotenant": b"#!/usr/local/bin/python3\nfrom cotenant.__main__ import main\nmain()\n",
    }


def _engine() -> dict[str, Content]:
    busybox = Path(shutil.which("busybox") or "")
    tests = ROOT / "tests"
    return {
        "bin/busybox": busybox,
        **{f"bin/{name}": Link("busybox") for name in ("sh", "sleep", "ls", "cat", "kill", "wget")},
        "usr/local/bin/vllm": b"#!/usr/local/bin/python3\nfrom tests.node.engine import main\nmain()\n",
        "opt/engine/tests/__init__.py": b"",
        "opt/engine/tests/sim/__init__.py": b"",
        "opt/engine/tests/node/__init__.py": b"",
        "opt/engine/tests/node/engine.py": tests / "node" / "engine.py",
        **{f"opt/engine/tests/sim/{name}.py": tests / "sim" / f"{name}.py" for name in SIMULATOR},
    }


def basic_images(folder: Path) -> Path:
    """A pause image and a shell."""
    pause = folder / "pause"
    program = "int pause(void); int main(void) { for (;;) pause(); }"
    subprocess.run(["gcc", "-static", "-O2", "-xc", "-", "-o", str(pause)], input=program, text=True, check=True)
    busybox = Path(shutil.which("busybox") or "")
    images = [
        Image(PAUSE_IMAGE, (write_layer(folder / "pause.layer", {"pause": pause}),), ("/pause",)),
        Image(
            "localhost/lab/busybox:1",
            (write_layer(folder / "busybox.layer", {"bin/busybox": busybox, "bin/sh": Link("busybox")}),),
            (),
        ),
    ]
    return write_archive(folder / "basic.tar", images)
