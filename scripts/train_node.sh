#!/usr/bin/env bash
# One node, all its GPUs (or GPUS=n): scripts/train_node.sh CONFIG --output DIR [...]
set -euo pipefail
gpus=${GPUS:-$(nvidia-smi --list-gpus | wc -l)}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec torchrun --standalone --nproc_per_node="$gpus" "$(dirname "$0")/../tools/train.py" "$@" --resume auto
