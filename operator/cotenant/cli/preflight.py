"""`cotenant preflight`: what the preflight pod runs. Lists the GPUs this container sees, one UUID per line."""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path

from cotenant.agent.nvml import NVML
from cotenant.errors import CotenantError

TERMINATION_LOG = Path("/dev/termination-log")
"""Where the kubelet reads a container's last words from (its default path)."""


def main(argv: list[str]) -> int:
    """Exit status 0 whatever was seen: the controller judges."""
    parser = argparse.ArgumentParser(prog="cotenant preflight", description=__doc__)
    parser.parse_args(argv)
    nvml = NVML()
    try:
        seen = "".join(f"{device.uuid}\n" for device in nvml.read().devices)
    except CotenantError as error:
        # a container that was given no GPU was given no driver library either
        seen = ""
        print(error, file=sys.stderr)
    finally:
        nvml.close()
    print(seen, end="")
    with contextlib.suppress(OSError):  # outside of a pod there is no such file, and /dev is not ours to write to
        if TERMINATION_LOG.exists():
            TERMINATION_LOG.write_text(seen)
    return 0
