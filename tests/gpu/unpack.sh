#!/usr/bin/env bash
# On the GPU machine: unpacks what pack.sh made and has come so far, in any order and number of transfers.
# usage: unpack.sh PARTS DIR     vLLM goes to DIR/site, the node's programs to DIR/cache, the rest to DIR/parts
set -euo pipefail
parts=${1:?usage: unpack.sh PARTS DIR}; dir=${2:?usage: unpack.sh PARTS DIR}
site=$dir/site; mkdir -p "$site/vllm/vllm_flash_attn" "$dir/parts"
part() { [[ -e $parts/$1 ]] && echo "unpacking $1"; }
if part a/site.tar.xz; then tar xJf "$parts/a/site.tar.xz" --strip-components=1 -C "$site"; fi
if part a/fa3.xz; then xz -dc "$parts/a/fa3.xz" >"$site/vllm/vllm_flash_attn/_vllm_fa3_C.abi3.so"; fi
if part b/core.xz; then xz -dc "$parts/b/core.xz" >"$site/vllm/_C_stable_libtorch.abi3.so"; fi
if part c/moe.xz; then xz -dc "$parts/c/moe.xz" >"$site/vllm/_moe_C_stable_libtorch.abi3.so"; fi
if part k/kube.xz; then xz -dc "$parts/k/kube.xz" >"$dir/kube"; chmod +x "$dir/kube"; fi
if part k/node.tar.xz; then mkdir -p "$dir/node"; tar xJf "$parts/k/node.tar.xz" -C "$dir/node"; fi
if part p/chart.yaml; then cp "$parts"/p/{chart.yaml,commit} "$dir/parts/"; fi
if part p/src.tar.xz; then mkdir -p "$dir/src"; tar xJf "$parts/p/src.tar.xz" -C "$dir/src"; fi
if part p/python-layer.tar.xz; then
  rm -rf "$dir/layer"; mkdir -p "$dir/layer"; tar xJf "$parts/p/python-layer.tar.xz" -C "$dir/layer"
  # what was left out to save space: without it every start of a program compiles for ten seconds
  mkdir -p "$dir/layer/dev/shm"
  LD_LIBRARY_PATH=/usr/local/lib chroot "$dir/layer" /usr/local/bin/python3 -m compileall -q -j 0 /usr/local/lib >/dev/null || true
  tar cf "$dir/parts/python-layer.tar" --owner=0 --group=0 -C "$dir/layer" $(ls "$dir/layer")
fi
find "$site/vllm" -maxdepth 2 -name '*.so' | wc -l
