"""What every custom resource shares: how a Python field becomes a field of the CRD, and the types both kinds use."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel


class Resource(BaseModel):
    """Base of everything written down: camelCase outside, unknown fields ignored so that an older operator reads newer objects."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True)


class Rule(NamedTuple):
    """A CEL rule, what to say where it does not hold, and the same rule in Python for where no API server is asked."""

    cel: str
    message: str
    holds: Callable[[Any], bool]


def rules(*told: Rule) -> list[dict[str, str]]:
    """CEL rules with their messages, as `x-kubernetes-validations` wants them."""
    return [{"rule": rule.cel, "message": rule.message} for rule in told]


def schema_extra(**extra: Any) -> dict[str, Any]:
    """Schema keywords that pydantic does not know: `map_keys`, `cel`, `int_or_string`, `preserve`, `atomic`."""
    out: dict[str, Any] = {}
    if keys := extra.get("map_keys"):
        out |= {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": keys}
    if extra.get("atomic"):
        out["x-kubernetes-list-type"] = "atomic"
    if extra.get("is_set"):
        out["x-kubernetes-list-type"] = "set"
    if cel := extra.get("cel"):
        out["x-kubernetes-validations"] = rules(*cel)
    if extra.get("int_or_string"):
        out["x-kubernetes-int-or-string"] = True
    if extra.get("preserve"):
        out["x-kubernetes-preserve-unknown-fields"] = True
    return out


NAME = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
Name = Annotated[str, Field(pattern=NAME, max_length=40)]
"""A DNS label short enough to become part of a pod's name."""
LabelKey = Annotated[str, Field(max_length=317)]
LabelValue = Annotated[str, Field(max_length=63)]
Time = Annotated[str, Field(json_schema_extra={"format": "date-time"})]


class ConditionField(Resource):
    """One aspect of the current state, as kstatus and `kubectl wait` read it."""

    type: Annotated[str, Field(max_length=316, description="What is said: Ready, Reconciling, Stalled, Placed, ...")]
    status: Annotated[
        str, Field(json_schema_extra={"enum": ["True", "False", "Unknown"]}, description="Whether it is so.")
    ]
    reason: Annotated[str, Field(max_length=1024, description="One CamelCase word for machines.")]
    message: Annotated[str, Field(max_length=32768, description="What a person should know and do.")]
    observed_generation: Annotated[int | None, Field(description="The generation of the spec this was said of.")] = None
    last_transition_time: Annotated[Time, Field(description="When the status last changed.")]


Conditions = Annotated[
    tuple[ConditionField, ...],
    Field(
        max_length=16,
        json_schema_extra=schema_extra(map_keys=["type"]),
        description="Aspects of the current state, one per type.",
    ),
]


def seconds(text: str | None) -> float:
    """A Kubernetes time as Unix seconds; 0 for none."""
    return datetime.fromisoformat(text).timestamp() if text else 0.0
