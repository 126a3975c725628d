#!/usr/bin/env bash
# Packs Cotenant and the node for a GPU machine without network: pack.sh OUT makes OUT/k and OUT/p, 59 and 35 MiB.
# vLLM is another matter (docs/measured.md). Needs what `make test-node` needs, and xz.
set -euo pipefail
cd "$(dirname "$0")/../.."; out=$(realpath -m "${1:?usage: pack.sh OUT}"); work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
mkdir -p "$out"/{k,p} "$work/node/cni"
tools=$(uv run python -c 'from tests.cluster import build; print(build.node_tools())')
cni=$(uv run python -c 'from tests.node.needs import cni_folder; print(cni_folder())')
xz -T0 -6 -c "$tools/kube" >"$out/k/kube.xz"
cp -L "$tools"/{containerd,containerd-shim-runc-v2,ctr,nvidia-container-runtime,nvidia-ctk} "$(command -v runc)" "$(command -v busybox)" "$work/node"
cp -L /lib/*/libseccomp.so.2 "$work/node"; cp "$cni"/{ptp,host-local,loopback} "$work/node/cni"
tar -C "$work/node" -c . | xz -T0 -6 >"$out/k/node.tar.xz"
git rev-parse HEAD >"$out/p/commit"
git archive HEAD operator tests charts pyproject.toml | xz -T0 -6 >"$out/p/src.tar.xz"
uv run python -m tests.gpu.render_chart >"$out/p/chart.yaml"
uv run python - "$work" <<'P'
import re, sys, tarfile
from pathlib import Path
from tests.cluster import build
from tests.node.python_layer import python_layer
# compiled modules are made again over there
with tarfile.open(python_layer(build.cache() / "images")) as layer, tarfile.open(Path(sys.argv[1]) / "layer.tar", "w") as out:
    for entry in layer:
        if not re.search(r"/__pycache__|/(unittest|ctypes)/test|/pydoc_data|\.(pyx|pxd|c|h)$", entry.name):
            out.addfile(entry, layer.extractfile(entry) if entry.isreg() else None)
P
xz -T0 -6 -c "$work/layer.tar" >"$out/p/python-layer.tar.xz"
du -sm "$out"/*
