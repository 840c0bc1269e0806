#!/usr/bin/env bash
#SBATCH --job-name=elsa
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=1-00:00:00
#SBATCH --signal=B:USR1@600
#SBATCH --requeue
#SBATCH --open-mode=append
# sbatch [Slurm's options] scripts/train_slurm.sh CONFIG --output /shared/DIR [...]; from the folder that has scripts/.
# Ten minutes before the time limit this script, not the training, hears SIGUSR1: it has the training save, waits for
# that and requeues the job, which goes on where it was. docs/launch.md has the rest.
set -euo pipefail
scripts=${SLURM_SUBMIT_DIR:-.}/scripts
if [ ! -e "$scripts/launch.sh" ]; then
  echo "error: $scripts is not there; submit from the folder that has scripts/" >&2
  exit 2
fi
source "$scripts/launch.sh"
read -r HEAD < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
export HEAD NODES=$SLURM_NNODES RDZV_ID=$SLURM_JOB_ID PORT=${PORT:-$((20000 + SLURM_JOB_ID % 12000))}
[ -z "${SLURM_GPUS_ON_NODE:-}" ] || export GPUS=${GPUS:-$SLURM_GPUS_ON_NODE}

late=''
trap 'late=1; scancel --signal=TERM "$SLURM_JOB_ID"' USR1 # to all processes of the steps, not to this script
srun --kill-on-bad-exit=1 ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} \
  "$scripts/train_nodes.sh" "$@" &
code=0 && wait $! || code=$?
if [ -n "$late" ]; then # the signal ended that wait
  code=0 && wait $! || code=$?
  if [ "$code" != 2 ] && [ ! -e "$(output "$@")/summary.json" ]; then # no mistake, and not finished
    echo "the time limit is near: job $SLURM_JOB_ID is requeued"
    scontrol requeue "$SLURM_JOB_ID"
  fi
fi
exit "$code"
