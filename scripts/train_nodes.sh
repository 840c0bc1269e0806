#!/usr/bin/env bash
# Several nodes: run this on each, with HEAD=host of the first one and NODES=how many; docs/launch.md has the rest.
# HEAD=node01 NODES=2 scripts/train_nodes.sh CONFIG --output /shared/DIR [...]
# The processes start again, up to RESTARTS times, when one dies or a node comes back; they go on from last.pt.
# A job is known by its output folder: RDZV_ID and PORT follow from it, so that jobs with the same HEAD do not meet.
set -euo pipefail
source "$(dirname "$0")/launch.sh"
: "${HEAD:?HEAD must name the first node}" "${NODES:?NODES must tell how many nodes there are}"
job=$(job "$@")
nodes=$(number NODES 1 1)
port=$(number PORT $((20000 + job % 12000)) 1 65535)
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 # else processes that are started again read what the dead ones left
launch --nnodes="$nodes" --rdzv-backend=c10d --rdzv-endpoint="$HEAD:$port" --rdzv-id="${RDZV_ID:-elsa-$job}" -- "$@"
