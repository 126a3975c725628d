"""What a decision changes in the cluster: what each write is about, and what the answer to a delete means."""

from __future__ import annotations

from cotenant.core.decision import Apply, Create, Delete, WriteStatus
from cotenant.core.snapshot import Manifest

Change = Create | Delete | Apply | WriteStatus


def subject(what: Change) -> tuple[str, str, str, str]:
    """(what is done, namespace, name, kind): one such write is under way at a time."""
    match what:
        case Create(manifest=manifest) | Apply(manifest=manifest):
            metadata = manifest["metadata"]
            return type(what).__name__, metadata["namespace"], metadata["name"], manifest["kind"]
        case Delete():
            return "Delete", what.namespace, what.name, what.kind
        case WriteStatus():
            return "WriteStatus", what.namespace, what.name, "ModelPlacement"


def is_gone(answer: Manifest) -> bool:
    """Whether the answer to a delete means that the object is no more, or that it only began to leave."""
    if answer.get("kind") == "Status":
        return True
    metadata = answer.get("metadata") or {}
    waits = metadata.get("deletionGracePeriodSeconds") or metadata.get("finalizers")
    return "deletionTimestamp" not in metadata or not waits
