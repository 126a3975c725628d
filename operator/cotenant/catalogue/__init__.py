"""Facts of the best-known open models, for when no hub can be asked. `models.json` holds them; `gpus.json` the cards."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from cotenant.core.estimate.configparse import parse_config
from cotenant.core.estimate.modelconfig import ModelConfig

FROM_MEMORY = "written down from memory"
"""The source of an entry that was compared with no public file."""


@dataclass(frozen=True, slots=True)
class GPU:
    """One product, as a person names it and as NVIDIA does."""

    name: str
    """`H100-80GB`."""
    product: str
    """The label `nvidia.com/gpu.product`."""
    usable: int
    """Bytes CUDA calls total: what a share is a part of."""
    source: str


def _read(name: str) -> Any:
    return json.loads(files(__package__).joinpath(name).read_text(encoding="utf-8"))


@cache
def models() -> dict[str, dict[str, Any]]:
    """Every entry by its name on the hub."""
    found: dict[str, dict[str, Any]] = _read("models.json")["models"]
    return found


@cache
def gpus() -> tuple[GPU, ...]:
    """Every card, the smallest first."""
    found = [GPU(**{"usable": each.pop("usableMiB") << 20, **each}) for each in _read("gpus.json")["gpus"]]
    return tuple(sorted(found, key=lambda gpu: (gpu.usable, gpu.name)))


def find(repository: str) -> ModelConfig | None:
    """The model of a repository of the hub, upper and lower case aside; None = not in the catalogue."""
    wanted = repository.lower()
    name = next((name for name in models() if name.lower() == wanted), None)
    if name is None:
        return None
    entry = models()[name]
    checked = "" if entry["source"] != FROM_MEMORY else f", {FROM_MEMORY}"
    return parse_config(entry["config"], source=f"Cotenant's catalogue ({name}{checked})")
