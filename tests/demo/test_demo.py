"""The demo as a newcomer runs it: it ends 0 with both models Ready on one GPU, and its hints work."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import install
from tests.cluster import build

pytestmark = pytest.mark.cluster


@pytest.fixture
def home(tmp_path: Path) -> Iterator[dict[str, str]]:
    """An environment in which the demo's cluster is not that of the person at this machine; the programs are shared."""
    build.kube(), build.kwok(), build.helm()
    (tmp_path / "tools").symlink_to(build.cache() / "tools")
    env = {**os.environ, "COTENANT_CACHE": str(tmp_path), "PYTHONPATH": str(install.ROOT)}
    yield env
    subprocess.run([sys.executable, "-m", "tests.cluster", "down"], env=env, cwd=install.ROOT, check=True)


@pytest.mark.timeout(300)
def test_the_demo_ends_with_both_models_on_one_gpu_and_says_what_to_try(home: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.demo"], env=home, cwd=install.ROOT, capture_output=True, text=True
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "dots-ocr 0.20" in done.stdout
    assert "mistral-small 0.70" in done.stdout
    assert "AllReady" in done.stdout
    hints = [line.strip() for line in done.stdout.splitlines() if line.startswith("  ")]
    setup = [line for line in hints if line.startswith(("export", "alias"))]
    harmless = [line for line in hints if line.startswith(("kubectl get", "kubectl logs", "cotenant"))]
    assert len(setup) == 2
    assert len(harmless) >= 5
    script = "\n".join(["shopt -s expand_aliases", "set -eo pipefail", *setup, *harmless])
    tried = subprocess.run(["bash", "-c", script], env=home, capture_output=True, text=True)
    assert tried.returncode == 0, tried.stdout + tried.stderr
    assert "Available KV cache memory" in tried.stdout
