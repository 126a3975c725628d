"""Acting on the real API server: what is answered enters the cache, and every failure is its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import pytest_asyncio

from cotenant.api.placement import parse
from cotenant.controller import records
from cotenant.controller.act import Act
from cotenant.controller.cache import Cache
from cotenant.controller.sources import PLACEMENTS, PODS, SERVICES, sources
from cotenant.core.decision import Apply, Create, Decision, Delete, Emit, WriteStatus
from cotenant.core.demand import demand
from cotenant.core.memo import Memo
from cotenant.core.names import HASH_ANNOTATION, MANAGED_BY_LABEL, MODEL_LABEL, STATUS_MANAGER
from cotenant.core.pod import service
from cotenant.core.services import services
from cotenant.core.snapshot import Manifest, Policy
from cotenant.kube import Kube
from tests.cluster.control_plane import ControlPlane
from tests.controller.builders import Body, engine_pod, placement


@dataclass
class World:
    """What a test acts with."""

    kube: Kube
    cache: Cache
    act: Act
    namespace: str
    rings: list[float] = field(default_factory=list)

    async def do(self, **decision: Any) -> Any:
        """Carry out a decision and wait for all of it."""
        outcome = await self.act.carry_out(Decision(**decision), self.cache.snapshot(time.time()))
        await self.act.outbox.drained()
        return outcome

    def create(self, name: str = "sparrow-mistral-0", **spec: Any) -> Create:
        """The wish for one pod."""
        pod = engine_pod(name, self.namespace)
        labels, annotations = pod["metadata"]["labels"], pod["metadata"]["annotations"]
        metadata = {"name": name, "namespace": self.namespace, "labels": labels, "annotations": annotations}
        containers = [{"name": "engine", "image": "localhost/x", "resources": {"requests": {"cpu": "1"}}}]
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": containers, **spec}}
        return Create(body, "Starting")

    def pods(self) -> list[str]:
        """Names of the pods a pass would see."""
        return [pod.name for pod in self.cache.snapshot(0).pods]

    async def events(self) -> list[Body]:
        """Events about placements."""
        found = await self.kube.list("events.k8s.io/v1", "Event", self.namespace)
        return [event for event in found if event["regarding"]["kind"] == "ModelPlacement"]


@pytest_asyncio.fixture
async def world(kube: Kube, namespace: str) -> AsyncIterator[World]:
    cache = Cache(sources(Policy()), Policy())
    rings: list[float] = []
    act = Act(kube, cache, 16, "test", rings.append)
    yield World(kube, cache, act, namespace, rings)
    await act.stop()


async def test_a_created_pod_is_known_before_any_news_of_it(world: World) -> None:
    await world.do(creates=(world.create(),))

    assert world.pods() == ["sparrow-mistral-0"]


async def test_a_pod_that_is_there_already_is_read_and_never_made_twice(world: World) -> None:
    await world.do(creates=(world.create(),))
    forgetful = Act(world.kube, Cache(sources(Policy()), Policy()), 4, "another", world.rings.append)

    outcome = await forgetful.carry_out(Decision(creates=(world.create(),)), world.cache.snapshot(0))

    assert outcome.failed == 0
    assert len(await world.kube.list("v1", "Pod", world.namespace)) == 1
    await forgetful.stop()


async def test_a_strangers_pod_in_the_way_is_left_alone_and_told(world: World) -> None:
    create = world.create()
    stranger = {**create.manifest, "metadata": {"name": "sparrow-mistral-0", "namespace": world.namespace}}
    await world.kube.create(stranger)

    await world.do(creates=(create,))

    assert world.pods() == []
    ((_, pod, message),) = world.cache.snapshot(0).refusals
    assert pod == "sparrow-mistral-0"
    assert "not Cotenant's" in message


async def test_a_delete_is_of_this_very_pod(world: World) -> None:
    await world.do(creates=(world.create(),))
    (pod,) = world.cache.snapshot(0).pods

    await world.do(deletes=(Delete(world.namespace, pod.name, "another-uid", "Drift"),))
    assert len(await world.kube.list("v1", "Pod", world.namespace)) == 1

    await world.do(deletes=(Delete(world.namespace, pod.name, pod.uid, "Drift", grace_seconds=0),))
    assert world.pods() == []
    assert await world.kube.list("v1", "Pod", world.namespace) == []


async def test_deleting_what_is_gone_is_no_failure(world: World) -> None:
    world.cache.put(PODS, engine_pod(namespace=world.namespace))

    outcome = await world.do(deletes=(Delete(world.namespace, "sparrow-mistral-0", "u1", "Drift"),))

    assert outcome.failed == 0
    assert world.pods() == []


async def test_a_quota_is_told_in_its_own_words_and_asked_again_once_it_allows(world: World) -> None:
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "small", "namespace": world.namespace},
        "spec": {"hard": {"requests.cpu": "0"}},
    }
    await world.kube.create(quota)
    await _quota_counts(world, "0")

    outcome = await world.do(creates=(world.create(),))

    ((_, _, message),) = world.cache.snapshot(0).refusals
    assert "exceeded quota: small" in message
    assert outcome.retry_in is not None
    assert world.rings, "a refusal is news for the next pass"
    asked_at_once = await world.do(creates=(world.create(),))
    assert asked_at_once.retry_in is not None, "the same is not asked again before its pause is over"

    await world.kube.delete("v1", "ResourceQuota", "small", world.namespace)
    deadline = time.monotonic() + 20
    while not world.pods() and time.monotonic() < deadline:
        await asyncio.sleep(0.3)
        await world.do(creates=(world.create(),))
    assert world.pods() == ["sparrow-mistral-0"]
    assert world.cache.snapshot(0).refusals == ()


async def _quota_counts(world: World, hard: str) -> None:
    """The quota is enforced from when its controller has seen it."""
    while True:
        found = await world.kube.get("v1", "ResourceQuota", "small", world.namespace)
        if found.get("status", {}).get("hard", {}).get("requests.cpu") == hard:
            return
        await asyncio.sleep(0.05)


async def test_a_refused_pod_that_finds_no_place_is_asked_about_without_being_made(world: World) -> None:
    quota = {"metadata": {"name": "small", "namespace": world.namespace}, "spec": {"hard": {"requests.cpu": "0"}}}
    await world.kube.create({"apiVersion": "v1", "kind": "ResourceQuota", **quota})
    await _quota_counts(world, "0")
    await world.do(creates=(world.create(),))
    wanted = ((world.namespace, "sparrow-mistral-0"),)

    deadline = time.monotonic() + 3
    while time.monotonic() < deadline:
        await asyncio.sleep(0.3)
        outcome = await world.do(refused=wanted)
        assert outcome.retry_in is not None
    assert len(world.cache.snapshot(0).refusals) == 1, "it is remembered while it is wanted"

    await world.kube.delete("v1", "ResourceQuota", "small", world.namespace)
    deadline = time.monotonic() + 20
    while world.cache.snapshot(0).refusals and time.monotonic() < deadline:
        await asyncio.sleep(0.3)
        await world.do(refused=wanted)
    assert world.cache.snapshot(0).refusals == ()
    assert world.pods() == []
    assert await world.kube.list("v1", "Pod", world.namespace) == []


async def test_pod_security_that_refuses_is_told(world: World) -> None:
    enforce = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
    await world.kube.merge("v1", "Namespace", world.namespace, enforce)

    await world.do(creates=(world.create(),))

    ((_, _, message),) = world.cache.snapshot(0).refusals
    assert "PodSecurity" in message


async def test_one_failure_leaves_the_others_alone(world: World) -> None:
    bad = Create({**world.create().manifest, "spec": {"containers": []}}, "Starting")
    good = world.create("sparrow-mistral-1")

    await world.do(creates=(bad, good))

    assert world.pods() == ["sparrow-mistral-1"]
    assert len(world.cache.snapshot(0).refusals) == 1


async def test_an_answer_that_cannot_be_read_stops_nobody_else(world: World) -> None:
    def read(body: Body) -> object:
        if body["metadata"]["name"] == "sparrow-mistral-0":
            raise KeyError("a field that was always there")
        return records.pod(body)

    world.cache.shelves[PODS].source = replace(world.cache.shelves[PODS].source, read=read)

    outcome = await world.do(creates=(world.create(), world.create("sparrow-mistral-1")))

    assert outcome.failed == 1
    assert world.pods() == ["sparrow-mistral-1"]


async def test_a_status_is_ours_by_name_and_never_lands_on_a_successor(world: World) -> None:
    wish = {**placement(), "metadata": {"name": "sparrow", "namespace": world.namespace}}
    made = await world.kube.create(wish)
    world.cache.put(PLACEMENTS, made)
    status = WriteStatus(world.namespace, "sparrow", {"observedGeneration": 1, "summary": "0/1"})

    await world.do(statuses=(status,))

    live = await world.kube.get("cotenant.dev/v1alpha1", "ModelPlacement", "sparrow", world.namespace)
    assert {m["manager"] for m in live["metadata"]["managedFields"] if "f:status" in m["fieldsV1"]} == {STATUS_MANAGER}
    assert world.cache.snapshot(0).placements[0].status.observed_generation == 1

    await world.kube.delete("cotenant.dev/v1alpha1", "ModelPlacement", "sparrow", world.namespace)
    await world.kube.create(wish)
    await world.do(statuses=(WriteStatus(world.namespace, "sparrow", {"observedGeneration": 1, "summary": "9/9"}),))
    successor = await world.kube.get("cotenant.dev/v1alpha1", "ModelPlacement", "sparrow", world.namespace)
    assert "status" not in successor


async def test_a_service_is_applied_and_known(world: World) -> None:
    metadata = {
        "name": "sparrow-mistral",
        "namespace": world.namespace,
        "labels": {"app.kubernetes.io/managed-by": "cotenant"},
        "annotations": {"cotenant.dev/hash": "v1-1"},
    }
    spec = {"selector": {"cotenant.dev/model": "mistral"}, "ports": [{"name": "http", "port": 80}]}
    service = {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}

    await world.do(applies=(Apply(service, "Service"),))
    assert world.cache.snapshot(0).services[0].hash == "v1-1"

    delete = Delete(world.namespace, "sparrow-mistral", "", "ModelRemoved", kind="Service")
    await world.do(deletes=(delete,))
    assert world.cache.shelves[SERVICES].records() == ()


async def chat(world: World) -> tuple[Body, Manifest]:
    """A placement `chat` with one model `mistral`, and the Service that belongs to it."""
    body = await world.kube.create({**placement(), "metadata": {"name": "chat", "namespace": world.namespace}})
    (wanted,) = demand((parse(body),), Policy(), Memo()).wanted
    return body, service(wanted)


async def theirs(world: World, **spec: Any) -> Body:
    """Somebody's Service that has the name of ours."""
    metadata = {"name": "chat-mistral", "namespace": world.namespace}
    spec = {"selector": {"app": "web"}, "ports": [{"name": "web", "port": 80, "targetPort": 9000}]} | spec
    return await world.kube.create({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec})


async def test_a_service_of_somebody_else_is_left_alone_and_told(world: World) -> None:
    _, ours = await chat(world)
    before = await theirs(world)

    await world.do(applies=(Apply(ours, "Service"),))

    now = await world.kube.get("v1", "Service", "chat-mistral", world.namespace)
    assert (now["spec"], now["metadata"]) == (before["spec"], before["metadata"])
    assert world.rings, "a refusal is news for the next pass"
    await world.do(applies=(Apply(ours, "Service"),))
    ((_, name, message),) = world.cache.snapshot(0).refused_services
    assert (name, world.cache.snapshot(0).refusals) == ("chat-mistral", ())
    assert "not Cotenant's; delete it, or rename the model or the placement" in message


async def test_a_service_is_made_once_the_one_in_its_way_is_gone(world: World) -> None:
    body, ours = await chat(world)
    await theirs(world)
    await world.do(applies=(Apply(ours, "Service"),))
    await world.kube.delete("v1", "Service", "chat-mistral", world.namespace)

    deadline = time.monotonic() + 20
    while not world.cache.snapshot(0).services and time.monotonic() < deadline:
        await asyncio.sleep(0.3)
        await world.do(applies=(Apply(ours, "Service"),))
    await world.do()

    assert world.cache.snapshot(0).services[0].owner_uid == body["metadata"]["uid"]
    assert world.cache.snapshot(0).refused_services == ()


async def test_a_service_of_ours_whose_label_was_stripped_is_ours_again(world: World) -> None:
    _, ours = await chat(world)
    await world.do(applies=(Apply(ours, "Service"),))
    stripped = {"metadata": {"labels": {MANAGED_BY_LABEL: None}}}
    world.cache.remove(SERVICES, await world.kube.merge("v1", "Service", "chat-mistral", stripped, world.namespace))

    await world.do(applies=(Apply(ours, "Service"),))

    now = await world.kube.get("v1", "Service", "chat-mistral", world.namespace)
    assert now["metadata"]["labels"] == ours["metadata"]["labels"]
    assert world.cache.snapshot(0).services


async def test_a_service_of_ours_that_was_left_to_nobody_is_ours_again(world: World) -> None:
    body, ours = await chat(world)
    await world.kube.create({**ours, "metadata": {**ours["metadata"], "ownerReferences": []}})

    await world.do(applies=(Apply(ours, "Service"),))

    assert world.cache.snapshot(0).services[0].owner_uid == body["metadata"]["uid"]


async def test_a_service_of_a_placement_that_was_deleted_is_waited_for(world: World) -> None:
    _, ours = await chat(world)
    (owner,) = ours["metadata"]["ownerReferences"]
    # the finalizer keeps the garbage collector from being faster than this test
    left = {"ownerReferences": [{**owner, "uid": "old"}], "finalizers": ["example.org/held"]}
    await world.kube.create({**ours, "metadata": {**ours["metadata"], **left}})

    await world.do(applies=(Apply(ours, "Service"),))
    await world.do(applies=(Apply(ours, "Service"),))

    ((_, _, message),) = world.cache.snapshot(0).refused_services
    assert "it is made anew once that is gone" in message


@pytest.mark.parametrize(
    "edit",
    [
        {"selector": {"app": "web"}},
        {"ports": [{"name": "http", "port": 80, "targetPort": 9000}]},
        {"ports": [{"name": "http", "port": 8080, "targetPort": "http"}]},
    ],
)
async def test_a_service_that_was_edited_by_hand_is_put_right(world: World, edit: dict[str, Any]) -> None:
    body, ours = await chat(world)
    await world.do(applies=(Apply(ours, "Service"),))
    demands, memo = demand((parse(body),), Policy(), Memo()), Memo()
    assert services(world.cache.snapshot(0), demands, memo) == ()
    patch = {"spec": {"selector": {MODEL_LABEL: None}} | edit}
    world.cache.put(SERVICES, await world.kube.merge("v1", "Service", "chat-mistral", patch, world.namespace))

    applies = services(world.cache.snapshot(0), demands, memo)
    await world.do(applies=applies)

    assert applies
    assert services(world.cache.snapshot(0), demands, memo) == ()
    now = await world.kube.get("v1", "Service", "chat-mistral", world.namespace)
    assert (now["spec"]["selector"], now["spec"]["ports"]) == (ours["spec"]["selector"], ours["spec"]["ports"])


async def test_a_service_costs_one_request(world: World) -> None:
    _, ours = await chat(world)
    asked: list[tuple[str, str]] = []
    world.kube.on_request = lambda verb, kind, _status, _seconds: asked.append((verb, kind))

    await world.do(applies=(Apply(ours, "Service"),))
    changed = {**ours, "metadata": {**ours["metadata"], "annotations": {HASH_ANNOTATION: "v2-1"}}}
    await world.do(applies=(Apply(changed, "Service"),))

    assert asked == [("POST", "Service"), ("PATCH", "Service")]


async def test_equal_events_are_counted_and_not_repeated(world: World) -> None:
    event = Emit(world.namespace, "sparrow", "uid-1", "Warning", "Unplaced", "needs 90Gi, the emptiest GPU has 80Gi")
    for _ in range(5):
        await world.do(events=(event,))
    await world.do(events=(Emit(world.namespace, "sparrow", "uid-1", "Normal", "Ready", "serves"),))

    found = await world.events()

    assert sorted(event["reason"] for event in found) == ["Ready", "Unplaced"]
    assert all(event["reportingController"] == "cotenant.dev/controller" for event in found)


async def test_what_waits_to_be_sent_is_taken_back_by_the_next_pass(world: World) -> None:
    for name in ("first", "sparrow"):
        wish = {**placement(), "metadata": {"name": name, "namespace": world.namespace}}
        world.cache.put(PLACEMENTS, await world.kube.create(wish))
    asked: list[str] = []
    world.kube.on_request = lambda verb, _kind, _status, _seconds: asked.append(verb)
    world.act.outbox.urgent(True)  # one at a time remains
    seen = world.cache.snapshot(0)

    for n in range(3):
        statuses = [WriteStatus(world.namespace, name, {"summary": f"{n}/9"}) for name in ("first", "sparrow")]
        await world.act.carry_out(Decision(statuses=tuple(statuses[n > 0 :])), seen)
    world.act.outbox.urgent(False)
    await world.act.outbox.drained()

    live = await world.kube.get("cotenant.dev/v1alpha1", "ModelPlacement", "sparrow", world.namespace)
    assert live["status"]["summary"] == "2/9"
    assert asked == ["PATCH", "PATCH", "GET"], "the first one's, and of the other only the last"


async def test_a_status_is_never_written_onto_one_that_is_newer_than_its_decision(world: World) -> None:
    wish = {**placement(), "metadata": {"name": "sparrow", "namespace": world.namespace}}
    body = await world.kube.create(wish)
    world.cache.put(PLACEMENTS, body)
    seen = world.cache.snapshot(0)
    identity = {"apiVersion": body["apiVersion"], "kind": body["kind"], "metadata": wish["metadata"]}
    other = await world.kube.apply_status({**identity, "status": {"summary": "another's"}}, STATUS_MANAGER)
    world.cache.put(PLACEMENTS, other)  # its news comes while the decision is being made

    stale = Decision(statuses=(WriteStatus(world.namespace, "sparrow", {"summary": "stale"}),))
    await world.act.carry_out(stale, seen)
    await world.act.outbox.drained()

    now = await world.kube.get(body["apiVersion"], body["kind"], "sparrow", world.namespace)
    assert now["status"]["summary"] == "another's"
    assert world.rings, "it is decided anew"


async def test_what_changes_nothing_that_counts_outdates_no_status(world: World) -> None:
    wish = {**placement(), "metadata": {"name": "sparrow", "namespace": world.namespace}}
    body = await world.kube.create(wish)
    world.cache.put(PLACEMENTS, body)
    seen = world.cache.snapshot(0)
    noted = {"metadata": {"annotations": {"example.org/note": "x"}}}
    world.cache.put(
        PLACEMENTS, await world.kube.merge(body["apiVersion"], body["kind"], "sparrow", noted, world.namespace)
    )

    await world.act.carry_out(Decision(statuses=(WriteStatus(world.namespace, "sparrow", {"summary": "0/1"}),)), seen)
    await world.act.outbox.drained()

    now = await world.kube.get(body["apiVersion"], body["kind"], "sparrow", world.namespace)
    assert now["status"]["summary"] == "0/1"


async def test_a_right_that_is_missing_is_not_asked_for_at_every_pass(world: World, with_crds: ControlPlane) -> None:
    powerless = with_crds.service_account_kubeconfig(world.namespace, "default")
    asked: list[str] = []
    async with await Kube.connect(str(powerless)) as kube:
        kube.on_request = lambda verb, _kind, _status, _seconds: asked.append(verb)
        act = Act(kube, world.cache, 4, "powerless", world.rings.append)
        wishes = Decision(
            creates=(world.create(),),
            deletes=(Delete(world.namespace, "sparrow-mistral", "", "ModelRemoved", kind="Service"),),
            statuses=(WriteStatus(world.namespace, "sparrow", {"summary": "0/1"}),),
        )
        outcomes = []
        for _ in range(5):
            outcomes.append(await act.carry_out(wishes, world.cache.snapshot(0)))
            await act.outbox.drained()
        await act.stop()

    assert sorted(asked) == ["DELETE", "PATCH", "POST"]
    assert all(outcome.retry_in is not None for outcome in outcomes[1:])
    ((_, _, message),) = world.cache.snapshot(0).refusals
    assert "cannot create resource" in message


async def test_a_create_without_an_answer_is_looked_up_before_anything_else_is_done(world: World) -> None:
    await world.do(creates=(world.create(),))
    forgetful = Cache(sources(Policy()), Policy())
    act = Act(world.kube, forgetful, 4, "another", world.rings.append)
    act._unknown.add((world.namespace, "sparrow-mistral-0"))

    outcome = await act.carry_out(Decision(creates=(world.create("sparrow-mistral-1"),)), forgetful.snapshot(0))
    await act.stop()

    assert outcome.failed, "it was decided without knowing of the pod"
    assert [pod.name for pod in forgetful.snapshot(0).pods] == ["sparrow-mistral-0"]
    assert len(await world.kube.list("v1", "Pod", world.namespace)) == 1
