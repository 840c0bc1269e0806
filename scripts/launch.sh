# Sourced by the launchers: how many processes this machine gets, and what is added to the user's arguments.

# The value of a variable, which must be a number: number NAME DEFAULT LEAST [MOST]
number() {
  local value=${!1:-$2}
  case $value in *[!0-9]* | ?????????*) value='' ;; esac
  if [ "${value:--1}" -lt "$3" ] || [ "$value" -gt "${4:-99999999}" ]; then
    echo "error: $1 must be a number from $3 ${4:+to }${4:-on}, got '${!1}'" >&2
    return 2
  fi
  echo "$((10#$value))"
}

# Processes of this node: GPUS, else the GPUs that the job may see, else one on the CPU.
processes() {
  local count=0 name names
  if [ -n "${GPUS:-}" ]; then
    number GPUS 1 1
    return
  fi
  if [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then # numbers, or names of GPUs or their parts (MIG), up to the first -1
    IFS=, read -r -a names <<<"$CUDA_VISIBLE_DEVICES" || true
    for name in "${names[@]}"; do
      case ${name// /} in -* | "") break ;; esac
      count=$((count + 1))
    done
  elif command -v nvidia-smi >/dev/null; then # of a GPU in parts, a process sees one part
    count=$(nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU') || count=0
  fi
  if [ "$count" = 0 ]; then
    echo "no GPU is visible: one process on the CPU (GPUS=n starts n)" >&2
    count=1
  fi
  echo "$count"
}

# The run's folder, of --output, with its whole path.
output() {
  local argument before='' folder=''
  for argument in "$@"; do
    [ "$before" = --output ] && folder=$argument
    case $argument in --output=*) folder=${argument#--output=} ;; esac
    before=$argument
  done
  case $folder in /* | '') ;; *) folder=$PWD/$folder ;; esac
  echo "${folder%/}"
}

# A number for the job: from its output folder, the same on all nodes.
job() { output "$@" | tr -d '\n' | cksum | cut -d ' ' -f 1; }

# Whether one process is enough: to print something, or to say that there is no --output.
alone() {
  local argument
  for argument in "$@"; do
    case $argument in -h | --help | --print-config) return ;; esac
  done
  [ -z "$(output "$@")" ]
}

# Becomes train.py, in processes that torchrun starts: launch torchrun's options -- train's arguments
launch() {
  local options=() argument resume=(--resume auto) gpus restarts patience train
  train=$(dirname "${BASH_SOURCE[0]}")/../tools/train.py
  while [ "$1" != -- ]; do options+=("$1") && shift; done
  shift
  if alone "$@"; then exec python "$train" "$@"; fi
  for argument in "$@"; do # what the user says of a run that is there wins
    case $argument in --resume | --resume=* | --overwrite) resume=() ;; esac
  done
  gpus=$(processes) && restarts=$(number RESTARTS 3 0) && patience=$(number SHUTDOWN_TIMEOUT 600 1) || exit 2
  options+=(
    --nproc-per-node="$gpus"
    --max-restarts="$restarts"         # after a process has died, from the last save
    --shutdown-timeout="$patience"     # seconds that a save may take after a signal
    --log-dir="$(output "$@")/logs/${HOSTNAME%%.*}-$(date +%Y%m%d-%H%M%S)"
    --tee=3 --log-line-prefix-template='[rank ${rank}] '
  )
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
  export THP_MEM_ALLOC_ENABLE=${THP_MEM_ALLOC_ENABLE:-1} # PyTorch's large tensors in huge pages: 0 leaves them out
  exec python -m elsa.tools.tasks.agent "${options[@]}" "$train" "$@" "${resume[@]}"
}
