#!/usr/bin/env bash
# One node, all GPUs that the job sees (or GPUS=n processes): scripts/train_node.sh CONFIG --output DIR [...]
# A run that DIR holds is continued, unless the arguments have --overwrite or a --resume of their own.
set -euo pipefail
here=$(dirname "$0")
source "$here/launch.sh"
gpus=$(processes)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec torchrun --standalone --nproc_per_node="$gpus" "$here/../tools/train.py" "$@" $(resume "$@")
