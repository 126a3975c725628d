"""Of which wish a fault is: what was asked for its model, and where; and whether a pod was started by that wish.

Replicas and priority are no part of it, nor is any other model of the placement: to change those makes no engine start better.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict

from cotenant.core.ask import per_node_share, within
from cotenant.core.inventory import Machine
from cotenant.core.pod import HASH_VERSION, allocated_hash, model_wish
from cotenant.core.share import Auto, Bytes, Percent
from cotenant.core.snapshot import Fault, Model, Placement, Pod, Policy


def wish_of(placement: Placement, model: Model, policy: Policy) -> str:
    """`v1-<16 hex>/<8 hex>`: what was asked for one model, and on which nodes."""
    what = (
        model_wish(model, policy),
        asdict(model.share),
        [asdict(other) for other in model.per_node],
        asdict(model.on_out_of_memory),
        placement.headroom,
    )
    return f"{HASH_VERSION}-{_digest(what)[:16]}/{_digest((placement.selector, placement.names))[:8]}"


def is_of(fault: Fault, wish: str, generation: int) -> bool:
    """Whether a fault is of this wish. Other nodes may end one that was given up, and undo no remedy of an engine that serves.

    A fault that another version of the operator wrote is of its generation.
    """
    if not is_named(fault):
        return fault.generation == generation
    return fault.wish == wish or (not fault.failed and fault.wish.partition("/")[0] == wish.partition("/")[0])


def is_named(fault: Fault) -> bool:
    """Whether a fault says of which wish it is, in the words of this version of the operator."""
    return fault.wish.partition("-")[0] == HASH_VERSION


def is_by_spec(pod: Pod, model: Model, policy: Policy) -> bool:
    """Whether a pod was started by the present spec but for its share. One by another version of the operator counts as such:
    nobody can tell."""
    given = pod.allocation
    if given is None or not _is_hashed(pod):
        return True
    return pod.hash == allocated_hash(model_wish(model, policy), given)


def is_by_wish(pod: Pod, model: Model, policy: Policy, machine: Machine | None, grown: Bytes | Percent | None) -> bool:
    """The same with its share. `grown`: what remedies have made of it."""
    given = pod.allocation
    if not is_by_spec(pod, model, policy):
        return False
    if given is None or not _is_hashed(pod) or machine is None or not machine.devices:
        return True
    asked = per_node_share(model, machine)
    if isinstance(asked, Auto):
        return True
    known = (asked,) if grown is None else (asked, within(grown, model, machine))
    return given.utilization in {str(share.utilization(machine.smallest)) for share in known}


def _is_hashed(pod: Pod) -> bool:
    return pod.hash.partition("-")[0] == HASH_VERSION


def _digest(what: object) -> str:
    text = json.dumps(what, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
