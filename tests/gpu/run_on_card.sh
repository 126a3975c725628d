#!/usr/bin/env bash
# On the GPU machine, as root, after unpack.sh: run_on_card.sh DIR OUT STEP ... [--seconds N]
# A real node with the real cards; the steps are those of tests/gpu/steps.py. Figures: OUT/card.json; logs: OUT/logs.tar.gz.
set -euo pipefail
dir=$(realpath "${1:?}"); out=$(realpath -m "${2:?}"); shift 2
bin=$dir/bin; mkdir -p "$bin" /opt/cni/bin "$dir/path"
for name in kube etcd kube-apiserver kube-controller-manager kube-scheduler kubelet kubectl gpu-plugin; do ln -sf "$dir/kube" "$bin/$name"; done
for name in containerd containerd-shim-runc-v2 ctr nvidia-container-runtime nvidia-ctk; do ln -sf "$dir/node/$name" "$bin/$name"; done
ln -sf "$dir"/node/cni/* /opt/cni/bin/
# what such a machine may lack
for name in runc busybox; do command -v "$name" >/dev/null || ln -sf "$dir/node/$name" "$dir/path/$name"; done
command -v ip >/dev/null || { printf '#!/bin/sh\nexec %s/node/busybox ip "$@"\n' "$dir" >"$dir/path/ip"; chmod +x "$dir/path/ip"; }
ldconfig -p | grep -q libseccomp.so.2 || cp "$dir/node/libseccomp.so.2" /usr/lib/x86_64-linux-gnu/
export PATH=$dir/path:$PATH PYTHONPATH=$dir/site:$dir/src/operator:$dir/src
cd "$dir/src"
exec python3 -m tests.gpu.card --parts "$dir/parts" --site "$dir/site" --programs "$dir/bin" "$out" "$@"
