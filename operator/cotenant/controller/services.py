"""How one Service is written: made where it is missing, put right where it is ours, left alone where it is somebody else's."""

from __future__ import annotations

from cotenant import metrics
from cotenant.controller.records import owner_uid
from cotenant.core.names import MANAGED_BY, MANAGED_BY_LABEL
from cotenant.core.snapshot import Manifest
from cotenant.errors import AlreadyExists, Refused
from cotenant.kube import Kube

INVALID = 422
"""HTTP's answer to what cannot be, whoever asks."""


async def make(kube: Kube, wanted: Manifest) -> Manifest:
    """One that is not known to be there; Refused where its name is taken."""
    try:
        return await kube.create(wanted)
    except AlreadyExists:
        metrics.WRITES.labels("apply", "Service", "exists").inc()
    metadata = wanted["metadata"]
    there = await kube.get("v1", "Service", metadata["name"], metadata["namespace"])
    if why := _taken(there, wanted):
        raise Refused(why)
    return await put_right(kube, wanted)


async def put_right(kube: Kube, wanted: Manifest) -> Manifest:
    """One of ours."""
    try:
        return await kube.apply(wanted)
    except Refused as e:
        if e.status != INVALID:
            raise
    # to apply keeps the ports that others wrote, and one of them may bear the name of ours
    metadata, ports = wanted["metadata"], {"spec": {"ports": wanted["spec"]["ports"]}}
    await kube.merge("v1", "Service", metadata["name"], ports, metadata["namespace"])
    return await kube.apply(wanted)


def _taken(there: Manifest, wanted: Manifest) -> str:
    """Why the Service of that name may not become the wanted one; '' where it is the placement's, or ours and left to nobody."""
    owner, labels = owner_uid(there), there["metadata"].get("labels") or {}
    orphaned = not owner and wanted["metadata"]["labels"].items() <= labels.items()
    if owner == owner_uid(wanted) != "" or orphaned:
        return ""
    name = f"{wanted['metadata']['namespace']}/{wanted['metadata']['name']}"
    if owner and labels.get(MANAGED_BY_LABEL) == MANAGED_BY:
        return f"the Service {name} of a placement that was deleted is still there; it is made anew once that is gone"
    return f"there is a Service {name} that is not Cotenant's; delete it, or rename the model or the placement"
