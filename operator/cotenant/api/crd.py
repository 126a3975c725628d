"""pydantic models -> the CustomResourceDefinitions in crds/."""

from __future__ import annotations

from pydantic import BaseModel

from cotenant.api import gpunode, placement
from cotenant.api.meta import Rule, rules
from cotenant.api.schema import Schema, structural
from cotenant.core.names import GROUP, VERSION
from cotenant.core.snapshot import Manifest


def definition(
    *,
    kind: str,
    plural: str,
    short: list[str],
    scope: str,
    model: type[BaseModel],
    columns: list[Schema],
    cel: list[Rule] | None = None,
) -> Manifest:
    """One CustomResourceDefinition, v1alpha1 served and stored, with a status subresource."""
    schema = structural(model)
    schema["properties"] = {
        "apiVersion": {"type": "string", "description": "Version of this representation."},
        "kind": {"type": "string", "description": "Kind of this object."},
        "metadata": {"type": "object"},
    } | {name: child for name, child in schema["properties"].items() if name in ("spec", "status")}
    if cel:
        schema["x-kubernetes-validations"] = rules(*cel)
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "names": {
                "kind": kind,
                "listKind": f"{kind}List",
                "plural": plural,
                "singular": kind.lower(),
                "shortNames": short,
            },
            "scope": scope,
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "additionalPrinterColumns": columns,
                    "schema": {"openAPIV3Schema": schema},
                    "subresources": {"status": {}},
                }
            ],
        },
    }


def documents() -> dict[str, Manifest]:
    """File name -> CustomResourceDefinition, for crds/."""
    return {
        "cotenant.dev_modelplacements.yaml": definition(
            kind="ModelPlacement",
            plural="modelplacements",
            short=["mplace"],
            scope="Namespaced",
            model=placement.ModelPlacement,
            columns=placement.COLUMNS,
            cel=placement.ROOT_RULES,
        ),
        "cotenant.dev_gpunodes.yaml": definition(
            kind="GPUNode",
            plural="gpunodes",
            short=["gpunode"],
            scope="Cluster",
            model=gpunode.GPUNodeResource,
            columns=gpunode.COLUMNS,
        ),
    }
