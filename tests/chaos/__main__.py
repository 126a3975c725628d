"""`make chaos`: every verdict and every upset against the real API server and controller; exit 1 where one went wrong."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from cotenant.core.oom.deaths import Kind
from tests.chaos import deaths, upsets
from tests.cluster.control_plane import ControlPlane
from tests.scenarios.stage import Stage
from tests.sim import GIB, ModelSpec, Sim

SPEED = 60
"""A start of 60 to 100 s takes 1 to 1.7; the controller's back-off of 10 s and more is real."""
MODELS = {"sim/tiny": ModelSpec(2 * GIB, 32_768, 8192)}
NOT_HERE = {
    Kind.STOPPED: "no fault: we deleted it",
    Kind.KILLED: "a kubelet's doing; tests/node",
    Kind.EVICTED: "a kubelet's doing; tests/node reboots one",
    Kind.IMAGE_MISSING: "the catalogue's image is good here; tests/node",
}
"""Verdicts this suite does not bring about, and why."""


def main() -> int:
    """Run both parts; print a row per fault."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--only", choices=["deaths", "upsets"])
    only = parser.parse_args().only
    begun = time.monotonic()
    bad = 0
    with (
        tempfile.TemporaryDirectory(prefix="cotenant-chaos-") as folder,
        ControlPlane.start(Path(folder)) as cluster,
        Sim(cluster.kubeconfig, seed=11, speed=SPEED, models=dict(MODELS)) as sim,
    ):
        stage = Stage(cluster, sim, node_grace="5", leader_election="false", holder_idle="2", hub_offline="true")
        stage.start_controller()
        if only != "upsets":
            bad += _deaths(stage)
        if only != "deaths":
            bad += _upsets(stage)
        if sim.audit.violations:
            print(sim.audit.report())
            bad += 1
    print(f"{time.monotonic() - begun:.0f} s; {bad} went wrong")
    return 1 if bad else 0


def _deaths(stage: Stage) -> int:
    found = deaths.run(stage)
    print(f"{'injected':<44} {'verdict':<26} {'remedies':<40} {'outcome':<8} seconds")
    for case in found:
        mark = "" if case.good else f"   <- expected {' or '.join(case.expected)}, then Ready or Failed"
        print(f"{case.injected:<44} {case.verdict:<26} {case.remedy:<40} {case.outcome:<8} {case.seconds:7.1f}{mark}")
    covered = {kind for case in found for kind in case.expected}
    missing = [kind for kind in Kind if kind not in covered and kind not in NOT_HERE]
    for kind, why in NOT_HERE.items():
        print(f"not here: {kind} ({why})")
    if missing:
        print(f"no fault brings about: {', '.join(missing)}")
    stage.clear(list(stage.sim.world.nodes))
    return sum(not case.good for case in found) + bool(missing)


def _upsets(stage: Stage) -> int:
    def show(upset: upsets.Upset) -> None:
        print(
            f"{upset.injected:<56} {'ok' if upset.good else 'WRONG':<6} {upset.seconds:6.1f} s  {upset.seen}",
            flush=True,
        )

    return sum(not upset.good for upset in upsets.run(stage, show))


if __name__ == "__main__":
    sys.exit(main())
