"""pydantic models -> structural schemas, as the API server wants them.

No published generator makes structural schemas from pydantic, so this is our own: inline every `$ref`, drop what a structural
schema forbids (`title`, `$defs`, `const`, `default: null`), turn `X | None` into plain optional X, refuse other unions.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

Schema = dict[str, Any]
_DROPPED = ("title", "$defs", "const", "discriminator", "examples", "additionalItems", "propertyNames")


def structural(model: type[BaseModel]) -> Schema:
    """The structural schema of a model; TypeError names a field that cannot be written down."""
    raw = model.model_json_schema(by_alias=True, mode="validation")
    return _convert(raw, raw.get("$defs", {}), model.__name__)


def _convert(node: Schema, defs: Schema, where: str) -> Schema:
    node = dict(node)
    if ref := node.pop("$ref", None):
        target = dict(defs[ref.rsplit("/", 1)[1]])
        node = target | node
        return _convert(node, defs, where)
    if "anyOf" in node:
        return _any_of(node, defs, where)
    if "allOf" in node:
        parts = node.pop("allOf")
        if len(parts) != 1:
            raise TypeError(f"{where}: allOf of several schemas is not structural")
        return _convert(parts[0] | node, defs, where)
    for key in _DROPPED:
        node.pop(key, None)
    if node.get("default", 0) is None or isinstance(node.get("default"), dict | list):
        node.pop("default")  # an absent block stays absent: what GitOps applied is what it reads back
    if "prefixItems" in node:
        raise TypeError(f"{where}: a tuple of fixed length is not structural")
    if "properties" in node:
        node["properties"] = {
            name: _convert(child, defs, f"{where}.{name}") for name, child in node["properties"].items()
        }
        node.pop("additionalProperties", None)
    elif isinstance(node.get("additionalProperties"), dict):
        node["additionalProperties"] = _convert(node["additionalProperties"], defs, f"{where}.*")
    if "items" in node:
        node["items"] = _convert(node["items"], defs, f"{where}[]")
    if node.get("x-kubernetes-preserve-unknown-fields"):
        node.pop("additionalProperties", None)
    if "description" in node:
        node["description"] = " ".join(str(node["description"]).split())
    return node


def _any_of(node: Schema, defs: Schema, where: str) -> Schema:
    options = [option for option in node.pop("anyOf") if option.get("type") != "null"]
    if node.get("x-kubernetes-int-or-string"):
        for key in (*_DROPPED, "type"):
            node.pop(key, None)
        if node.get("default", 0) is None:
            node.pop("default")
        return node
    if len(options) != 1:
        if all("x-kubernetes-int-or-string" in option for option in options):
            return _convert(options[0] | node, defs, where)
        raise TypeError(
            f"{where}: a union of {len(options)} types is not structural; mark it int_or_string or split it"
        )
    return _convert(options[0] | node, defs, where)
