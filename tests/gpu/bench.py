"""What the card steps have in hand: the lab, the models' folder, clocks, and how to read a placement."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cotenant.core.names import API_VERSION
from tests.cluster.access import KubectlError
from tests.cluster.api import Object
from tests.gpu import models
from tests.node.world import MODELS, World

CLAIM = "models"
STRANGER = """
import sys, torch
torch.cuda.init()
print("at hand", flush=True)
sys.stdin.readline()
block = torch.empty(int(sys.argv[1]) << 30, dtype=torch.uint8, device="cuda:0")
torch.cuda.synchronize()
print(torch.cuda.mem_get_info()[1], flush=True)
sys.stdin.read()
"""


@dataclass(frozen=True)
class Bench:
    """One node, one run of the script."""

    world: World
    began: float
    ends: float
    """Monotonic seconds after which nothing more is begun."""
    stand_in: bool
    out: Path

    def say(self, text: str) -> None:
        """One line of progress."""
        say(self.began, text)

    def note(self, name: str, text: str) -> None:
        """A text to keep beside the logs."""
        with suppress(OSError):
            (self.world.lab.directory / "logs" / f"note-{name}.txt").write_text(text)

    # ------------------------------------------------------------------------------------------------------- placements
    def mount_models(self) -> None:
        """A claim in the models' namespace, bound to a folder of this machine that holds them."""
        folder = self.world.lab.directory / "models"
        models.write_all(folder, with_tokenizer=not self.stand_in)
        size = {"storage": "1Gi"}
        common = {"accessModes": ["ReadOnlyMany"], "storageClassName": ""}
        volume = {"metadata": {"name": CLAIM}, "spec": {"capacity": size, "hostPath": {"path": str(folder)}, **common}}
        claim = {
            "metadata": {"name": CLAIM, "namespace": MODELS},
            "spec": {"resources": {"requests": size}, "volumeName": CLAIM, **common},
        }
        self.world.lab.api.apply({"apiVersion": "v1", "kind": "PersistentVolume", **volume})
        self.world.lab.api.apply({"apiVersion": "v1", "kind": "PersistentVolumeClaim", **claim})

    def manifest(self, name: str, entries: list[Object], headroom: str = "10%") -> Object:
        """One placement."""
        return {
            "apiVersion": API_VERSION,
            "kind": "ModelPlacement",
            "metadata": {"name": name, "namespace": MODELS},
            "spec": {"headroom": headroom, "models": entries},
        }

    def apply(self, name: str, entries: list[Object], headroom: str = "10%") -> None:
        """`kubectl apply` of one placement."""
        body = json.dumps(self.manifest(name, entries, headroom))
        self.world.lab.kubectl("apply", "--server-side", "-f", "-", input=body)

    def clear(self) -> None:
        """All placements gone, and their pods, and their memory."""
        with suppress(AssertionError):
            for item in self.world.lab.api.list(API_VERSION, "ModelPlacement", MODELS):
                self.world.lab.api.delete(API_VERSION, "ModelPlacement", item["metadata"]["name"], MODELS)
            self.world.until("no engines", lambda: not self.world.engines())
            self.world.until("no tenants", lambda: not any(gpu["tenants"] for gpu in self.world.gpus().values()), 30)

    def entry(self, name: str, model: str, share: str, *, eager: bool = True, **more: Any) -> Object:
        """One model of a placement, with random weights."""
        engine = {"loadFormat": "dummy", "maxModelLen": 4096, "cudaGraphs": {"enabled": not eager}}
        engine.update(more.pop("engine", {}))
        if self.stand_in:
            del engine["loadFormat"]
            more["resources"] = {"cpu": "50m", "memory": "64Mi"}
        return {"name": name, "uri": f"pvc://{CLAIM}/{model}", "share": share, "engine": engine, **more}

    def await_ready(self, name: str, seconds: float) -> None:
        """Ready, or an AssertionError with the state of things; the end of a failed engine's log is printed."""
        last = ""
        deadline = time.monotonic() + seconds
        while not self.world.is_ready(name):
            phases = ", ".join(f"{key} {each['phase']}" for key, each in self.world.replicas(name).items())
            if phases != last:
                self.say(f"  {name}: {phases}")
                last = phases
            if time.monotonic() > deadline:
                for pod in self.world.engines(name):
                    self.note(f"{pod}-log", self.log(pod))
                    print(self.log(pod)[-3000:], flush=True)
                raise AssertionError(f"{name} not Ready after {seconds:g} s\n{self.world.picture()}")
            time.sleep(0.5)

    # ----------------------------------------------------------------------------------------------------------- engines
    def log(self, pod: str) -> str:
        """What an engine wrote."""
        try:
            return self.world.lab.kubectl("logs", "-n", MODELS, pod)
        except KubectlError as error:
            return str(error)

    def flags(self, placement: str) -> dict[str, str]:
        """--gpu-memory-utilization of the live pods, by model."""
        found = {}
        for pod in self.world.engines(placement).values():
            args = pod["spec"]["containers"][0]["args"]
            found[pod["metadata"]["labels"]["cotenant.dev/model"]] = args[args.index("--gpu-memory-utilization") + 1]
        return found

    def started(self, placement: str) -> dict[str, float]:
        """Seconds from a pod's creation to Ready, by model."""
        found = {}
        for pod in self.world.engines(placement).values():
            ready = next(each for each in pod["status"]["conditions"] if each["type"] == "Ready")
            seconds = _seconds(ready["lastTransitionTime"]) - _seconds(pod["metadata"]["creationTimestamp"])
            found[pod["metadata"]["labels"]["cotenant.dev/model"]] = seconds
        return found

    def complete(self, placement: str) -> dict[str, int]:
        """Tokens of one completion of each model."""
        found = {}
        for name, pod in self.world.engines(placement).items():
            model = pod["metadata"]["labels"]["cotenant.dev/model"]
            path = f"api/v1/namespaces/{MODELS}/pods/{name}:8000/proxy/v1/completions"
            body = {"model": model, "prompt": "Cotenant", "max_tokens": 8, "ignore_eos": True}
            if self.stand_in:
                self.world.models_of(name)
                continue
            said = self.world.lab.api.request("POST", path, body)
            found[model] = int(said["usage"]["completion_tokens"])
        return found

    # --------------------------------------------------------------------------------------------------------- the card
    @contextmanager
    def stranger(self, gib: int) -> Iterator[tuple[int, int]]:
        """A program of nobody's that holds so much of the first card: its pid, and torch's total of that card."""
        with self.lurking(gib) as (pid, take):
            yield pid, take()

    @contextmanager
    def lurking(self, gib: int, card: str = "") -> Iterator[tuple[int, Callable[[], int]]]:
        """The same, that takes its memory only when told to, of the card named; telling gives torch's total."""
        words = [sys.executable, "-c", STRANGER, str(gib)]
        env = {**os.environ, **({"CUDA_VISIBLE_DEVICES": card} if card else {})}
        with subprocess.Popen(words, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            ours, theirs = process.stdin, process.stdout
            assert ours
            assert theirs

            def take() -> int:
                ours.write("\n")
                ours.flush()
                return int(theirs.readline())

            try:
                theirs.readline()
                yield process.pid, take
            finally:
                process.kill()

    def conditions(self, name: str) -> list[Object]:
        """A placement's conditions."""
        found: list[Object] = self.world.status(name).get("conditions", [])
        return found

    def gpu(self) -> Object:
        """What the agent says of the first card."""
        return self.world.gpus()[self.world.lab.gpus[0].uuid]


def say(began: float, text: str) -> None:
    """One line of progress."""
    print(f"{time.monotonic() - began:6.1f} s  {text}", flush=True)


def _seconds(text: str) -> float:
    return time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%SZ"))
