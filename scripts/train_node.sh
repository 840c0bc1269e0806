#!/usr/bin/env bash
# One node, all GPUs that the job sees (or GPUS=n processes): scripts/train_node.sh CONFIG --output DIR [...]
# A run that DIR holds is continued, unless the arguments have --overwrite or a --resume of their own; docs/launch.md.
set -euo pipefail
source "$(dirname "$0")/launch.sh"
launch --standalone -- "$@"
