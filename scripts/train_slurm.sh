#!/usr/bin/env bash
#SBATCH --job-name=elsa
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --requeue
#SBATCH --signal=TERM@120
# sbatch scripts/train_slurm.sh CONFIG --output /shared/DIR [...]; a requeued job continues where it was.
set -euo pipefail
export HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1) NODES=$SLURM_NNODES RDZV_ID=$SLURM_JOB_ID
export GPUS=${SLURM_GPUS_ON_NODE:-8}
exec srun --kill-on-bad-exit=1 ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} \
  "${SLURM_SUBMIT_DIR:-.}/scripts/train_nodes.sh" "$@"
