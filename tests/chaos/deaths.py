"""Every death of the corpus, each on a node of its own and all at once: verdict, remedy, seconds to Ready or to the honest Failed."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from cotenant.core.oom.deaths import Kind
from tests.core import corpus
from tests.scenarios.stage import Stage, model

H100 = "NVIDIA-H100-80GB-HBM3"
PATIENCE = 420.0
"""Seconds for all together: mostly the controller's real back-offs, and a minute until a pod that hangs gives up its turn."""
ALLOWED = {"allow": ["ReduceContext", "ReduceBatch", "GrowShare", "Move"], "maxShare": "90%", "maxAttempts": 4}


@dataclass
class Case:
    """One fault and what was seen of it."""

    name: str
    injected: str
    expected: tuple[Kind, ...]
    fault: str = ""
    """For the next start of its pod, or, with `at_run_time`, for the engine that serves."""
    at_run_time: bool = False
    spec: dict[str, Any] = field(default_factory=dict)
    verdict: str = ""
    remedy: str = ""
    outcome: str = ""
    seconds: float = 0.0

    @property
    def good(self) -> bool:
        """The right verdict, and either it serves again or it says that it gave up."""
        return self.verdict in self.expected and self.outcome in ("Ready", "Failed", "Told")


def cases() -> list[Case]:
    """One per text of the corpus, and those that have no text."""
    found = []
    for name, kind in (corpus.STARTS | corpus.REFUSED).items():
        code = 2 if name in corpus.REFUSED else 1
        found.append(Case(name, f"start dies: {name}", (kind,), f"says={code} {corpus.log(name)}"))
    for name, kind in corpus.RUNS.items():
        found.append(Case(f"run-{name}", f"dies serving: {name}", (kind,), f"says=0 {corpus.log(name)}", True))
    found += [
        Case("host-oom", "kernel kills it (137)", (Kind.HOST_OUT_OF_MEMORY,), "oom-killed", True),
        Case("no-secret", "Secret missing", (Kind.SECRET_MISSING,), spec={"tokenSecret": "not-there"}),
        Case("no-claim", "claim missing", (Kind.VOLUME_MISSING, Kind.UNSCHEDULABLE), spec={"uri": "pvc://not-there/x"}),
    ]
    return found


def run(stage: Stage) -> list[Case]:
    """All of them at once; returns when each serves, has given up, or patience is over."""
    stage.new_namespace("deaths")
    todo = cases()
    for number, case in enumerate(todo):
        node = f"d{number}"
        stage.sim.add_node(node, H100, 2)
        if case.fault and not case.at_run_time:
            stage.sim.on_start(f"deaths/c{number}-m-*", case.fault, after=20.0)
    begun: dict[int, float] = {}
    for number, case in enumerate(todo):
        begun[number] = time.time()  # the first dies before the last is applied
        entry = model("m", "40%", onOutOfMemory=ALLOWED, **case.spec)
        stage.apply(f"c{number}", entry, nodes={"names": [f"d{number}"]})
    waiting = {number for number, case in enumerate(todo) if case.at_run_time}
    left = set(range(len(todo)))
    deadline = time.monotonic() + PATIENCE
    while left and time.monotonic() < deadline:
        placements = {
            p["metadata"]["name"]: p for p in stage.api.list("cotenant.dev/v1alpha1", "ModelPlacement", "deaths")
        }
        for number in sorted(left):
            entry = _entry(placements.get(f"c{number}", {}))
            if number in waiting:
                if _phase(entry) == "Ready":
                    stage.sim.fault(f"deaths/c{number}-m-0", todo[number].fault)
                    begun[number] = time.time()
                    waiting.discard(number)
            elif _look(todo[number], entry, begun[number]):
                left.discard(number)
        time.sleep(0.3)
    return todo


def _entry(placement: dict[str, Any]) -> dict[str, Any]:
    models = (placement.get("status") or {}).get("models") or [{}]
    found: dict[str, Any] = models[0]
    return found


def _phase(entry: dict[str, Any]) -> str:
    return str((entry.get("replicas") or [{}])[0].get("phase", ""))


def _look(case: Case, entry: dict[str, Any], begun: float) -> bool:
    fault = (entry.get("faults") or [{}])[0]
    if not case.verdict and fault.get("reason") and _unix(fault["times"][-1]) >= int(begun):
        case.verdict = fault["reason"]
    if fault and case.verdict:
        case.remedy = "+".join(fault.get("remedies") or ()) or case.remedy
    if not case.verdict:
        return False
    phase = _phase(entry)
    if phase in ("Ready", "Failed"):
        case.outcome, case.seconds = phase, time.time() - begun
        return True
    if case.spec:  # nobody creates what is missing: saying so is the end
        case.outcome, case.seconds = "Told", time.time() - begun
        return True
    return False


def _unix(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
