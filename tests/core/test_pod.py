"""The pod of a replica: what is mounted, what a change of the wish means, and what restarts nobody."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cotenant.core.demand import Wanted
from cotenant.core.injection import inject
from cotenant.core.names import HASH_ANNOTATION
from cotenant.core.pod import engine_pod
from cotenant.core.share import GIB
from cotenant.core.snapshot import Allocation, Manifest, Model
from tests.core.builders import POLICY, model, placement

PLACE = Allocation("n1", ("GPU-a",), 32 * GIB, "0.40")


def made(of: Model) -> Manifest:
    """The pod of its first replica."""
    return engine_pod(Wanted(placement("p", of), of, 0), 0, PLACE, POLICY, inject("env", PLACE.gpus, "engine"))


def mounted(pod: Manifest) -> dict[str, Manifest]:
    """Path in the engine's container -> the volume there."""
    volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
    return {
        mount["mountPath"]: volumes[mount["name"]] | mount for mount in pod["spec"]["containers"][0]["volumeMounts"]
    }


def hub_home(pod: Manifest) -> str:
    return next(str(e["value"]) for e in pod["spec"]["containers"][0]["env"] if e["name"] == "HF_HOME")


def test_what_comes_from_the_hub_is_kept_in_the_claim_that_is_named_for_it() -> None:
    pod = made(model("chat", cache_claim="hub-cache"))

    kept = mounted(pod)[hub_home(pod)]
    assert kept["persistentVolumeClaim"] == {"claimName": "hub-cache"}
    assert not kept.get("readOnly")
    # a mount below another is made by root: nothing beside it could be written
    assert not hub_home(pod).startswith("/tmp")


def test_without_a_claim_it_is_gone_with_the_pod() -> None:
    pod = made(model("chat"))

    assert hub_home(pod).startswith("/tmp/")
    assert "emptyDir" in mounted(pod)["/tmp"]
    assert not [volume for volume in pod["spec"]["volumes"] if "persistentVolumeClaim" in volume]


def test_a_claim_set_changed_or_removed_is_another_wish() -> None:
    hashes = {
        made(model("chat", cache_claim=claim))["metadata"]["annotations"][HASH_ANNOTATION] for claim in (None, "a", "b")
    }

    assert len(hashes) == 3


@pytest.mark.parametrize(
    ("wish", "written"),
    [
        (model("chat"), "v1-bb620982e3205382"),
        (
            replace(model("chat", token_secret="hf"), uri="hf://org/chat@main", tensor_parallel=1, cpu=2000),
            "v1-49b628b26fd3293e",
        ),
    ],
    ids=["plain", "with more set"],
)
def test_an_upgrade_restarts_nobody(wish: Model, written: str) -> None:
    """The hashes are those of the first version that wrote them: whoever changes one restarts every engine there is."""
    assert made(wish)["metadata"]["annotations"][HASH_ANNOTATION] == written


def test_karpenter_is_asked_to_leave_the_node_of_an_engine() -> None:
    assert made(model("chat"))["metadata"]["annotations"]["karpenter.sh/do-not-disrupt"] == "true"
