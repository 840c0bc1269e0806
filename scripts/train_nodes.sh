#!/usr/bin/env bash
# Several nodes: run this on each, with HEAD=host of the first one and NODES=how many.
# HEAD=node01 NODES=2 scripts/train_nodes.sh CONFIG --output /shared/DIR [...]
# torchrun restarts the group up to RESTARTS times when a node comes back; --resume auto continues from last.pt.
set -euo pipefail
: "${HEAD:?HEAD must name the first node}" "${NODES:?NODES must tell how many nodes there are}"
gpus=${GPUS:-$(nvidia-smi --list-gpus | wc -l)}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec torchrun --nnodes="$NODES" --nproc_per_node="$gpus" --max_restarts="${RESTARTS:-3}" --rdzv_id="${RDZV_ID:-elsa}" \
  --rdzv_backend=c10d --rdzv_endpoint="$HEAD:${PORT:-29500}" "$(dirname "$0")/../tools/train.py" "$@" --resume auto
