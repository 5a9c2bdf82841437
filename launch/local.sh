#!/usr/bin/env bash
# One process with all GPUs of this machine:
#
#     bash launch/local.sh --config=configs/alexnet_2012.py --workdir=runs/alexnet_2012
#
# Makes the environment .venv if there is none. Takes all options of alexnet_jax.main. Without a GPU
# it trains on the CPU.
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
    if [ "${driver%%.*}" -ge 580 ]; then extra="[cuda13]"; fi # CUDA 13 needs this driver or a newer one
  fi
  python3 -m venv .venv
  .venv/bin/pip install -q -e ".$extra"
fi

if [ "$gpus" -gt 1 ]; then gpus=$((gpus - gpus % 2)); fi # two GPUs for two towers
if [ "$gpus" -gt 0 ] && [[ " $* " != *" --config.devices="* ]]; then
  set -- "$@" "--config.devices=$gpus"
fi
exec .venv/bin/python -m alexnet_jax.main "$@"
