"""Prints the chart rendered for the card lab: python3 -m tests.gpu.render_chart > chart.yaml."""

from tests.charts.render import CHART, helm
from tests.gpu.card_lab import COTENANT, ENGINE
from tests.node.config import PAUSE_IMAGE

_REPOSITORY, _, _TAG = COTENANT.rpartition(":")
_IMAGE = {"repository": _REPOSITORY, "tag": _TAG, "pullPolicy": "Never"}
VALUES = {
    "controller": {"image": _IMAGE, "logLevel": "DEBUG"},
    "agent": {"image": _IMAGE, "intervalSeconds": 1},
    "engines": [{"name": "vllm", "image": ENGINE, "version": "0.26.0"}],
    "holder": {"image": PAUSE_IMAGE},
    "policy": {"defaultMemory": "4Gi"},
}
"""The chart's values there: images that are there; all else as the chart has it."""

if __name__ == "__main__":
    print(helm("template", "cotenant", str(CHART), values=VALUES))
