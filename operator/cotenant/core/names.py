"""The labels, annotations and names Cotenant writes, each once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

GROUP = "cotenant.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"
MANAGED_BY = "cotenant"
PLACEMENT_LABEL = f"{GROUP}/placement"
MODEL_LABEL = f"{GROUP}/model"
REPLICA_LABEL = f"{GROUP}/replica"
ROLE_LABEL = f"{GROUP}/role"
"""`engine`, `holder` or `preflight`."""
NODE_LABEL = f"{GROUP}/node"
"""On holders and preflights: the node they are for."""
MANAGED_NODE_LABEL = f"{GROUP}/managed"
"""On a Node: `true` = Cotenant may take its GPUs."""
ALLOCATION_ANNOTATION = f"{GROUP}/allocation"
"""On an engine pod: JSON of core.snapshot.Allocation."""
HASH_ANNOTATION = f"{GROUP}/hash"
"""On what we create: `v<hash version>-<hash of what was rendered>`."""
DO_NOT_DISRUPT_ANNOTATION = "karpenter.sh/do-not-disrupt"
"""On engines and holders: Karpenter removes no node under them by its own choice."""
FIELD_MANAGER = "cotenant"
STATUS_MANAGER = "cotenant-status"
AGENT_MANAGER = "cotenant-agent"
ENGINE_CONTAINER = "engine"
PRODUCT_LABEL = "nvidia.com/gpu.product"
ANOTHERS = "a replica of another namespace"


def role(labels: Mapping[str, Any]) -> str:
    """What a pod of ours is there for: `engine`, `holder`, `preflight`; '' for a pod that is not ours.

    An engine whose role was stripped by hand is told by its model.
    """
    return str(labels.get(ROLE_LABEL) or ("engine" if MODEL_LABEL in labels else ""))


def named_for(reader: str, namespace: str, name: str) -> str:
    """How something of ours is called to who reads in a namespace: of other namespaces nothing is named."""
    return name if namespace == reader else ANOTHERS
