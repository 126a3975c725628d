"""A snapshot as a file: what a decision is made from and nothing else, so that the same file gives the same plan.

Records are written field by field, in camelCase and without what has its default. Of pods, neither environment nor logs
are among them; values of flags that carry secrets are left out.
"""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass, replace
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml
from pydantic.alias_generators import to_camel

from cotenant.api.placement import read_status
from cotenant.cli.datafile import called, why
from cotenant.core.estimate.modelconfig import ModelConfig
from cotenant.core.preflight import Failed, Passed, Preflight, Running
from cotenant.core.share import Auto, Bytes, Percent, parse_share
from cotenant.core.snapshot import Pod, Snapshot, Status
from cotenant.errors import CotenantError

API_VERSION, KIND = "cotenant.dev/v1alpha1", "Snapshot"
SECRET_FLAGS = ("--api-key", "--hf-token", "--ssl-keyfile-password")
"""Flags of vLLM whose value is a secret. A spec with one of them is refused, so only a pod edited by hand has any."""
LEFT_OUT = {"Ended": {"log"}, "Pod": {"start_log", "resource_version"}}
"""Logs may hold anything."""
LABELS = ("labels", "selector")
"""Fields whose pairs are written as a mapping."""
VERDICTS = {"Passed": Passed, "Failed": Failed, "Running": Running}


class SnapshotFileError(CotenantError):
    """A snapshot file that cannot be used; the text names the file and the field."""


# ------------------------------------------------------------------------------------------------------------- writing
def dump(seen: Snapshot, form: str = "yaml") -> str:
    """The snapshot as YAML or JSON; equal snapshots give equal texts, whatever the order of their lists."""
    document = {"apiVersion": API_VERSION, "kind": KIND, **_plain(_ordered(seen))}
    if form == "json":
        return json.dumps(document, indent=1) + "\n"
    return yaml.safe_dump(document, sort_keys=False, width=140, allow_unicode=True)


def _ordered(seen: Snapshot) -> Snapshot:
    return replace(
        seen,
        placements=tuple(sorted(seen.placements, key=lambda p: (p.namespace, p.name))),
        nodes=tuple(sorted(seen.nodes, key=lambda n: n.name)),
        gpu_nodes=tuple(sorted(seen.gpu_nodes, key=lambda n: n.name)),
        pods=tuple(sorted((_without_secrets(p) for p in seen.pods), key=lambda p: (p.namespace, p.name))),
        holders=tuple(sorted(seen.holders, key=lambda h: h.name)),
        preflights=tuple(sorted(seen.preflights, key=lambda p: p.name)),
        configs=tuple(sorted(seen.configs, key=lambda found: found[0])),
        services=tuple(sorted(seen.services, key=lambda s: (s.namespace, s.name))),
        refusals=tuple(sorted(seen.refusals)),
        refused_services=tuple(sorted(seen.refused_services)),
    )


def _without_secrets(pod: Pod) -> Pod:
    """The command line without the values of flags that carry secrets."""
    return replace(pod, args=_redacted(pod.args))


def _redacted(args: tuple[str, ...]) -> tuple[str, ...]:
    kept: list[str] = []
    hide = False
    for word in args:
        name, equals, _ = word.partition("=")
        secret = name.replace("_", "-") in SECRET_FLAGS
        kept.append("(left out)" if hide else f"{name}=(left out)" if secret and equals else word)
        hide = secret and not equals
    return tuple(kept)


def _plain(value: Any) -> Any:
    if isinstance(value, Percent | Auto):
        return str(value)
    if isinstance(value, Bytes):
        return str(value.bytes)
    if isinstance(value, StrEnum):
        return value.value
    if isinstance(value, Status):
        return json.loads(value.raw) if value.raw else {}
    if isinstance(value, Passed | Failed | Running):
        return {"is": type(value).__name__} | _fields(value)
    if is_dataclass(value):
        return _fields(value)
    if isinstance(value, frozenset):
        return sorted(value)
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    return value


def _fields(value: Any) -> dict[str, Any]:
    hidden = LEFT_OUT.get(type(value).__name__, set())
    out = {}
    for field in fields(value):
        held = getattr(value, field.name)
        if field.name in hidden or not field.init or (field.default is not MISSING and held == field.default):
            continue
        plain = dict(held) if field.name in LABELS else _plain(held)
        if isinstance(held, Status) and not plain:
            continue
        out[to_camel(field.name)] = plain
    return out


# ------------------------------------------------------------------------------------------------------------- reading
def load(name: str) -> Snapshot:
    """The snapshot in this file (- = stdin); SnapshotFileError says what is wrong with it."""
    try:
        text = sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
        data = json.loads(text) if text.lstrip().startswith("{") else yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as e:
        raise SnapshotFileError(f"{called(name)} cannot be read: {getattr(e, 'strerror', None) or e}") from e
    except (yaml.YAMLError, ValueError, RecursionError) as e:
        raise SnapshotFileError(f"{called(name)} is neither YAML nor JSON: {why(e)}") from e
    if not isinstance(data, dict) or (data.get("apiVersion"), data.get("kind")) != (API_VERSION, KIND):
        raise SnapshotFileError(
            f"{name} is no snapshot: it must say apiVersion: {API_VERSION} and kind: {KIND}; `cotenant snapshot` writes one"
        )
    body = {key: value for key, value in data.items() if key not in ("apiVersion", "kind")}
    try:
        found: Snapshot = _read(Snapshot, body, "")
    except _WrongError as e:
        raise SnapshotFileError(f"{called(name)}: {e}") from e
    return found


class _WrongError(Exception):
    """path: what is wrong."""


@cache
def _hints(kind: type) -> dict[str, Any]:
    # what the record's module imports only for type checking is named here
    return get_type_hints(
        kind, vars(sys.modules[kind.__module__]), {"ModelConfig": ModelConfig, "Preflight": Preflight}
    )


def _read(kind: Any, data: Any, path: str) -> Any:
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return _union(get_args(kind), data, path)
    if origin is tuple:
        return _tuple(get_args(kind), data, path)
    if origin is frozenset:
        return frozenset(_read(tuple[str, ...], data, path))
    if kind is Status:
        if not isinstance(data, dict):
            raise _WrongError(f"{path}: must be a placement's status")
        return read_status(data)
    if is_dataclass(kind):
        return _record(kind, data, path)
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        try:
            return kind(data)
        except ValueError as e:
            raise _WrongError(f"{path}: must be one of {', '.join(kind)}, not {data!r}") from e
    wanted = (int, float) if kind is float else kind
    if not isinstance(data, wanted) or (isinstance(data, bool) and kind is not bool):
        raise _WrongError(f"{path}: must be {kind.__name__}, not {data!r}")
    return float(data) if kind is float else data


def _union(options: tuple[Any, ...], data: Any, path: str) -> Any:
    if data is None and type(None) in options:
        return None
    if Percent in options:
        try:
            return parse_share(str(data))
        except ValueError as e:
            raise _WrongError(f"{path}: {e}") from e
    if Passed in options:
        kind = VERDICTS.get(data.get("is", "")) if isinstance(data, dict) else None
        if kind is None:
            raise _WrongError(f"{path}.is: must be one of {', '.join(VERDICTS)}")
        return _record(kind, {key: value for key, value in data.items() if key != "is"}, path)
    rest = [option for option in options if option is not type(None)]
    if len(rest) == 1:
        return _read(rest[0], data, path)
    plain = next((option for option in rest if isinstance(option, type) and type(data) is option), None)
    if plain is not None:
        return data
    record = next(option for option in rest if is_dataclass(option))
    return _record(record, data, path)


def _tuple(kinds: tuple[Any, ...], data: Any, path: str) -> tuple[Any, ...]:
    if isinstance(data, dict) and kinds[0] == tuple[str, str]:
        data = [[key, value] for key, value in sorted(data.items())]
    if not isinstance(data, list):
        raise _WrongError(f"{path}: must be a list, not {data!r}")
    if kinds[-1] is Ellipsis:
        return tuple(_read(kinds[0], one, f"{path}[{at}]") for at, one in enumerate(data))
    if len(data) != len(kinds):
        raise _WrongError(f"{path}: must have {len(kinds)} entries, not {len(data)}")
    return tuple(
        _read(kind, one, f"{path}[{at}]") for at, (kind, one) in enumerate(zip(kinds, data, strict=True))
    )  # fmt: skip


def _record(kind: Any, data: Any, path: str) -> Any:
    if not isinstance(data, Mapping):
        raise _WrongError(f"{path or 'the file'}: must be a mapping of fields, not {data!r}")
    hints = _hints(kind)
    names = {to_camel(field.name): field for field in fields(kind) if field.init}
    if unknown := sorted(str(key) for key in data if key not in names):
        raise _WrongError(
            f"{_at(path, unknown[0])}: there is no such field; was the file written by another version of Cotenant?"
        )
    missing = [
        name
        for name, field in names.items()
        if name not in data and field.default is MISSING and field.default_factory is MISSING
    ]
    if missing:
        raise _WrongError(f"{_at(path, missing[0])}: is missing")
    return kind(**{names[n].name: _read(hints[names[n].name], value, _at(path, n)) for n, value in data.items()})


def _at(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
