"""Where a real kubelet cannot run, the suite is skipped and says what is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_machine_without_the_programs_skips_the_suite_and_names_them() -> None:
    bare = {**os.environ, "PATH": "/nonexistent"}
    words = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-rs",
        "-m",
        "node",
        "tests/node",
        "-k",
        "founding",
    ]

    done = subprocess.run(words, cwd=ROOT, env=bare, capture_output=True, text=True)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 skipped" in done.stdout
    assert "runc (Debian: runc)" in done.stdout
