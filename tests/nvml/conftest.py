"""The stand-in card in this very process: loaded by its soname before nvidia-ml-py asks for it."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.nvml.card import Card, build


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built stand-in."""
    return build(tmp_path_factory.getbasetemp() / "nvml")


@pytest.fixture
def card(nvml_library: Path, tmp_path: Path) -> Iterator[Card]:
    """An empty card that NVML in this process answers from."""
    ctypes.CDLL(str(nvml_library))  # dlopen of "libnvidia-ml.so.1" finds what is loaded under that soname
    card = Card(tmp_path / "card.txt")
    card.add("driver 580.159.04")
    os.environ["COTENANT_NVML_FILE"] = str(card.path)
    yield card
    del os.environ["COTENANT_NVML_FILE"]
