#!/usr/bin/env bash
# Two machines of eight GPUs each. On both, at about the same time:
#
#   HEAD=first-machine bash two_nodes.sh --model MODEL --dataset DATASET --output_dir /shared/out
#
# HEAD is the first machine's name, as both reach it. The output folder is on a disk that both see.
# NODES, GPUS and PORT are optional.
set -euo pipefail
: "${HEAD:?set HEAD to the name of the first machine}"

exec torchrun \
  --nnodes="${NODES:-2}" --nproc-per-node="${GPUS:-8}" \
  --rdzv-backend=c10d --rdzv-endpoint="$HEAD:${PORT:-29400}" --rdzv-id=bitdistill \
  -m hf_bitdistill run "$@"
