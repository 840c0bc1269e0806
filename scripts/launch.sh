# Sourced by the launchers: how many processes this machine gets, and what is added to the user's arguments.

# Processes of this node: GPUS, else the GPUs that the job may see, else one on the CPU.
processes() {
  if [ -n "${GPUS:-}" ]; then
    case $GPUS in *[!0-9]* | 0) echo "error: GPUS must be a number of processes, got '$GPUS'" >&2 && return 2 ;; esac
    echo "$GPUS"
    return
  fi
  local count=0 name names
  if [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then # numbers, or names of GPUs or of parts of them (MIG), up to the first -1
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

# "--resume auto", unless the user says what becomes of a run that is there.
resume() {
  local argument
  for argument in "$@"; do
    case $argument in --resume | --resume=* | --overwrite) return ;; esac
  done
  echo --resume auto
}

# A number for the job: from its output folder, the same on all nodes.
job() {
  local argument before='' folder=''
  for argument in "$@"; do
    [ "$before" = --output ] && folder=$argument
    case $argument in --output=*) folder=${argument#--output=} ;; esac
    before=$argument
  done
  case $folder in /*) ;; *) folder=$PWD/$folder ;; esac
  printf '%s' "${folder%/}" | cksum | cut -d ' ' -f 1
}

# Refuses, with code 2, a port of the first node where another job listens: check_port HEAD PORT ID NODES
check_port() {
  timeout 5 bash -c "exec 3<>/dev/tcp/$1/$2" 2>/dev/null || return 0 # nobody listens yet
  if [ "$4" = 1 ]; then
    echo "error: PORT $2 of HEAD $1 is taken, by another job or by one of the same --output; PORT=n gives this one its own" >&2
    return 2
  fi
  "$(dirname "$(command -v torchrun)")/python" -m elsa.engine.rendezvous "$1" "$2" "$3"
}

# Under nohup torchrun must not hear of the terminal's end either.
if (($((16#$(awk '/^SigIgn/ { print substr($2, length($2)) }' /proc/self/status 2>/dev/null || echo 0))) & 1)); then
  export PET_SIGNALS_TO_HANDLE=${PET_SIGNALS_TO_HANDLE:-SIGTERM,SIGINT,SIGQUIT}
fi
