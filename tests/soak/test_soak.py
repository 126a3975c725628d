"""A few hundred of the histories that `make soak` runs by the ten thousand, and that the laws can be broken at all."""

from __future__ import annotations

import pytest

from cotenant.controller.sources import PLACEMENTS, PODS
from cotenant.core.share import GIB
from tests.soak.history import BEGIN, History
from tests.soak.laws import Broken, check_step
from tests.soak.physics import Physics
from tests.soak.store import Store


@pytest.mark.parametrize("first", range(0, 200, 20))
def test_histories_keep_every_law_and_come_to_rest(first: int) -> None:
    broken = [outcome for seed in range(first, first + 20) if (outcome := History(seed).run()).broken]

    assert not broken, "\n".join(f"python -m tests.soak --seed {outcome.seed}: {outcome.broken}" for outcome in broken)


def test_a_history_depends_on_its_seed_alone() -> None:
    assert History(7).run() == History(7).run()


def _physics() -> Physics:
    from random import Random

    physics = Physics(Store(), Random(1), BEGIN)
    physics.add_machine("n0", 1, 24 * GIB)
    return physics


def _pod(physics: Physics, name: str, gib: int, owner: str = "gone") -> None:
    given = f'{{"node": "n0", "gpus": ["GPU-n0-0"], "bytes": {gib * GIB}, "utilization": "0.5"}}'
    meta = {
        "namespace": "ns",
        "name": name,
        "labels": {"cotenant.dev/role": "engine", "cotenant.dev/model": name[2:3], "cotenant.dev/replica": "0"},
        "ownerReferences": [{"uid": owner}],
        "annotations": {"cotenant.dev/allocation": given},
    }
    physics.store.create(PODS, {"metadata": meta, "spec": {}, "status": {"phase": "Pending"}}, BEGIN)


def test_the_laws_notice_two_starts_on_one_gpu() -> None:
    physics = _physics()
    _pod(physics, "a-m-0", 4)
    check_step(physics)
    _pod(physics, "b-m-0", 4)

    with pytest.raises(Broken, match="start together"):
        check_step(physics)


def test_the_laws_notice_a_gpu_promised_twice() -> None:
    physics = _physics()
    _pod(physics, "a-m-0", 30)

    with pytest.raises(Broken, match="promised"):
        check_step(physics)


def test_the_laws_notice_a_twin() -> None:
    physics = _physics()
    spec = {"models": [], "rollout": {"strategy": "Recreate"}}
    wish = physics.store.create(PLACEMENTS, {"metadata": {"namespace": "ns", "name": "a"}, "spec": spec}, BEGIN)
    _pod(physics, "a-m-0", 4, wish["metadata"]["uid"])
    physics.remove_machine("n0")  # where two starts would be noticed first
    _pod(physics, "a-m-0-b", 4, wish["metadata"]["uid"])

    with pytest.raises(Broken, match="a-m-0 and a-m-0-b are twins"):
        check_step(physics)


def test_the_laws_notice_a_replica_left_without_a_word() -> None:
    physics = _physics()
    silent = {"models": [{"name": "m", "replicas": [{"index": 0, "phase": "Unplaced", "reason": "", "message": ""}]}]}
    placement = {
        "metadata": {"namespace": "ns", "name": "a"},
        "spec": {"models": [], "rollout": {"strategy": "Recreate"}},
    }
    physics.store.create(PLACEMENTS, {**placement, "status": silent}, BEGIN)

    with pytest.raises(Broken, match="a-m-0 is Unplaced without a reason"):
        check_step(physics)
