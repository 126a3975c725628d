"""What people do by hand to what the controller made: pods deleted, copied, stripped and relabelled, a quota in the way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cotenant.controller.sources import PLACEMENTS, PODS, SERVICES
from tests.soak.store import ExistsError

if TYPE_CHECKING:
    from tests.soak.history import History


def delete_pod(history: History) -> str:
    pods = history.store.all(PODS)
    if not pods:
        return ""
    pod = history.rng.choice(pods)
    history.physics.ask_to_leave(pod)
    return f"deletes pod {pod['metadata']['name']} by hand"


def strip_pod(history: History) -> str:
    """Somebody takes off what a pod was given."""
    named = [(uid, history.store.get(PODS, engine.key)) for uid, engine in history.physics.engines.items()]
    pods = [pod for uid, pod in named if pod and pod["metadata"]["uid"] == uid]
    there = [pod for pod in pods if "cotenant.dev/allocation" in pod["metadata"]["annotations"]]
    if not there:
        return ""
    pod = history.rng.choice(there)
    kept = {key: text for key, text in pod["metadata"]["annotations"].items() if not key.endswith("/allocation")}
    history.store.put(PODS, {**pod, "metadata": {**pod["metadata"], "annotations": kept}})
    return f"strips pod {pod['metadata']['name']} of its allocation"


def delete_service(history: History) -> str:
    services = history.store.all(SERVICES)
    if not services:
        return ""
    meta = history.rng.choice(services)["metadata"]
    history.store.drop(SERVICES, (meta["namespace"], meta["name"]))
    return f"deletes Service {meta['name']} by hand"


def copy_pod(history: History) -> str:
    pods = [p for p in history.store.all(PODS) if "cotenant.dev/allocation" in p["metadata"].get("annotations", {})]
    if not pods:
        return ""
    pod = history.rng.choice(pods)
    meta = {key: pod["metadata"][key] for key in ("namespace", "labels", "annotations", "ownerReferences")}
    copy = {
        "metadata": {**meta, "name": pod["metadata"]["name"] + "-copy"},
        "spec": {**pod["spec"], "nodeName": None},
    }
    try:
        history.store.create(PODS, {**copy, "status": {"phase": "Pending"}}, history.physics.now)
    except ExistsError:
        return ""
    history.physics.copies.add(pod["metadata"]["name"] + "-copy")
    return f"copies pod {pod['metadata']['name']}"


def relabel_pod(history: History) -> str:
    """Somebody gives a pod of ours another model or another number, or takes it out of its placement."""
    pods = _engines(history)
    if not pods:
        return ""
    pod = history.rng.choice(pods)
    label, value = history.rng.choice((("model", "canary"), ("replica", "7"), ("placement", "old")))
    labels = {**pod["metadata"]["labels"], f"cotenant.dev/{label}": value}
    history.store.put(PODS, {**pod, "metadata": {**pod["metadata"], "labels": labels}})
    return f"labels pod {pod['metadata']['name']} {label}={value} by hand"


def set_quota(history: History) -> str:
    """A namespace takes no more pods, or does again."""
    namespace = history.rng.choice(("team-a", "team-b"))
    if namespace in history.physics.full:
        history.physics.full.discard(namespace)
        return f"{namespace} has its quota back"
    history.physics.full.add(namespace)
    return f"{namespace} has no quota left"


def hold_deletion(history: History) -> str:
    """A placement is deleted, and somebody's finalizer keeps it; or lets it go."""
    placements = history.store.all(PLACEMENTS)
    if not placements:
        return ""
    body = history.rng.choice(placements)
    meta = body["metadata"]
    if "deletionTimestamp" in meta:
        history.store.drop(PLACEMENTS, (meta["namespace"], meta["name"]))
        return f"{meta['name']} is let go"
    held = {**meta, "deletionTimestamp": meta["creationTimestamp"], "finalizers": ["example.org/held"]}
    history.store.put(PLACEMENTS, {**body, "metadata": held})
    return f"deletes {meta['name']}, which a finalizer holds"


def _engines(history: History) -> list[dict[str, Any]]:
    """Pods with an engine, dead ones too."""
    return [
        pod
        for pod in history.store.all(PODS)
        if pod["metadata"]["labels"].get("cotenant.dev/role") == "engine"
        and pod["metadata"]["name"] not in history.physics.copies
    ]
