"""A plan for nodes that no agent reports: by the labels of GPU Feature Discovery, and said to be so."""

from __future__ import annotations

from dataclasses import replace

from cotenant.core.inventory import is_managed
from cotenant.core.labelled import by_labels
from cotenant.core.snapshot import Node, Policy, Snapshot


def completed(seen: Snapshot, *, installed: bool = True) -> tuple[Snapshot, tuple[str, ...]]:
    """The snapshot with a report for every node that has labels and no agent, and what to say of that.

    Where Cotenant is not installed nobody has given it nodes yet: every node with such labels counts as given.
    """
    reported = {report.name for report in seen.gpu_nodes}
    nodes, reports = [], []
    for node in seen.nodes:
        report = None if node.name in reported else by_labels(node)
        if report is not None and not installed:
            node = _given(node, seen.policy)
        if report is not None and is_managed(node, seen.policy):
            reports.append(report)
        nodes.append(node)
    if not reports:
        return seen, ()
    names = ", ".join(report.name for report in reports[:3]) + (", ..." if len(reports) > 3 else "")
    note = (
        f"{len(reports)} node{'s' * (len(reports) > 1)} without an agent ({names}): planned by the labels of GPU Feature Discovery, "
        "whose memory is NVML's total and a little more than can be used; NVLink and what is in use are not known. "
        "Starting anything needs the agent"
    )
    return replace(seen, nodes=tuple(nodes), gpu_nodes=(*seen.gpu_nodes, *reports)), (note,)


def _given(node: Node, policy: Policy) -> Node:
    if not policy.managed_label[0]:
        return node
    kept = tuple(pair for pair in node.labels if pair[0] != policy.managed_label[0])
    return replace(node, labels=tuple(sorted((*kept, policy.managed_label))))
