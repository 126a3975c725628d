"""What the API server would refuse of a value, by the same schema and in sentences that say what to write instead."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from cotenant.api import share, spec
from cotenant.api.meta import NAME
from cotenant.api.schema import Schema
from cotenant.core.snapshot import Invalid

Holds = Mapping[str, Callable[[Any], bool]]
"""CEL rules in Python, by their text."""

KINDS = {
    "object": (dict, "a mapping of fields"),
    "array": (list, "a list"),
    "string": (str, "text"),
    "integer": (int, "a whole number"),
    "boolean": (bool, "true or false"),
}
_A_SHARE = 'write a percentage of each GPU above 0% and up to 100% ("70%"), a quantity in Mi, Gi or Ti ("60Gi")'
WRITE = {
    share.SHARE: f'{_A_SHARE} or "auto"',
    share.FIXED_SHARE: _A_SHARE,
    share.HEADROOM: 'write a percentage of each GPU from 0% to 90%, such as "10%"',
    share.CPU: 'write CPUs such as "4" or "500m"',
    share.MEMORY: 'write an amount such as "48Gi"',
    spec.URI: "write hf://org/name[@revision], pvc://claim/path or oci://image",
    NAME: "write lower-case letters, digits and '-', beginning and ending with a letter or digit",
}
"""What to write where a pattern is not met."""
SHOWN = 60
"""Characters of a value that are repeated."""


def problems(value: Any, schema: Schema, path: str, holds: Holds, *, strict: bool = False) -> list[Invalid]:
    """Everything that is wrong; `strict`: unknown fields too, as `kubectl apply` asks for."""
    found = list(_problems(value, schema, path, holds, strict))
    if not found:  # the API server asks a rule only about what is well formed
        found = [
            Invalid(path, rule["message"])
            for rule in schema.get("x-kubernetes-validations", ())
            if not holds[rule["rule"]](value)
        ]
    return found


def without_nulls(value: Any) -> Any:
    """As the API server reads it: a field that is null is a field that is not there."""
    if isinstance(value, dict):
        return {key: without_nulls(child) for key, child in value.items() if child is not None}
    return [without_nulls(child) for child in value] if isinstance(value, list) else value


def _problems(value: Any, schema: Schema, path: str, holds: Holds, strict: bool) -> Iterator[Invalid]:
    if schema.get("x-kubernetes-int-or-string"):
        yield from _int_or_string(value, schema, path)
        return
    kind, words = KINDS.get(schema.get("type", ""), (object, ""))
    if kind is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool and kind is not object):
        yield Invalid(path, f"must be {words}, not {_shown(value)}{_instead(schema, value)}")
    elif isinstance(value, dict):
        yield from _mapping(value, schema, path, holds, strict)
    elif isinstance(value, list):
        yield from _list(value, schema, path, holds, strict)
    else:
        yield from _plain(value, schema, path)


def _instead(schema: Schema, value: Any) -> str:
    if schema.get("type") == "string" and isinstance(value, int | float):
        return (
            f"; {write}"
            if (write := WRITE.get(schema.get("pattern", "")))
            else f"; put it in quotes: '{json.dumps(value)}'"
        )
    if schema.get("type") == "array" and isinstance(value, str) and schema["items"].get("type") == "string":
        return f"; write [{value}]"
    return ""


def _plain(value: Any, schema: Schema, path: str) -> Iterator[Invalid]:
    """Text, numbers, true and false."""
    options, pattern, longest = schema.get("enum"), schema.get("pattern"), schema.get("maxLength")
    if options and value not in options:
        near = get_close_matches(str(value), options, 1)
        hint = f'; did you mean "{near[0]}"?' if near else ""
        yield Invalid(path, f"must be one of {', '.join(options)}, not {_shown(value)}{hint}")
    elif isinstance(value, str):
        if longest is not None and len(value) > longest:
            yield Invalid(path, f"{_shown(value)} has {len(value)} characters; at most {longest} may be")
        elif pattern and not re.search(pattern.removesuffix("$") + r"\Z", value):
            yield Invalid(path, f"{_shown(value)} cannot be used: {WRITE.get(pattern, f'it must match {pattern}')}")
        elif len(value) < schema.get("minLength", 0):
            yield Invalid(path, "must not be empty")
    elif isinstance(value, int) and not isinstance(value, bool):
        yield from _range(value, schema, path)


def _range(value: int, schema: Schema, path: str, or_else: str = "") -> Iterator[Invalid]:
    least, most = schema.get("minimum"), schema.get("maximum")
    if (least is not None and value < least) or (most is not None and value > most):
        allowed = f"from {least} to {most}" if most is not None else f"{least} or more"
        yield Invalid(path, f"must be {allowed}{or_else}, not {value}")


def _int_or_string(value: Any, schema: Schema, path: str) -> Iterator[Invalid]:
    pattern = schema.get("pattern", "")
    write = WRITE.get(pattern, "")
    if isinstance(value, bool) or not isinstance(value, int | str):
        yield Invalid(path, f"must be a whole number or text, not {_shown(value)}" + (f"; {write}" if write else ""))
    elif isinstance(value, str) and not re.search(pattern.removesuffix("$") + r"\Z", value):
        only = pattern.strip("^$")
        yield Invalid(path, f"{_shown(value)} cannot be used: {write or f'write a whole number or {only}'}")
    elif isinstance(value, int):
        word = pattern.strip("^$")
        yield from _range(value, schema, path, "" if write else f' or "{word}"')


def _mapping(value: dict[Any, Any], schema: Schema, path: str, holds: Holds, strict: bool) -> Iterator[Invalid]:
    least, most = schema.get("minProperties", 0), schema.get("maxProperties")
    if len(value) < least:
        yield Invalid(path, f"needs at least {least} entry")
    if most is not None and len(value) > most:
        yield Invalid(path, f"has {len(value)} entries; at most {most} may be")
    if schema.get("x-kubernetes-preserve-unknown-fields"):
        return
    anything = schema.get("additionalProperties")
    known = schema.get("properties", {})
    unknown = (
        {} if anything else {name: get_close_matches(str(name), list(known), 1) for name in value if name not in known}
    )
    meant = {near for names in unknown.values() for near in names} if strict else set()
    for name in schema.get("required", ()):
        if name not in value and name not in meant:
            yield Invalid(_at(path, name), f"is required{_example(known.get(name, {}))}")
    for name, child in value.items():
        if anything:
            yield from problems(child, anything, f"{path}[{name}]", holds, strict=strict)
        elif name in known:
            yield from problems(child, known[name], _at(path, name), holds, strict=strict)
        elif strict and known:
            near = unknown[name]
            hint = f'; did you mean "{near[0]}"?' if near else f"; there are {', '.join(known)}"
            yield Invalid(_at(path, str(name)), f"unknown field{hint}")


def _example(schema: Schema) -> str:
    write = WRITE.get(schema.get("pattern", ""))
    return f"; {write}" if write else ""


def _list(value: list[Any], schema: Schema, path: str, holds: Holds, strict: bool) -> Iterator[Invalid]:
    least, most = schema.get("minItems", 0), schema.get("maxItems")
    if len(value) < least:
        yield Invalid(path, f"needs at least {least} entry")
    if most is not None and len(value) > most:
        yield Invalid(path, f"has {len(value)} entries; at most {most} may be")
    keys = schema.get("x-kubernetes-list-map-keys", ())
    is_set = schema.get("x-kubernetes-list-type") == "set"
    seen: set[str] = set()
    for at, child in enumerate(value):
        here = f"{path}[{at}]"
        yield from problems(child, schema["items"], here, holds, strict=strict)
        same = child if is_set else [child.get(key) for key in keys] if keys and isinstance(child, dict) else None
        text = json.dumps(same, default=str)
        if same is not None and text in seen:
            told = _shown(same if is_set else child.get(keys[0]))
            yield Invalid(_at(here, keys[0]) if keys else here, f"{told} is there already; each may stand once")
        seen.add(text)


def _at(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _shown(value: Any) -> str:
    """A value as it was written, shortened."""
    if isinstance(value, dict | list) and not value:
        return "an empty one" if isinstance(value, dict) else "an empty list"
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."
