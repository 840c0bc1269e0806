#!/usr/bin/env bash
# Trains a small ELSA-Swin on real handwritten digits and evaluates it in a second process: minutes on two CPU cores.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
export OMP_WAIT_POLICY=PASSIVE OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}  # one thread: the maps are too small to share
export THP_MEM_ALLOC_ENABLE=${THP_MEM_ALLOC_ENABLE:-1}  # PyTorch's large tensors in huge pages: 0 leaves them out

config=configs/classification/digits_elsa_swin_nano.yaml
run=${RUN:-runs/quickstart}
.venv/bin/python tools/train.py "$config" --output "$run" --resume auto --set DATA.WORKERS=1  # a core trains, another loads
.venv/bin/python tools/evaluate.py "$config" "$run/last.pt" --output "$run" --pictures 60
echo "curves         $run/curves.png"
echo "To train afresh, remove $run; to see every setting, add --print-config to either command."
