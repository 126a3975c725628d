"""Reading single values of a `config.json`, which anybody may have written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Json = Mapping[str, Any]


def number(keys: Json, name: str, default: int | None = None) -> int:
    """A whole number of the config; ValueError where it is missing or none."""
    value = keys.get(name)
    if value is None:
        if default is None:
            raise ValueError(f'the config has no "{name}"')
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1 << 40 or value != int(value):
        raise ValueError(f'"{name}" is {value!r}: a whole number is wanted')
    return int(value)


def flag(keys: Json, name: str, default: bool = False) -> bool:
    """A true or false of the config."""
    value = keys.get(name)
    return value if isinstance(value, bool) else default


def names(keys: Json, name: str) -> tuple[str, ...]:
    """A list of words of the config; empty where there is none."""
    value = keys.get(name)
    return tuple(str(each) for each in value) if isinstance(value, list | tuple) else ()


def part(keys: Json, name: str) -> Json:
    """An object of the config; empty where there is none."""
    value = keys.get(name)
    return value if isinstance(value, Mapping) else {}
