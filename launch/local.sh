#!/usr/bin/env bash
# One machine, all its GPUs, one process:
#
#     bash launch/local.sh --config=configs/alexnet_2012.py --workdir=runs/alexnet_2012
#
# Makes the environment if there is none. Any option of alexnet_jax.main may follow. Without a GPU it
# trains on the CPU.
set -euo pipefail
cd "$(dirname "$0")/.."

gpus=0
if command -v nvidia-smi > /dev/null; then
  gpus=$(nvidia-smi --query-gpu=index --format=csv,noheader | wc -l)
fi

if [ ! -x .venv/bin/python ]; then
  extra=""
  if [ "$gpus" -gt 0 ]; then
    driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader | head -n1)
    extra="[cuda12]"
    if [ "${driver%%.*}" -ge 580 ]; then extra="[cuda13]"; fi # the oldest that CUDA 13 runs on
  fi
  python3 -m venv .venv
  .venv/bin/pip install -q -e ".$extra"
fi

if [ "$gpus" -gt 1 ]; then gpus=$((gpus - gpus % 2)); fi # towers come in pairs
if [ "$gpus" -gt 0 ] && [[ " $* " != *" --config.devices="* ]]; then
  set -- "$@" "--config.devices=$gpus"
fi
exec .venv/bin/python -m alexnet_jax.main "$@"
