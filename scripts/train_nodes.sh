#!/usr/bin/env bash
# Several nodes: run this on each, with HEAD=host of the first one and NODES=how many.
# HEAD=node01 NODES=2 scripts/train_nodes.sh CONFIG --output /shared/DIR [...]
# torchrun starts the processes again, up to RESTARTS times, when one dies or a node comes back; they go on from last.pt.
# A job is known by its output folder: RDZV_ID and PORT follow from it, so that jobs with the same HEAD do not meet.
set -euo pipefail
here=$(dirname "$0")
source "$here/launch.sh"
: "${HEAD:?HEAD must name the first node}" "${NODES:?NODES must tell how many nodes there are}"
gpus=$(processes)
job=$(job "$@")
port=${PORT:-$((20000 + job % 12000))}
id=${RDZV_ID:-elsa-$job}
check_port "$HEAD" "$port" "$id" "$NODES"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 # else processes that are started again read what the dead ones left
exec torchrun --nnodes="$NODES" --nproc_per_node="$gpus" --max_restarts="${RESTARTS:-3}" --rdzv_id="$id" \
  --rdzv_backend=c10d --rdzv_endpoint="$HEAD:$port" "$here/../tools/train.py" "$@" $(resume "$@")
